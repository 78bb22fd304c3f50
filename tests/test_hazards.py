"""What PyTorch's kernel may end the process by, or never end itself, runs by groupwise's kernels on PyTorch's side too.

The layers here have outputs that see padding alone, or bfloat16 weights with dilated rows. PyTorch's kernels sometimes
read outside their tensors there; none of these tests calls one, and none would hang if it did.
"""

from __future__ import annotations

import copy
import pathlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import groupwise
from groupwise import ConvSpec, bench, plan, record_plans, report
from groupwise.kernels import dispatch, native
from groupwise.rewrite.engines import Work, hazard_of
from groupwise.rewrite.steps import Epilogue, Geometry
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels
OUTSIDE = "PyTorch's kernel may read outside its tensors here"
WRONG = "PyTorch's kernel may compute wrong values here, or end the process"
LAYERS = {
    "1-D": (nn.Conv1d(8, 8, 1, padding=1, groups=8), (2, 8, 9)),
    "2-D": (nn.Conv2d(8, 8, 1, padding=1, groups=4), (2, 8, 9, 9)),
    "3-D": (nn.Conv3d(8, 8, 1, padding=1, groups=4), (2, 8, 5, 5, 5)),
    "dilated": (nn.Conv2d(8, 8, 3, padding=6, dilation=6, groups=8), (2, 8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(8, 8, 1, stride=3, padding=1, groups=4), (2, 8, 9, 9)),
}
PLAIN = nn.Conv2d(8, 8, 3, padding=1, groups=4)


def inputs(shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def exact(layer, x):
    """The layer in float64, in which PyTorch has other kernels."""
    twin = type(layer)(
        *(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding),
        dilation=layer.dilation,
        groups=layer.groups,
        dtype=torch.float64,
    )
    twin.load_state_dict(layer.state_dict())
    return twin(x.double())


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pytorchs_side_computes_it_by_a_kernel_of_groupwise(name, dtype):
    layer, shape = LAYERS[name]
    hazardous = plan(layer, shape, dtype=dtype).hazard == OUTSIDE
    # A transposed layer writes where a plain one reads.
    assert hazardous or name == "transposed"
    layer, x = type(layer).to(layer, dtype), inputs(shape, dtype)
    try:
        with dispatch.by_pytorch(), record_plans() as plans:
            y = layer(x)
    finally:
        layer.float()
    assert [(one.hazard, one.kernel != "pytorch") for one in plans] == [(OUTSIDE, True)] * hazardous
    eps = torch.finfo(dtype).eps
    # Weights and inputs are rounded alike, and a sum has few products.
    torch.testing.assert_close(y.double(), exact(layer, x), rtol=4 * eps, atol=16 * eps)


@pytest.mark.parametrize("enabled", [False, True])
def test_pytorchs_side_computes_all_else_by_pytorchs_kernels(enabled):
    x = inputs((2, 8, 9, 9)).requires_grad_()
    with groupwise.enabled() if enabled else dispatch.forced(None), record_plans() as plans:
        with dispatch.by_pytorch():
            y = PLAIN(x)
            y.sum().backward()
            with dispatch.forced(True):
                PLAIN(x)
        F.relu(PLAIN(x))
    assert [one.direction for one in plans] == ["forward"] * (1 + enabled)
    assert not any(one.hazard for one in plans)


def test_a_gradient_alone_may_be_one():
    """With AVX-512, the gradient of a dense 1x1 weight with a stride in channels_last; its forward is PyTorch's."""
    layer, x = nn.Conv2d(8, 8, 1, stride=2), inputs((2, 8, 9, 9)).contiguous(memory_format=torch.channels_last)
    hazard = plan(layer, x.shape, memory_format="channels_last", direction="grad_weight").hazard
    with dispatch.by_pytorch(), record_plans() as plans:
        y = layer(x)
        (found,) = torch.autograd.grad(y, layer.weight, y)
    assert [(one.direction, one.hazard) for one in plans] == [("grad_weight", OUTSIDE)] * bool(hazard)
    weight = layer.weight.detach().double().requires_grad_()
    y64 = F.conv2d(x.double(), weight, layer.bias.detach().double(), stride=2)
    (wanted,) = torch.autograd.grad(y64, weight, y.detach().double())
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-4)


DILATED = {
    "grouped": (nn.Conv2d(8, 16, 3, padding=4, dilation=4, groups=4), (1, 8, 40, 31)),
    "one row of taps": (nn.Conv2d(8, 4, (1, 3), padding=(0, 1), dilation=(2, 1), groups=2), (2, 8, 9, 29)),
    "dense": (nn.Conv2d(24, 5, 2, padding=1, dilation=2), (2, 24, 8, 30)),
    "strided columns": (nn.Conv2d(6, 6, (2, 3), stride=(1, 2), dilation=(3, 1), groups=3), (2, 6, 9, 61)),
    "transposed": (nn.ConvTranspose2d(16, 6, 2, dilation=(2, 1), groups=2), (1, 16, 7, 33)),
    "3-D": (nn.Conv3d(4, 4, 2, dilation=(1, 2, 1), groups=2), (1, 4, 4, 6, 31)),
}
SOUND = {
    "short rows": (nn.Conv2d(8, 16, 3, padding=4, dilation=4, groups=4), (1, 8, 40, 28)),
    "a vector of channels": (nn.Conv2d(64, 16, 3, padding=2, dilation=2, groups=2), (1, 64, 9, 31)),
    "strided rows": (nn.Conv2d(8, 16, 3, stride=(2, 1), padding=2, dilation=2, groups=4), (1, 8, 9, 31)),
    "dilated columns": (nn.Conv2d(8, 16, 3, padding=2, dilation=(1, 2), groups=4), (1, 8, 9, 31)),
}


def in_channels_last(name):
    layer, shape = DILATED[name]
    three = len(shape) == 5
    x = inputs(shape, torch.bfloat16)
    x = x.contiguous(memory_format=torch.channels_last_3d if three else torch.channels_last)
    return copy.deepcopy(layer).bfloat16(), x, "channels_last_3d" if three else "channels_last"


@pytest.mark.parametrize("name", DILATED)
def test_a_gradient_of_dilated_rows_in_bfloat16_is_not_pytorchs(name):
    """With AVX-512 its values are often wrong."""
    layer, x, memory_format = in_channels_last(name)
    hazard = plan(layer, x.shape, memory_format=memory_format, direction="grad_weight", dtype=x.dtype).hazard
    assert hazard == (WRONG if "avx512" in native.runnable() else "")
    # Where PyTorch's may run, groupwise's is forced: its values are compared on every machine.
    with dispatch.by_pytorch() if hazard else dispatch.forced(True), record_plans() as plans:
        y = layer(x)
        (found,) = torch.autograd.grad(y, layer.weight, y)
    assert (plans[-1].direction, plans[-1].hazard) == ("grad_weight", hazard)
    assert plans[-1].kernel != "pytorch"
    wanted, sizes = (
        torch.ops.aten.convolution_backward(
            *(gradient, image, layer.weight.double(), None, layer.stride, layer.padding, layer.dilation),
            *(layer.transposed, layer.output_padding, layer.groups, (False, True, False)),
        )[1]
        for gradient, image in [(y.double(), x.double()), (y.double().abs(), x.double().abs())]
    )
    # float32 sums and one rounding.
    assert ((found.double() - wanted).abs() <= 2**-8 * wanted.abs() + 2**-16 * sizes).all()


def test_a_weight_in_channels_last_is_enough():
    layer, x, _ = in_channels_last("grouped")
    layer = layer.to(memory_format=torch.channels_last)
    x = x.contiguous()
    with dispatch.by_pytorch(), record_plans() as plans:
        y = layer(x)
        if "avx512" in native.runnable():
            torch.autograd.grad(y, layer.weight, y)
    assert [one.hazard for one in plans] == [WRONG] * ("avx512" in native.runnable())


@pytest.mark.parametrize("name", SOUND)
def test_a_gradient_of_other_rows_may_be_pytorchs(name):
    layer, shape = SOUND[name]
    asked = {"direction": "grad_weight", "dtype": torch.bfloat16, "memory_format": "channels_last"}
    assert plan(layer, shape, **asked).hazard == ""


@pytest.mark.parametrize(
    "other", [{"dtype": "float32"}, {"dtype": "float16"}, {"direction": "forward"}, {"memory_format": "contiguous"}]
)
def test_other_passes_of_dilated_rows_may_be_pytorchs(other):
    layer, shape = DILATED["grouped"]
    asked = {"direction": "grad_weight", "dtype": "bfloat16", "memory_format": "channels_last"}
    assert plan(layer, shape, **(asked | other)).hazard == ""


@pytest.mark.parametrize("backward", [False, True])
def test_a_report_says_so_and_has_no_time_of_pytorchs(backward):
    layer, shape = LAYERS["2-D"]
    made = report(nn.Sequential(layer, PLAIN), inputs(shape), repeats=1, backward=backward)
    first, second = made.to_dict()["layers"]
    assert first["hazard"] == OUTSIDE
    assert [first[key] for key in ("pytorch_ms", "forward_ms", "backward_ms", "speedup")] == [None] * 4
    assert first["groupwise_ms"] > 0
    assert (second["hazard"], second["pytorch_ms"] > 0) == ("", True)
    total = made.total()
    # Both sides count it.
    assert total["pytorch_ms"] > second["pytorch_ms"]
    assert total["pytorch_ms"] == pytest.approx(sum(row.before_ms for row in made.rows))
    shown = " ".join(str(made).split())
    assert f"{OUTSIDE}: 0. It was not run: groupwise's kernels computed this on both sides" in shown
    assert OUTSIDE in made.to_html().replace("&#x27;", "'")
    assert "time before" in made.to_svg()
    assert made.agreement.within_rounding


def test_a_report_of_nothing_else_claims_no_gain():
    layer, shape = LAYERS["2-D"]
    made = report(layer, inputs(shape), repeats=1)
    assert made.total()["speedup"] is made.total()["model_speedup"] is None
    assert "groupwise's kernels computed no other convolution: both sides ran the same code" in " ".join(
        str(made).split()
    )


def test_a_bench_times_groupwises_kernels_alone():
    layer, shape = LAYERS["2-D"]
    made = bench(layer, shape, repeats=1)
    assert {timing.library for timing in made.timings} == {"groupwise"}
    assert {timing.speedup for timing in made.timings} == {None}
    formats = ("contiguous", "channels_last")
    assert made.to_dict()["hazards"] == {
        f"{work}, {it}": OUTSIDE for it in formats for work in ("forward", "training step")
    }
    said = " ".join(str(made).split())
    assert f"{OUTSIDE}, and was not run: forward, contiguous; training step, contiguous; forward, channels_last" in said
    assert "Each in its better memory format" not in str(made)
    assert made.compare(made).to_dict()["rows"]
    assert not bench(PLAIN, shape, repeats=1).hazards


@pytest.mark.parametrize("tune", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_optimize_keeps_a_kernel_of_groupwise(name, tune):
    layer, shape = LAYERS[name]
    x = inputs(shape)
    if not plan(layer, shape).hazard:
        pytest.skip("it has no hazard")
    network = groupwise.optimize(nn.Sequential(layer, nn.ReLU()).eval(), x, tune=tune)
    (step,) = [step for step in network.plan.steps if step.kind == "convolution"]
    assert step.refused["onednn"] == OUTSIDE
    with torch.no_grad(), record_plans() as plans:
        y = network(x)
    if name == "3-D":
        # No engine of groupwise takes it: PyTorch's operator does, and dispatches it.
        assert (step.engine, OUTSIDE in step.reason) == ("pytorch", True)
        assert [one.hazard for one in plans] == [OUTSIDE]
    else:
        assert step.engine.startswith("groupwise")
        assert (step.refused.get("pytorch") == OUTSIDE) is tune
    torch.testing.assert_close(y.double(), exact(layer, x).relu(), rtol=1e-5, atol=1e-5)


def test_optimize_for_training_compares_with_a_model_that_is_safe():
    """The model's own forward and the traced one, to which it is compared, and those that tell what a step keeps."""
    model = nn.Sequential(LAYERS["2-D"][0], nn.Tanh())
    with record_plans() as plans:
        groupwise.optimize(model, inputs(LAYERS["2-D"][1]), train=True, tune=False)
    forward = [one for one in plans if one.direction == "forward"]
    assert len(forward) == 5
    assert all(one.hazard == OUTSIDE and one.kernel != "pytorch" for one in forward)


def test_a_sweep_records_by_groupwises_kernels():
    layer, shape = LAYERS["2-D"]
    with record_plans() as plans:
        groupwise.sweep(nn.Sequential(layer), inputs(shape), groups=(1,), repeats=1)
    assert len(plans) >= 10
    assert all(one.hazard == OUTSIDE for one in plans)


def test_what_has_no_hazard():
    assert plan(ConvSpec(8, 8, 3, padding=1), (1, 8, 9, 9)).hazard == ""
    assert plan(ConvSpec(8, 8, 1, padding=1), (1, 8, 9, 9), dtype="float64").hazard == ""
    at = Geometry((1, 1), (1, 1), (1, 1), 1)
    work = Work((2, 8, 9, 9), (2, 8, 11, 11), (8, 8, 1, 1), torch.float32, True, at, Epilogue(), False, False)
    assert hazard_of(work) == OUTSIDE
    empty = Work((0, 8, 9, 9), (0, 8, 11, 11), (8, 8, 1, 1), torch.float32, True, at, Epilogue(), False, False)
    linear = Work((2, 8), (2, 8), (8, 8), torch.float32, True, None, Epilogue(), False, False)
    assert hazard_of(empty) == hazard_of(linear) == ""


CPUINFO = pathlib.Path("/proc/cpuinfo")
HANGS = "avx512" in ISAS and CPUINFO.exists() and "avx512_fp16" in CPUINFO.read_text().split()


@pytest.mark.skipif(not HANGS, reason="oneDNN hangs only with AVX512-FP16")
def test_a_float16_layer_that_never_compiles_in_pytorch_stays_here():
    spec = ConvSpec(8, 8, 31, dims=1, groups=8)
    told = plan(spec, (1, 8, 100), dtype=torch.float16)
    assert told.kernel != "pytorch"
    assert told.evidence == "PyTorch's kernel may never end compiling here"
    assert plan(spec, (1, 8, 100), dtype=torch.bfloat16).evidence != told.evidence
    assert plan(ConvSpec(8, 8, 11, dims=1, groups=8), (1, 8, 100), dtype=torch.float16).evidence != told.evidence
    for channels, hangs in ((1, False), (2, True), (32, True), (33, False)):
        spec = ConvSpec(channels, channels, 31, dims=1, groups=channels)
        evidence = plan(spec, (1, channels, 100), dtype=torch.float16).evidence
        assert (evidence == told.evidence) is hangs, channels
