"""The gradient of a weight of one tap that `pixels` sums in place or from panels: every way to read and to divide."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accuracy import check
from groupwise import record_plans
from groupwise.kernels.dispatch import forced
from kernels import needs_kernels
from test_kernels import FORMATS

pytestmark = needs_kernels

# (what it is for, in_channels, out_channels, groups, stride, samples, size)
LAYERS = [
    ("several blocks of both channels", 600, 300, 1, 1, 1, (3, 5)),
    ("lanes that are left over", 301, 131, 1, 1, 2, (4, 7)),
    ("fewer outputs than channels", 64, 17, 1, 1, 3, (9, 9)),
    ("lanes along the outputs", 17, 64, 1, 1, 3, (9, 9)),
    ("a panel of two vectors and of one", 56, 40, 1, 1, 2, (6, 11)),
    ("parts that threads share", 40, 24, 1, 1, 8, (14, 14)),
    ("a large image", 24, 20, 1, 1, 2, (320, 320)),
    ("wide groups", 96, 64, 2, 1, 2, (7, 9)),
    ("parts that end within a thread's tasks", 256, 128, 4, 1, 2, (10, 10)),
    ("a stride", 48, 32, 1, 2, 2, (15, 14)),
    ("a stride, wide groups", 80, 80, 2, (3, 2), 1, (13, 9)),
    ("one pixel", 128, 96, 1, 1, 5, (1, 1)),
    ("a long row", 32, 32, 1, 1, 1, (1, 500)),
    ("pixels whole pages apart", 2048, 64, 1, 1, 1, (9, 15)),
    ("pixels whole pages apart, of the gradient", 64, 2048, 1, 1, 1, (9, 15)),
    ("more sums than the cache keeps", 1100, 700, 1, 1, 2, (5, 13)),
    ("one channel in the last task of 16 lanes", 4897, 16, 1, 1, 1, (2, 3)),
    ("one output in the last task of three threads", 72, 49, 1, 1, 2, (5, 7)),
    ("groups with tiles that are left over", 111, 57, 3, 1, 2, (5, 6)),
    ("many short rows", 40, 33, 1, 1, 3, (37, 5)),
]
IDS = [row[0] for row in LAYERS]


def of_one_tap(plans):
    tiles = [plan.tile for plan in plans if plan.direction == "grad_weight"]
    return [tile for tile in tiles if tile.endswith((", from panels", ", in place"))]


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("memory_format", list(FORMATS))
@pytest.mark.parametrize("row", LAYERS, ids=IDS)
def test_a_step_is_that_of_float64(row, memory_format, threads):
    _, in_channels, out_channels, groups, stride, samples, size = row
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(in_channels, out_channels, 1, stride=stride, groups=groups)
    layer = layer.to(memory_format=FORMATS[memory_format])
    source = torch.randn(samples, in_channels, *size).contiguous(memory_format=FORMATS[memory_format])
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        grad = torch.randn_like(layer(source))
        plans = check(layer, source, grad, "pixels")
    finally:
        torch.set_num_threads(before)
    # Contiguous rows that are read with a stride have no panels.
    assert of_one_tap(plans) or (memory_format == "contiguous" and stride != 1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(8, 330),
    st.integers(8, 150),
    st.integers(1, 3),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.sampled_from([torch.float32, torch.float64]),
    st.sampled_from(list(FORMATS)),
    st.sampled_from(list(FORMATS)),
)
def test_whole_numbers_are_summed_exactly(in_channels, out_channels, samples, size, dtype, of_input, of_gradient):
    draw = torch.Generator().manual_seed(in_channels * out_channels)
    x = torch.randint(-4, 5, (samples, in_channels, *size), generator=draw).to(dtype)
    grad = torch.randint(-4, 5, (samples, out_channels, *size), generator=draw).to(dtype)
    exact = torch.einsum("nopq,ncpq->oc", grad.double(), x.double())
    x, grad = x.contiguous(memory_format=FORMATS[of_input]), grad.contiguous(memory_format=FORMATS[of_gradient])
    weight = torch.zeros(out_channels, in_channels, 1, 1, dtype=dtype)
    with forced(True, "pixels"), record_plans() as plans:
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, [out_channels], (1, 1), (0, 0), (1, 1), False, (0, 0), 1, (False, True, True)
        )
    assert {plan.kernel for plan in plans} == {"pixels"}
    assert torch.equal(found[1][:, :, 0, 0].double(), exact)
    assert torch.equal(found[2].double(), grad.double().sum((0, 2, 3)))
