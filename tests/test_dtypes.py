"""bfloat16 and float16 convolutions against float64: the float32 error and one rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import groupwise
from accuracy import oracle, poisoned, runs_of, threads
from cases import layer_of, specs
from groupwise import ConvSpec, plan, record_plans
from groupwise.kernels import native, tables, tuning
from groupwise.kernels.dispatch import forced
from kernels import DIRECT_LOW, ISAS, needs_kernels, planar_is_fast
from pairs import by_layer
from tuned import Clock, lines

pytestmark = needs_kernels

LOW = [torch.bfloat16, torch.float16]
FORMATS = ["contiguous", "channels_last"]
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
FLOAT = torch.finfo(torch.float32).eps / 2


def gradients(layer, source, grad):
    source = source.detach().requires_grad_()
    output = layer(source)
    return [output, *torch.autograd.grad(output, [source, *layer.parameters()], grad)]


def check(spec, size, batch, dtype, kernel, memory_format="contiguous", expanded=False, isa=""):
    """Compares a step with float64's from the same low numbers. Returns the kernels that ran."""
    layer = layer_of(spec, dtype)
    source = torch.randn(batch, spec.in_channels, *size).to(dtype)
    shape = (batch, spec.out_channels, *spec.output_size(size))
    grad = torch.randn(()).to(dtype).expand(shape) if expanded else torch.randn(shape).to(dtype)
    if memory_format == "channels_last" and spec.dims > 1:
        source = source.to(memory_format=LAST[spec.dims])
    with forced(True, kernel, isa), poisoned(), record_plans() as plans:
        found = gradients(layer, source, grad)
    exact, sums = oracle(layer, source, grad), oracle(layer, source, grad, torch.abs)
    unit, least = torch.finfo(dtype).eps / 2, torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2
    ran = runs_of(plans, spec.transposed)
    # No result sums more products than this.
    most = max(layer.weight.numel(), grad.numel()) + 16
    for (name, right), got in zip(exact.items(), found, strict=True):
        total = sums[name]
        assert got.dtype == dtype
        # PyTorch's own kernels round sums of some products, in 3-D transposed layers for one.
        if {"grad_bias": "grad_weight"}.get(name, name) not in ran:
            continue
        sure = 2 * most * FLOAT * total
        excess = ((got.double() - right).abs() - (unit * (right.abs() + sure) + sure + least)).max()
        assert excess <= 0, f"{name} of {spec} in {dtype} by {kernel or 'choice'} exceeds its bound by {excess:.3g}"
    return {one.kernel for one in plans}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", DIRECT_LOW)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    spec=specs(24).filter(lambda s: s.padding_mode == "zeros"),
    size=st.tuples(st.integers(4, 19), st.integers(4, 19), st.integers(4, 9)),
    batch=st.integers(1, 5),
    dtype=st.sampled_from(LOW),
    memory_format=st.sampled_from(FORMATS),
    expanded=st.booleans(),
    workers=st.sampled_from([1, 2, 3]),
)
def test_every_kernel_rounds_once_more(kernel, isa, spec, size, batch, dtype, memory_format, expanded, workers):
    size = size[-spec.dims :]
    try:
        spec.output_size(size)
    except groupwise.GroupwiseError:
        return
    with threads(workers):
        check(spec, size, batch, dtype, kernel, memory_format, expanded, isa)


LAYERS = [
    ("depthwise, several chunks", ConvSpec(96, 96, 3, padding=1, groups=96), (56, 56), 3),
    ("groups of 4", ConvSpec(128, 128, 3, padding=1, groups=32), (28, 28), 5),
    ("a sample beyond the cache", ConvSpec(40, 80, 3, stride=2, padding=1, groups=20), (150, 151), 2),
    ("one group", ConvSpec(32, 48, 3, padding=1), (40, 41), 1),
    ("1-D", ConvSpec(48, 48, 31, padding=15, groups=48, dims=1), (3000,), 4),
    ("transposed", ConvSpec(24, 48, 4, stride=2, padding=1, groups=12, transposed=True), (21, 40), 4),
    ("rows of one sample", ConvSpec(48, 48, 5, stride=2, padding=2, groups=48), (61, 42), 1),
    ("rows that no tap reads", ConvSpec(16, 16, 2, stride=3, padding=1, groups=4), (70, 20), 1),
    ("dilated rows", ConvSpec(8, 16, 3, padding=4, dilation=4, groups=4), (90, 31), 1),
    ("3-D", ConvSpec(24, 24, 3, padding=1, groups=24, dims=3), (9, 21, 22), 3),
    ("3-D of one plane a tap", ConvSpec(16, 32, (2, 3, 3), stride=(2, 1, 1), groups=4, dims=3), (6, 30, 31), 2),
    ("transposed 3-D", ConvSpec(16, 16, 2, stride=2, groups=8, transposed=True, dims=3), (5, 12, 13), 3),
]


# Chunks follow from a layer, its format, the threads and the instruction set's vectors, of which each pair meets. Both
# dtypes are two bytes long: the chunks are the same.
@pytest.mark.parametrize(
    ("layer", "dtype", "memory_format", "workers", "isa"),
    by_layer(LAYERS, LOW, FORMATS, [1, 2, 5], ISAS),
    ids=lambda value: value[0] if isinstance(value, tuple) else str(value),
)
def test_chunks_cover_a_layer(layer, dtype, memory_format, workers, isa):
    _, spec, size, batch = layer
    ran = set()
    with threads(workers):
        for kernel in ("planar", "narrow", "pixels"):
            # The same numbers, whose reference is computed once.
            torch.manual_seed(0)
            ran |= check(spec, size, batch, dtype, kernel, memory_format, isa=isa)
    assert ran - {"pytorch"}


def test_threads_share_the_rows_of_one_sample():
    tables.clear(native.library(), native.status().isa)
    spec = ConvSpec(48, 48, 3, padding=1, groups=48)
    with forced(True, "narrow"):
        tile = plan(spec, (1, 48, 16, 16), dtype="bfloat16", memory_format="channels_last", threads=2).tile
    assert tile.endswith("by chunks of 1 samples, 48 groups and 8 rows")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_every_number_is_widened_and_rounded_as_pytorch_does(dtype, isa):
    """By a 1x1 depthwise layer of weight 1, and of a weight that makes results that lie between numbers."""
    numbers = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(1, 2, 128, 256)
    for factor in (1.0, 1.37, 2.0**-9):
        weight = torch.full((2, 1, 1, 1), factor).to(dtype)
        with forced(True, "planar", isa), record_plans() as plans:
            got = torch.nn.functional.conv2d(numbers, weight, groups=2)
        assert [one.kernel for one in plans] == ["planar"]
        expected = (numbers.float() * weight.float().view(1, 2, 1, 1)).to(dtype)
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


def test_strided_tensors_and_weights_of_any_order():
    torch.manual_seed(0)
    wide = torch.randn(2, 9, 14, 26).bfloat16()
    source = wide[:, 1:9, ::2, 2:24]
    weight = torch.randn(3, 3, 2, 16).bfloat16().permute(3, 2, 0, 1)
    with forced(True, "planar"), poisoned(), record_plans() as plans:
        got = torch.nn.functional.conv2d(source, weight, groups=4)
    assert [one.kernel for one in plans] == ["planar"]
    expected = torch.nn.functional.conv2d(source.double(), weight.double(), groups=4)
    torch.testing.assert_close(got.double(), expected, rtol=2**-8, atol=1e-4)


@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast_takes_the_kernels(dtype):
    layer, source = torch.nn.Conv2d(16, 16, 3, padding=1, groups=4), torch.randn(2, 16, 12, 12)
    with forced(True, "planar"), record_plans() as plans:
        with torch.autocast("cpu", dtype=dtype):
            output = layer(source)
        output.float().sum().backward()
    assert output.dtype == dtype
    assert layer.weight.grad.dtype == torch.float32
    assert [one.kernel for one in plans] == ["planar", "planar"]
    torch.testing.assert_close(output.float(), layer(source), rtol=0.05, atol=0.05)


def test_results_are_the_same_on_every_run():
    spec = ConvSpec(32, 32, 3, padding=1, groups=8)
    layer, source = layer_of(spec, torch.bfloat16), torch.randn(7, 32, 40, 40).bfloat16()
    grad = torch.randn(7, 32, 40, 40).bfloat16()
    with threads(2), forced(True, "planar"):
        first = gradients(layer, source, grad)
        for _ in range(5):
            for a, b in zip(first, gradients(layer, source, grad), strict=True):
                assert torch.equal(a, b)


def test_a_plan_names_the_chunks_and_leaves_an_unmeasured_dtype_to_pytorch():
    spec, shape = ConvSpec(64, 64, 3, padding=1, groups=16), (2, 64, 28, 28)
    with forced(True, "planar"):
        assert "in float32 by chunks of" in plan(spec, shape, dtype="bfloat16").tile
    with forced(True):
        chosen = plan(spec, shape, dtype="float16")
    assert chosen.kernel == "pytorch"
    assert "PyTorch's time in float16 is not known here" in chosen.others["planar"]


@pytest.fixture
def told_of_bfloat16():
    """Tables by which `planar` is fast in bfloat16, and nothing is in other dtypes."""
    with planar_is_fast(" bfloat16"):
        yield


def test_each_dtype_has_tables_of_its_own(told_of_bfloat16):
    spec, shape = ConvSpec(64, 64, 3, padding=1, groups=16), (2, 64, 28, 28)
    made = plan(spec, shape, dtype="bfloat16")
    assert (made.kernel, made.source, made.speedup) == ("planar", "table", 4)
    assert plan(spec, shape, dtype="float16").kernel == "pytorch"
    volume = plan(ConvSpec(16, 16, 3, padding=1, groups=16, dims=3), (1, 16, 8, 8, 8), dtype="bfloat16")
    assert volume.kernel == "pytorch"
    assert "PyTorch's time in bfloat16 is not known here" in volume.others["planar"]


@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("dtype", LOW, ids=str)
def test_autocast_takes_what_tuning_of_a_low_model_found(dtype):
    model, source = torch.nn.Conv2d(16, 16, 3, padding=1, groups=4), torch.randn(2, 16, 12, 12)
    Clock(lambda call: 1e-3)
    made = groupwise.tune(copy.deepcopy(model).to(dtype), source.to(dtype), train=True)
    assert {one.source for one in made.plans} == {"measured"}
    for line in lines():
        assert "planar" in line["seconds"]
        tuning.remember(native.library(), line["isa"], line["request"], {**line["seconds"], "planar": 5e-4})
    native.library().groupwise_policy_changed()
    with groupwise.enabled(), record_plans() as plans:
        with torch.autocast("cpu", dtype=dtype):
            output = model(source)
        output.float().sum().backward()
    assert [(one.kernel, one.source) for one in plans] == [("planar", "measured")] * 2


def test_mixed_dtypes_are_pytorchs():
    source, weight = torch.randn(1, 4, 6, 6).bfloat16(), torch.randn(4, 1, 3, 3).half()
    with forced(True, "planar"), pytest.raises(RuntimeError):
        torch.nn.functional.conv2d(source, weight, groups=4)


PAIRS = [
    ("groups of 4", ConvSpec(64, 64, 3, padding=1, groups=16), (20, 23)),
    ("groups of 8, stride", ConvSpec(40, 40, 3, stride=2, padding=1, groups=5), (21, 30)),
    ("groups of 24, dilation", ConvSpec(72, 72, (3, 5), padding=2, dilation=(2, 1), groups=3), (17, 15)),
    ("groups of 40 to 18", ConvSpec(80, 36, 3, stride=(1, 2), padding=1, groups=2), (9, 14)),
    ("long sums", ConvSpec(460, 34, 3, padding=1), (7, 9)),
    ("depthwise, stride", ConvSpec(72, 72, 5, stride=2, padding=2, groups=72), (19, 22)),
    ("depthwise, of few channels", ConvSpec(7, 7, 7, padding=3, groups=7), (9, 40)),
    ("patches", ConvSpec(24, 32, 4, stride=4), (17, 16)),
    ("transposed", ConvSpec(32, 48, 4, stride=2, padding=1, groups=2, transposed=True), (9, 12)),
    ("transposed, depthwise", ConvSpec(33, 33, 3, stride=3, groups=33, transposed=True), (6, 11)),
    ("larger than the image", ConvSpec(32, 32, 9, padding=4, groups=2), (4, 5)),
    ("1x1, stride", ConvSpec(70, 130, 1, stride=2), (12, 15)),
    ("more inputs than a block", ConvSpec(200, 24, (1, 2), padding=(0, 1)), (5, 9)),
    ("groups of 2", ConvSpec(50, 50, 5, padding=2, groups=25), (9, 12)),
    ("an image", ConvSpec(3, 40, 7, stride=2, padding=3), (24, 31)),
    ("depthwise, 7x7 and dilation", ConvSpec(70, 70, 7, padding=9, dilation=3, groups=70), (13, 11)),
    ("a row", ConvSpec(32, 32, (1, 5), padding=(0, 2), groups=4), (1, 301)),
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize(("spec", "size"), [row[1:] for row in PAIRS], ids=[row[0] for row in PAIRS])
def test_pairs_computes_outputs_and_gradients(spec, size, batch, workers, isa):
    torch.manual_seed(0)
    with threads(workers):
        # Outputs of groups that fill no vectors stay PyTorch's.
        with record_plans() as plans:
            check(spec, size, batch, torch.bfloat16, "pairs", "channels_last", isa=isa)
        ran = {plan.direction for plan in plans if plan.kernel == "pairs"}
        assert "grad_weight" in ran
        assert len(ran) == 3 or spec.in_channels % 2 or 2 * spec.out_channels < 40 * spec.groups


# Inputs and outputs of a group, and groups.
CHANNELS = [
    *[(1, 1, 37), (1, 1, 64), (2, 2, 9), (4, 4, 13), (8, 8, 5)],
    *[(16, 16, 2), (24, 24, 3), (7, 20, 2), (1, 9, 3), (130, 70, 1)],
]


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    channels=st.sampled_from(CHANNELS),
    kernel=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    more=st.tuples(st.integers(0, 17), st.integers(0, 130)),
    padded=st.booleans(),
    batch=st.integers(1, 4),
    weight_order=st.sampled_from([(0, 1, 2, 3), (0, 1, 2, 3), (0, 2, 3, 1), (2, 3, 1, 0), (0, 2, 1, 3), (1, 3, 0, 2)]),
    workers=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**16),
)
def test_pairs_of_positions_sum_to_whole_numbers(
    isa, channels, kernel, stride, dilation, more, padded, batch, weight_order, workers, seed
):
    # Inputs and gradients of -1, 0 and 1, and sums below 256, are exact in bfloat16.
    inputs, outputs, groups = channels
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = [r // 2 if padded else 0 for r in reach]
    size = [r + 1 - 2 * p + m for r, p, m in zip(reach, padding, more, strict=True)]
    out = [(n + 2 * p - r - 1) // s + 1 for n, p, r, s in zip(size, padding, reach, stride, strict=True)]
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape):
        # Few are not zero.
        values = torch.randint(-1, 2, shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.3)
        return values.bfloat16().to(memory_format=torch.channels_last)

    x, grad = whole(batch, groups * inputs, *size), whole(batch, groups * outputs, *out)
    # Its dimensions follow each other in memory in this order.
    sizes = (groups * outputs, inputs, *kernel)
    back = [weight_order.index(dimension) for dimension in range(4)]
    weight = torch.zeros([sizes[dimension] for dimension in weight_order]).bfloat16().permute(back)
    shape = [list(stride), padding, list(dilation), False, [0, 0], groups, [False, True, False]]
    wide = grad.double(), x.double(), weight.double().contiguous()
    exact = torch.ops.aten.convolution_backward(*wide, None, *shape)[1]
    with forced(True, "pairs", isa), threads(workers), poisoned(), record_plans() as plans:
        found = torch.ops.aten.convolution_backward(grad, x, weight, None, *shape)[1]
    neighbours = x.stride(1) == 1 and grad.stride(1) == 1
    assert not neighbours or [one.kernel for one in plans] == ["pairs"]
    assert torch.equal(found, exact.bfloat16())
    assert found.stride() == weight.stride()


def test_pairs_has_the_same_bits_on_any_number_of_threads():
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(72, 72, 3, 2, 1, groups=3).to(torch.bfloat16, memory_format=torch.channels_last)
    source = torch.randn(2, 72, 15, 18).to(torch.bfloat16, memory_format=torch.channels_last)
    grad = torch.randn(2, 72, 8, 9).bfloat16()
    found = []
    for workers in (1, 2, 3):
        with threads(workers), forced(True, "pairs"), record_plans() as plans:
            found.append(gradients(layer, source, grad)[:2])
        assert [one.kernel for one in plans][:2] == ["pairs", "pairs"]
    for value, *others in zip(*found, strict=True):
        assert all(torch.equal(value, other) for other in others)


def test_pairs_says_why_it_does_not_run():
    def why(spec, dtype="bfloat16", memory_format="channels_last", size=(9, 9)):
        return plan(spec, (1, spec.in_channels, *size), dtype=dtype, memory_format=memory_format).refused["pairs"]

    layer = ConvSpec(32, 32, 3, groups=2)
    assert why(layer, "float32") == why(layer, "float16") == why(layer, "float64") == "computes bfloat16 only"
    assert why(layer, memory_format="contiguous").endswith("side by side in the tensors (channels_last)")
    assert why(ConvSpec(6, 32, 3, groups=2)) == "it multiplies pairs of input channels of a group"
    assert why(ConvSpec(8, 4, 3, groups=2)).startswith("its vectors need as many output channels of a group")
    gradient = plan(ConvSpec(8, 6, 3, groups=2), (1, 8, 9, 9), direction="grad_weight", dtype="bfloat16",
                    memory_format="channels_last")  # fmt: skip
    assert gradient.refused["pairs"].startswith("its vectors need a group whose output channels fill more")
    volume = ConvSpec(32, 32, 3, groups=2, dims=3)
    assert why(volume, memory_format="channels_last_3d", size=(9, 9, 9)) == "computes 1-D and 2-D convolutions only"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("groups", [1, 2, 3, 12, 48])
@pytest.mark.parametrize("isa", ISAS)
def test_pairs_hides_no_special_number(isa, groups, value):
    # Groups of 48, 24, 16 and 4 channels, and a depthwise layer; the image is small and the padding wide.
    layer = torch.nn.Conv2d(48, 48, 3, padding=2, groups=groups, bias=False)
    layer = layer.to(torch.bfloat16, memory_format=torch.channels_last)
    source = torch.randn(1, 48, 6, 7).to(torch.bfloat16, memory_format=torch.channels_last)
    source[0, 5, 0, 3] = source[0, 40, 5, 6] = value
    grad = torch.randn(1, 48, 8, 9).to(torch.bfloat16, memory_format=torch.channels_last)
    grad[0, 17, 7, 0] = value
    exact = oracle(layer, source, grad)
    with forced(True, "pairs", isa), record_plans() as plans:
        made = gradients(layer, source, grad)
    assert [one.kernel for one in plans] == ["pairs"] * 3
    for name, found in zip(("output", "grad_input", "grad_weight"), made, strict=False):
        assert torch.equal(found.isfinite(), exact[name].isfinite()), name
