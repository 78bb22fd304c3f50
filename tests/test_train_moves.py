"""A BatchNorm in a network for training runs where its inputs and statistics are what the model gives it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import groupwise
from training import assert_as_exact, randomize


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(7))


class Written(nn.Module):
    """Writes to the input of a BatchNorm, or of a product, before a convolution reads the result."""

    def __init__(self, run):
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
        self.down, self.run = nn.Conv2d(8, 4, 1), run

    def forward(self, x):
        # In training a BatchNorm keeps its input, so that nothing may write to that.
        return self.run(self, self.first(x), F.relu if self.training else torch.relu_)


def normed(m, h, write):
    z = m.norm(h)
    h = write(h)
    return m.last(z) + h


def activated(m, h, write):
    z = F.silu(m.norm(h))
    h = write(h)
    return m.last(z) + h


def gated(m, h, write):
    z = m.norm(h)
    gate = m.down(z.mean((2, 3), keepdim=True)).repeat(1, 2, 1, 1)
    product = z * gate
    h = write(gate)
    return m.last(product) + h


@pytest.mark.parametrize("run", [normed, activated, gated])
def test_what_it_reads_may_be_written_later(run):
    model = randomize(Written(run))
    net = groupwise.optimize(copy.deepcopy(model), image(2, 3, 6, 6), train=True, tune=False)
    assert_as_exact(net, model, image(2, 3, 6, 6), slack=2e-5)
    net.load_state_dict(model.state_dict())
    net.eval(), model.eval()
    with torch.no_grad():
        torch.testing.assert_close(net(image(2, 3, 6, 6)), model(image(2, 3, 6, 6)), rtol=1e-4, atol=1e-5)


class Shared(nn.Module):
    """Normalises two tensors by one module, and convolves the second first."""

    def __init__(self):
        super().__init__()
        self.norm, self.first, self.second = nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        one = self.norm(x)
        other = self.norm(3 * x + 1)
        return self.second(other) + self.first(one)


def test_statistics_are_updated_in_the_order_of_the_model():
    model = randomize(Shared())
    net = groupwise.optimize(copy.deepcopy(model), image(2, 8, 6, 6), train=True, tune=False)
    assert_as_exact(net, model, image(2, 8, 6, 6), slack=2e-5)


@pytest.mark.parametrize("sizes", [([2, 2], None, 0), ([3, 2], [2, 1], [1, 0]), ((2, 3), 2, (0, 1))])
def test_a_pooling_takes_lists_as_sizes(sizes):
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(*sizes), nn.Conv2d(8, 4, 1)]
    model = randomize(nn.Sequential(*layers))
    net = groupwise.optimize(copy.deepcopy(model), image(2, 3, 9, 9), train=True, tune=False)
    assert_as_exact(net, model, image(2, 3, 9, 9), slack=2e-5)
    assert not net.plan.left
