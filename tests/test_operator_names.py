"""Operators of extensions: which names and arguments groupwise takes for those of a convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupwise import ConvSpec, cost, count
from groupwise.profile import operators

X2, W2 = torch.randn(2, 4, 9, 8), torch.randn(8, 2, 3, 3)


def tbc(x, weight):
    return torch.conv_tbc(x, weight, torch.zeros(weight.shape[2]), 1)


def by_keyword(*, input, weight, padding):
    return F.conv2d(input, weight, None, 1, padding)


def onnx(x, weight, bias=None, *, pads=(), strides=(), dilations=(), group=1, kernel_shape=(), auto_pad="NOTSET"):
    top, left, bottom, right = pads or (0, 0, 0, 0)
    if auto_pad not in ("", "NOTSET"):
        # An odd kernel of stride 1 keeps the size.
        top, left, bottom, right = (weight.shape[2] // 2, weight.shape[3] // 2) * 2
    x = F.pad(x, (left, right, top, bottom))
    return F.conv2d(x, weight, bias, tuple(strides) or 1, 0, tuple(dilations) or 1, group)


@pytest.fixture(scope="module")
def library():
    made = torch.library.Library("groupwise_names", "DEF")
    for schema, function in {
        "bare_conv(Tensor x, Tensor weight) -> Tensor": lambda x, weight: x.clone(),
        "Conv(Tensor X, Tensor W, Tensor? B=None, *, int[] pads=[], int[] strides=[], int[] dilations=[], int group=1, "
        "int[] kernel_shape=[], str auto_pad='NOTSET') -> Tensor": onnx,
        "ConvTranspose(Tensor X, Tensor W, Tensor? B, int[] pads, int[] strides, int group) -> Tensor": (
            lambda x, weight, bias, pads, strides, group: F.conv_transpose2d(
                x, weight, bias, strides, pads[:2], 0, group
            )
        ),
        "conv_of_list(Tensor[] inputs, int padding) -> Tensor": lambda inputs, padding: inputs[0].clone(),
        "conv_by_keyword(*, Tensor input, Tensor weight, int padding) -> Tensor": by_keyword,
        "conv_of_nothing(Tensor? input, Tensor? weight) -> Tensor": lambda input, weight: torch.zeros(1),
        "conv_init(Tensor input) -> Tensor": lambda input: input.clone(),
        "conv_bias_add(Tensor input, Tensor bias) -> Tensor": lambda input, bias: input.clone(),
        "convnext_norm(Tensor input, Tensor weight, Tensor? bias) -> Tensor": lambda input, weight, bias: input.clone(),
        "short_conv_backward(Tensor grad, Tensor taps) -> Tensor": lambda grad, taps: grad * taps.sum(),
    }.items():
        made.impl(made.define(schema), function, "CompositeExplicitAutograd")
    yield torch.ops.groupwise_names
    made._destroy()


@pytest.mark.parametrize("name", ["conv_init", "conv_bias_add", "convnext_norm"])
def test_names_without_a_weight(library, name):
    assert not operators.is_convolution(getattr(library, name).default)


ONNX = [
    ({"pads": [1, 2, 1, 2], "strides": [2, 1], "group": 2, "kernel_shape": [3, 3]}, (2, 1), (1, 2), 1),
    ({"dilations": [1, 2], "group": 2}, 1, 0, (1, 2)),
    ({"pads": [0, 0, 0, 0], "group": 2, "auto_pad": ""}, 1, 0, 1),
]


@pytest.mark.parametrize(("stated", "stride", "padding", "dilation"), ONNX)
def test_onnx_names(library, stated, stride, padding, dilation):
    for bias in (None, torch.randn(8)):
        found = count(lambda bias=bias: library.Conv(X2, W2, bias, **stated))
        spec = ConvSpec(4, 8, 3, stride, padding, dilation, 2, bias is not None)
        assert [(call.operator, call.spec) for call in found] == [("groupwise_names::Conv", spec)]
        assert found[0].cost == cost(spec, (9, 8), batch=2)
        assert found.not_counted == {}
    (call,) = count(lambda: library.ConvTranspose(X2, torch.randn(4, 3, 3, 3), None, [1, 0, 1, 0], [2, 2], 2))
    assert call.spec == ConvSpec(4, 6, 3, 2, (1, 0), groups=2, bias=False, transposed=True)


@pytest.mark.parametrize(
    "stated",
    [
        {"pads": [0, 0, 2, 2], "group": 2},
        # Two sides that differ, where the padding before alone would give the same size.
        {"pads": [1, 1, 2, 2], "group": 2, "strides": [4, 3]},
        {"auto_pad": "SAME_UPPER", "group": 2},
        {"kernel_shape": [3, 5], "group": 2},
    ],
)
def test_onnx_that_no_spec_says(library, stated):
    found = count(lambda: library.Conv(X2, W2, **stated))
    assert (list(found), found.not_counted) == ([], {"groupwise_names::Conv": 1})


def test_an_auto_pad_that_gives_the_same_shape(library):
    weight = torch.randn(8, 2, 1, 1)
    for rule, counted in (("SAME_LOWER", 0), ("NOTSET", 1)):
        assert len(count(lambda rule=rule: library.Conv(X2, weight, group=2, auto_pad=rule))) == counted


def test_without_geometry_a_name_is_not_believed(library):
    """The output has the shape that a convolution of kernel 1 would give it, and is none."""
    found = count(lambda: library.bare_conv(X2, torch.randn(4, 4, 1, 1)))
    assert (list(found), found.not_counted) == ([], {"groupwise_names::bare_conv": 1})


def test_tensors_in_lists_and_keywords(library):
    weight = torch.randn(8, 4, 3, 3)
    found = count(lambda: library.conv_by_keyword(input=X2, weight=weight, padding=1))
    assert [call.spec for call in found] == [ConvSpec(4, 8, 3, padding=1, bias=False)]
    found = count(lambda: (library.conv_of_list([X2, weight], 1), library.conv_of_nothing(None, None)))
    assert found.not_counted == {"groupwise_names::conv_of_list": 1, "groupwise_names::conv_of_nothing": 1}


def test_a_packed_weight_of_another_kind(monkeypatch):
    class Packed:
        """XNNPACK packs more than a weight and a bias."""

        def unpack(self):
            return W2, None, [1, 1]

    monkeypatch.setattr(torch, "ScriptObject", Packed)
    assert operators.read(torch.ops.quantized.conv2d.new, (X2, Packed(), 0.1, 0), {}, X2) is None


def test_a_backward_belongs_to_the_forward_of_its_name(library):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 4, 4))

        def forward(self, x):
            return library.short_conv_backward(torch.ones(2), torch.ones(2)).sum() + tbc(x, self.kernel)

    class Later(torch.autograd.Function):
        """Runs the backward of another convolution once gradients are noted."""

        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            library.short_conv_backward(torch.ones(2), torch.ones(2))
            return gradient

    kernel = nn.Parameter(torch.randn(3, 4, 4))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = kernel

        def forward(self, x):
            return Later.apply(tbc(x, self.kernel))

    for model in (Model(), Two()):
        told = count(model, torch.randn(9, 2, 4), backward=True)
        assert told.not_counted == {"gradients of aten::conv_tbc": 1, "groupwise_names::short_conv_backward": 1}


@pytest.mark.parametrize(
    ("forward", "backward"),
    [
        ("aten::conv_tbc", "aten::conv_tbc_backward"),
        ("torchvision::deform_conv2d", "torchvision::_deform_conv2d_backward"),
        ("aten::_slow_conv2d_forward", "aten::_slow_conv2d_backward"),
        ("mamba::causal_conv1d_fwd", "mamba::causal_conv1d_bwd"),
    ],
)
def test_names_of_a_forward_and_its_backward(forward, backward):
    assert operators.stem(forward) == operators.stem(backward)
    assert (operators.is_backward(forward), operators.is_backward(backward)) == (False, True)
    assert operators.stem(forward) != operators.stem(backward.replace("conv", "other_conv"))
