"""The channel axes of models: any order of an axis that is not pinned computes the same."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import groupwise
from groupwise.choose.convert.axes import ChannelAxis, reorder
from groupwise.choose.convert.channels import Channels
from groupwise.cli.targets import import_torchvision


def axes(channels: Channels) -> list[ChannelAxis]:
    every = (axis for parts in (*channels.inputs.values(), *channels.outputs.values()) for axis in parts)
    return list({id(axis.root()): axis.root() for axis in every}.values())


def pinned(parts) -> str:
    """Why the order of a value's channels is fixed; empty if that of every part is free."""
    return next((axis.root().pinned for axis in parts if axis.root().pinned), "")


def randomise(model: nn.Module) -> nn.Module:
    """Gives every number of a norm its own value, so that a lost one shows."""
    with torch.no_grad():
        for module in model.modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None and tensor.dim() == 1 and tensor.is_floating_point():
                    tensor.uniform_(0.5, 1.5)
    return model.double().eval()


def check_orders(model: nn.Module, x: torch.Tensor) -> int:
    """Reorders every free axis at random; returns how many there are."""
    torch.manual_seed(0)
    channels = Channels(model)
    randomise(model)
    free = [axis for axis in axes(channels) if not axis.pinned]
    with torch.no_grad():
        before = model(x)
        for axis in free:
            reorder(model, axis, torch.randperm(axis.size))
        torch.testing.assert_close(model(x), before, rtol=1e-11, atol=1e-11 * before.abs().max().item())
    return len(free)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.one = nn.Conv2d(8, 12, 3, padding=1)
        self.slope = nn.PReLU(12)
        self.deep = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.two = nn.Conv2d(12, 8, 1)
        self.squeeze = nn.Conv2d(8, 4, 1)
        self.excite = nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        y = self.two(self.deep(self.slope(self.one(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        x = x + y * gate
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))


def test_residuals_gates_depthwise_and_flattened_layers_keep_what_they_compute():
    # The stream, the inside of the block, and the inside of the gate.
    assert check_orders(Residual(), torch.randn(2, 3, 9, 9, dtype=torch.double)) == 3


def test_transposed_and_other_dimensions():
    net = nn.Sequential(
        nn.Conv1d(2, 6, 3),
        nn.InstanceNorm1d(6, affine=True),
        nn.ConvTranspose1d(6, 4, 3, stride=2),
        nn.GELU(),
        nn.Conv1d(4, 2, 1),
    )
    assert check_orders(net, torch.randn(2, 2, 9, dtype=torch.double)) == 2
    deep = nn.Sequential(
        nn.Conv3d(1, 4, 2),
        nn.BatchNorm3d(4),
        nn.Conv3d(4, 6, 1),
        nn.Flatten(),
        nn.Linear(6 * 8, 7),
        nn.BatchNorm1d(7),
        nn.Linear(7, 2),
    )
    assert check_orders(deep, torch.randn(2, 1, 3, 3, 3, dtype=torch.double)) == 3


@pytest.mark.parametrize(
    ("name", "free"),
    [
        ("resnet18", 8),
        ("mobilenet_v2", 17),
        ("vgg11_bn", 10),
        ("regnet_x_400mf", 4),
        ("densenet121", 120),
        ("squeezenet1_1", 17),
        ("convnext_tiny", 22),
    ],
)
def test_published_networks(name, free):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    models = import_torchvision()
    found = check_orders(getattr(models, name)(weights=None), torch.randn(1, 3, 64, 64, dtype=torch.double))
    assert found >= free


class Tokens(nn.Module):
    """Normalises over channels: of maps in groups of one, and of rows of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3), nn.GroupNorm(1, 8), nn.Conv2d(8, 6, 1)
        self.rows, self.fc, self.last = nn.LayerNorm(6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):
        x = self.two(self.norm(self.one(x))).permute(0, 2, 3, 1)
        return self.last(F.gelu(self.fc(self.rows(x))))


def test_normalisations_over_channels_have_no_order_of_their_own():
    assert check_orders(Tokens(), torch.randn(2, 3, 5, 5, dtype=torch.double)) == 3


@pytest.mark.parametrize("place", ["norm", "rows"])
def test_a_normalisation_with_a_hook_or_a_computed_weight_pins_its_channels(place):
    hooked, computed = Tokens(), Tokens()
    hooked.get_submodule(place).register_forward_hook(lambda *_: None)
    nn.utils.parametrize.register_parametrization(computed.get_submodule(place), "weight", nn.Identity())
    for model in (hooked, computed):
        channels = Channels(model)
        assert pinned(channels.outputs["one" if place == "norm" else "two"])


class Pinned(nn.Module):
    def __init__(self, what):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.norm = nn.GroupNorm(2, 8)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.register_buffer("kept", torch.randn(8, 1, 1))
        self.what = what

    def forward(self, x):
        x = self.a(x)
        if self.what == "split":
            one, two = x.chunk(2, 1)
            return self.c(torch.cat([two, one], 1))
        if self.what == "shuffle":
            return self.c(F.channel_shuffle(x, 2))
        if self.what == "groups":
            return self.c(self.grouped(x))
        if self.what == "norm":
            return self.c(self.norm(x))
        if self.what == "twice":
            return self.c(self.b(self.b(x)))
        if self.what == "read":
            return self.c(x + self.c.weight.mean())
        if self.what == "parameter":
            # A parameter that two places read has the order of both.
            return self.c(x * self.scale) + self.scale.sum()
        if self.what == "buffer":
            # While it is traced, the second reading is a constant.
            return self.c(x * self.kept) + self.kept.cumsum(0)
        if self.what == "summed":
            return self.c(x * self.scale.sum(0))
        if self.what == "softmax":
            return self.c(F.softmax(x, 1))
        return self.c(x.mean(1, keepdim=True) + x)


@pytest.mark.parametrize(
    "what", ["split", "shuffle", "groups", "norm", "twice", "read", "parameter", "summed", "buffer", "mean"]
)
def test_what_depends_on_the_order_pins_it(what):
    model = Pinned(what)
    channels = Channels(model)
    assert pinned(channels.outputs["a"])
    check_orders(model, torch.randn(2, 3, 5, 5, dtype=torch.double))


def test_softmax_over_channels_computes_the_same_in_any_order_or_is_pinned():
    check_orders(Pinned("softmax"), torch.randn(2, 3, 5, 5, dtype=torch.double))


def test_inputs_and_outputs_of_the_model_are_pinned():
    channels = Channels(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)))
    assert "inputs" in pinned(channels.inputs["0"])
    assert "output" in pinned(channels.outputs["1"])
    assert not pinned(channels.outputs["0"])
    assert channels.outputs["0"][0].root() is channels.inputs["1"][0].root()


class Concatenated(nn.Module):
    """Concatenations of channels, nested and of one value twice, behind a norm, a flatten and a sum of equal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 5, 3)
        self.norm, self.slope = nn.BatchNorm2d(10), nn.PReLU(10)
        self.deep = nn.Conv2d(10, 10, 1, groups=10)
        self.back, self.fc = nn.ConvTranspose2d(10, 4, 1), nn.Linear((10 + 4 + 4) * 9, 5)

    def forward(self, x):
        one, two = self.a(x), self.b(x)
        both = self.slope(self.norm(torch.cat([one, two], dim=1)))
        both = both + torch.concat((one, two), -3)
        both = torch.cat(tensors=[self.deep(both[:, :, 1:]), both[:, :, :1]], dim=2)
        back = self.back(both)
        every = torch.relu(torch.cat([torch.cat([one, two], 1), back, back], 1))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(every, 3), 1)) + self.c(both).mean((2, 3))


def test_concatenations_carry_the_orders_of_their_parts():
    model = Concatenated()
    channels = Channels(model)
    assert [axis.size for axis in channels.inputs["c"]] == [4, 6]
    assert [axis.size for axis in channels.inputs["fc"]] == [4, 6, 4, 4]
    # Of a, of b, and of back, which the last concatenation has twice.
    assert check_orders(model, torch.randn(2, 3, 6, 6, dtype=torch.double)) == 3


class Unknown(nn.Module):
    """Concatenations of which an order would be wrong: beside the input, in other parts, along what nothing tells."""

    def __init__(self, what):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.c = nn.Conv2d(7 if what == "input" else 10, 4, 1)
        self.what = what

    def forward(self, x):
        one, two = self.a(x), self.b(x)
        if self.what == "input":
            return self.c(torch.cat([x, one], 1)).mean((2, 3))
        if self.what == "swapped":
            return self.c(torch.cat([one, two], 1) + torch.cat([two, one], 1)).mean((2, 3))
        return self.c(torch.cat([one, two], x.dim() - 3)).mean((2, 3))


@pytest.mark.parametrize("what", ["input", "swapped", "computed"])
def test_concatenations_whose_parts_are_unknown_are_pinned(what):
    model = Unknown(what)
    assert pinned(Channels(model).outputs["a"])
    check_orders(model, torch.randn(2, 3, 5, 5, dtype=torch.double))


class Scaled(nn.Module):
    """Numbers for each channel, as layer scale and affine transforms have them, in several shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(n, m, 1) for n, m in ((3, 6), (6, 6), (6, 8), (8, 2)))
        self.gamma = nn.Parameter(torch.randn(6, 1, 1))
        self.beta = nn.Parameter(torch.randn(1, 6, 1, 1))
        self.flat = nn.Parameter(torch.randn(6))
        self.one = nn.Parameter(torch.randn(1))
        self.norm, self.last = nn.Parameter(torch.randn(8)), nn.Linear(8, 4)
        self.offset = nn.Parameter(torch.randn(8))
        self.scale = nn.Parameter(torch.rand(8) + 1)

    def forward(self, x):
        x = self.a(x)
        x = x + self.gamma * self.b(x) - self.beta
        x = self.c(x.mul(self.flat.reshape(1, -1, 1, 1)) * self.one)
        rows = F.layer_norm(x.permute(0, 2, 3, 1), (8,), self.norm, self.offset, 1e-5) / self.scale
        return self.last(rows).mean((1, 2)) + self.d(x).mean()


def test_numbers_for_each_channel_fold_as_those_of_a_norm():
    model = Scaled()
    assert check_orders(model, torch.randn(2, 3, 5, 5, dtype=torch.double)) == 2
    uses = {use.tensor for axis in axes(Channels(model)) for use in axis.uses}
    assert {"gamma", "beta", "flat", "norm", "offset", "scale"} <= uses
    assert "one" not in uses


class Broadcast(nn.Module):
    """A value of one channel, of which numbers of a tensor or channels of another value make eight."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.a, self.b, self.other = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 6, 1)
        self.gamma, self.flat = nn.Parameter(torch.rand(8, 1, 1) + 1), nn.Parameter(torch.rand(8) + 1)
        self.c, self.d = nn.Conv2d(14, 8, 3), nn.Conv2d(8, 2, 1)
        self.what = what

    def forward(self, x):
        if self.what == "value":
            wide = self.a(x) * self.b(x)
        elif self.what == "gate":
            wide = torch.sigmoid(self.a(F.adaptive_avg_pool2d(x, 1))) * self.b(x)
        else:
            wide = self.a(x) * (self.gamma if self.what == "numbers" else self.flat.reshape(1, -1, 1, 1))
        # Of 1 and 6 channels a reader of 14 would have two entries for each.
        return self.d(self.c(torch.cat([wide, self.other(x)], 1))).mean((2, 3))


@pytest.mark.parametrize("what", ["value", "gate", "numbers", "reshaped"])
def test_one_channel_that_becomes_many_has_no_order(what):
    model = Broadcast(what)
    channels = Channels(model)
    assert pinned(channels.outputs["a"])
    assert pinned(channels.inputs["c"])
    assert [axis.root().size for axis in channels.inputs["c"]] == [8, 6]
    # Of c and of the other part.
    assert check_orders(model, torch.randn(2, 3, 6, 6, dtype=torch.double)) >= 2
    made = groupwise.regroup(model, {"c": 2}).rows
    assert made[0].fixed == "inputs"
