"""`fuse_training`: which batch normalisations of a graph become one operator, and with what."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupwise.rewrite import fuse_training
from training import assert_as_exact, randomize


class Calls(nn.Module):
    """Runs a function of itself and an image."""

    def __init__(self, run, norm=None):
        super().__init__()
        self.run = run
        self.bn = norm or nn.BatchNorm2d(8)
        self.other = nn.BatchNorm2d(8)
        self.act = nn.LeakyReLU(0.3)

    def forward(self, x):
        return self.run(self, x)


def fused(run, norm=None):
    """What is fused of a function, after both networks were compared."""
    model = randomize(Calls(run, norm))
    graph, notes = fuse_training(torch.fx.symbolic_trace(copy.deepcopy(model)))
    assert list(graph.state_dict()) == [name for name in model.state_dict() if name in graph.state_dict()]
    assert_as_exact(graph, model, torch.randn(2, 8, 4, 3, generator=torch.Generator().manual_seed(3)))
    return [(it.name, it.activation, bool(it.residual)) for it in notes.fused]


def twice(y):
    return torch.relu(y) * y


def doubled(y):
    return y + y


def sum_in_place(m, x):
    y = m.bn(x)
    y += torch.tanh(x)
    return y


def sum_into_the_residual(m, x):
    r = torch.tanh(x) * 1
    keep = r * 2
    r.add_(m.bn(x))
    return r + keep


@pytest.mark.parametrize(
    ("run", "expected"),
    [
        (lambda m, x: m.bn(x), ("none", False)),
        (lambda m, x: torch.relu(m.bn(x)), ("relu", False)),
        (lambda m, x: F.relu(m.bn(x), inplace=True), ("relu", False)),
        (lambda m, x: m.bn(x).relu_(), ("relu", False)),
        (lambda m, x: m.bn(x).sigmoid(), ("sigmoid", False)),
        (lambda m, x: torch.tanh(m.bn(x)), ("tanh", False)),
        (lambda m, x: F.relu6(m.bn(x)), ("relu6", False)),
        (lambda m, x: F.silu(m.bn(x)), ("silu", False)),
        (lambda m, x: F.hardswish(m.bn(x)), ("hardswish", False)),
        (lambda m, x: F.hardsigmoid(m.bn(x)), ("hardsigmoid", False)),
        (lambda m, x: m.act(m.bn(x)), ("leaky_relu", False)),
        (lambda m, x: F.leaky_relu(m.bn(x), 0.2), ("leaky_relu", False)),
        (lambda m, x: F.gelu(m.bn(x)), ("none", False)),
        (lambda m, x: m.bn(x) + x, ("none", True)),
        (lambda m, x: x + m.bn(x), ("none", True)),
        (lambda m, x: torch.add(x, m.bn(x)), ("none", True)),
        (lambda m, x: torch.relu(torch.tanh(x) + m.bn(x)), ("relu", True)),
        (lambda m, x: F.silu(m.bn(x).add(x)), ("silu", True)),
        (sum_in_place, ("none", True)),
        (sum_into_the_residual, ("none", False)),
        (lambda m, x: torch.add(m.bn(x), x, alpha=2), ("none", False)),
        (lambda m, x: m.bn(x) + 1, ("none", False)),
        (lambda m, x: m.bn(x) + x.mean((2, 3), keepdim=True), ("none", True)),
        # A BatchNorm of which something else reads the output.
        (lambda m, x: twice(m.bn(x)), ("none", False)),
        (lambda m, x: doubled(m.bn(x)), ("none", False)),
        # An activation that reads a sum which is read elsewhere.
        (lambda m, x: twice(m.bn(x) + x), ("none", True)),
    ],
)
def test_what_is_fused(run, expected):
    assert fused(run) == [("bn", *expected)]


def test_of_two_summed_the_later_takes_the_sum():
    assert fused(lambda m, x: torch.relu(m.bn(x) + m.other(x))) == [("bn", "none", False), ("other", "relu", True)]


def test_a_shared_norm_updates_its_statistics_in_order():
    def run(m, x):
        first, second = m.bn(x), m.bn(2 * x + 1)
        return torch.relu(second + x) + torch.relu(first + x)

    # The first call must not move behind the second.
    assert fused(run) == [("bn", "none", False), ("bn", "relu", True)]


def test_an_input_that_changes_is_read_before():
    def run(m, x):
        z = x * 1
        with torch.no_grad():
            y = m.bn(z.detach())
        z = z.mul_(2)
        return torch.relu(y + z)

    model = randomize(Calls(run))
    graph, notes = fuse_training(torch.fx.symbolic_trace(copy.deepcopy(model)))
    x = torch.randn(2, 8, 4, 3)
    torch.testing.assert_close(graph(x), model(x))
    assert len(notes.fused) == 1


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("tracks", [True, False])
def test_every_kind_of_norm(momentum, affine, tracks):
    norm = nn.BatchNorm2d(8, momentum=momentum, affine=affine, track_running_stats=tracks)
    assert fused(lambda m, x: torch.relu(m.bn(x)), norm) == [("bn", "relu", False)]


def test_the_function_is_fused_too():
    def run(m, x):
        y = F.batch_norm(x, m.bn.running_mean, m.bn.running_var, m.bn.weight, bias=m.bn.bias, training=True)
        return torch.relu(y + x)

    assert [it[1:] for it in fused(run)] == [("relu", True)]


class Subclass(nn.BatchNorm2d):
    pass


def hooked(norm):
    norm.register_forward_hook(lambda module, args, output: output * 2)
    return norm


@pytest.mark.parametrize(
    ("norm", "words"),
    [
        (nn.SyncBatchNorm(8), "several processes"),
        (Subclass(8), "Subclass is a subclass"),
        (hooked(nn.BatchNorm2d(8)), "hooks"),
        (nn.utils.parametrize.register_parametrization(nn.BatchNorm2d(8), "weight", nn.ReLU()), "parametrized"),
    ],
)
def test_what_is_left(norm, words):
    class Leaf(torch.fx.Tracer):
        def is_leaf_module(self, m, name):
            return isinstance(m, nn.modules.batchnorm._BatchNorm)

    model = Calls(lambda m, x: torch.relu(m.bn(x)), norm)
    graph = torch.fx.GraphModule(model, Leaf().trace(model))
    notes = fuse_training(graph)[1]
    assert notes.fused == ()
    assert [it.name for it in notes.left] == ["bn"]
    assert words in notes.left[0].reason


def test_the_graph_reads_the_mode_when_it_runs():
    model = randomize(Calls(lambda m, x: torch.relu(m.bn(x))))
    graph, _ = fuse_training(torch.fx.symbolic_trace(copy.deepcopy(model)))
    x = torch.randn(2, 8, 4, 4)
    for mode in (False, True):
        model.train(mode)
        graph.train(mode)
        torch.testing.assert_close(graph(x), model(x))
    assert int(graph.bn.num_batches_tracked) == 1
