"""How much the kernels round: how deep their sums are, and how far long ones are from float64."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from accuracy import UNIT, check, depths, oracle, runs_of, step
from cases import layer_of
from groupwise import ConvSpec, record_plans
from groupwise.kernels.dispatch import forced
from kernels import DIRECT, here, needs_kernels
from test_kernels import FORMATS

pytestmark = needs_kernels

# Added to 1, this rounds up by almost half a unit, every time.
TINY = 1.02 * UNIT


def put_ones(values, axes):
    """Set one value of each slice over `axes` to 1: the first, the last, and ones between, turn by turn."""
    kept = [axis for axis in range(values.dim()) if axis not in axes]
    sums = values.permute(*kept, *axes)
    shape = sums.shape[len(kept) :]
    size = math.prod(shape)
    places = [0, size - 1, size // 2, 1, size // 3, size - 2, 2]
    for number, index in enumerate(itertools.product(*map(range, sums.shape[: len(kept)]))):
        sums[(*index, *map(int, np.unravel_index(places[number % 7] % size, shape)))] = 1


def deepest(layer, source, kernel):
    """Value of a step that the kernel summed -> (its error in roundings of S, the most that the bound counts).

    A sum of one 1 and of products TINY is too large by almost u for each TINY that is added after the 1 to the same
    accumulator. So the error is the number of additions that the deepest product passes through.
    """
    spread, weight, found = range(2, source.dim()), layer.weight.detach(), {}
    for name in ("output", "grad_input", "grad_weight"):
        given = torch.full_like(layer(source).detach(), 1 if name == "grad_input" else TINY)
        weight.fill_(TINY)
        if name == "output":
            put_ones(weight, (1, *spread))
        elif name == "grad_input":
            by_group = weight.as_strided(
                (layer.groups, weight.shape[0] // layer.groups, *weight.shape[1:]),
                (weight.shape[0] // layer.groups * weight.stride(0), *weight.stride()),
            )
            put_ones(by_group, (1, *range(3, weight.dim() + 1)))
        else:
            put_ones(given, (0, *spread))
        with forced(True, kernel), record_plans() as plans:
            value = step(layer, source, given)[name]
        # No value is negative, so that the exact result is S.
        exact, runs = oracle(layer, source, given)[name], runs_of(plans)
        units = ((value.double() - exact).abs() / (UNIT * exact.clamp_min(1e-30))).max().item()
        if name in runs:
            found[name] = units, depths(layer, source, given, runs)[name]
    return found


DEEP = [
    ("depthwise, narrower than a vector", ConvSpec(8, 8, 1, groups=8, bias=False), (600, 3)),
    ("depthwise, one column", ConvSpec(8, 8, (3, 1), padding=(1, 0), groups=8, bias=False), (1500, 1)),
    ("depthwise, two columns", ConvSpec(16, 16, 3, padding=1, groups=16, bias=False), (700, 2)),
    ("depthwise", ConvSpec(16, 16, 3, padding=1, groups=16, bias=False), (60, 60)),
    ("depthwise, stride", ConvSpec(16, 16, 3, stride=2, padding=1, groups=16, bias=False), (61, 60)),
    ("depthwise 7x7", ConvSpec(16, 16, 7, padding=3, groups=16, bias=False), (30, 31)),
    ("depthwise 5x5, wide dilation", ConvSpec(16, 16, 5, padding=16, dilation=8, groups=16, bias=False), (40, 40)),
    ("depthwise 4x6, stride", ConvSpec(16, 16, (4, 6), stride=2, padding=(1, 2), groups=16, bias=False), (50, 41)),
    ("depthwise 31x31", ConvSpec(8, 8, 31, padding=15, groups=8, bias=False), (40, 40)),
    ("multiplier 3", ConvSpec(8, 24, 3, padding=1, groups=8, bias=False), (300, 3)),
    ("2 to 1, 9x9", ConvSpec(22, 11, 9, padding=4, groups=11, bias=False), (20, 20)),
    ("groups of 2, 21x21", ConvSpec(16, 16, 21, padding=10, groups=8, bias=False), (20, 20)),
    ("groups of 4", ConvSpec(16, 16, 3, padding=1, groups=4, bias=False), (60, 60)),
    ("groups of 4, 15x15", ConvSpec(16, 16, 15, padding=7, groups=4, bias=False), (20, 20)),
    ("groups of 4, 1x100", ConvSpec(16, 16, (1, 100), padding=(0, 50), groups=4, bias=False), (3, 60)),
    ("groups of 8, stride", ConvSpec(32, 32, 7, stride=2, padding=3, groups=4, bias=False), (30, 30)),
    ("groups of 16, one column", ConvSpec(32, 32, 1, groups=2, bias=False), (1500, 1)),
    ("groups of 16", ConvSpec(32, 32, 3, padding=1, groups=2, bias=False), (40, 40)),
    ("groups of 32, few pixels", ConvSpec(64, 64, 3, padding=1, groups=2, bias=False), (7, 7)),
    ("groups of 32, dilation", ConvSpec(64, 64, 3, padding=2, dilation=2, groups=2, bias=False), (40, 9)),
    ("long dot products", ConvSpec(8192, 32, 1, groups=2, bias=False), (3, 3)),
    ("long dot products of two taps", ConvSpec(2032, 32, (1, 2), groups=2, bias=False), (3, 3)),
    ("long dot products, dilation", ConvSpec(4000, 32, (1, 2), dilation=2, groups=2, bias=False), (3, 5)),
    ("an image, 11x11", ConvSpec(5, 24, 11, stride=2, padding=2, bias=False), (30, 33)),
    ("128 taps", ConvSpec(48, 48, 128, padding=64, dims=1, bias=False), (300,)),
    ("rows of three columns", ConvSpec(8, 8, (1, 3), padding=(0, 1), groups=8, bias=False), (1500, 3)),
    ("long 1-D", ConvSpec(8, 8, 5, padding=2, groups=8, dims=1, bias=False), (9000,)),
]


@pytest.mark.parametrize("kernel", DIRECT)
@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize(("spec", "size"), [row[1:] for row in DEEP], ids=[row[0] for row in DEEP])
def test_no_product_passes_through_more_roundings_than_the_bound_counts(spec, size, memory_format, kernel):
    layer, source = layer_of(spec, torch.float32), torch.ones(1, spec.in_channels, *size)
    if spec.dims == 2:
        layer = layer.to(memory_format=FORMATS[memory_format])
        source = source.contiguous(memory_format=FORMATS[memory_format])
    for name, (units, most) in deepest(layer, source, kernel).items():
        assert units <= most, (name, units, most)


@pytest.mark.parametrize("kernel", DIRECT)
def test_many_small_images_pass_through_no_more_roundings_than_the_bound_counts(kernel):
    sizes = [(4, 3, 3), (16, 3, 3), (16, 5, 7)]
    for (groups, taps, size), memory_format in itertools.product(sizes, FORMATS.values()):
        layer = torch.nn.Conv2d(16, 16, taps, padding=taps // 2, groups=groups, bias=False)
        layer = layer.to(memory_format=memory_format)
        source = torch.ones(300, 16, size, size).contiguous(memory_format=memory_format)
        for name, (units, most) in deepest(layer, source, kernel).items():
            assert units <= most, (name, units, most)


def test_the_depth_of_a_sum_is_seen():
    # A plain loop adds all products to one accumulator.
    total = np.float32(1)
    for _ in range(300):
        total += np.float32(TINY)
    assert (float(total) - (1 + 300 * TINY)) / UNIT > 290


@pytest.mark.parametrize("memory_format", list(FORMATS))
def test_long_sums_are_made_in_runs(memory_format):
    # Per output 4800 products of few output channels and many, which no kernel may add up one after the other.
    ran = set()
    for out_channels in (8, 11, 24):
        layer = torch.nn.Conv2d(960, 2 * out_channels, (5, 2), padding=(2, 1), groups=2)
        layer = layer.to(memory_format=FORMATS[memory_format])
        source = torch.randn(1, 960, 9, 8).contiguous(memory_format=FORMATS[memory_format])
        for kernel in DIRECT:
            ran |= {p.kernel for p in check(layer, source, torch.randn(1, 2 * out_channels, 9, 9), kernel)}
    expected = set(DIRECT) - {"stem", "gemm"}
    if memory_format == "contiguous":
        expected = {"planar", "groups", "pixels", "brgemm"}
    assert ran - {"pytorch"} == expected & set(here())


@pytest.mark.parametrize("values", [torch.abs, torch.relu], ids=["abs", "relu"])
@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize(("groups", "kernel_size"), [(4, 3), (8, 3), (32, 3), (128, 3), (128, 7)])
def test_weight_gradients_of_one_sign_are_made_in_short_runs(groups, kernel_size, memory_format, values):
    # What a layer after a ReLU reads. Partial sums grow all the way, and so do their roundings.
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(128, 128, kernel_size, padding=kernel_size // 2, groups=groups)
    layer = layer.to(memory_format=FORMATS[memory_format])
    source = values(torch.randn(1, 128, 14, 14)).contiguous(memory_format=FORMATS[memory_format])
    for kernel in DIRECT:
        check(layer, source, torch.rand_like(layer(source)), kernel)


NOT_FINITE = [
    ConvSpec(16, 16, 3, padding=1, groups=16),
    ConvSpec(16, 16, 3, stride=2, padding=1, groups=4),
    ConvSpec(16, 16, 2, padding=2, dilation=2, groups=4),
    ConvSpec(16, 16, 5, stride=2, padding=2, groups=2),
    ConvSpec(16, 16, 3, stride=2, padding=1, groups=8, transposed=True),
    ConvSpec(16, 16, 3, padding=1, groups=16, transposed=True),
]


@pytest.mark.parametrize("kernel", ["", *DIRECT])
@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize("where", ["source", "weight", "grad"])
@pytest.mark.parametrize("spec", NOT_FINITE, ids=str)
def test_no_value_hides_a_product_that_is_not_finite(spec, where, memory_format, kernel):
    """Beyond PyTorch's NaN: at a border its kernels differ, so the oracle is which products the image has."""
    torch.manual_seed(0)
    layer = layer_of(spec, torch.float32).to(memory_format=FORMATS[memory_format])
    source = torch.randn(2, 16, 9, 10).contiguous(memory_format=FORMATS[memory_format])
    grad = torch.randn_like(layer(source).detach())
    tensors = {"source": source, "weight": layer.weight.data, "grad": grad}
    clean = {name: tensor.clone() for name, tensor in tensors.items()}
    for value in (float("nan"), float("inf")):
        for place in (0, -1, *torch.randint(tensors[where].numel(), (6,)).tolist()):
            index = np.unravel_index(place % tensors[where].numel(), tensors[where].shape)
            for name, tensor in tensors.items():
                tensor.copy_(clean[name])
            tensors[where][index] = 0
            without = oracle(layer, source, grad)
            # With ones everywhere else, a value is not zero if it has a product with this place.
            for tensor in tensors.values():
                tensor.fill_(1)
            tensors[where].zero_()
            tensors[where][index] = 1
            bias = layer.bias.data.clone()
            layer.bias.data.zero_()
            meets = oracle(layer, source, grad)
            layer.bias.data.copy_(bias)
            for name, tensor in tensors.items():
                tensor.copy_(clean[name])
            tensors[where][index] = value
            with forced(True, kernel):
                ours = step(layer, source, grad)
            depends = {"source": ("output", "grad_weight"), "weight": ("output", "grad_input")}
            for name in depends.get(where, ("grad_input", "grad_weight")):
                finite = ours[name].isfinite()
                assert not (finite & (meets[name] != 0)).any(), (name, value, index)
                torch.testing.assert_close(ours[name][finite].double(), without[name][finite], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize("kernel", DIRECT)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_infinite_input_of_a_transposed_convolution(value, kernel, memory_format):
    layer = torch.nn.ConvTranspose2d(16, 16, 3, padding=1, groups=16).to(memory_format=FORMATS[memory_format])
    source = torch.randn(1, 16, 9, 11).contiguous(memory_format=FORMATS[memory_format])
    source[0, 3, 4, 5] = source[0, 7, 0, 0] = source[0, 8, 8, 10] = value
    grad = torch.randn(1, 16, 9, 11)
    with forced(False):
        theirs = step(layer, source, grad)
    with forced(True, kernel):
        ours = step(layer, source, grad)
    for name in ("output", "grad_input"):
        assert torch.equal(ours[name].isfinite(), theirs[name].isfinite()), name
    # At a border zeros of the padding meet the infinite input: more of the channel's weights become NaN, never fewer.
    assert not (ours["grad_weight"].isfinite() & ~theirs["grad_weight"].isfinite()).any()
    assert ours["grad_weight"][[0, 1, 2, 4, 5, 6, *range(9, 16)]].isfinite().all()
