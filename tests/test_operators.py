"""Convolutions of other operators than `aten::convolution`: counted where their arguments say what they are, named
where they do not, and never left out without a word."""

from __future__ import annotations

import importlib
import importlib.util
import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupwise import ConvSpec, cost, count, report
from groupwise.cli.targets import import_torchvision
from groupwise.profile import operators

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch.ao.quantization as quantization

pytestmark = pytest.mark.filterwarnings("ignore:.*quant")


def quantized(values, dtype=torch.quint8):
    return torch.quantize_per_tensor(values, 0.1, 10 if dtype is torch.quint8 else 0, dtype)


def packed(prepack, weight, bias, *options):
    return getattr(torch.ops.quantized, prepack)(quantized(weight, torch.qint8), bias, *options)


X1, X2, X3 = torch.randn(2, 4, 9), torch.randn(2, 4, 9, 8), torch.randn(2, 4, 5, 6, 7)
W2 = torch.randn(8, 2, 3, 3)
STATED = ConvSpec(4, 8, 3, 2, 1, 1, 2)


def onednn_reordered(transposed, groups):
    weight = torch.randn(4, 6, 3, 3) if transposed else torch.randn(6, 4 // groups, 3, 3)
    if transposed:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(
            weight, [1, 1], [1, 0], [2, 2], [1, 1], groups, [2, 4, 9, 8]
        )
    return torch.ops.mkldnn._reorder_convolution_weight(weight, [1, 1], [2, 2], [1, 1], groups, [2, 4, 9, 8])


def deform(x, weight, offset, bias, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, groups, offset_groups):
    return F.conv2d(x, weight, bias, (stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), groups)


@pytest.fixture(scope="module")
def library():
    """Operators of an extension: one with torchvision's arguments of a deformable convolution, and others."""
    made = torch.library.Library("groupwise_test", "DEF")
    for schema, function in {
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor? bias, int stride_h, int stride_w, "
        "int pad_h, int pad_w, int dilation_h, int dilation_w, int groups, int offset_groups) -> Tensor": deform,
        "short_conv(Tensor x, Tensor taps) -> Tensor": lambda x, taps: x * taps.sum(),
        "far_conv(Tensor x, Tensor weight, int[] steps, int padding) -> Tensor": lambda x, weight, steps, padding: (
            F.conv2d(x, weight, None, steps, padding)
        ),
        "conv_prepack(Tensor weight) -> Tensor": lambda weight: weight.clone(),
        "convert(Tensor x) -> Tensor": lambda x: x.clone(),
        "short_conv_backward(Tensor grad, Tensor taps) -> Tensor": lambda grad, taps: grad * taps.sum(),
    }.items():
        name = made.define(schema)
        made.impl(name, function, "CompositeExplicitAutograd")
    yield torch.ops.groupwise_test
    made._destroy()


def tbc(x, weight):
    return torch.conv_tbc(x, weight, torch.randn(weight.shape[2]), 1)


# What runs, its operator, and what it is: the spec, the spatial input size, the dtype and the bytes of a value of each.
QUANTIZED = {
    "1d": (
        lambda: torch.ops.quantized.conv1d(
            quantized(X1), packed("conv1d_prepack", torch.randn(8, 2, 3), torch.randn(8), [2], [1], [1], 2), 0.1, 0
        ),
        "quantized::conv1d",
        ConvSpec(4, 8, 3, 2, 1, 1, 2, dims=1),
        (9,),
    ),
    "2d relu, no bias": (
        lambda: torch.ops.quantized.conv2d_relu(
            quantized(X2), packed("conv2d_prepack", W2, None, [2, 1], [1, 0], [1, 2], 2), 0.1, 0
        ),
        "quantized::conv2d_relu",
        ConvSpec(4, 8, 3, (2, 1), (1, 0), (1, 2), 2, bias=False),
        (9, 8),
    ),
    "2d, options as arguments": (
        lambda: torch.ops.quantized.conv2d(
            quantized(X2),
            packed("conv2d_prepack", W2, None, [2, 2], [1, 1], [1, 1], 2),
            [2, 2],
            [1, 1],
            [1, 1],
            2,
            0.1,
            0,
        ),
        "quantized::conv2d",
        ConvSpec(4, 8, 3, 2, 1, 1, 2, bias=False),
        (9, 8),
    ),
    "3d": (
        lambda: torch.ops.quantized.conv3d(
            quantized(X3),
            packed("conv3d_prepack", torch.randn(8, 2, 1, 2, 3), None, [1] * 3, [0] * 3, [1] * 3, 2),
            0.1,
            0,
        ),
        "quantized::conv3d",
        ConvSpec(4, 8, (1, 2, 3), groups=2, bias=False),
        (5, 6, 7),
    ),
    "transposed 1d": (
        lambda: torch.ops.quantized.conv_transpose1d(
            quantized(X1),
            packed("conv_transpose1d_prepack", torch.randn(4, 6, 3), torch.randn(6), [2], [1], [1], [1], 1),
            0.1,
            0,
        ),
        "quantized::conv_transpose1d",
        ConvSpec(4, 6, 3, 2, 1, transposed=True, output_padding=1, dims=1),
        (9,),
    ),
    "transposed 2d": (
        lambda: torch.ops.quantized.conv_transpose2d(
            quantized(X2),
            packed("conv_transpose2d_prepack", W2[:4], torch.randn(4), [2, 2], [1, 1], [1, 0], [1, 1], 2),
            0.1,
            0,
        ),
        "quantized::conv_transpose2d",
        ConvSpec(4, 4, 3, 2, 1, groups=2, transposed=True, output_padding=(1, 0)),
        (9, 8),
    ),
}
FLOAT = {
    "oneDNN, fused": (
        lambda: torch.ops.mkldnn._convolution_pointwise(
            X2, W2, torch.randn(8), [1, 1], [2, 2], [1, 1], 2, "relu", [], ""
        ),
        "mkldnn::_convolution_pointwise",
        STATED,
    ),
    "oneDNN, reordered": (
        lambda: torch.ops.mkldnn._convolution_pointwise(
            X2, onednn_reordered(False, 2), None, [1, 1], [2, 2], [1, 1], 2, "none", [], ""
        ),
        "mkldnn::_convolution_pointwise",
        ConvSpec(4, 6, 3, 2, 1, groups=2, bias=False),
    ),
    "oneDNN, with an addend": (
        lambda: torch.ops.mkldnn._convolution_pointwise.binary(
            X2, torch.randn(2, 8, 5, 4), W2, None, [1, 1], [2, 2], [1, 1], 2, "add", 1.0, None, [], None
        ),
        "mkldnn::_convolution_pointwise",
        ConvSpec(4, 8, 3, 2, 1, 1, 2, bias=False),
    ),
    "oneDNN, with an addend in place": (
        lambda: torch.ops.mkldnn._convolution_pointwise_.binary(
            torch.randn(2, 8, 5, 4), X2, W2, None, [1, 1], [2, 2], [1, 1], 2, "add", 1.0, None, [], None
        ),
        "mkldnn::_convolution_pointwise_",
        ConvSpec(4, 8, 3, 2, 1, 1, 2, bias=False),
    ),
    "oneDNN, transposed": (
        lambda: torch.ops.mkldnn._convolution_transpose_pointwise(
            X2, torch.randn(4, 3, 3, 3), None, [1, 1], [1, 0], [2, 2], [1, 1], 2, "none", [], ""
        ),
        "mkldnn::_convolution_transpose_pointwise",
        ConvSpec(4, 6, 3, 2, 1, groups=2, bias=False, transposed=True, output_padding=(1, 0)),
    ),
    "oneDNN, transposed and reordered": (
        lambda: torch.ops.mkldnn._convolution_transpose_pointwise(
            X2, onednn_reordered(True, 1), None, [1, 1], [1, 0], [2, 2], [1, 1], 1, "none", [], ""
        ),
        "mkldnn::_convolution_transpose_pointwise",
        ConvSpec(4, 6, 3, 2, 1, bias=False, transposed=True, output_padding=(1, 0)),
    ),
    "oneDNN of aten": (
        lambda: torch.ops.aten.mkldnn_convolution(X2, W2, torch.randn(8), [1, 1], [2, 2], [1, 1], 2),
        "aten::mkldnn_convolution",
        STATED,
    ),
    "aten's plain loops": (
        lambda: torch.ops.aten._slow_conv2d_forward(X2, torch.randn(8, 4, 3, 3), [3, 3], None, [2, 2], [1, 1]),
        "aten::_slow_conv2d_forward",
        ConvSpec(4, 8, 3, 2, 1, bias=False),
    ),
    "deformable": (
        lambda: torch.ops.groupwise_test.deform_conv2d(
            X2, W2, torch.randn(2, 18, 5, 8), torch.randn(8), 2, 1, 1, 0, 1, 1, 2, 1
        ),
        "groupwise_test::deform_conv2d",
        ConvSpec(4, 8, 3, (2, 1), (1, 0), groups=2),
    ),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_operators(name):
    run, operator, spec, size = QUANTIZED[name]
    (call,) = count(run)
    expected = cost(spec, size, batch=2, dtype="uint8")
    assert (call.operator, call.spec) == (operator, spec)
    assert call.cost == expected
    assert call.passes == ["forward"]


@pytest.mark.parametrize("name", FLOAT)
def test_operators_with_a_weight(library, name):
    run, operator, spec = FLOAT[name]
    found = count(run)
    assert [(call.operator, call.spec, call.cost) for call in found] == [(operator, spec, cost(spec, (9, 8), batch=2))]
    assert found.not_counted == {}


def test_a_dynamically_quantized_one_has_bytes_of_two_dtypes():
    weight = packed("conv2d_prepack", W2, None, [1, 1], [1, 1], [1, 1], 2)
    (call,) = count(lambda: torch.ops.quantized.conv2d_dynamic(X2, weight, False))
    assert call.cost.dtype == "float32"
    assert call.cost.traffic.to_dict() == {"input": 4 * X2.numel(), "weight": W2.numel(), "output": 4 * 2 * 8 * 72}


def test_time_batch_channels():
    (call,) = count(lambda: tbc(torch.randn(9, 2, 4), torch.randn(3, 4, 6)))
    assert (call.operator, call.spec) == ("aten::conv_tbc", ConvSpec(4, 6, 3, padding=1, dims=1))
    assert call.cost == cost(call.spec, 9, batch=2)


def test_gradients_that_cannot_be_told_apart_are_named():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 4, 4))

        def forward(self, x):
            return tbc(tbc(x, self.kernel), self.kernel)

    for found in (count(Model(), torch.randn(9, 2, 4), backward=True), count(Model(), torch.randn(9, 2, 4))):
        assert [call.parameter for call in found] == ["kernel", "kernel"]
        assert [call.passes for call in found] == [["forward"]] * 2
    assert found.not_counted == {}
    told = report(Model(), torch.randn(9, 2, 4), backward=True, repeats=1)
    assert told.not_counted == {"gradients of aten::conv_tbc": 2}


def test_what_the_arguments_do_not_say_is_named(library):
    x, weight = torch.randn(2, 4, 9, 9), torch.randn(8, 4, 3, 3)

    def model(x):
        library.short_conv(x, x)
        library.short_conv(x, x)
        library.short_conv_backward(x, x)
        library.far_conv(library.convert(x), library.conv_prepack(weight), [2, 2], 1)
        return F.conv2d(x, weight)

    found = count(model, x)
    missing = {
        "groupwise_test::short_conv": 2,
        "groupwise_test::short_conv_backward": 1,
        "groupwise_test::far_conv": 1,
    }
    assert [call.operator for call in found] == ["aten::convolution"]
    assert found.not_counted == found.to_dict()["not_counted"] == missing
    made = report(model, x, repeats=1)
    assert made.to_dict()["not_counted"] == missing
    sentence = "arguments do not tell its shape: groupwise_test::short_conv (2 calls), groupwise_test::short_conv_"
    for shown in (str(found), found._repr_html_(), str(made), made.to_html(), made._repr_html_()):
        assert sentence in " ".join(shown.split())
    assert "No counted convolution has groups above 1" in str(made)


@pytest.mark.parametrize("ran", [True, False])
def test_no_false_sentence_where_nothing_is_counted(library, ran):
    def model(x):
        return library.short_conv(x, x) if ran else x + 1

    for made in (report(model, torch.randn(2, 3), repeats=1), count(model, torch.randn(2, 3))):
        for shown in (str(made), made._repr_html_(), *([made.to_html()] if hasattr(made, "to_html") else [])):
            assert ("groupwise saw no convolution run." in shown) is not ran
            assert ("short_conv (1 call)" in " ".join(shown.split())) is ran
            assert "No convolution" not in shown


def test_names_that_only_look_like_it(library):
    assert not any(
        operators.is_convolution(one.default)
        for one in (
            *(library.convert, library.conv_prepack, torch.ops.prims.convert_element_type),
            *(torch.ops.quantized.conv2d_unpack, torch.ops.quantized.conv2d_stride, torch.ops.quantized.conv2d_prepack),
            torch.ops.aten.mkldnn_reorder_conv2d_weight,
        )
    )


class Stubs(nn.Module):
    """A float network between the quantization of its input and that of its output."""

    def __init__(self, body):
        super().__init__()
        self.enter, self.body, self.leave = quantization.QuantStub(), body, quantization.DeQuantStub()

    def forward(self, x):
        return self.leave(self.body(self.enter(x)))


def quantize(model, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = Stubs(model).eval()
        model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
        prepared = quantization.prepare(model)
        prepared(x)
        return quantization.convert(prepared)


def test_a_quantized_model_has_the_counts_of_its_float_twin():
    x = torch.randn(1, 3, 12, 12)
    twin = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False),
        nn.Conv2d(8, 8, 3, 2, 1, groups=4, padding_mode="reflect"),
    ).eval()
    quick, slow = count(quantize(twin, x), x), count(twin, x)
    assert [call.spec for call in quick] == [call.spec for call in slow]
    assert [call.cost.macs for call in quick] == [call.cost.macs for call in slow]
    assert [4 * call.cost.bytes for call in quick] == [call.cost.bytes for call in slow]
    assert [call.name for call in quick] == [f"body.{call.name}" for call in slow]
    assert [call.parameter for call in quick] == [f"body.{call.name}.weight" for call in slow]
    facts = report(quantize(twin, x), x, repeats=1).to_dict()
    assert json.loads(json.dumps(facts)) == facts
    assert (
        facts["total"]["parameters"] == facts["total"]["model_parameters"] == sum(p.numel() for p in twin.parameters())
    )
    assert {row["kernel"] for row in facts["layers"]} <= {"pytorch", None}


@pytest.mark.filterwarnings("ignore")
def test_a_quantized_mobilenet_has_the_macs_of_its_float_twin(monkeypatch):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    import_torchvision()
    # torchvision sets the engine, which is put back.
    monkeypatch.setattr(torch.backends.quantized, "engine", torch.backends.quantized.engine)
    make = importlib.import_module("torchvision.models.quantization").mobilenet_v2
    x = torch.randn(1, 3, 64, 64)
    quick, slow = (count(make(weights=None, quantize=quantized).eval(), x) for quantized in (True, False))
    assert [call.cost.macs for call in quick] == [call.cost.macs for call in slow]
    assert len(quick) == 52
    assert {call.operator for call in quick} == {"quantized::conv2d", "quantized::conv2d_relu"}
    assert quick.not_counted == {}
