"""Squeeze and excitation in an optimized network: what becomes one step, and what stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import groupwise
from kernels import needs_kernels, without_kernels
from optimized import Both, Excite, Residual, check, kinds, settle

CHANNELS = 8


class Gated(nn.Module):
    """A product with a gate that `make` computes, behind a layer that owns its output, or not."""

    def __init__(self, make, *layers, other_side=False):
        super().__init__()
        self.stem = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.layers = nn.ModuleList(layers)
        self.make, self.other_side = make, other_side

    def forward(self, x):
        x = torch.relu(self.stem(x))
        gate = self.make(x, *self.layers)
        return gate * x if self.other_side else x * gate


class Linear(nn.Module):
    """Squeeze and excitation by linear layers, as SENet's first versions wrote it."""

    def __init__(self, expands):
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(CHANNELS, 3, bias=False), nn.ReLU(), nn.Linear(3, CHANNELS), nn.Sigmoid())
        self.expands = expands

    def forward(self, x):
        n, c = x.shape[:2]
        gate = self.fc(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)
        return x * gate.expand_as(x) if self.expands else x * gate


def convs(hidden=4):
    return nn.Conv2d(CHANNELS, hidden, 1), nn.Conv2d(hidden, CHANNELS, 1)


def source():
    return torch.randn(2, CHANNELS, 6, 7)


def steps(fast):
    return [step for step in fast.plan.steps if step.kind == "squeeze_excite"]


TAKEN = {
    "conv": lambda: Excite(CHANNELS, nn.Hardsigmoid()),
    "linear": lambda: Linear(False),
    "expanded": lambda: Linear(True),
    "avg_pool": lambda: Gated(lambda x, a, b: torch.sigmoid(b(F.silu(a(F.avg_pool2d(x, (6, 7)))))), *convs()),
    "other_side": lambda: Gated(
        lambda x, a, b: torch.sigmoid(b(F.silu(a(x.mean((-1, -2), True))))), *convs(), other_side=True
    ),
    "effective": lambda: Gated(
        lambda x, a: F.hardsigmoid(a(x.mean((2, 3), keepdim=True))), nn.Conv2d(CHANNELS, CHANNELS, 1)
    ),
    "no_activation": lambda: Gated(lambda x, a, b: b(a(x.mean((2, 3), keepdim=True))), *convs()),
    "norm": lambda: Gated(
        lambda x, a, n, b: torch.sigmoid(b(F.relu(n(a(x.mean((2, 3), keepdim=True)))))),
        convs()[0],
        nn.BatchNorm2d(4),
        convs()[1],
    ),
    "unsqueezed": lambda: Gated(
        lambda x, a: torch.tanh(a(x.mean((2, 3))))[:, :, None, None], nn.Linear(CHANNELS, CHANNELS)
    ),
}
LEFT = {
    "one axis": lambda: Gated(lambda x, a, b: torch.sigmoid(b(a(x.mean(2, keepdim=True)))), *convs()),
    "part of the image": lambda: Gated(
        lambda x, a, b: torch.sigmoid(b(a(F.interpolate(F.avg_pool2d(x, 3), x.shape[2:])))), *convs()
    ),
    "another source": lambda: Gated(lambda x, a, b: torch.sigmoid(b(a(x.square().mean((2, 3), True)))), *convs()),
    "maximum": lambda: Gated(lambda x, a, b: torch.sigmoid(b(a(F.adaptive_max_pool2d(x, 1)))), *convs()),
    "gelu": lambda: Gated(lambda x, a, b: torch.sigmoid(b(F.gelu(a(x.mean((2, 3), True))))), *convs()),
    "groups": lambda: Gated(
        lambda x, a: torch.sigmoid(a(x.mean((2, 3), True))), nn.Conv2d(CHANNELS, CHANNELS, 1, groups=2)
    ),
    "padded": lambda: Gated(
        lambda x, a: torch.sigmoid(a(x.mean((2, 3), True)))[:, :, 1:2, 1:2],
        nn.Conv2d(CHANNELS, CHANNELS, 1, padding=1),
    ),
    "one gate": lambda: Gated(lambda x, a: torch.sigmoid(a(x.mean((2, 3), True))), nn.Conv2d(CHANNELS, 1, 1)),
    "one gate, expanded": lambda: Gated(
        lambda x, a: torch.sigmoid(a(x.mean((2, 3), True))).expand(-1, CHANNELS, -1, -1), nn.Conv2d(CHANNELS, 1, 1)
    ),
    "softmax": lambda: Gated(lambda x, a: torch.softmax(a(x.mean((2, 3), True)), 1), nn.Conv2d(CHANNELS, CHANNELS, 1)),
    "three layers": lambda: Gated(
        lambda x, a, b, c: torch.sigmoid(c(b(a(x.mean((2, 3), True))))), *convs(), nn.Conv2d(CHANNELS, CHANNELS, 1)
    ),
    "divisor": lambda: Gated(
        lambda x, a, b: torch.sigmoid(b(a(F.avg_pool2d(x, (6, 7), divisor_override=3)))), *convs()
    ),
}


@needs_kernels
@pytest.mark.parametrize("name", TAKEN)
def test_one_step_computes_it(name):
    fast = check(settle(TAKEN[name]()), source())
    (step,) = steps(fast)
    assert step.engine == "groupwise"
    assert step.fused[0] == "mean"
    assert step.fused[-1] == "product"
    assert not {"mul", "mean", "adaptive_avg_pool2d", "linear"} & set(kinds(fast))


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_it_stays(name):
    assert not steps(check(settle(LEFT[name]()), source()))


def test_a_gate_that_something_else_reads_stays():
    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(CHANNELS, CHANNELS, 1)

        def forward(self, x):
            gate = torch.sigmoid(self.conv(x.mean((2, 3), keepdim=True)))
            return x * gate, gate

    assert not steps(check(settle(Read()), source()))


def test_a_product_across_images_stays():
    """Two dimensions of a gate without pixels would meet the image's own."""

    class Crossed(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(6, 6)

        def forward(self, x):
            return x * torch.sigmoid(self.fc(x.mean((2, 3))))

    assert not steps(check(settle(Crossed()), torch.randn(6, 6, 6, 6)))


@needs_kernels
def test_the_source_keeps_its_values_for_other_readers():
    model = settle(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), nn.SiLU(), Residual(Excite(CHANNELS, nn.Sigmoid()))))
    assert steps(check(model, source()))
    model = settle(nn.Sequential(nn.Conv2d(CHANNELS, CHANNELS, 3), Both(Excite(CHANNELS, nn.Tanh()), nn.SiLU())))
    assert steps(check(model, source()))
    assert steps(check(settle(Excite(CHANNELS, nn.Sigmoid())), source()))


@needs_kernels
def test_other_dimensions():
    for conv, pool, shape in (
        (nn.Conv1d, nn.AdaptiveAvgPool1d, (2, 6, 9)),
        (nn.Conv3d, nn.AdaptiveAvgPool3d, (2, 6, 3, 4, 5)),
    ):

        class Excited(nn.Module):
            def __init__(self, conv=conv, pool=pool):
                super().__init__()
                self.gate = nn.Sequential(pool(1), conv(6, 3, 1), nn.ReLU(), conv(3, 6, 1), nn.Sigmoid())

            def forward(self, x):
                return x * self.gate(x)

        assert steps(check(settle(Excited()), torch.randn(shape)))


@needs_kernels
def test_changed_weights_are_packed_again():
    model = settle(TAKEN["norm"]())
    fast = check(model, source())
    with torch.no_grad():
        model.layers[0].weight.mul_(2)
        model.layers[1].running_mean.add_(1)
        model.layers[2].bias.add_(1)
    check(model, source(), fast=fast)


@needs_kernels
def test_the_plan_names_the_parts():
    fast = groupwise.optimize(settle(TAKEN["norm"]()), source())
    (step,) = steps(fast)
    assert step.fused == ("mean", "convolution", "batch norm", "relu", "convolution", "sigmoid", "product")


def test_float64_stays():
    model = settle(Excite(CHANNELS, nn.Sigmoid())).double()
    fast = groupwise.optimize(model, source().double())
    assert not steps(fast)


def test_without_the_native_core_it_stays(monkeypatch):
    without_kernels(monkeypatch)
    assert not steps(check(settle(Excite(CHANNELS, nn.Sigmoid())), source()))
