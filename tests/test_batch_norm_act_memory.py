"""The gradient of x takes the memory of the gradient that a backward is given, where nobody else reads that."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad

from groupwise.nn.functional import PYTORCH, batch_norm_act
from kernels import needs_kernels

pytestmark = needs_kernels

CHANNELS_LAST = torch.channels_last


def layer(x, activation="relu6"):
    return batch_norm_act(x, None, None, training=True, activation=activation)


def drawn(channels=48):
    torch.manual_seed(0)
    return torch.randn(2, channels, 5, 7).contiguous(memory_format=CHANNELS_LAST).requires_grad_()


def expected(x, wanted, activation="relu6"):
    """Returns the gradient of x by PyTorch in float64, for a gradient of what the layer returns."""
    exact = x.detach().double().requires_grad_()
    z = PYTORCH[activation](torch.nn.functional.batch_norm(exact, None, None, training=True))
    return torch.autograd.grad(z, exact, wanted.double())[0]


def is_near(found, exact):
    return torch.allclose(found.double(), exact, rtol=1e-4, atol=1e-4 * exact.abs().max().item())


def allocated(channels, activation):
    """Returns how many tensors of the size of x the backward of the layer allocates."""
    x, wanted = drawn(channels), torch.randn(2, channels, 5, 7).contiguous(memory_format=CHANNELS_LAST)
    total = (layer(x, activation) * wanted).sum()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        total.backward()
    assert is_near(x.grad, expected(x, wanted, activation))
    counts = [
        event.cpu_memory_usage for event in profile.key_averages() if event.key == "groupwise::batch_norm_act_backward"
    ]
    return sum(counts) // (x.numel() * x.element_size())


@pytest.mark.parametrize("activation", ["relu6", "silu", "sigmoid"])
def test_a_gradient_that_nobody_reads_is_written_over(activation):
    assert allocated(48, activation) == 0


@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_a_gradient_whose_vectors_overlap_is_not(activation):
    assert allocated(51, activation) == 1


def test_a_gradient_of_the_caller_stays():
    x, wanted = drawn(), torch.randn(2, 48, 5, 7).contiguous(memory_format=CHANNELS_LAST)
    before = wanted.clone()
    layer(x).backward(wanted)
    assert torch.equal(wanted, before)
    assert is_near(x.grad, expected(x, wanted))


def test_a_gradient_that_a_hook_keeps_stays():
    x, kept = drawn(), []
    wanted = torch.randn(2, 48, 5, 7).contiguous(memory_format=CHANNELS_LAST)
    y = layer(x * 1)
    y.register_hook(kept.append)
    y.retain_grad()
    (y * wanted).sum().backward()
    assert torch.equal(kept[0], wanted)
    assert torch.equal(y.grad, wanted)
    assert is_near(x.grad, expected(x, wanted))


def test_a_gradient_that_is_asked_for_stays():
    x = drawn()
    wanted = torch.randn(2, 48, 5, 7).contiguous(memory_format=CHANNELS_LAST)
    y = layer(x)
    of_y, of_x = torch.autograd.grad((y * wanted).sum(), [y, x])
    assert torch.equal(of_y, wanted)
    assert is_near(of_x, expected(x, wanted))


def test_a_gradient_that_another_layer_shares_stays():
    x, wanted = drawn(), torch.randn(2, 48, 5, 7).contiguous(memory_format=CHANNELS_LAST)
    other = drawn()
    (layer(x) + layer(other)).backward(wanted.clone())
    exact = expected(x, wanted)
    assert is_near(x.grad, exact)
    assert is_near(other.grad, exact)


@pytest.mark.parametrize("activation", ["relu6", "silu"])
def test_a_second_backward_gives_the_same(activation):
    x, wanted = drawn(), torch.randn(2, 48, 5, 7).contiguous(memory_format=CHANNELS_LAST)
    y = (layer(x * 1, activation) * wanted).sum()
    first = torch.autograd.grad(y, x, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(y, x)[0])


def test_the_output_that_is_kept_is_not_a_gradient_to_write_over():
    x = drawn()
    y = batch_norm_act(x, None, None, training=True, activation="relu", residual=torch.zeros_like(x))
    before = y.detach().clone()
    y.backward(y.detach())
    assert torch.equal(y, before)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_gradient_with_a_tangent_keeps_it():
    x, wanted, tangent = drawn(), torch.randn(2, 48, 5, 7), torch.randn(2, 48, 5, 7)
    y = layer(x, "silu")
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(wanted.clone(memory_format=CHANNELS_LAST), tangent)
        (found,) = torch.autograd.grad(y, x, dual)
        value, moved = forward_ad.unpack_dual(found)
    # A gradient is linear in the one behind it.
    torch.testing.assert_close(value.double(), expected(x, wanted, "silu"), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(moved.double(), expected(x, tangent, "silu"), rtol=1e-4, atol=1e-5)
