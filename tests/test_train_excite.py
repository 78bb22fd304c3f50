"""Squeeze and excitation of a BatchNorm's output in networks for training: one operator, which keeps none of both."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from groupwise.rewrite import train_origin
from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from kernels import needs_kernels
from training import Squeeze, assert_as_exact, kept_bytes, randomize

pytestmark = needs_kernels


@pytest.fixture(params=[1, 1 << 30], ids=["samples", "whole"])
def _blocks(request, monkeypatch):
    """Computes activations again sample by sample, and all samples at once."""
    monkeypatch.setattr(train_origin, "BLOCK", request.param)


class Squeezed(nn.Module):
    """A BatchNorm with an activation, and a squeeze of it that `run` uses."""

    def __init__(self, run):
        super().__init__()
        self.first, self.norm, self.act = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        self.squeeze, self.other = Squeeze(8), Squeeze(8)
        self.conv, self.grouped = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.last = nn.BatchNorm2d(8)
        self.run = run

    def forward(self, x):
        return self.run(self, self.act(self.norm(self.first(x))))


def conv(m, z):
    return m.conv(m.squeeze(z))


def two_convs(m, z):
    y = m.squeeze(z)
    return m.conv(y) + m.grouped(y)


def twice(m, z):
    return m.grouped(m.other(m.squeeze(z)))


def both(m, z):
    return m.grouped(m.squeeze(z)) + m.conv(m.other(z)) + m.conv(z)


def kept_itself(m, z):
    return torch.tanh(m.squeeze(z)) + m.conv(z)


def of_a_sum(m, z):
    return m.conv(m.squeeze(m.last(m.grouped(z)) + z)) + m.conv(z)


def scaled(m, z):
    return m.conv(m.squeeze(z) * torch.sigmoid(m.conv(z.mean((2, 3), keepdim=True))))


def result(m, z):
    return m.squeeze(z)


RUNS = [conv, two_convs, twice, both, kept_itself, of_a_sum, scaled, result]


def image(samples=3):
    return torch.randn(samples, 3, 9, 8, generator=torch.Generator().manual_seed(2))


def network(run=conv, **settings):
    model = randomize(Squeezed(run))
    return model, Trainable(copy.deepcopy(model), Settings(**settings), {})


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("run", RUNS)
def test_gradients_are_as_exact_as_the_models(run, channels_last):
    model, net = network(run, channels_last=channels_last)
    assert_as_exact(net, model, image(), slack=2e-5)
    assert net.plan.squeezed


PLANES = 3 * 8 * 7 * 6 * 4


@pytest.mark.parametrize(
    ("run", "planes"),
    [(conv, 1), (two_convs, 1), (twice, 1), (both, 1), (of_a_sum, 2), (scaled, 1), (result, 1), (kept_itself, 2)],
)
def test_the_input_of_the_norm_is_all_that_is_kept(run, planes):
    model, net = network(run)
    kept = kept_bytes(net, image()) - image().numel() * 4
    # Statistics and gates are small.
    assert planes * PLANES <= kept < (planes + 0.3) * PLANES
    assert kept < kept_bytes(model, image())


def steps(y):
    """The names of the steps of the graph that made a tensor."""
    nodes, found = [y.grad_fn], []
    while nodes:
        node = nodes.pop()
        found.append(type(node).__name__)
        nodes += [it for it, _ in node.next_functions if it is not None]
    return found


def test_a_squeeze_and_its_convolution_are_one_step():
    _, net = network()
    names = [name for name in steps(net(image())) if "AccumulateGrad" not in name]
    assert (names[0], names[-1], len(names)) == ("_SqueezeBackward", "ConvolutionBackward0", 3)


NAMES = ["squeeze.down.weight", "squeeze.down.bias", "squeeze.up.weight", "squeeze.up.bias", "conv.weight", "conv.bias"]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("wanted", [*([name] for name in NAMES), NAMES[:4], NAMES[4:], ["first.weight"]])
def test_some_gradients_are_wanted(wanted):
    model, net = network()
    for name, parameter in [*model.named_parameters(), *net.named_parameters()]:
        parameter.requires_grad_(name in (*wanted, "first.weight"))
    expected, found = (
        torch.autograd.grad(it(image()).square().sum(), [it.get_parameter(name) for name in wanted])
        for it in (model, net)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("run", [conv, twice, result])
def test_gradients_of_gradients(run):
    def penalty(model, x):
        x = x.clone().requires_grad_()
        grad = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
        grad.square().mean().backward()
        return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}

    model, net = network(run)
    exact = penalty(copy.deepcopy(model).double(), image().double())
    theirs, found = penalty(copy.deepcopy(model), image()), penalty(net, image())
    assert found.keys() == exact.keys()
    for name, truth in exact.items():
        error, known = ((one[name] - truth).norm() for one in (found, theirs))
        assert error <= 2 * known + 1e-4 * truth.norm() + 1e-5, name


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_hook_of_a_parameter_sees_its_gradient_once(create_graph):
    _, net = network()
    seen = []
    for name in NAMES:
        net.get_parameter(name).register_hook(lambda grad, name=name: seen.append(name))
    parameters = [net.get_parameter(name) for name in NAMES]
    torch.autograd.grad(net(image()).square().sum(), parameters, create_graph=create_graph)
    assert sorted(seen) == sorted(NAMES)


@pytest.mark.parametrize("changed", ["norm.weight", "squeeze.down.weight", "squeeze.up.bias", "conv.weight"])
def test_a_change_between_forward_and_backward_is_refused(changed):
    _, net = network()
    loss = net(image()).sum()
    with torch.no_grad():
        net.get_parameter(changed).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_second_backward_adds_the_same():
    _, net = network()
    loss = net(image()).square().sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in net.model.parameters() if p.grad is not None]
    loss.backward()
    for once, p in zip(first, (p for p in net.model.parameters() if p.grad is not None), strict=True):
        torch.testing.assert_close(p.grad, 2 * once)
