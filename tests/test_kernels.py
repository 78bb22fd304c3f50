"""Every kernel, forced in turn, against float64: within the bound of its sums, and with no more error than expected."""

from __future__ import annotations

import contextlib
import dataclasses

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from accuracy import check, oracle, poisoned, step, threads
from cases import layer_of, specs
from groupwise import ConvSpec, GroupwiseError, plan, record_plans
from groupwise.kernels import native
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import DIRECTIONS
from kernels import ISAS, OURS, here, needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("isa")]


FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@st.composite
def cases(draw):
    spec = draw(specs(24).filter(lambda spec: spec.dims < 3))
    if draw(st.booleans()):
        # Depthwise, as half of all kernels are for these.
        channels = draw(st.integers(1, 40))
        multiplier = draw(st.sampled_from([1, 1, 1, 2, 3]))
        kernel = tuple(draw(st.sampled_from([1, 2, 3, 5, 7, 9])) for _ in range(spec.dims))
        spec = ConvSpec(
            channels,
            channels if spec.transposed else channels * multiplier,
            kernel,
            spec.stride,
            tuple(draw(st.integers(0, 4)) for _ in range(spec.dims)),
            spec.dilation,
            channels,
            spec.bias,
            transposed=spec.transposed,
            output_padding=spec.output_padding,
        )
    size = tuple(draw(st.sampled_from([1, 2, 5, 7, 8, 9, 14, 17, 26, 33])) for _ in range(spec.dims))
    if draw(st.integers(0, 3)) == 0:
        # A kernel about as large as the image, or larger: most of its taps meet padding.
        size = tuple(draw(st.sampled_from([1, 2, 5, 7, 8, 14])) for _ in range(spec.dims))
        kernel = tuple(max(1, n + draw(st.sampled_from([-1, 0, 0, 1, 9]))) for n in size)
        padding = tuple(draw(st.sampled_from([0, k // 2, k - 1])) for k in kernel)
        modes = {} if spec.transposed else {"padding_mode": "zeros"}
        spec = dataclasses.replace(spec, kernel_size=kernel, padding=padding, **modes)
    return no_lonely_padding(spec), size, draw(st.integers(1, 3))


def no_lonely_padding(spec):
    """Where an output sees padding alone, PyTorch 2.13 (oneDNN's brgemm) now and then reads outside its tensors."""
    if isinstance(spec.padding, str):
        return spec
    reach = [dilation * (kernel - 1) for dilation, kernel in zip(spec.dilation, spec.kernel_size, strict=True)]
    return dataclasses.replace(spec, padding=tuple(map(min, spec.padding, reach)))


def fitting(spec, size):
    """The size, or the least above it that the convolution takes."""
    for extra in range(64):
        with contextlib.suppress(ValueError):
            spec.output_size(tuple(n + extra for n in size))
            return tuple(n + extra for n in size)
    pytest.fail(f"{spec} takes no size")


def tensor(shape, memory_format, layout, generator):
    """Random numbers, laid out as users' tensors are."""
    if layout == "sliced":
        wide = torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)
        return wide[..., ::2]
    if layout == "unaligned":
        flat = torch.randn(torch.Size(shape).numel() + 1, generator=generator)
        return flat[1:].view(shape)
    if layout == "cropped":
        return torch.randn(*shape[:-1], shape[-1] + 3, generator=generator)[..., 2:-1]
    values = torch.randn(shape, generator=generator)
    return values.contiguous(memory_format=memory_format) if len(shape) == 4 else values


def values_of(spec, size, batch=2):
    """Random values of a layer's input and of its output."""
    return torch.randn(batch, spec.in_channels, *size), torch.randn(batch, spec.out_channels, *spec.output_size(size))


def permute_weight(layer):
    """Lay the weight out as other frameworks do: size, input channels, output channels."""
    weight = layer.weight.data
    order = [*range(2, weight.dim()), 1, 0]
    back = [weight.dim() - 1, weight.dim() - 2, *range(weight.dim() - 2)]
    layer.weight.data = weight.permute(order).contiguous().permute(back)


@pytest.mark.parametrize("kernel", ["", *OURS])
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=cases(),
    memory_format=st.sampled_from(list(FORMATS)),
    layout=st.sampled_from(["plain", "plain", "sliced", "unaligned", "cropped"]),
    permuted=st.sampled_from([False, False, True]),
    expanded=st.sampled_from([False, False, True]),
    workers=st.sampled_from([1, 2]),
    one_sign=st.sampled_from([False, False, True]),
    seed=st.integers(0, 2**16),
)
def test_every_kernel_is_as_exact_as_its_sums_allow(
    kernel, case, memory_format, layout, permuted, expanded, workers, one_sign, seed
):
    spec, size, batch = case
    size = fitting(spec, size)
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layer = layer_of(spec, torch.float32)
    if permuted:
        permute_weight(layer)
    source = tensor((batch, spec.in_channels, *size), FORMATS[memory_format], layout, generator)
    shape = (batch, spec.out_channels, *spec.output_size(size))
    grad = torch.randn((), generator=generator).expand(shape) if expanded else torch.randn(shape, generator=generator)
    if one_sign:
        # Partial sums grow with every product, so that each addition rounds more.
        for values in (source, layer.weight.data, *([] if expanded else [grad])):
            values.abs_()
    with threads(workers):
        check(layer, source, grad, kernel)


LAYERS = [
    ("groups of 4", ConvSpec(128, 128, 3, padding=1, groups=32), (20, 22)),
    ("groups of 16", ConvSpec(64, 64, 3, padding=1, groups=4), (14, 14)),
    ("depthwise", ConvSpec(37, 37, 3, padding=1, groups=37), (30, 31)),
    ("depthwise, stride", ConvSpec(32, 32, 5, stride=2, padding=2, groups=32), (29, 28)),
    ("large kernel", ConvSpec(8, 8, 31, padding=15, groups=8), (40, 41)),
    ("63x63", ConvSpec(8, 8, 63, padding=31, groups=8), (20, 70)),
    ("51x5", ConvSpec(8, 8, (51, 5), padding=(25, 2), groups=8), (33, 60)),
    ("1x11", ConvSpec(8, 16, (1, 11), padding=(0, 5), groups=8), (1, 97)),
    ("1-D", ConvSpec(48, 48, 31, padding=15, groups=48, dims=1), (300,)),
    ("long 1-D", ConvSpec(6, 6, 5, padding=4, groups=3, dims=1), (40_000,)),
    ("wide image", ConvSpec(24, 8, 3, padding=1, groups=8), (3, 6_000)),
    ("groups of 2, odd", ConvSpec(22, 22, 3, padding=1, groups=11), (9, 17)),
    ("groups of 4, stride", ConvSpec(20, 20, 5, stride=2, padding=2, groups=5), (12, 19)),
    ("groups of 12", ConvSpec(24, 24, 3, padding=1, groups=2), (7, 10)),
    ("groups of 32, few pixels", ConvSpec(64, 64, 3, padding=1, groups=2), (7, 9)),
    ("groups of 40 to 18, stride", ConvSpec(80, 36, (3, 2), stride=(1, 2), padding=1, groups=2), (8, 9)),
    ("groups of 6, few columns", ConvSpec(18, 12, 3, stride=2, padding=1, groups=2), (11, 9)),
    ("groups of 8, 7 taps", ConvSpec(32, 32, 7, padding=3, groups=4), (9, 9)),
    ("multiplier 2", ConvSpec(12, 24, 3, padding=1, groups=12), (11, 13)),
    ("multiplier 4", ConvSpec(6, 24, (2, 3), padding=(0, 1), groups=6), (10, 9)),
    ("2 to 1", ConvSpec(22, 11, 3, padding=1, groups=11), (8, 21)),
    ("dilation and stride", ConvSpec(16, 16, 3, stride=2, padding=3, dilation=3, groups=4), (17, 23)),
    ("a kernel of the image's size", ConvSpec(12, 12, 14, groups=12), (14, 14)),
    ("a column of taps", ConvSpec(8, 16, (60, 1), groups=8), (60, 21)),
    ("a row of taps", ConvSpec(8, 16, (1, 60), groups=8), (9, 60)),
    ("larger than the image", ConvSpec(24, 24, 31, padding=15, groups=24), (7, 9)),
    ("larger, groups of 4", ConvSpec(16, 16, 17, padding=8, groups=4), (5, 4)),
    ("larger, groups of 16", ConvSpec(32, 32, 11, padding=5, groups=2), (5, 6)),
    ("larger, dilation", ConvSpec(16, 16, 7, padding=9, dilation=3, groups=16), (6, 5)),
    ("1-D, of the image's size", ConvSpec(16, 16, 70, groups=16, dims=1), (70,)),
    ("transposed, large", ConvSpec(20, 12, (13, 12), groups=4, transposed=True), (6, 5)),
    ("upsampling", ConvSpec(9, 9, 16, stride=8, padding=4, groups=9, transposed=True), (5, 6)),
    ("patches", ConvSpec(3, 24, 16, stride=16, groups=3), (64, 48)),
    ("dense patches", ConvSpec(3, 40, 4, stride=4), (19, 24)),
    ("an image", ConvSpec(3, 32, 3, stride=2, padding=1), (30, 45)),
    ("an image, 7x7", ConvSpec(3, 20, 7, stride=2, padding=3), (23, 31)),
    ("an image, 11x11", ConvSpec(5, 70, 11, stride=4, padding=2), (30, 29)),
    ("gray images, dilation", ConvSpec(2, 48, (3, 5), stride=(1, 3), padding=(2, 4), dilation=2, groups=2), (12, 50)),
    ("transposed", ConvSpec(16, 24, 4, stride=2, padding=1, groups=8, transposed=True), (15, 17)),
]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    "memory_format",
    [
        "contiguous",
        "channels_last",
        "channels_last, contiguous weight",
        "contiguous, channels_last weight",
    ],
)
@pytest.mark.parametrize(("spec", "size"), [row[1:] for row in LAYERS], ids=[row[0] for row in LAYERS])
def test_layers_of_every_kind(spec, size, memory_format, workers):
    torch.manual_seed(0)
    source = torch.randn(1, spec.in_channels, *size)
    layer = layer_of(spec, torch.float32)
    memory_format, _, weight = memory_format.partition(", ")
    if spec.dims == 2:
        source = source.contiguous(memory_format=FORMATS[memory_format])
        layer = layer.to(memory_format=FORMATS[weight.partition(" ")[0] or memory_format])
    with threads(workers):
        plans = check(layer, source, torch.randn(1, spec.out_channels, *spec.output_size(size)))
        # What prints is what ran.
        layout = memory_format if spec.dims == 2 else "contiguous"
        told = [plan(layer, source.shape, memory_format=layout, direction=d) for d in DIRECTIONS]
    assert told == plans
    assert {p.kernel for p in plans} <= set(OURS)
    assert max(p.scratch_bytes for p in plans) <= 1024 * 1024


def test_dot_products_run_where_the_weight_lies_so_that_they_can():
    refused = {}
    wide = layer_of(ConvSpec(416, 404, (2, 3), padding=1, dilation=2, groups=2), torch.float32)
    source = torch.randn(2, 416, 5, 6).contiguous(memory_format=torch.channels_last)
    for weight, memory_format in FORMATS.items():
        plans = check(wide.to(memory_format=memory_format), source, torch.randn(2, 404, 5, 4), "dots")
        refused[weight] = plans[0].refused.get("dots", "")
    assert refused["channels_last"] == ""
    assert refused["contiguous"].endswith("side by side in the tensors and the weight (channels_last)")


@pytest.mark.parametrize("kernel", ["", *OURS])
@pytest.mark.parametrize(("stride", "transposed"), [(1, False), ((2, 1), False), (1, True), ((2, 1), True)])
def test_weights_that_lie_as_other_frameworks_lay_them(stride, transposed, kernel):
    # The gradient's input channels, over which dot products go, are neighbours in such a weight.
    spec = ConvSpec(64, 64, (3, 2), stride, padding=1, groups=2, transposed=transposed)
    layer = layer_of(spec, torch.float32)
    permute_weight(layer)
    source = torch.randn(1, 64, 7, 7).contiguous(memory_format=torch.channels_last)
    check(layer, source, torch.randn(1, 64, *spec.output_size((7, 7))), kernel)


@pytest.mark.parametrize("kernel", OURS)
@pytest.mark.parametrize("layout", ["plain", "cropped", "channels_last"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "stride", "size"),
    [
        (48, 12, 1, (7, 7)),
        (20, 80, 1, (4, 12)),
        (34, 30, 2, (9, 11)),
        (9, 1, 2, (13, 1)),
        (200, 8, 1, (1, 6)),
        (200, 6, 1, (5, 8)),
    ],
)
def test_one_tap(inputs, outputs, stride, size, layout, kernel):
    # Rows of the image that follow each other are one row, which some kernels read in place.
    spec = ConvSpec(2 * inputs, 2 * outputs, 1, stride, groups=2)
    generator = torch.Generator().manual_seed(0)
    memory_format = FORMATS.get(layout, torch.contiguous_format)
    source = tensor((2, 2 * inputs, *size), memory_format, layout, generator)
    grad = tensor((2, 2 * outputs, *spec.output_size(size)), memory_format, "plain", generator)
    with threads(3 - stride):
        check(layer_of(spec, torch.float32), source, grad, kernel)


def test_dot_products_of_a_long_row_of_taps():
    layer = torch.nn.Conv2d(512, 512, (1, 31), padding=(0, 15), groups=2).to(memory_format=torch.channels_last)
    source = torch.randn(1, 512, 7, 7).contiguous(memory_format=torch.channels_last)
    plans = check(layer, source, torch.randn(1, 512, 7, 7), "dots")
    assert plans[0].tile.endswith("input channels")


@pytest.mark.parametrize("width", [7, 8, 9, 13, 14, 16, 23, 31])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("channels", [2, 4, 8, 16])
def test_the_edges_of_rows_of_pixels(channels, stride, width):
    # A tile has no input outside the image, one on either side, or several; the last one may begin early.
    for padding in (0, 1, 2):
        spec = ConvSpec(64, 64, 3, stride, padding, groups=64 // channels)
        generator = torch.Generator().manual_seed(width)
        source = tensor((2, 64, 5, width), torch.channels_last, "channels_last", generator)
        grad = tensor((2, 64, *spec.output_size((5, width))), torch.channels_last, "channels_last", generator)
        assert "narrow" in [one.kernel for one in check(layer_of(spec, torch.float32), source, grad, "narrow")]


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (3, 40), (6, 7), (11, 14)])
@pytest.mark.parametrize(("stride", "dilation"), [(1, 1), (1, 2), (1, (3, 1)), (2, 1)])
def test_sums_that_slide_along_rows(stride, dilation, size):
    # A band has 1 to 4 rows, whose first and last inputs may be padding.
    for padding, outputs in ((1, 1), (2, 1), ((3, 0), 1), ((2, 1), 2)):
        spec = ConvSpec(32, 32 * outputs, 3, stride, padding, dilation, groups=32)
        try:
            grad = torch.randn(2, 32 * outputs, *spec.output_size(size))
        except GroupwiseError:
            continue
        check(layer_of(spec, torch.float32), torch.randn(2, 32, *size), grad, "narrow")
        last = [t.contiguous(memory_format=torch.channels_last) for t in (torch.randn(2, 32, *size), grad)]
        assert "narrow" in [one.kernel for one in check(layer_of(spec, torch.float32), *last, "narrow")]


@pytest.mark.parametrize("stride", [2, 3, 4])
@pytest.mark.parametrize("size", [(50,), (200,), (1, 1), (9, 7), (40, 41)])
@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
def test_the_phases_of_a_stride_are_woven_into_rows(kernel, size, stride):
    # Each phase has its own number of columns, and of taps: none where the kernel is smaller than the stride.
    spec = ConvSpec(6, 12, kernel, stride, int(kernel > 2), groups=6, transposed=True, dims=len(size))
    plans = check(layer_of(spec, torch.float32), *values_of(spec, size), "planar")
    woven = plans[0].tile.startswith("all phases")
    assert woven == (kernel <= 4 * stride and max(spec.output_size(size)) >= stride)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize(
    ("kernel", "size"), [((7, 7), (7, 7)), ((3, 4), (3, 4)), ((3, 5), (9, 5)), ((16, 16), (16, 16))]
)
def test_kernels_as_wide_as_the_image_are_dot_products_of_rows(kernel, size, width):
    for padding in {0, kernel[0] // 2 if size != kernel else 0}:
        spec = ConvSpec(5 * width, 10, kernel, padding=(padding, 0), groups=5)
        plans = check(layer_of(spec, torch.float32), *values_of(spec, size), "planar")
        assert plans[0].tile.startswith("4 dot products")
        assert plans[1].tile.endswith("taps of a kernel") == (size == kernel)


@pytest.mark.parametrize("groups", [1, 2, 16])
@pytest.mark.parametrize("memory_format", list(FORMATS))
def test_outputs_that_see_padding_alone(groups, memory_format):
    layer = torch.nn.Conv2d(16, 16, (1, 2), stride=(2, 1), padding=(3, 4), groups=groups)
    layer = layer.to(memory_format=FORMATS[memory_format])
    source = torch.randn(1, 16, 3, 2).contiguous(memory_format=FORMATS[memory_format])
    grad = torch.randn(1, 16, 5, 9)
    exact = oracle(layer, source, grad)
    # PyTorch's kernels now and then read outside their tensors here, so the planner's own choice is never theirs.
    for kernel in ("", "planar"):
        with forced(True, kernel), poisoned(), record_plans() as plans:
            ours = step(layer, source, grad)
        assert {p.kernel for p in plans} <= set(OURS)
        for name, value in ours.items():
            torch.testing.assert_close(value.double(), exact[name], rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("dilation", [64, 80, 96, 128])
def test_a_gradient_whose_remainders_of_the_stride_differ_in_scratch(dilation):
    spec = ConvSpec(8, 8, 3, stride=2, padding=1, dilation=dilation, groups=8)
    source = torch.randn(1, 8, 270, 262)
    for kernel in ("", *OURS):
        check(layer_of(spec, torch.float32), source, torch.randn(1, 8, *spec.output_size((270, 262))), kernel)


def test_every_kernel_runs_in_each_of_its_directions():
    seen, layers = set(), [torch.nn.Conv2d(32, 32, 3, padding=1, groups=groups) for groups in (32, 2, 2)]
    for kernel in OURS:
        for memory_format in FORMATS.values():
            for n, layer in enumerate(layers):
                source = torch.randn(1, 32, 9, 9).contiguous(memory_format=memory_format)
                layer.to(memory_format=memory_format)
                if n == 2:
                    permute_weight(layer)
                plans = check(layer, source, torch.randn(1, 32, 9, 9), kernel)
                seen |= {(p.kernel, p.direction) for p in plans if p.kernel != "pytorch"}
    for kernel, layer in (("fft", torch.nn.Conv1d(4, 4, 64, groups=4)), ("stem", torch.nn.Conv1d(4, 16, 64))):
        with forced(True, kernel), record_plans() as plans:
            step(layer, torch.randn(1, 4, 90), torch.randn(1, layer.out_channels, 27))
        seen |= {(p.kernel, p.direction) for p in plans if p.kernel != "pytorch"}
    last = FORMATS["channels_last"]
    source, grad = (torch.randn(1, channels, 9, 9).contiguous(memory_format=last) for channels in (32, 40))
    plans = check(torch.nn.Conv2d(32, 40, 1).to(memory_format=last), source, grad, "gemm")
    seen |= {(p.kernel, p.direction) for p in plans if p.kernel != "pytorch"}
    rows = {(row["name"], direction) for row in native.build()["kernels"] for direction in row["directions"]}
    assert seen == {row for row in rows if row[0] in here()}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", OURS)
def test_nan_and_inf_reach_the_outputs_that_they_reach_in_pytorch(kernel, stride, memory_format, value):
    layer = torch.nn.Conv2d(16, 16, 3, stride, padding=1, groups=16)
    source = torch.randn(1, 16, 9, 11).contiguous(memory_format=FORMATS[memory_format])
    source[0, 3, 4, 5] = source[0, 7, 0, 0] = source[0, 8, 8, 10] = value
    grad = torch.randn(1, 16, 9, 11)[..., ::stride, ::stride].contiguous(memory_format=FORMATS[memory_format])
    with forced(False):
        theirs = step(layer, source, grad)
    with forced(True, kernel):
        ours = step(layer, source, grad)
    for name in ("output", "grad_input", "grad_weight"):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name


@pytest.mark.parametrize("memory_format", list(FORMATS))
def test_the_same_bits_on_every_run(memory_format):
    layer = torch.nn.Conv2d(6, 6, 3, padding=1, groups=3)
    source = torch.randn(3, 6, 40, 40).contiguous(memory_format=FORMATS[memory_format])
    grad = torch.randn(3, 6, 40, 40)
    with forced(True), threads(2):
        runs = [step(layer, source, grad) for _ in range(5)]
    for run in runs[1:]:
        assert all(torch.equal(run[name], runs[0][name]) for name in run)


def test_the_instruction_set_is_the_one_asked_for(isa):
    assert plan(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9)).isa == isa
    with forced(isa=ISAS[0]):
        assert plan(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9)).isa == ISAS[0]
    assert plan(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9)).isa == isa
    with pytest.raises(GroupwiseError, match="isa='sse9' is not known; choose one of: baseline"), forced(isa="sse9"):
        pass
