"""Runs of layers that become chains: what the plan says, what the network computes, and when there is none."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import groupwise
from accuracy import threads
from groupwise.profile.layers import layer_times
from groupwise.rewrite import chain
from groupwise.rewrite.timing import step_times
from kernels import needs_kernels

pytestmark = needs_kernels


@pytest.fixture
def chains_win(monkeypatch):
    """Chains are chosen wherever they compute the right values, whatever they take."""
    monkeypatch.setattr(chain, "fastest", lambda seconds: "chain")
    # Of chains of two and of three layers the longer gains more.
    timed = chain.time_calls

    def time_calls(calls, given):
        seconds = timed(calls, given)
        return {name: [1.0 if name == "one by one" else 1e-3] for name in seconds}

    monkeypatch.setattr(chain, "time_calls", time_calls)


def block(inputs, outputs, stride=1):
    middle = 4 * inputs
    return nn.Sequential(
        *(nn.Conv2d(inputs, middle, 1, bias=False), nn.BatchNorm2d(middle), nn.ReLU6()),
        *(nn.Conv2d(middle, middle, 3, stride, 1, groups=middle, bias=False), nn.BatchNorm2d(middle), nn.ReLU6()),
        *(nn.Conv2d(middle, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
    )


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.first, self.second = block(16, 16), block(16, 24, 2)
        self.last = nn.Linear(24, 5)

    def forward(self, image):
        features = functional.silu(self.stem(image))
        features = features + self.first(features)
        return self.last(self.second(features).mean((2, 3)))


def seeded(make=Net):
    torch.manual_seed(0)
    model = make().eval()
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return model


def right(fast, model, x):
    exact = copy.deepcopy(model).double()(x.double())
    return (fast(x).double() - exact).abs().max() <= 1e-4 * exact.abs().max()


def chained(fast):
    return [step.layers for step in fast.plan.steps if step.kind == "chain"]


@pytest.mark.parametrize("count", [1, 2])
@torch.no_grad()
def test_blocks_become_chains(chains_win, count):
    model, x = seeded(), torch.randn(2, 3, 32, 32)
    with threads(count):
        fast = groupwise.optimize(model, x, tune=True)
        assert right(fast, model, x)
        found = chained(fast)
        assert sum(map(len, found)) >= 4
        assert all(2 <= len(layers) <= chain.MOST_LAYERS for layers in found)
        assert sum(fast.plan.engines.values()) == 8
        assert "at a time" in str(fast.plan)
        # Weights that change are packed again, and copies plan anew.
        model.first[3].weight.mul_(2)
        assert right(fast, model, x)
        for other in (copy.deepcopy(fast), pickle.loads(pickle.dumps(fast))):
            assert right(other, model, x)
        assert right(fast, model, torch.randn(1, 3, 41, 27))


@torch.no_grad()
def test_a_chain_is_one_step_and_one_row(chains_win):
    model, x = seeded(), torch.randn(1, 3, 32, 32)
    fast = groupwise.optimize(model, x, tune=True)
    assert [step for step, _ in step_times(fast, (x,), {}) if step is not None] == list(fast.plan.steps)
    rows = layer_times(model, model, fast, ((x,), (x,)), 2)
    inside = {name for layers in chained(fast) for name in layers[1:]}
    names = [row.name for row in rows]
    assert not inside & set(names)
    assert {layers[0] for layers in chained(fast)} <= set(names)
    assert all(row.optimized_ms is not None for row in rows)


def test_nothing_is_a_chain_unless_it_was_measured(chains_win):
    model, x = seeded(), torch.randn(1, 3, 32, 32)
    assert not chained(groupwise.optimize(model, x, tune=False))


class Overwritten(nn.Module):
    """What the first layer reads is overwritten, as nothing else reads it later, before the second layer runs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1)

    def forward(self, x):
        source = x * 2
        first = self.a(source)
        other = source + 1
        return self.b(first) * other


class ReadTwice(Overwritten):
    def forward(self, x):
        first = self.a(x).relu()
        return self.b(first) * first


class Flat(Overwritten):
    """The second layer reads what is no image of the first one's channels."""

    def forward(self, x):
        return self.b(self.a(x).flip(1))


@pytest.mark.parametrize("make", [Overwritten, ReadTwice, Flat])
@torch.no_grad()
def test_layers_that_are_no_chain(chains_win, make):
    model, x = seeded(make), torch.randn(1, 16, 12, 12)
    fast = groupwise.optimize(model, x, tune=True)
    assert not chained(fast)
    assert right(fast, model, x)


class Beside(Overwritten):
    """Another layer runs between, and the residual is made there."""

    def __init__(self):
        super().__init__()
        self.side = nn.Conv2d(16, 16, 1)

    def forward(self, x):
        source = x * 2
        first = self.a(source).relu()
        side = self.side(source)
        return (self.b(first) + side).relu()


@torch.no_grad()
def test_another_layer_may_run_between(chains_win):
    model, x = seeded(Beside), torch.randn(2, 16, 12, 12)
    fast = groupwise.optimize(model, x, tune=True)
    assert chained(fast)
    assert right(fast, model, x)


@torch.no_grad()
def test_outputs_behind_a_chain_have_the_models_strides(chains_win):
    # An image of one channel is in both formats, and the model answers in the first.
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 24, 1), nn.Conv2d(24, 32, 5, padding=4, dilation=2, groups=2)).eval()
    x = torch.randn(2, 1, 14, 17)
    fast = groupwise.optimize(model, x, tune=True)
    assert fast(x).stride() == model(x).stride()
    assert right(fast, model, x)
