"""float64 convolutions by every kernel that computes them, against sums of NumPy's long doubles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import groupwise
from accuracy import poisoned, threads
from cases import specs
from groupwise import ConvSpec, GroupwiseError, enabled, plan, record_plans
from groupwise.kernels import native, tuning
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels, planar_is_fast
from longdoubles import exact
from pairs import pairwise
from tuned import Clock, lines

pytestmark = needs_kernels

KERNELS = ["planar", "narrow", "groups", "pixels", "gemm"]
UNIT = np.finfo(np.float64).eps / 2
LAST = {1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d}


def convolve(spec, source, weight, bias):
    if spec.transposed:
        function = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][spec.dims - 1]
        return function(
            source, weight, bias, spec.stride, spec.padding, spec.output_padding, spec.groups, spec.dilation
        )
    function = [F.conv1d, F.conv2d, F.conv3d][spec.dims - 1]
    return function(source, weight, bias, spec.stride, spec.padding, spec.dilation, spec.groups)


def tensors(spec, size, batch, last=False, expanded=False, sliced=False):
    """Returns input, weight, bias and gradient of the output, in float64."""
    wide = (*size[:-1], size[-1] * 2) if sliced else size
    source = torch.randn(batch, spec.in_channels, *wide, dtype=torch.float64)
    source = source[..., ::2] if sliced else source
    weight = torch.randn(spec.weight_shape, dtype=torch.float64)
    bias = torch.randn(spec.out_channels, dtype=torch.float64) if spec.bias else None
    shape = (batch, spec.out_channels, *spec.output_size(size))
    grad = torch.randn((), dtype=torch.float64).expand(shape) if expanded else torch.randn(shape, dtype=torch.float64)
    if last and not sliced:
        source = source.contiguous(memory_format=LAST[spec.dims])
        weight = weight.contiguous(memory_format=LAST[spec.dims])
        grad = grad if expanded else grad.contiguous(memory_format=LAST[spec.dims])
    return source, weight, bias, grad


def taps_of(kernel):
    """The taps of a row of a layer that a kernel computes."""
    return 1 if kernel == "gemm" else 3


def check(spec, given, kernel, isa):
    """Compares a step with the exact sums. Returns the kernels that ran."""
    source, weight, bias, grad = given
    leaves = [t.detach().requires_grad_() for t in (source, weight, bias) if t is not None]
    with forced(True, kernel, isa), poisoned(), record_plans() as plans:
        output = convolve(spec, *leaves[:2], leaves[2] if bias is not None else None)
        found = [output.detach(), *torch.autograd.grad(output, leaves, grad)]
    names = ["output", "grad_input", "grad_weight", "grad_bias"][: len(found)]
    for name, got, (right, total, terms) in zip(names, found, exact(spec, source, weight, bias, grad), strict=True):
        assert got.dtype == torch.float64
        assert got.shape == right.shape
        # Beside the products: a bias, the lanes of a vector, the parts of threads, and the taps of a depth.
        bound = (terms + 24) * UNIT * total
        excess = float((abs(got.numpy().astype(np.longdouble) - right) - bound).max())
        assert excess <= 0, f"{name} of {spec} by {kernel or 'choice'} exceeds its bound by {excess:.3g}"
    return {one.kernel for one in plans}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spec=specs(40).filter(lambda s: s.padding_mode == "zeros" and not isinstance(s.padding, str)),
    size=st.tuples(*[st.sampled_from([1, 3, 4, 7, 8, 9, 14, 17, 33])] * 3),
    batch=st.integers(1, 3),
    layout=st.sampled_from(["contiguous", "last", "sliced"]),
    expanded=st.booleans(),
    workers=st.sampled_from([1, 2]),
)
def test_every_kernel_sums_in_float64(kernel, isa, spec, size, batch, layout, expanded, workers):
    # Volumes stay small enough for long doubles.
    size = tuple(map(min, size, (4, 5, 9))) if spec.dims == 3 else size[: spec.dims]
    try:
        spec.output_size(size)
    except GroupwiseError:
        return
    with threads(workers):
        check(spec, tensors(spec, size, batch, layout == "last", expanded, layout == "sliced"), kernel, isa)


LAYERS = [
    ("depthwise", ConvSpec(40, 40, 3, padding=1, groups=40), (19, 30), 2),
    ("depthwise, stride 2", ConvSpec(24, 24, 3, 2, 1, groups=24), (30, 31), 2),
    ("depthwise, 7x7", ConvSpec(20, 20, 7, padding=3, groups=20), (14, 14), 2),
    ("dilated", ConvSpec(16, 16, 3, padding=2, dilation=2, groups=16), (17, 18), 1),
    ("multiplier", ConvSpec(12, 24, 3, padding=1, groups=12), (9, 40), 1),
    ("groups of 4", ConvSpec(32, 32, 3, padding=1, groups=8), (14, 14), 2),
    ("groups of 16", ConvSpec(32, 64, 3, 2, 1, groups=2), (15, 14), 2),
    ("one tap", ConvSpec(48, 40, 1, groups=2), (14, 14), 1),
    ("a kernel larger than the input", ConvSpec(8, 8, 9, padding=4, groups=8), (5, 6), 2),
    ("a kernel as large as the input", ConvSpec(8, 8, 7, groups=8), (7, 7), 2),
    ("dense", ConvSpec(16, 24, 3, padding=1), (12, 13), 1),
    ("1-D", ConvSpec(24, 24, 31, padding=15, groups=24, dims=1), (300,), 2),
    ("1-D, causal", ConvSpec(32, 32, 4, padding=3, groups=32, dims=1), (65,), 2),
    ("3-D", ConvSpec(16, 16, 3, padding=1, groups=16, dims=3), (5, 9, 10), 2),
    ("3-D, groups of 8", ConvSpec(16, 32, 3, 2, 1, groups=2, dims=3), (5, 8, 8), 1),
    ("transposed", ConvSpec(24, 12, 4, 2, 1, groups=6, transposed=True), (9, 20), 2),
    ("transposed, depthwise", ConvSpec(16, 16, 3, 2, 1, groups=16, transposed=True, output_padding=1), (9, 10), 2),
    ("transposed, 3-D", ConvSpec(8, 8, 3, 2, 1, groups=8, transposed=True, dims=3), (3, 5, 6), 1),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("name", "spec", "size", "batch"), LAYERS, ids=[row[0] for row in LAYERS])
def test_layers_of_every_kind(name, spec, size, batch, last, isa):
    ran = set()
    given = tensors(spec, size, batch, last)
    for kernel in KERNELS:
        ran |= check(spec, given, kernel, isa)
    assert "planar" in ran


GRADIENTS = [
    ConvSpec(8, 8, 3, padding=1, groups=8),
    ConvSpec(8, 16, 3, 2, groups=1),
    ConvSpec(8, 8, 3, 2, padding=2, dilation=2, groups=2, bias=False),
    ConvSpec(8, 8, 3, 2, 1, groups=4, transposed=True, output_padding=1),
    ConvSpec(8, 8, 4, padding=3, groups=8, dims=1),
    ConvSpec(4, 4, 2, groups=2, dims=3),
]


# Autograd's formulas do not know the kernel and the format: pairs of these with each layer are enough.
@pytest.mark.parametrize(("spec", "kernel", "last"), pairwise(GRADIENTS, KERNELS, [False, True]), ids=str)
def test_first_and_second_gradients_are_those_of_finite_differences(kernel, last, spec):
    source, weight, bias, _ = tensors(spec, {1: (9,), 2: (5, 6), 3: (2, 3, 3)}[spec.dims], 1, last)
    leaves = [t.requires_grad_() for t in (source, weight, bias) if t is not None]

    def convolved(x, w, b=None):
        return convolve(spec, x, w, b)

    with enabled(tune=False), forced(True, kernel):
        assert torch.autograd.gradcheck(convolved, leaves)
        assert torch.autograd.gradgradcheck(convolved, leaves, fast_mode=True)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("workers", [1, 2])
def test_strided_and_expanded_tensors_of_any_order(kernel, isa, workers):
    taps = taps_of(kernel)
    spec = ConvSpec(16, 32, taps, padding=taps // 2, groups=2)
    _, _, bias, grad = tensors(spec, (9, 17), 2)
    wide = torch.randn(2, 11, 18, 40, dtype=torch.float64)
    turned = torch.randn(taps, taps, 8, 32, dtype=torch.float64).permute(3, 2, 0, 1)
    inputs = [
        torch.randn(2, 17, 9, 16, dtype=torch.float64).permute(0, 3, 2, 1)[:, :16],
        wide[:, :1, ::2, 3:20].expand(2, 16, 9, 17),
        torch.randn(2, 17, 10, 33, dtype=torch.float64)[:, 1:, 1:, ::2],
    ]
    with threads(workers):
        for source in inputs:
            for weight in (turned, turned[:, :, :1].expand(32, 8, taps, taps)):
                check(spec, (source, weight, bias, grad), kernel, isa)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_numbers_beyond_float32_keep_their_size_and_digits(kernel, last):
    """Products of 1e120, and of 1e-120, are neither infinite nor zero, and padding makes no NaN."""
    taps = taps_of(kernel)
    spec = ConvSpec(16, 16, taps, padding=taps // 2, groups=2)
    for size in (1e60, 1e-60):
        source, weight, bias, grad = tensors(spec, (9, 10), 2, last)
        check(spec, (source * size, weight * size, bias * size * size, grad * size), kernel, "")


@pytest.mark.parametrize("kernel", KERNELS)
def test_autocast_leaves_float64_as_it_is(kernel):
    taps = taps_of(kernel)
    spec = ConvSpec(16, 16, taps, padding=taps // 2, groups=2)
    given = tensors(spec, (9, 10), 2, last=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert kernel in check(spec, given, kernel, "")


@pytest.mark.usefixtures("own_cache")
def test_tuning_finds_the_kernels_of_a_float64_model():
    model = torch.nn.Conv2d(16, 16, 3, padding=1, groups=4, dtype=torch.float64)
    source = torch.randn(2, 16, 12, 12, dtype=torch.float64)
    Clock(lambda call: 1e-3)
    groupwise.tune(model, source, train=True)
    for line in lines():
        assert set(line["seconds"]) <= {"pytorch", *KERNELS}
        tuning.remember(native.library(), line["isa"], line["request"], {**line["seconds"], "planar": 5e-4})
    native.library().groupwise_policy_changed()
    with enabled(), record_plans() as plans:
        model(source).sum().backward()
    assert [(one.kernel, one.source) for one in plans] == [("planar", "measured")] * 2
    assert plan(model.float(), tuple(source.shape)).source != "measured"


def test_tables_of_float64_are_its_own():
    spec = ConvSpec(64, 64, 3, padding=1, groups=16)
    with planar_is_fast(" float64"):
        made = plan(spec, (2, 64, 28, 28), dtype="float64")
        assert (made.kernel, made.source, made.speedup) == ("planar", "table", 4)
        assert plan(spec, (2, 64, 28, 28), dtype="bfloat16").kernel == "pytorch"


@pytest.mark.parametrize("groups", [2, 4])
def test_a_gradient_of_the_weight_that_is_wrong_in_pytorch_is_computed_here(groups):
    """Of an unbatched channels_last input, in float64 also with oneDNN on; the oracle sums one sample of a batch."""
    spec = ConvSpec(8, 8, 3, groups=groups, bias=False)
    source, weight, bias, grad = tensors(spec, (6, 6), 1, last=True)
    leaf = weight.requires_grad_()
    with enabled(tune=False), record_plans() as plans:
        (found,) = torch.autograd.grad(F.conv2d(source[0], leaf, groups=groups), leaf, grad[0])
    right, total, terms = exact(spec, source, weight, bias, grad)[2]
    assert (abs(found.numpy().astype(np.longdouble) - right) <= (terms + 24) * UNIT * total).all()
    assert [one.direction for one in plans if one.kernel != "pytorch"] == ["grad_weight"]
    assert plans[-1].evidence == "PyTorch's kernel is wrong here"


def test_mixed_dtypes_are_pytorchs():
    source, weight = torch.randn(1, 4, 6, 6, dtype=torch.float64), torch.randn(4, 1, 3, 3)
    with forced(True, "planar"), pytest.raises(RuntimeError):
        F.conv2d(source, weight, groups=4)


def test_not_chosen_where_nothing_was_measured():
    """PyTorch's time in float64 is in no record, so a plan says so and keeps PyTorch."""
    made = plan(ConvSpec(32, 32, 3, padding=1, groups=32), (1, 32, 14, 14), "float64")
    assert made.kernel == "pytorch"
    assert "PyTorch's time in float64 is not known here" in made.others["planar"]
    assert made.refused["stem"] == "computes no float64"


def test_other_dtypes_are_refused():
    made = plan(ConvSpec(32, 32, 3, padding=1, groups=32), (1, 32, 14, 14), "complex64")
    assert made.kernel == "pytorch"
    assert set(made.refused.values()) == {"groupwise computes float32, float64, bfloat16 and float16 only"}
