"""Random small networks, and published ones by name: the optimized network is as exact as the model."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import groupwise
from groupwise.cli.targets import load_model
from optimized import Both, Excite, Refusing, Residual, Shuffle, check, settle

ACTIVATIONS = [
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.GELU,
    nn.LeakyReLU,
    nn.Sigmoid,
    nn.Tanh,
    nn.ELU,
    lambda: nn.ReLU(inplace=True),
]
CHANNELS = 8


class Again(nn.Module):
    """A block that runs twice."""

    def __init__(self, block):
        super().__init__()
        self.block = block

    def forward(self, x):
        return self.block(self.block(x))


class Beside(nn.Module):
    """The output of a block, read twice."""

    def __init__(self, block, activation):
        super().__init__()
        self.block, self.activation = block, activation

    def forward(self, x):
        made = self.block(x)
        return self.activation(made) + made * 0.5


class Halves(nn.Module):
    """Two halves of the channels, each by its own block, in another order."""

    def __init__(self, first, second, share):
        super().__init__()
        self.first, self.second, self.share = first, second, share

    def forward(self, x):
        a, b = x.chunk(2, 1)
        a = self.first(torch.cat([a, a], 1))
        return torch.cat([(a if self.share else self.second(torch.cat([b, b], 1)))[:, : CHANNELS // 2], b], 1)


class Norms(nn.Module):
    """BatchNorms that read one tensor, which is also read elsewhere."""

    def __init__(self, block, first, second):
        super().__init__()
        self.block, self.first, self.second = block, first, second

    def forward(self, x):
        made = self.block(x)
        return self.first(made).relu() + self.second(made) + made


class Branches(nn.Module):
    """Layers and BatchNorms of one tensor, the tensor, and a difference of them."""

    def __init__(self, block, branches, itself):
        super().__init__()
        self.block, self.branches, self.itself = block, nn.ModuleList(branches), itself

    def forward(self, x):
        x = self.block(x)
        first, *others = [branch(x) for branch in self.branches]
        made = first - sum(others)
        return x + made if self.itself else made


class Head(nn.Module):
    """What ends a classifier."""

    def __init__(self, block, linear, dims):
        super().__init__()
        self.block, self.linear, self.dims = block, linear, dims

    def forward(self, x):
        pooled = self.block(x).mean(tuple(range(2, 2 + self.dims))) if self.dims else self.block(x).flatten(2)[:, :, 0]
        return self.linear(torch.flatten(pooled, 1))


class Grammar:
    """Draws networks of so many spatial dimensions, which keep the size and the channels."""

    def __init__(self, dims):
        self.dims = dims
        self.conv = {1: nn.Conv1d, 2: nn.Conv2d}[dims]
        self.transposed = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[dims]
        self.norm = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d}[dims]
        self.norm_act = {1: groupwise.nn.BatchNormAct1d, 2: groupwise.nn.BatchNormAct2d}[dims]
        self.max, self.average = {1: (nn.MaxPool1d, nn.AvgPool1d), 2: (nn.MaxPool2d, nn.AvgPool2d)}[dims]
        self.activation = st.sampled_from(ACTIVATIONS).map(lambda make: make())

    def layer(self, draw):
        kernel = draw(st.sampled_from([1, 3, 5]))
        dilation = draw(st.sampled_from([1, 2])) if kernel == 3 else 1
        groups = draw(st.sampled_from([1, 2, 4, 8]))
        options = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
        if draw(st.integers(0, 4)) == 0:
            return self.transposed(CHANNELS, CHANNELS, kernel, padding=dilation * (kernel // 2), **options)
        padding = draw(st.sampled_from(["same", dilation * (kernel // 2)]))
        return self.conv(CHANNELS, CHANNELS, kernel, padding=padding, **options)

    def part(self, draw):
        kind = draw(st.sampled_from(["conv"] * 4 + ["norm"] * 3 + ["act"] * 3 + ["norm act", "pool", "drop", "hook"]))
        if kind == "conv":
            return self.layer(draw)
        if kind == "norm":
            return self.norm(CHANNELS, affine=draw(st.booleans()), eps=draw(st.sampled_from([1e-5, 1e-2])))
        if kind == "norm act":
            return self.norm_act(CHANNELS, activation=draw(st.sampled_from(groupwise.nn.functional.ACTIVATIONS)))
        if kind == "pool":
            return draw(st.sampled_from([self.max, self.average]))(3, stride=1, padding=1)
        if kind == "drop":
            return nn.Dropout(0.5, inplace=draw(st.booleans()))
        if kind == "hook":
            kept = self.conv(CHANNELS, CHANNELS, 1)
            kept.register_forward_hook(doubled)
            return kept
        return draw(self.activation)

    def blocks(self):
        """Convolutions, BatchNorms and activations in any order, and what may stand between them."""

        @st.composite
        def block(draw):
            return nn.Sequential(*(self.part(draw) for _ in range(draw(st.integers(1, 4)))))

        return block()

    def branches(self):
        """What may be one layer, if all read the same."""

        @st.composite
        def branch(draw):
            norm = self.norm(CHANNELS)
            return draw(st.sampled_from([norm, nn.Sequential(self.layer(draw), norm), self.layer(draw)]))

        return st.lists(branch(), min_size=1, max_size=3)

    def grown(self, inner):
        norms = st.builds(lambda affine: self.norm(CHANNELS, affine=affine), st.booleans())
        many = [
            st.builds(Residual, inner, st.booleans(), self.activation),
            st.builds(lambda a, b: nn.Sequential(Both(a, b), self.conv(2 * CHANNELS, CHANNELS, 1)), inner, inner),
            st.builds(Halves, inner, inner, st.booleans()),
            st.builds(Norms, inner, norms, norms),
            st.builds(Branches, inner, self.branches(), st.booleans()),
            st.builds(Again, inner),
            st.builds(Beside, inner, self.activation),
            st.builds(nn.Sequential, inner, inner),
        ]
        if self.dims == 2:
            many += [
                st.builds(lambda block, gate: nn.Sequential(block, Excite(CHANNELS, gate)), inner, self.activation),
                st.builds(lambda block, groups: nn.Sequential(block, Shuffle(groups)), inner, st.sampled_from([2, 4])),
            ]
        return st.one_of(many)

    def networks(self):
        """A tree of blocks, with a classifier's end or without."""
        trees = st.recursive(self.blocks(), self.grown, max_leaves=3)
        heads = st.builds(
            lambda tree, mean: Head(tree, nn.Linear(CHANNELS, 5), mean), trees, st.just(self.dims) | st.just(0)
        )
        return st.one_of(trees, heads)


def doubled(module, args, output):
    """A hook that changes what the model computes."""
    return output * 2


@settings(max_examples=40)
@given(st.data(), st.sampled_from([1, 2, 2]), st.booleans(), st.integers(0, 5), st.integers(1, 2))
def test_random_networks(data, dims, last, whole, batch):
    torch.manual_seed(batch)
    grammar = Grammar(dims)
    model = data.draw(grammar.networks())
    if whole == 0:
        model = Refusing(model, nn.Identity())
    model = settle(model)
    x = torch.randn(batch, CHANNELS, *(7, 6)[:dims])
    fast = check(model, x.contiguous(memory_format=torch.channels_last) if last and dims == 2 else x)
    kept = ("it has forward hooks", "has seen", "its input")
    assert whole == 0 or all(left.reason.endswith(kept) for left in fast.plan.left), fast.plan


def test_resnext():
    fast = check(settle(groupwise.models.resnext50_32x4d()), torch.randn(1, 3, 64, 64))
    assert sum(fast.plan.engines.values()) == 54
    assert len(fast.plan.steps) == 57


# One network for each kind of block.
NAMED = {
    "torchvision": "mobilenet_v2 mobilenet_v3_small efficientnet_b0 shufflenet_v2_x0_5 regnet_y_400mf convnext_tiny",
    "timm": "ghostnet_050 mobilevit_xxs",
}


@pytest.mark.parametrize("target", [f"{source}:{name}" for source, names in NAMED.items() for name in names.split()])
def test_published_networks(target):
    if importlib.util.find_spec(target.split(":")[0]) is None:
        pytest.skip(f"{target.split(':')[0]} is not installed")
    fast = check(settle(load_model(target)), torch.randn(1, 3, 64, 64))
    assert not fast.plan.left
    assert "not onednn: oneDNN's operators" not in str(fast.plan)
