"""`groupwise.nn` takes the route without `enable()`: forward, and the nodes of its own backward alone."""

from __future__ import annotations

import pytest
import torch
import torch.utils.checkpoint

import groupwise
from groupwise import last_plans, nn
from groupwise.kernels import dispatch
from kernels import needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def nothing_routed():
    groupwise.disable()
    last_plans()


LAYERS = [
    (nn.Conv1d, (8, 8, 3), (2, 8, 20)),
    (nn.Conv2d, (8, 8, 3), (2, 8, 9, 9)),
    (nn.Conv2d, (8, 8, 3), (8, 9, 9)),
    (nn.ConvTranspose1d, (8, 8, 3), (2, 8, 20)),
    (nn.ConvTranspose2d, (8, 8, 3), (2, 8, 9, 9)),
]


@pytest.mark.parametrize(("kind", "arguments", "shape"), LAYERS)
def test_groupwise_layers_take_the_route_forward_and_backward(kind, arguments, shape):
    own = kind(*arguments, groups=4)
    x = torch.randn(shape, requires_grad=True)
    output = own(x)
    grad = torch.randn_like(output)
    ours = torch.autograd.grad(output, [x, *own.parameters()], grad)
    assert [plan.kernel != "pytorch" for plan in last_plans()] == [True] * 3
    base = next(cls for cls in kind.__mro__ if cls.__module__ == "torch.nn.modules.conv")
    theirs_layer = base(*arguments, groups=4)
    theirs_layer.load_state_dict(own.state_dict())
    theirs = torch.autograd.grad(theirs_layer(x), [x, *theirs_layer.parameters()], grad)
    assert not last_plans()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_a_layers_route_ends_with_an_error():
    with pytest.raises(RuntimeError):
        nn.Conv2d(8, 8, 3, groups=4)(torch.randn(1, 7, 9, 9))
    torch.nn.Conv2d(8, 8, 3, groups=4)(torch.randn(1, 8, 9, 9))
    assert not last_plans()


def test_a_layers_route_ends_with_an_error_of_its_backward():
    output = nn.Conv2d(8, 8, 3, groups=4)(torch.randn(1, 8, 9, 9)).sum()
    output.backward()
    with pytest.raises(RuntimeError, match="a second time"):
        output.backward()
    last_plans()
    plain = torch.nn.Conv2d(8, 8, 3, groups=4)(torch.randn(1, 8, 9, 9))
    plain.sum().backward()
    assert not last_plans()


def test_what_a_checkpoint_makes_again_takes_no_route_of_its_own():
    ours, plain = nn.Conv2d(8, 8, 3, groups=4), torch.nn.Conv2d(8, 8, 3, groups=2)

    def block(x):
        return ours(plain(x))

    source = torch.randn(1, 8, 9, 9, requires_grad=True)
    output = torch.utils.checkpoint.checkpoint(block, source, use_reentrant=False)
    last_plans()
    output.sum().backward()
    assert {p.shape["groups"] for p in last_plans()} == {4}


def test_groupwise_layers_keep_off_where_the_thread_must():
    with dispatch.forced(False):
        nn.Conv2d(8, 8, 3, groups=4)(torch.randn(1, 8, 9, 9)).sum().backward()
    assert not last_plans()
