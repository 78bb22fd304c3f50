"""Convolutions with weights for each sample, against one convolution a sample in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import grad, jvp, vmap
from torch.library import opcheck

import groupwise
from groupwise import GroupwiseError
from groupwise.kernels import dispatch
from groupwise.nn import per_sample_products as products
from groupwise.nn.functional import conv_per_sample
from kernels import needs_kernels

OPERATOR = torch.ops.groupwise.conv_per_sample.default
CONVS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def by_hand(x, weights, bias, *rest):
    """One convolution for each sample."""
    conv, one = CONVS[weights.dim() - 3], x.dim() == weights.dim() - 1
    x = x.unsqueeze(0) if one else x
    made = [conv(x[:, n], weights[n], None if bias is None else bias[n], *rest) for n in range(len(weights))]
    made = torch.stack(made, 1)
    return made[0] if one else made


def bound(x, weights, bias, *rest):
    """eps times the number of products, times the sum of their magnitudes, doubled for the bias and rounding."""
    terms = math.prod(weights.shape[2:]) + 1
    return (
        2
        * torch.finfo(torch.float32).eps
        * terms
        * by_hand(x.abs(), weights.abs(), None if bias is None else bias.abs(), *rest)
        + 1e-30
    )


@st.composite
def calls(draw):
    dims, groups = draw(st.integers(1, 2)), draw(st.sampled_from([1, 1, 2, 3]))
    samples, inputs = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    outputs = draw(st.sampled_from([1, 2, 16, 40]))
    kernel = [draw(st.integers(1, 3)) for _ in range(dims)]
    dilation = [draw(st.integers(1, 2)) for _ in range(dims)]
    size = [d * (k - 1) + draw(st.integers(1, 6)) for k, d in zip(kernel, dilation, strict=True)]
    stride, padding = ([draw(st.integers(low, 2)) for _ in range(dims)] for low in (1, 0))
    batch = draw(st.sampled_from([(), (), (1,), (3,)]))
    x = torch.randn(*batch, samples, inputs * groups, *size, dtype=torch.float64)
    if draw(st.booleans()):
        x = x.transpose(-1, -2).contiguous().transpose(-1, -2)
    weights = torch.randn(samples, outputs * groups, inputs, *kernel, dtype=torch.float64)
    bias = draw(st.sampled_from([None, torch.randn(samples, outputs * groups, dtype=torch.float64)]))
    return x, weights, bias, stride, padding, dilation, groups


def single(tensor):
    return None if tensor is None else tensor.float()


@given(calls())
@settings(max_examples=80)
def test_every_shape(call):
    x, weights, bias, *rest = call
    x, weights, bias = (None if t is None else t.float().double() for t in (x, weights, bias))
    made = conv_per_sample(single(x), single(weights), single(bias), *rest)
    assert made.is_contiguous()
    assert ((made - by_hand(x, weights, bias, *rest)).abs() <= bound(x, weights, bias, *rest)).all()


@given(calls())
@settings(max_examples=40)
def test_gradients_of_every_shape(call):
    """In float64 both sides differ by rounding alone, whose bound is far below any wrong index."""
    x, weights, bias, *rest = call
    given_ = [t.detach().clone().requires_grad_() for t in (x, weights, bias) if t is not None]
    tensors = given_ if bias is not None else [*given_, None]
    upstream = torch.randn_like(by_hand(*tensors, *rest))
    found = torch.autograd.grad(conv_per_sample(*tensors, *rest), given_, upstream)
    exact = torch.autograd.grad(by_hand(*tensors, *rest), given_, upstream)
    for mine, theirs in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


# One that products compute, one that the grouped convolution does; both with a batch too, and three dimensions.
SHAPES = {
    "grouped": ((1, 2, 2, 4, 4), (2, 2, 1, 3, 3), 2),
    "products": ((1, 2, 2, 2, 1), (2, 16, 2, 3, 3), 1),
    "batch of products": ((2, 2, 2, 2), (2, 16, 2, 3), 1),
    "batch": ((2, 2, 2, 4), (2, 2, 1, 3), 2),
    "pointwise": ((1, 2, 3, 3, 2), (2, 2, 3, 1, 1), 1),
    "3-D": ((1, 2, 2, 2, 3, 2), (2, 2, 1, 1, 3, 1), 2),
}


def tensors(name, dtype=torch.float32):
    x, weights, groups = SHAPES[name]
    made = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in (x, weights, weights[:2])]
    dims = len(weights) - 3
    padding = [k // 2 for k in weights[3:]]
    return made, ([1] * dims, padding, [1] * dims, groups)


@pytest.mark.parametrize("name", SHAPES)
def test_pytorch_checks_the_operator(name):
    made, rest = tensors(name)
    opcheck(OPERATOR, (*made, *rest))
    opcheck(OPERATOR, (*made[:2], None, *rest))


@pytest.mark.parametrize("name", SHAPES)
def test_gradients_and_their_gradients(name):
    made, rest = tensors(name, torch.float64)
    assert torch.autograd.gradcheck(lambda *given: OPERATOR(*given, *rest), made, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda *given: OPERATOR(*given, *rest), made, fast_mode=True)


def test_the_shapes_take_both_ways():
    ways = set()
    for x, weights, groups in SHAPES.values():
        padding = [k // 2 for k in weights[3:]]
        for direction in ("forward", "grad_input", "grad_weight"):
            ways.add(products.multiplies(direction, x[0], x[3:], weights, [1] * len(padding), padding, groups))
    assert ways == {True, False}


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_by_name(padding):
    x, weights = torch.randn(2, 3, 7, 8), torch.randn(2, 4, 3, 2, 3)
    want = by_hand(x.double(), weights.double(), None, 1, padding)
    made = conv_per_sample(x, weights, padding=padding)
    assert ((made - want).abs() <= bound(x.double(), weights.double(), None, 1, padding)).all()


@pytest.mark.parametrize("change", [lambda t: t.to(memory_format=torch.channels_last), lambda t: t[:1].expand_as(t)])
@pytest.mark.parametrize("threads", [1, 2])
def test_other_strides(change, threads):
    x, weights = change(torch.randn(4, 6, 9, 9)), torch.randn(1, 8, 6, 3, 3).expand(4, -1, -1, -1, -1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        made = conv_per_sample(x, weights, padding=1)
    finally:
        torch.set_num_threads(before)
    assert (
        (made - by_hand(x.double(), weights.double(), None, 1, 1)).abs()
        <= bound(x.double(), weights.double(), None, 1, 1)
    ).all()


@pytest.mark.parametrize("dims", [(0, None, None), (None, 0, None), (0, 0, 0), (1, 0, None), (None, None, 0)])
def test_vmap(dims):
    given_ = torch.randn(3, 4, 7, 7), torch.randn(3, 5, 4, 3, 3), torch.randn(3, 5)
    many = [t if d is None else torch.stack([t * i for i in range(1, 5)], d) for t, d in zip(given_, dims, strict=True)]

    def call(x, weights, bias):
        return conv_per_sample(x, weights, bias, padding=1)

    want = torch.stack(
        [call(*(t if d is None else t.select(d, i) for t, d in zip(many, dims, strict=True))) for i in range(4)]
    )
    torch.testing.assert_close(vmap(call, dims)(*many), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dims", [(0, 0), (0, None), (None, 0)])
def test_vmap_of_gradients(dims):
    x = torch.randn(*([4] if dims[0] == 0 else []), 3, 4, 5, 5, dtype=torch.float64)
    weights = torch.randn(*([4] if dims[1] == 0 else []), 3, 5, 4, 3, 3, dtype=torch.float64)
    both = vmap(grad(lambda a, b: conv_per_sample(a, b).square().sum(), argnums=(0, 1)), dims)(x, weights)
    for i in range(4):
        a, b = (t if d is None else t[i] for t, d in zip((x, weights), dims, strict=True))
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        want = torch.autograd.grad(by_hand(a, b, None).square().sum(), (a, b))
        for mine, theirs in zip(both, want, strict=True):
            torch.testing.assert_close(mine[i], theirs)


# PyTorch loads its scripted decompositions for it.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_forward_mode():
    x, weights = torch.randn(2, 3, 5, 5, dtype=torch.float64), torch.randn(2, 4, 3, 3, 3, dtype=torch.float64)
    value, tangent = jvp(lambda x: conv_per_sample(x, weights), (x,), (x,))
    torch.testing.assert_close(value, tangent)


class Layer(torch.nn.Module):
    def forward(self, x, weights, bias):
        return conv_per_sample(x, weights, bias, padding="same").relu()


def test_export_with_a_dynamic_batch():
    size = torch.export.Dim("n", min=2, max=64)
    given_ = torch.randn(4, 8, 9, 9), torch.randn(4, 6, 8, 3, 3), torch.randn(4, 6)
    exported = torch.export.export(Layer(), given_, dynamic_shapes=({0: size},) * 3)
    assert [node.target for node in exported.graph.nodes].count(OPERATOR) == 1
    others = torch.randn(7, 8, 9, 9), torch.randn(7, 6, 8, 3, 3), torch.randn(7, 6)
    assert torch.equal(exported.module()(*others), Layer()(*others))


def test_compile_with_a_dynamic_batch():
    compiled = torch.compile(Layer(), dynamic=True, fullgraph=True, backend="aot_eager")
    for samples in (3, 5):
        given_ = [torch.randn(samples, *shape, requires_grad=True) for shape in ((8, 9, 9), (6, 8, 3, 3), (6,))]
        found = torch.autograd.grad(compiled(*given_).sum(), given_)
        for mine, theirs in zip(found, torch.autograd.grad(Layer()(*given_).sum(), given_), strict=True):
            assert torch.equal(mine, theirs)


def test_autocast():
    x, weights = torch.randn(3, 4, 7, 7, requires_grad=True), torch.randn(3, 5, 4, 3, 3, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = conv_per_sample(x, weights)
    assert made.dtype == torch.bfloat16
    low = by_hand(x.bfloat16().double(), weights.bfloat16().double(), None)
    assert ((made - low).abs() <= low.abs() * 2**-8 + bound(x.double(), weights.double(), None)).all()
    made.float().sum().backward()
    assert x.grad.dtype == weights.grad.dtype == torch.float32


def test_no_samples():
    weights = torch.randn(0, 5, 4, 3, 3, requires_grad=True)
    made = conv_per_sample(torch.randn(0, 4, 7, 7), weights)
    made.sum().backward()
    assert made.shape == (0, 5, 5, 5)
    assert weights.grad.shape == weights.shape


def image(*shape):
    return torch.randn(shape)


@pytest.mark.parametrize(
    ("given_", "options", "said"),
    [
        ((image(4, 8, 9, 9), image(3, 6, 8, 3, 3)), {}, "4 samples and weights .* has 3"),
        ((image(4, 8, 9, 9), image(6, 8, 3)), {}, r"weights.unsqueeze\(0\)"),
        ((image(4, 8, 9), image(4, 6, 8, 3, 3)), {}, "3 dimensions; weights of 2 spatial dimensions"),
        ((image(4, 8, 9, 9), image(4, 6, 8, 3, 3), image(6)), {}, r"bias has the shape \(6,\)"),
        ((image(4, 8, 9, 9), image(4, 6, 8, 3, 3)), {"groups": 3}, "valid groups: 1, 2"),
        ((image(4, 8, 9, 9), image(4, 6, 8, 3, 3)), {"groups": 2}, "must be 8 / 2 = 4"),
        ((image(4, 8, 2, 9), image(4, 6, 8, 3, 3)), {}, "the input is too small: 2"),
        ((image(4, 8, 9, 9), image(4, 6, 8, 3, 3)), {"stride": 0}, "stride=0 is too small"),
        ((image(4, 8, 9, 9), image(4, 6, 8, 3, 3)), {"padding": "same", "stride": 2}, "give stride=1"),
        ((image(4, 8, 9, 9), image(4, 6, 8, 3, 3).double()), {}, "different dtypes"),
        ((image(4, 8, 9, 9), [1]), {}, "is a list; give a tensor"),
    ],
)
def test_what_does_not_fit_is_refused(given_, options, said):
    with pytest.raises(GroupwiseError, match=said):
        conv_per_sample(*given_, **options)


@needs_kernels
def test_the_kernels_compute_small_channels():
    with groupwise.record_plans() as plans:
        conv_per_sample(torch.randn(4, 8, 28, 28), torch.randn(4, 8, 8, 3, 3), padding=1)
    assert [plan.shape["groups"] for plan in plans] == [4]
    assert plans[0].kernel != "pytorch"
    with dispatch.forced(False), groupwise.record_plans() as plans:
        conv_per_sample(torch.randn(4, 8, 28, 28), torch.randn(4, 8, 8, 3, 3), padding=1)
    assert not plans


@needs_kernels
def test_vmap_over_the_weights_of_pytorchs_convolution_takes_the_kernels():
    x, weights = torch.randn(4, 1, 8, 28, 28), torch.randn(4, 8, 8, 3, 3)
    with groupwise.enabled(), groupwise.record_plans() as plans:
        made = vmap(lambda x, w: F.conv2d(x, w, padding=1))(x, weights)
    assert [(plan.shape["groups"], plan.kernel != "pytorch") for plan in plans] == [(4, True)]
    want = by_hand(x[:, 0].double(), weights.double(), None, 1, 1)
    assert ((made[:, 0] - want).abs() <= bound(x[:, 0].double(), weights.double(), None, 1, 1)).all()


@pytest.mark.parametrize("name", SHAPES)
def test_both_ways_against_one_convolution_a_sample(name):
    made, rest = tensors(name)
    exact = [t.detach().double() for t in made]
    assert ((OPERATOR(*made, *rest) - by_hand(*exact, *rest)).abs() <= bound(*exact, *rest)).all()
