"""Convolutions that are no module of `torch.nn` itself let an activation be computed again as those do."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import groupwise
from groupwise.rewrite import train_origin
from groupwise.rewrite.train_filters import filters
from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from pairs import pairwise
from training import Squeeze, assert_as_exact, kept_bytes, randomize


class Inherits(nn.Conv2d):
    """Has the forward of `torch.nn`, as many layers of users that add a method or an attribute."""


class Calls(nn.Conv2d):
    """Calls the function by the layer's options."""

    def forward(self, input):
        return F.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Names(nn.Conv2d):
    """Calls the function by names, and leaves out what is the default of both."""

    def forward(self, input):
        return torch.conv2d(input, self.weight, bias=self.bias, groups=self.groups, padding=self.padding[0])


class Standardised(nn.Conv2d):
    """Makes its weight at each call, so that the weight has a gradient too and is no parameter."""

    def forward(self, input):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(input, weight, self.bias, 1, list(self.padding), (1,), self.groups)


KINDS = [groupwise.nn.Conv2d, Inherits, Calls, Names, Standardised]


def network(kind):
    """A convolution behind an activation, one behind a squeeze, and two that read one sum."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm1 = kind(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
            self.second, self.norm2 = kind(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)
            self.squeeze = Squeeze(8)
            self.third, self.norm3 = kind(8, 8, 1), nn.BatchNorm2d(8)
            self.fourth, self.fifth = kind(8, 6, 3, padding=1, groups=2), kind(8, 6, 1, bias=False)

        def forward(self, x):
            y = F.silu(self.norm1(self.first(x)))
            y = self.squeeze(F.relu(self.norm2(self.second(y))))
            y = F.hardswish(self.norm3(self.third(y)))
            return self.fourth(y) + self.fifth(y)

    return randomize(Network())


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(8))


@pytest.mark.parametrize(("kind", "channels_last", "block"), pairwise(KINDS, [False, True], [4000, 1 << 30]))
def test_gradients_are_as_exact_as_the_models(kind, channels_last, block, monkeypatch):
    monkeypatch.setattr(train_origin, "BLOCK", block)
    model = network(kind)
    net = Trainable(copy.deepcopy(model), Settings(channels_last=channels_last))
    assert_as_exact(net, model, image(3, 3, 10, 12), slack=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_they_keep_what_layers_of_pytorch_keep(kind):
    x = image(2, 3, 48, 48)
    made = [network(it) for it in (nn.Conv2d, kind)]
    nets = [groupwise.optimize(it, x, train=True, tune=False, recompute=True) for it in made]
    expected, found = (kept_bytes(net, x) for net in nets)
    # A weight that is no parameter is kept.
    weights = sum(p.numel() * 4 for p in made[0].parameters())
    assert expected <= found <= expected + 2 * weights * (kind is Standardised)
    assert kept_bytes(made[1], x) > 1.6 * found


class Doubles(nn.Conv2d):
    def forward(self, input):
        return super().forward(input) * 2


class Circular(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return F.conv2d(F.pad(input, (1, 1, 1, 1), mode="circular"), weight, bias, groups=self.groups)


class Rows(nn.Conv2d):
    def __call__(self, input):
        return super().__call__(input)[:, :, :6]


@pytest.mark.parametrize("kind", [Doubles, Circular, Rows])
def test_a_subclass_that_does_more_runs_its_own_code(kind):
    layers = kind(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), kind(8, 4, 3, groups=4), nn.BatchNorm2d(4), nn.ReLU()
    model = randomize(nn.Sequential(*layers))
    assert_as_exact(Trainable(copy.deepcopy(model), Settings()), model, image(3, 3, 10, 12), slack=2e-5)


@pytest.mark.parametrize("late", [False, True])
def test_a_convolution_that_is_replaced_on_the_instance_runs(late):
    """As image generators make tiles that join: by the part of the forward that the class calls."""

    def patch(model):
        def circular(x, weight, bias):
            return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="circular"), weight, bias)

        model[3]._conv_forward = circular

    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    model, x = randomize(nn.Sequential(*layers)), image(3, 3, 10, 12)
    ours = copy.deepcopy(model)
    net = Trainable(ours, Settings())
    if late:
        net(x)
        ours.load_state_dict(model.state_dict())
    for each in (model, ours):
        patch(each)
    torch.testing.assert_close(net(x), model(x), rtol=1e-4, atol=1e-4)
    assert [it.name for it in net.plan.left] == ["3"]


def of_itself(z, weight):
    return F.conv2d(z, z[:4, :, :1, :1] + weight)


def by_its_name(z, weight):
    return F.conv2d(input=z, weight=weight)


def as_a_weight(z, weight):
    return F.conv2d(weight, z[:4, :, :1, :1])


def same(z, weight):
    return F.conv2d(z, weight.expand(-1, -1, 3, 3), None, 1, "same")


@pytest.mark.parametrize("run", [of_itself, by_its_name, as_a_weight, same])
def test_whatever_else_a_function_is_given(run):
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.weight = nn.Parameter(torch.randn(5, 8, 1, 1)[:4])

        def forward(self, x):
            return run(F.silu(self.norm(self.conv(x))), self.weight)

    model = randomize(Network())
    assert_as_exact(Trainable(copy.deepcopy(model), Settings()), model, image(4, 3, 9, 9), slack=2e-5)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_function_takes_numbers_and_sequences(dims):
    function = (F.conv1d, F.conv2d, F.conv3d)[dims - 1]
    x, weight, bias = torch.randn(2, 4, *(9,) * dims), torch.randn(6, 2, *(3,) * dims), torch.randn(6)
    for stride, padding, dilation in ((1, 0, 1), (2, [1], (2,)), ((2,) * dims, (1,) * dims, [2] * dims)):
        found = filters(weight, bias, stride, padding, dilation, 2)
        assert (len(found.stride), len(found.padding), len(found.dilation)) == (dims,) * 3
        assert torch.equal(found(x), function(x, weight, bias, stride, padding, dilation, 2))
