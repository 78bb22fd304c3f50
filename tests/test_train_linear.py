"""Linear layers of a network for training, computed by kernels of convolutions."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import nn

import groupwise
from groupwise.kernels import dispatch, native
from groupwise.kernels.plan import record_plans
from groupwise.rewrite.train_linear import linear

pytestmark = pytest.mark.skipif(native.status().problem is not None, reason="needs the native core")

ops = torch.ops.groupwise
SHAPES = [(2, 7, 5, 24), (3, 11, 24), (9, 24), (1, 24), (2, 3, 2, 5, 24)]


def error(found, exact):
    return (found.double() - exact).square().mean().sqrt().item()


def near(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def tensors(*shape, outputs=40, bias=True):
    generator = torch.Generator().manual_seed(len(shape))
    made = [torch.randn(it, generator=generator) for it in (shape, (outputs, shape[-1]), (outputs,))]
    return [it.requires_grad_() for it in (made if bias else made[:2])]


@pytest.mark.parametrize("kernel", ["brgemm", "gemm", "narrow", ""])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients(shape, bias, kernel):
    given = tensors(*shape, bias=bias)
    exact = [it.detach().double().requires_grad_() for it in given]
    y = F.linear(*exact)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    truth = [y.detach(), *torch.autograd.grad(y, exact, grad.double())]
    reference = F.linear(*given)
    plain = [reference, *torch.autograd.grad(reference, given, grad)]
    with dispatch.forced(True, kernel):
        found = linear(*given)
        found = [found, *torch.autograd.grad(found, given, grad)]
    for ours, theirs, right in zip(found, plain, truth, strict=True):
        assert ours.shape == right.shape
        assert ours.stride() == theirs.stride()
        assert error(ours, right) <= 2 * error(theirs, right) + 1e-6 * right.abs().max().item()


def test_strides_that_are_not_contiguous():
    x, weight, bias = (it.detach() for it in tensors(3, 6, 5, 24))
    image = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1).requires_grad_()
    turned = weight.t().contiguous().t().requires_grad_()
    with dispatch.forced(True, "brgemm"):
        found = linear(image, turned, bias)
        grads = torch.autograd.grad(found.square().sum(), [image, turned])
    expected = F.linear(image, turned, bias)
    near(found, expected)
    near(grads, torch.autograd.grad(expected.square().sum(), [image, turned]))


@pytest.mark.parametrize("wanted", range(1, 8))
def test_wanted_gradients(wanted):
    given = [it.detach().requires_grad_(bool(wanted >> i & 1)) for i, it in enumerate(tensors(4, 6, 24))]
    reading = [it for it in given if it.requires_grad]
    with dispatch.forced(True):
        found = torch.autograd.grad(linear(*given).square().sum(), reading)
    near(found, torch.autograd.grad(F.linear(*given).square().sum(), reading))


def test_what_needs_no_gradient_is_not_kept():
    x, weight, _ = tensors(4, 6, 24)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda it: kept.append(it.shape) or it, lambda it: it):
        linear(x.detach(), weight)
        linear(x, weight.detach())
    assert kept == [x.shape, weight.shape]


def test_gradients_of_gradients_and_batches_of_them():
    given = [it.detach().double().float().requires_grad_() for it in tensors(2, 3, 24, outputs=9)]

    def second(function):
        first = torch.autograd.grad(function(*given).pow(3).sum(), given, create_graph=True)
        return torch.autograd.grad(sum(it.square().sum() for it in first), given)

    torch.testing.assert_close(second(linear), second(F.linear), rtol=1e-4, atol=1e-3)
    rows = torch.randn(3, 2, 3, 9)
    for found, expected in zip(
        torch.autograd.grad(linear(*given), given, rows, is_grads_batched=True),
        torch.autograd.grad(F.linear(*given), given, rows, is_grads_batched=True),
        strict=True,
    ):
        near(found, expected)


@pytest.mark.parametrize("shape", [(4, 0, 24), (0, 24), (24,)])
def test_tensors_that_pytorch_computes(shape):
    weight = torch.randn(40, 24, requires_grad=True)
    found = linear(torch.randn(shape), weight)
    assert found.shape == (*shape[:-1], 40)
    found.sum().backward()
    assert weight.grad.shape == weight.shape


def test_operators_of_no_numbers():
    x, weight = torch.randn(4, 0, 24), torch.randn(40, 24)
    assert ops.linear(x, weight, None).shape == (4, 0, 40)
    grads = ops.linear_backward(torch.randn(4, 0, 40), x, weight, [True, True, True])
    assert [it.shape for it in grads] == [x.shape, weight.shape, (40,)]
    assert not grads[1].any()


def test_autocast_and_other_dtypes():
    x, weight, bias = tensors(4, 6, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, weight, bias).dtype == torch.bfloat16
    assert linear(x.double(), weight.double()).dtype == torch.double


def test_wrong_arguments_raise():
    x, weight, bias = tensors(4, 6, 24)
    with pytest.raises(RuntimeError, match="shapes"):
        linear(x[..., :20], weight, bias)
    with pytest.raises(RuntimeError, match="as many numbers"):
        ops.linear(x.detach(), weight.detach().t(), None)
    with pytest.raises(RuntimeError, match="sizes of the output"):
        ops.linear_backward(torch.randn(4, 5, 40), x.detach(), weight.detach(), [True, True, True])


@pytest.mark.parametrize("needs", [True, False])
def test_operators_pass_opcheck(needs):
    x, weight, bias = (it.detach().requires_grad_(needs) for it in tensors(4, 6, 24))
    torch.library.opcheck(ops.linear.default, (x, weight, bias))
    torch.library.opcheck(ops.linear_backward.default, (torch.randn(4, 6, 40), x, weight, [True, True, True]))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 48), nn.Linear(48, 24, bias=False)

    def forward(self, x):
        return F.linear(self.second(F.gelu(self.first(x))), self.first.weight, self.first.bias)


def test_a_network_dispatches_its_linear_layers():
    torch.manual_seed(0)
    model, x = Mixer(), torch.randn(2, 9, 24)
    net = groupwise.optimize(model, x, train=True, tune=False)
    with dispatch.forced(True, "brgemm"), record_plans() as plans:
        loss = net(x).square().mean()
        found = torch.autograd.grad(loss, list(model.parameters()))
    directions = [plan.direction for plan in plans]
    # The first layer reads the input, which wants no gradient.
    assert [directions.count(it) for it in ("forward", "grad_input", "grad_weight")] == [3, 2, 3]
    near(found, torch.autograd.grad(model(x).square().mean(), list(model.parameters())))


def test_hooks_and_replaced_layers_are_seen():
    model, x = Mixer(), torch.randn(2, 9, 24)
    net = groupwise.optimize(model, x, train=True, tune=False)
    seen = []
    handle = model.second.register_forward_hook(lambda *_: seen.append(1))
    net(x)
    handle.remove()
    assert seen == [1]
    model.second = nn.Linear(48, 24)
    near(net(x), model(x))


@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (4, 40)])
def test_a_bias_that_is_spread_is_pytorchs(shape):
    x, weight, _ = tensors(4, 24)
    bias = torch.randn(shape, requires_grad=True)
    given = (x, weight, bias)
    found = torch.autograd.grad(linear(*given).square().sum(), given)
    near(found, torch.autograd.grad(F.linear(*given).square().sum(), given))


# PyTorch scripts what it derives the gradient of GELU by.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_runs_the_model():
    model, x = Mixer(), torch.randn(2, 9, 24)
    net = groupwise.optimize(model, x, train=True, tune=False)
    found = []
    for function in (net, model):
        with forward_ad.dual_level():
            found.append(forward_ad.unpack_dual(function(forward_ad.make_dual(x, torch.ones_like(x)))).tangent)
    near(*found)
