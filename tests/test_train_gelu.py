"""GELU as one sweep forward and one backward: held to float64 and to PyTorch's own error, by itself and in networks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import groupwise
from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from groupwise.rewrite.train_gelu import gelu
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels

APPROXIMATIONS = ("none", "tanh")
LAYOUTS = {
    "contiguous": lambda x: x,
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "turned": lambda x: x.permute(3, 1, 0, 2),
    "with gaps": lambda x: F.pad(x, (1, 2))[..., 1:-2],
    "expanded": lambda x: x[:1].expand(3, *x.shape[1:]),
}


def step(f, x, grad, approximate):
    x = x.detach().requires_grad_()
    y = f(x, approximate=approximate)
    return y.detach(), torch.autograd.grad(y, x, grad)[0]


def hold(x, grad, approximate):
    exact = step(F.gelu, x.double(), grad.double(), approximate)
    theirs = step(F.gelu, x, grad, approximate)
    with poisoned():
        ours = step(gelu, x, grad, approximate)
    scale = torch.finfo(torch.float32).eps * max(1.0, grad.abs().max().item()) * 4
    for got, plain, right in zip(ours, theirs, exact, strict=True):
        assert got.shape == right.shape
        wrong, other = ((it.double() - right).abs().max().item() for it in (got, plain))
        assert wrong <= 2 * other + scale * max(1.0, right.abs().max().item())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(layout, approximate, isa):
    draw = torch.Generator().manual_seed(1)
    x = LAYOUTS[layout](torch.randn(3, 7, 5, 23, generator=draw) * 3)
    grad = torch.randn(x.shape, generator=draw)
    with forced(isa=isa):
        hold(x, grad, approximate)
        hold(x, LAYOUTS["turned"](torch.randn(x.shape[2], x.shape[1], x.shape[3], x.shape[0], generator=draw)), approximate)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12345), st.floats(0.01, 20), st.sampled_from(APPROXIMATIONS), st.sampled_from(ISAS), st.integers(1, 2))
def test_any_count(count, spread, approximate, isa, used):
    draw = torch.Generator().manual_seed(count)
    x, grad = torch.randn(count, generator=draw) * spread, torch.randn(count, generator=draw)
    with forced(isa=isa), threads(used):
        hold(x, grad, approximate)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_special_numbers_are_pytorchs(approximate, isa):
    x = torch.tensor([0.0, -0.0, 1e-40, -1e-30, 30, -30, 1e4, -1e4, torch.inf, -torch.inf, torch.nan])
    theirs = step(F.gelu, x, torch.ones_like(x), approximate)
    with forced(isa=isa):
        ours = step(gelu, x, torch.ones_like(x), approximate)
    # -inf times 0 is what rounding makes of the limit, 0.
    for got, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got[:-3], right[:-3], rtol=1e-5, atol=1e-6)
        assert got[-1].isnan()
    assert ours[0][-3] == torch.inf


def test_a_gradient_that_others_hold_stays_as_it_is():
    x = torch.randn(40, 50, requires_grad=True)
    grad = torch.randn(40, 50)
    before = grad.clone()
    gelu(x).backward(grad)
    assert torch.equal(grad, before)
    # Two readers of y: their gradients are added up in memory that nothing else holds.
    twice = torch.autograd.grad((lambda y: (y * 3).sum() + (y * y).sum())(gelu(x)), x)[0]
    expected = torch.autograd.grad((lambda y: (y * 3).sum() + (y * y).sum())(F.gelu(x)), x)[0]
    torch.testing.assert_close(twice, expected)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_gradients_of_gradients(approximate):
    x = torch.randn(30, requires_grad=True)

    def second(f):
        (first,) = torch.autograd.grad(f(x, approximate=approximate).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0]

    torch.testing.assert_close(second(gelu), second(F.gelu), rtol=1e-4, atol=1e-5)


def test_the_operators():
    x = torch.randn(3, 17, requires_grad=True)
    for approximate in APPROXIMATIONS:
        torch.library.opcheck(torch.ops.groupwise.gelu, (x, approximate))
        torch.library.opcheck(torch.ops.groupwise.gelu_backward, (torch.randn(3, 17), x, approximate))
    with pytest.raises(RuntimeError, match="approximate must be 'none' or 'tanh', not 'erf'"):
        torch.ops.groupwise.gelu(x, "erf")
    with pytest.raises(RuntimeError, match="x must be a float32 tensor on the CPU"):
        torch.ops.groupwise.gelu(x.double(), "none")
    with pytest.raises(RuntimeError, match="grad must have the shape of x"):
        torch.ops.groupwise.gelu_backward(torch.randn(17), x.detach(), "none")


def test_what_the_operator_cannot_compute_is_pytorchs():
    assert torch.equal(gelu(torch.ones(3, dtype=torch.float64)), F.gelu(torch.ones(3, dtype=torch.float64)))
    assert gelu(torch.ones(0, 4)).shape == (0, 4)
    x = torch.randn(5, 3)
    torch.testing.assert_close(torch.func.vmap(gelu)(x), F.gelu(x))
    tangent = torch.func.jvp(gelu, (x,), (torch.ones(5, 3),))[1]
    torch.testing.assert_close(tangent, torch.func.jvp(F.gelu, (x,), (torch.ones(5, 3),))[1])
    with pytest.raises(RuntimeError, match="approximate"):
        gelu(x, approximate="erf")


class Block(nn.Module):
    """As in ConvNeXt."""

    def __init__(self, approximate):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 7, padding=3, groups=8)
        self.norm, self.wide, self.narrow = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)
        self.act = nn.GELU(approximate)

    def forward(self, x):
        y = self.narrow(self.act(self.wide(self.norm(self.conv(x).permute(0, 2, 3, 1)))))
        return x + F.gelu(y.permute(0, 3, 1, 2))


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_a_network(approximate):
    torch.manual_seed(0)
    model, x = Block(approximate).train(), torch.randn(2, 8, 9, 11)
    network = groupwise.optimize(model, x, train=True, tune=False)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    found = torch.autograd.grad(network(x).square().sum(), list(model.parameters()))
    for got, right in zip(found, expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-3, atol=1e-3)
    assert network.plan.gelus == ("act", "gelu")
    assert "GELUs that are one sweep each way: act, gelu" in str(network.plan)


def test_a_gelu_with_a_hook_runs_it():
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU()).train(), torch.randn(2, 4, 9, 9)
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    network = groupwise.optimize(model, x, train=True, tune=False)
    seen.clear()
    network(x)
    assert (network.plan.gelus, seen) == ((), [1])
