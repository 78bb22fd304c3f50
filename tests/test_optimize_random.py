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


@st.composite
def convolutions(draw):
    kernel = draw(st.sampled_from([1, 3, 5]))
    dilation = draw(st.sampled_from([1, 2])) if kernel == 3 else 1
    groups = draw(st.sampled_from([1, 2, 4, 8]))
    options = {"groups": groups, "bias": draw(st.booleans()), "dilation": dilation}
    if draw(st.integers(0, 4)) == 0:
        return nn.ConvTranspose2d(CHANNELS, CHANNELS, kernel, padding=dilation * (kernel // 2), **options)
    padding = draw(st.sampled_from(["same", dilation * (kernel // 2)]))
    return nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=padding, **options)


@st.composite
def blocks(draw):
    """Convolutions, BatchNorms and activations in any order."""
    parts = []
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["conv", "conv", "norm", "act"]))
        if kind == "conv":
            parts.append(draw(convolutions()))
        elif kind == "norm":
            parts.append(nn.BatchNorm2d(CHANNELS, affine=draw(st.booleans())))
        else:
            parts.append(draw(st.sampled_from(ACTIVATIONS))())
    return nn.Sequential(*parts)


def grown(inner):
    activation = st.sampled_from(ACTIVATIONS).map(lambda make: make())
    return st.one_of(
        st.builds(Residual, inner, st.booleans(), activation),
        st.builds(lambda a, b: nn.Sequential(Both(a, b), nn.Conv2d(2 * CHANNELS, CHANNELS, 1)), inner, inner),
        st.builds(lambda block, gate: nn.Sequential(block, Excite(CHANNELS, gate)), inner, activation),
        st.builds(lambda block, groups: nn.Sequential(block, Shuffle(groups)), inner, st.sampled_from([2, 4])),
        st.builds(Again, inner),
        st.builds(Beside, inner, activation),
        st.builds(nn.Sequential, inner, inner),
    )


@settings(max_examples=25)
@given(st.recursive(blocks(), grown, max_leaves=3), st.booleans(), st.integers(0, 5), st.integers(1, 2))
def test_random_networks(model, last, whole, batch):
    torch.manual_seed(batch)
    model = settle(model if whole else Refusing(model, nn.Conv2d(CHANNELS, 4, 1)))
    x = torch.randn(batch, CHANNELS, 7, 6)
    check(model, x.contiguous(memory_format=torch.channels_last) if last else x)


def test_resnext():
    fast = check(settle(groupwise.models.resnext50_32x4d()), torch.randn(1, 3, 64, 64))
    assert sum(fast.plan.engines.values()) == 54
    assert len(fast.plan.steps) == 58


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
