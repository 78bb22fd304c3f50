"""3-D convolutions by every kernel, against float64: any shape, both memory formats, one thread and two."""

from __future__ import annotations

import ctypes
import json
import math

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from accuracy import check_values, poisoned, runs_of, step, strides, threads
from cases import layer_of
from groupwise import ConvSpec, plan, record_plans, valid_groups
from groupwise.kernels import native, tables
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import request_numbers
from kernels import DIRECT, ISAS, needs_kernels, planar_is_fast
from scripts import load

pytestmark = needs_kernels

features = load("features")

FORMATS = {"contiguous": torch.contiguous_format, "channels_last_3d": torch.channels_last_3d}


@st.composite
def specs(draw):
    """A 3-D layer and the size of an input that it takes; kernels may be larger than the input."""

    def each(values):
        return tuple(draw(st.sampled_from(values)) for _ in range(3))

    if draw(st.booleans()):
        groups = in_channels = draw(st.sampled_from([1, 2, 5, 8, 16, 17, 32]))
        out_channels = groups * draw(st.sampled_from([1, 1, 1, 2, 3]))
    else:
        in_channels, out_channels = draw(st.integers(1, 8)) * 4, draw(st.integers(1, 8)) * 4
        groups = draw(st.sampled_from(valid_groups(in_channels, out_channels)))
    kernel = draw(st.sampled_from([(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1), (7, 1, 1), None])) or each(
        [1, 2, 3, 4, 5]
    )
    stride, dilation = each([1, 1, 2, 3]), each([1, 1, 2])
    reach = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, r)) for r in reach)
    extra = {}
    if transposed := draw(st.booleans()):
        extra["output_padding"] = tuple(
            draw(st.integers(0, max(pair) - 1)) for pair in zip(stride, dilation, strict=True)
        )
    spec = ConvSpec(
        in_channels,
        out_channels,
        kernel,
        stride,
        padding,
        dilation,
        groups,
        draw(st.booleans()),
        transposed=transposed,
        **extra,
    )
    size = list(each([1, 2, 3, 5, 7, 10]))
    for axis in range(3):
        least = 1 - 2 * padding[axis] + reach[axis]
        if transposed:
            # The output has at least one position.
            last = least + extra["output_padding"][axis]
            while (size[axis] - 1) * stride[axis] + last < 1:
                size[axis] += 1
        else:
            size[axis] = max(size[axis], least)
    return spec, tuple(size)


def laid_out(shape, memory_format, layout, generator):
    if layout == "sliced":
        return torch.randn(*shape[:-1], 2 * shape[-1], generator=generator)[..., ::2]
    if layout == "every second plane":
        values = torch.randn(*shape[:2], 2 * shape[2], *shape[3:], generator=generator)
        return values.contiguous(memory_format=FORMATS[memory_format])[:, :, ::2]
    return torch.randn(shape, generator=generator).contiguous(memory_format=FORMATS[memory_format])


DEEP = (ConvSpec(16, 16, (7, 1, 1), (2, 1, 1), (5, 0, 0), groups=16, dims=3), (5, 1, 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", DIRECT)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=specs(),
    batch=st.integers(1, 3),
    memory_format=st.sampled_from(list(FORMATS)),
    layout=st.sampled_from(["plain", "plain", "sliced", "every second plane"]),
    weight_last=st.booleans(),
    expanded=st.sampled_from([False, False, True]),
    workers=st.sampled_from([1, 2]),
    seed=st.integers(0, 2**16),
)
@example(
    case=DEEP,
    batch=1,
    memory_format="channels_last_3d",
    layout="plain",
    weight_last=True,
    expanded=False,
    workers=2,
    seed=0,
)
def test_a_volume_is_as_exact_as_its_sums_allow(
    isa, kernel, case, batch, memory_format, layout, weight_last, expanded, workers, seed
):
    spec, size = case
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    layer = layer_of(spec, torch.float32)
    if weight_last:
        layer = layer.to(memory_format=torch.channels_last_3d)
    source = laid_out((batch, spec.in_channels, *size), memory_format, layout, generator)
    shape = (batch, spec.out_channels, *spec.output_size(size))
    grad = torch.randn((), generator=generator).expand(shape) if expanded else torch.randn(shape, generator=generator)
    with threads(workers), forced(isa=isa):
        able = abilities(kernel, layer, source.shape, "contiguous" if layout == "sliced" else memory_format)
        with forced(True, kernel), poisoned(), record_plans() as plans:
            ours = values_of(layer, source, grad, able)
        runs = runs_of(plans, layer.transposed)
    assert all(p.kernel == kernel or kernel in p.refused for p in plans if p.direction in directions_of(kernel))
    check_values({name: ours[name] for name in ours if name in runs or name == "grad_bias"}, layer, source, grad, runs)


def directions_of(kernel):
    return next(row["directions"] for row in native.build()["kernels"] if row["name"] == kernel)


def abilities(kernel, layer, shape, memory_format):
    """Which values of a step a kernel computes. PyTorch is asked for no other gradient, as some of them are wrong."""
    names = {"forward": "output", "grad_input": "grad_input", "grad_weight": "grad_weight"}
    directions = directions_of(kernel)
    plans = {d: plan(layer, shape, memory_format=memory_format, direction=d) for d in names}
    return {names[d] for d, p in plans.items() if p.direction in directions and kernel not in p.refused}


def values_of(layer, source, grad, able):
    """The output and those gradients of a step that are asked for, and the bias's beside the weight's."""
    leaf = source.detach().requires_grad_()
    given = {"grad_input": leaf, "grad_weight": layer.weight}
    if layer.bias is not None and "grad_weight" in able:
        given["grad_bias"] = layer.bias
    wanted = {name: tensor for name, tensor in given.items() if name in able or name == "grad_bias"}
    output = layer(leaf)
    found = torch.autograd.grad(output, list(wanted.values()), grad) if wanted else ()
    return {"output": output.detach(), **dict(zip(wanted, found, strict=True))}


# Planes of channels_last_3d that no half of an L2 cache holds, but a few of whose rows do: they are computed in bands.
WIDE = [
    (ConvSpec(64, 64, 3, padding=1, groups=64, dims=3), (4, 41, 48)),
    (ConvSpec(64, 64, (2, 5, 3), (1, 2, 1), (1, 3, 0), (1, 1, 2), 64, dims=3), (3, 83, 24)),
    (ConvSpec(64, 64, (3, 3, 1), (2, 1, 2), (0, 2, 0), (1, 2, 1), 8, dims=3), (4, 60, 32)),
    (ConvSpec(64, 64, 3, (2, 1, 1), 1, groups=16, dims=3, transposed=True, bias=False), (2, 37, 64)),
    (ConvSpec(64, 32, (2, 3, 1), padding=(0, 1, 0), dims=3), (3, 50, 80)),
    (ConvSpec(64, 64, 3, 2, 1, groups=64, dims=3), (7, 61, 48)),
    (ConvSpec(64, 64, 3, 1, (2, 1, 1), (2, 1, 1), 64, dims=3), (6, 41, 48)),
    (ConvSpec(64, 128, 3, padding=1, groups=64, dims=3), (3, 40, 48)),
    (ConvSpec(64, 64, (7, 5, 7), padding=(3, 2, 3), groups=64, dims=3), (5, 30, 40)),
]


@pytest.mark.parametrize("case", WIDE)
@pytest.mark.parametrize("kernel", DIRECT)
def test_bands_of_a_plane_are_as_exact(kernel, case):
    spec, size = case
    generator = torch.Generator().manual_seed(3)
    torch.manual_seed(3)
    layer = layer_of(spec, torch.float32).to(memory_format=torch.channels_last_3d)
    source = laid_out((1, spec.in_channels, *size), "channels_last_3d", "plain", generator)
    grad = torch.randn((1, spec.out_channels, *spec.output_size(size)), generator=generator)
    with threads(2):
        able = abilities(kernel, layer, source.shape, "channels_last_3d")
        with forced(True, kernel), poisoned(), record_plans() as plans:
            ours = values_of(layer, source, grad, able)
        runs = runs_of(plans, layer.transposed)
    check_values({name: ours[name] for name in ours if name in runs}, layer, source, grad, runs)
    ran = [p for p in plans if p.kernel == kernel == "planar" and p.direction != "grad_weight"]
    # The gradient of the input of a layer with a stride along the height is computed by whole planes.
    assert ran or kernel != "planar" or spec.groups != spec.in_channels
    by_planes = [p.direction for p in ran if "band by band" not in p.tile]
    assert by_planes == (["grad_input"] if ran and spec.stride[1] > 1 else [])


WHOLE = {
    "rows that see padding alone": (
        ConvSpec(64, 64, (3, 1, 3), 1, (1, 40, 1), groups=64, dims=3),
        (4, 41, 48),
        "planar",
    ),
    "more weights than the cache holds": (ConvSpec(128, 128, 3, padding=1, dims=3), (2, 30, 20), "dots"),
}


@pytest.mark.parametrize("why", WHOLE)
def test_planes_without_bands(why):
    spec, size, kernel = WHOLE[why]
    torch.manual_seed(5)
    layer = layer_of(spec, torch.float64)
    source = torch.randn(1, spec.in_channels, *size).contiguous(memory_format=torch.channels_last_3d)
    with torch.no_grad():
        exact = layer(source.double())
        layer = layer.float().to(memory_format=torch.channels_last_3d)
        with forced(True, kernel), poisoned(), record_plans() as plans:
            found = layer(source)
    assert plans[0].kernel == kernel
    assert plans[0].tile.endswith("plane by plane")
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)


def test_bands_of_doubles_are_as_exact():
    spec, size = ConvSpec(32, 32, 3, padding=1, groups=32, dims=3), (4, 41, 48)
    torch.manual_seed(4)
    layer = layer_of(spec, torch.float64).to(memory_format=torch.channels_last_3d)
    source = torch.randn(1, 32, *size, dtype=torch.float64).contiguous(memory_format=torch.channels_last_3d)
    with forced(False):
        exact = step(layer, source, torch.ones(layer(source).shape, dtype=torch.float64))
    with forced(True, "planar"), record_plans() as plans:
        ours = step(layer, source, torch.ones(layer(source).shape, dtype=torch.float64))
    assert any("band by band" in p.tile for p in plans)
    for value in ("output", "grad_input"):
        torch.testing.assert_close(ours[value], exact[value], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize("name", ["Conv3d", "ConvTranspose3d"])
def test_results_have_the_format_that_pytorch_gives_them(name, memory_format):
    torch.manual_seed(0)
    layer = getattr(torch.nn, name)(8, 12, (3, 2, 3), stride=(1, 2, 1), groups=4)
    source = torch.randn(2, 8, 5, 6, 7).contiguous(memory_format=FORMATS[memory_format])
    grad = torch.randn(layer(source).shape)
    with forced(False):
        theirs = step(layer, source, grad)
    with forced(True, "planar"), record_plans() as plans:
        ours = step(layer, source, grad)
    assert {p.kernel for p in plans} == {"planar"}
    for value in ("output", "grad_input"):
        assert strides(ours[value]) == strides(theirs[value])
        torch.testing.assert_close(ours[value], theirs[value])
    assert ours["grad_weight"].stride() == layer.weight.stride()


@pytest.mark.parametrize("kernel", ["", "planar"])
def test_a_gradient_that_is_wrong_in_pytorch_stays_here(kernel):
    """The kernel is deeper than the input: oneDNN's gradient in channels_last_3d is off by half of it, or worse."""
    torch.manual_seed(0)
    layer = torch.nn.Conv3d(16, 16, (7, 1, 1), stride=(2, 1, 1), padding=(5, 0, 0), groups=16)
    source = torch.randn(1, 16, 5, 1, 1).contiguous(memory_format=torch.channels_last_3d)
    layer = layer.to(memory_format=torch.channels_last_3d)
    exact = torch.zeros(16, 7, dtype=torch.float64)
    grad = torch.randn(layer(source).shape)
    for channel in range(16):
        for out in range(grad.shape[2]):
            for tap in range(7):
                if 0 <= (at := 2 * out + tap - 5) < 5:
                    exact[channel, tap] += (grad[0, channel, out] * source[0, channel, at].double()).item()
    with forced(True, kernel), record_plans() as plans:
        (found,) = torch.autograd.grad(layer(source), layer.weight, grad)
    torch.testing.assert_close(found.double().view(16, 7), exact, atol=1e-5, rtol=1e-5)
    made = next(p for p in plans if p.direction == "grad_weight")
    assert made.kernel != "pytorch"
    assert kernel or made.evidence == "PyTorch's kernel may read outside its tensors here"


def test_a_plan_tells_of_all_three_dimensions():
    with forced(True, "planar"):
        conv = torch.nn.Conv3d(8, 8, (3, 3, 3), stride=(1, 2, 2), padding=1, groups=8)
        with record_plans() as plans:
            conv(torch.randn(1, 8, 4, 9, 9))
    assert plans[0].shape["input_size"] == [4, 9, 9]
    assert plans[0].shape["output_size"] == [4, 5, 5]
    assert plans[0].shape["stride"] == [1, 2, 2]
    planned = plan(conv, (1, 8, 4, 9, 9), memory_format="channels_last_3d")
    assert planned.memory_format == "channels_last_3d"
    assert planned.shape == plans[0].shape
    assert "planar" in planned.others or planned.kernel == "planar"


@pytest.mark.parametrize("direction", ["forward", "grad_input", "grad_weight"])
@pytest.mark.parametrize("memory_format", list(FORMATS))
def test_the_core_computes_the_features_that_benchmarks_define(direction, memory_format):
    spec = ConvSpec(12, 24, (3, 5, 2), (2, 1, 3), (2, 1, 0), (1, 2, 1), groups=4)
    shape = (3, 12, 7, 11, 9)
    numbers = request_numbers(spec, shape, memory_format, 2, direction)
    array = (ctypes.c_int64 * len(numbers))(*numbers)
    told = json.loads(native.read_text(native.library().groupwise_features, array, b"float32"))
    made = plan(spec, shape, memory_format=memory_format, threads=2, direction=direction)
    row = {**made.shape, "direction": direction, "memory_format": memory_format, "dims": 3, "transposed": False}
    expected = features.features(row | {"threads": 2})
    assert list(told) == list(expected)
    assert told == pytest.approx(expected, rel=1e-12)
    # Of 7 planes and 2 of padding on each side, every second output from -2 on: 2 of 5 meet padding.
    assert expected["inside_d"] == pytest.approx(11 / 15)
    assert expected["taps_d"] == pytest.approx(math.log2(3))


@pytest.fixture
def told_of_volumes():
    """Tables by which `planar` is fast in 3-D, and nothing is in 2-D."""
    with planar_is_fast(tables.Kind(True, "float32").name_in_core):
        yield


def test_volumes_have_tables_of_their_own(told_of_volumes):
    spec = ConvSpec(16, 16, 3, padding=1, groups=16, dims=3)
    made = plan(spec, (1, 16, 8, 8, 8))
    assert (made.kernel, made.source, made.speedup) == ("planar", "table", 4)


@pytest.mark.parametrize("dtype", tables.OTHER_DTYPES)
def test_volumes_of_each_dtype_have_tables_of_their_own(dtype):
    spec, shape = ConvSpec(16, 16, 3, padding=1, groups=16, dims=3), (1, 16, 8, 8, 8)
    for kind in tables.KINDS:
        with planar_is_fast(kind.name_in_core):
            made = plan(spec, shape, dtype=dtype)
            knows = kind == tables.Kind(True, dtype)
            assert (made.source == "table") == knows, (kind, made.kernel)


def test_without_tables_volumes_are_pytorchs():
    library, isa = native.library(), native.status().isa
    tables.clear(library, isa)
    made = plan(ConvSpec(16, 16, 3, padding=1, groups=16, dims=3), (1, 16, 8, 8, 8))
    assert made.kernel == "pytorch"
    assert made.others["planar"].endswith("nothing was measured of it in 3-D")


def test_without_tables_of_volumes_the_order_counts_the_taps_of_the_depth_on_both_sides():
    library, isa = native.library(), native.status().isa
    limits = {"least": [0], "most": [64]}
    found = [{"kernel": name, **limits, "trees": [[-1, leaf]]} for name, leaf in (("pytorch", 0), ("planar", 100))]
    told = {"class": "some-1-2", "isa": isa, "torch": "2.13", "rows": 9, "bounded": [0], "features": ["macs"]}
    told |= {"margins": [0] * tables.FAMILIES, "caution": 0, "roofline": [1e9, 1e30, 1e-30], "tables": found}
    tables.clear(library, isa)
    tables.give(library, isa, told)
    try:
        ratios = []
        for depth in (1, 3, 5):
            # 16 columns fill vectors, so planar executes little more than PyTorch.
            spec = ConvSpec(16, 16, (depth, 1, 1), groups=2, dims=3)
            why = plan(spec, (1, 16, 8, 16, 16), threads=1).others["planar"]
            ratios.append(float(why.removeprefix("as a 2-D convolution ").split("x")[0]))
        assert ratios == [2.0] * 3
    finally:
        tables.clear(library, isa)
