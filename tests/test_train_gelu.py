"""GELU whose gradient takes the place of the one before: PyTorch's numbers, and nobody's gradient is lost."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.profiler import ProfilerActivity, profile

import groupwise
from accuracy import poisoned, threads
from groupwise.rewrite.train_gelu import gelu
from kernels import needs_kernels

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


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_and_gradients(layout, approximate):
    draw = torch.Generator().manual_seed(1)
    x = LAYOUTS[layout](torch.randn(3, 7, 5, 23, generator=draw) * 3)
    grad = torch.randn(x.shape, generator=draw)
    hold(x, grad, approximate)
    hold(x, grad.transpose(0, 1).contiguous().transpose(0, 1), approximate)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12345), st.floats(0.01, 20), st.sampled_from(APPROXIMATIONS), st.integers(1, 2))
def test_any_count(count, spread, approximate, used):
    draw = torch.Generator().manual_seed(count)
    x, grad = torch.randn(count, generator=draw) * spread, torch.randn(count, generator=draw)
    with threads(used):
        hold(x, grad, approximate)


def test_the_gradient_takes_the_place_of_the_one_before():
    x = torch.randn(40, 50, requires_grad=True)
    loss = (gelu(x) * 2).sum()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        loss.backward()
    (made,) = (event for event in seen.events() if event.name == "groupwise::gelu_backward")
    assert made.cpu_memory_usage == 0


def keeps(kept, y):
    y.register_hook(kept.append)


def retains(kept, y):
    y.retain_grad()
    kept.append(lambda: y.grad)


def keeps_memory(kept, y):
    y.register_hook(lambda grad: kept.append(grad.detach()))


@pytest.mark.parametrize("keep", [keeps, retains, keeps_memory])
def test_a_gradient_that_others_keep_stays_as_it_is(keep):
    x, factor = torch.randn(40, 50, requires_grad=True), torch.randn(40, 50)
    kept: list[Any] = []
    y = gelu(x)
    keep(kept, y)
    (y * factor).sum().backward()
    found = kept[0]() if callable(kept[0]) else kept[0]
    assert torch.equal(found, factor)


def test_a_gradient_of_two_readers():
    x, factor = torch.randn(40, 50, requires_grad=True), torch.randn(40, 50)

    def both(f):
        return torch.autograd.grad(((x * 1 + f(x * 1)) * factor).sum(), x)[0]

    torch.testing.assert_close(both(gelu), both(F.gelu))
    y = gelu(x)
    of_y, of_x = torch.autograd.grad((y * factor).sum(), [y, x])
    assert torch.equal(of_y, factor)
    torch.testing.assert_close(of_x, torch.autograd.grad((F.gelu(x) * factor).sum(), x)[0])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_gradients_with_tangents_and_batches_of_them():
    x, tangent = torch.randn(30), torch.randn(30)

    def of(f):
        leaf = x.clone().requires_grad_()
        y = f(leaf)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(torch.ones(30), tangent)
            (found,) = torch.autograd.grad(y, leaf, dual)
            return forward_ad.unpack_dual(found).tangent

    torch.testing.assert_close(of(gelu), of(F.gelu))
    leaf = x.clone().requires_grad_()
    some = torch.randn(4, 30)
    batched = torch.autograd.grad(gelu(leaf), leaf, some, is_grads_batched=True)[0]
    torch.testing.assert_close(batched, torch.autograd.grad(F.gelu(leaf), leaf, some, is_grads_batched=True)[0])


def test_a_gradient_that_others_hold_stays_as_it_is():
    x = torch.randn(40, 50, requires_grad=True)
    grad = torch.randn(40, 50)
    before = grad.clone()
    gelu(x).backward(grad)
    assert torch.equal(grad, before)


@pytest.mark.parametrize("approximate", APPROXIMATIONS)
def test_gradients_of_gradients(approximate):
    x = torch.randn(30, requires_grad=True)

    def second(f):
        (first,) = torch.autograd.grad(f(x, approximate=approximate).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.sum(), x)[0]

    torch.testing.assert_close(second(gelu), second(F.gelu), rtol=1e-4, atol=1e-5)


def test_the_operator():
    x = torch.randn(3, 17, requires_grad=True)
    for approximate in APPROXIMATIONS:
        torch.library.opcheck(torch.ops.groupwise.gelu, (x, approximate))
    with pytest.raises(RuntimeError, match="approximate"):
        torch.ops.groupwise.gelu(x, "erf")


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
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
    model.act.approximate = "tanh" if approximate == "none" else "none"
    torch.testing.assert_close(network(x), model(x), rtol=1e-4, atol=1e-5)
    assert "GELUs whose backward takes no memory in float32: act, gelu" in str(network.plan)


def test_a_gelu_with_a_hook_runs_it():
    model, x = nn.Sequential(nn.Conv2d(4, 4, 3), nn.GELU()).train(), torch.randn(2, 4, 9, 9)
    seen = []
    model[1].register_forward_hook(lambda *_: seen.append(1))
    network = groupwise.optimize(model, x, train=True, tune=False)
    seen.clear()
    network(x)
    assert (network.plan.gelus, seen) == ((), [1])
