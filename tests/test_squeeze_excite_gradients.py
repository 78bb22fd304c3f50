"""The gradients of squeeze and excitation: held to float64, and to the error of PyTorch's operators in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from accuracy import threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels

ACTIVATIONS = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
}
NAMES = ("x", "weight1", "bias1", "weight2", "bias2")
LAST = {3: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def operator(x, w1, b1, act1, w2, b2, act2):
    return torch.ops.groupwise.squeeze_excite(x, w1, b1, act1, w2, b2, act2)


def composed(x, w1, b1, act1, w2, b2, act2):
    def gate(v, w, b, act):
        if w is not None:
            v = v @ w.flatten(1).T
        return ACTIVATIONS[act](v if b is None else v + b)

    factor = gate(gate(x.flatten(2).mean(2), w1, b1, act1), w2, b2, act2)
    return x * factor.reshape(*factor.shape, *[1] * (x.dim() - 2))


def arguments(shape, hidden, act1, act2, fmt=torch.contiguous_format, biases=True):
    channels = shape[1]
    draw = torch.Generator().manual_seed(3)

    def normal(*size):
        return torch.randn(size, generator=draw)

    x = (normal(*shape) + 0.3).contiguous(memory_format=fmt)
    b1, b2 = (normal(hidden), normal(channels)) if biases else (None, None)
    return x, normal(hidden, channels, 1, 1) / channels**0.5, b1, act1, normal(channels, hidden) / hidden**0.5, b2, act2


def gradients(f, args, grad, dtype=torch.float32, wanted=NAMES):
    """The gradients of copies, by name."""
    leaves = [a.detach().to(dtype).clone() if isinstance(a, torch.Tensor) else a for a in args]
    named = dict(zip(NAMES, (leaves[i] for i in (0, 1, 2, 4, 5)), strict=True))
    asked = {name: t.requires_grad_() for name, t in named.items() if t is not None and name in wanted}
    found = torch.autograd.grad(f(*leaves), tuple(asked.values()), grad.to(dtype))
    return dict(zip(asked, found, strict=True))


def hold(args, grad=None, wanted=NAMES):
    grad = torch.randn(args[0].shape, generator=torch.Generator().manual_seed(4)) if grad is None else grad
    exact = gradients(composed, args, grad, torch.float64, wanted)
    theirs = gradients(composed, args, grad, wanted=wanted)
    ours = gradients(operator, args, grad, wanted=wanted)
    assert ours.keys() == exact.keys()
    for name, truth in exact.items():
        error, known = ((one[name].double() - truth).square().mean().sqrt() for one in (ours, theirs))
        assert ours[name].shape == truth.shape
        assert error <= 2 * known + 4e-7 * truth.square().mean().sqrt() + 1e-9, name


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", [(2, 24, 7, 7), (3, 17, 5, 9), (1, 1, 4, 4), (2, 40, 1, 1), (1, 96, 30, 31)])
def test_gradients_are_exact(isa, last, shape):
    with forced(isa=isa):
        hold(arguments(shape, 6, "silu", "sigmoid", torch.channels_last if last else torch.contiguous_format))


@pytest.mark.parametrize("dims", [3, 5])
@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_other_dimensions(dims, last):
    hold(arguments((2, 20, 6, 3, 4)[:dims], 5, "relu", "hardsigmoid", LAST[dims] if last else torch.contiguous_format))


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_each_activation(act):
    hold(arguments((2, 16, 5, 5), 4, act, "sigmoid"))
    hold(arguments((2, 16, 5, 5), 4, "relu", act))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_threads_share_the_sweeps(count):
    with threads(count):
        hold(arguments((3, 64, 30, 29), 8, "silu", "sigmoid", torch.channels_last))
        hold(arguments((3, 64, 30, 29), 8, "silu", "sigmoid"))


@pytest.mark.parametrize("wanted", [("x",), ("weight1", "bias2"), ("x", "weight2")])
def test_only_what_is_wanted(wanted):
    hold(arguments((2, 16, 5, 5), 4, "silu", "sigmoid"), wanted=wanted)


def test_without_layers_or_biases():
    hold(arguments((2, 16, 5, 5), 4, "silu", "sigmoid", biases=False))
    x, *_, w2, b2, act2 = arguments((2, 16, 5, 5), 16, "silu", "sigmoid")
    hold((x, None, None, "none", w2, b2, act2))
    hold((x, None, None, "none", None, b2, act2))


def test_a_gradient_of_another_format():
    args = arguments((2, 16, 5, 6), 4, "silu", "sigmoid", torch.channels_last)
    hold(args, torch.randn(2, 16, 6, 5).transpose(2, 3))
    hold(args, torch.ones(1, 1, 1, 1).expand(2, 16, 5, 6))


def test_gradients_of_gradients():
    args = arguments((2, 8, 4, 3), 4, "silu", "sigmoid", torch.channels_last)
    found = {}
    for kind, f, dtype in (("ours", operator, torch.float32), ("exact", composed, torch.float64)):
        leaves = [a.to(dtype).clone().requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
        tensors = [leaves[i] for i in (0, 1, 2, 4, 5)]
        first = torch.autograd.grad(f(*leaves).square().sum(), tensors, create_graph=True)
        found[kind] = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    for ours, exact in zip(*found.values(), strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-4 * exact.abs().max().item())


def test_x_and_the_means_are_all_that_is_kept():
    args = arguments((2, 16, 5, 5), 4, "silu", "sigmoid")
    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        operator(*leaves)
    own = {a.data_ptr() for a in leaves if isinstance(a, torch.Tensor)}
    assert [tuple(t.shape) for t in kept if t.data_ptr() not in own] == [(2, 16)]


def test_a_write_to_x_is_an_error():
    x, *rest = arguments((2, 16, 5, 5), 4, "silu", "sigmoid")
    x = x.requires_grad_() * 1
    y = operator(x, *rest)
    x.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_transforms_compute_the_same():
    x, w1, b1, act1, w2, b2, act2 = arguments((2, 8, 4, 3), 4, "silu", "sigmoid")

    def loss(f, w):
        return f(x, w, b1, act1, w2, b2, act2).square().sum()

    expected = torch.func.grad(lambda w: loss(composed, w))(w1)
    torch.testing.assert_close(torch.func.grad(lambda w: loss(operator, w))(w1), expected, rtol=1e-4, atol=1e-4)
    _, ours = torch.func.jvp(lambda w: loss(operator, w), (w1,), (torch.ones_like(w1),))
    _, theirs = torch.func.jvp(lambda w: loss(composed, w), (w1,), (torch.ones_like(w1),))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
