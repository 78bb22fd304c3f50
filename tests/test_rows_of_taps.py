"""The gradient of depthwise weights by `narrow`, where the gradients of outputs move along rows of four taps or more.

Numbers are small and whole, so that every sum is exact, in any order.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from accuracy import poisoned, threads
from groupwise import record_plans
from groupwise.kernels.dispatch import forced
from kernels import needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("isa")]


def inside(tap, axis):
    """Returns the outputs of an axis whose tap is in the image, and the inputs that they read there."""
    shift = tap * axis["dilation"] - axis["padding"]
    outputs = [o for o in range(axis["out"]) if 0 <= o * axis["stride"] + shift < axis["size"]]
    return outputs, [o * axis["stride"] + shift for o in outputs]


def gradient(x, grad, h, w):
    """Sums the products of each tap with the inputs in the image alone, in float64."""
    found = torch.zeros(x.shape[1], 1, h["kernel"], w["kernel"], dtype=torch.float64)
    for i in range(h["kernel"]):
        for j in range(w["kernel"]):
            (rows, from_rows), (columns, from_columns) = inside(i, h), inside(j, w)
            if rows and columns:
                outputs = grad.double()[:, :, rows][..., columns]
                found[:, 0, i, j] = (outputs * x.double()[:, :, from_rows][..., from_columns]).sum((0, 2, 3))
    return found


@st.composite
def axes(draw, most_taps, least_taps=1):
    kernel = draw(st.integers(least_taps, most_taps))
    stride, dilation = draw(st.sampled_from([(1, 1), (1, 1), (1, 1), (2, 1), (2, 1), (1, 2), (1, 3), (3, 1), (2, 2)]))
    reach = dilation * (kernel - 1)
    padding = draw(st.sampled_from([0, kernel // 2, reach // 2, reach]))
    size = draw(st.integers(max(1, reach + 1 - 2 * padding), max(1, reach + 1 - 2 * padding) + 19))
    out = (size + 2 * padding - reach - 1) // stride + 1
    return {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding, "size": size, "out": out}


def axis(kernel, stride, padding, size):
    out = (size + 2 * padding - kernel) // stride + 1
    return {"kernel": kernel, "stride": stride, "dilation": 1, "padding": padding, "size": size, "out": out}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    axes(9),
    axes(15, 4),
    st.integers(1, 70),
    st.integers(1, 3),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(1, 3),
    st.integers(0, 2**20),
)
@example(axis(5, 1, 2, 7), axis(5, 1, 2, 7), 33, 2, torch.float32, 1, 1)
@example(axis(7, 1, 3, 28), axis(7, 1, 3, 200), 16, 1, torch.float32, 2, 2)
@example(axis(5, 2, 2, 15), axis(5, 2, 2, 29), 24, 2, torch.float32, 1, 3)
@example(axis(4, 2, 1, 16), axis(6, 2, 2, 18), 40, 1, torch.float64, 2, 4)
def test_gradients_of_whole_numbers_are_exact(h, w, channels, samples, dtype, count, seed):
    generator = torch.Generator().manual_seed(seed)

    def whole(*shape):
        found = torch.randint(-4, 5, shape, generator=generator).to(dtype)
        return found.contiguous(memory_format=torch.channels_last)

    x, grad = whole(samples, channels, h["size"], w["size"]), whole(samples, channels, h["out"], w["out"])
    weight = torch.zeros(channels, 1, h["kernel"], w["kernel"], dtype=dtype)
    settings = [[a[name] for a in (h, w)] for name in ("stride", "padding", "dilation")]
    with forced(True, "narrow"), threads(count), poisoned(), record_plans() as plans:
        found = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *settings, False, [0, 0], channels, [False, True, False]
        )[1]
    assert torch.equal(found.double(), gradient(x, grad, h, w))
    assert channels < 16 or [plan.kernel for plan in plans] == ["narrow"]


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [5, 7])
def test_infinite_inputs_reach_the_taps_that_meet_them_alone(kernel, stride):
    size = 13
    h = w = axis(kernel, stride, kernel // 2, size)
    channels = 20
    for row, column in [(0, 0), (0, 6), (6, 0), (6, 6), (12, 12), (3, 12)]:
        x = torch.ones(1, channels, size, size).contiguous(memory_format=torch.channels_last)
        x[:, :, row, column] = torch.inf
        grad = torch.ones(1, channels, h["out"], w["out"]).contiguous(memory_format=torch.channels_last)
        weight = torch.zeros(channels, 1, kernel, kernel)
        with forced(True, "narrow"), record_plans() as plans:
            found = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [stride] * 2, [kernel // 2] * 2, [1, 1], False, [0, 0], channels,
                [False, True, False],
            )[1]  # fmt: skip
        assert [plan.kernel for plan in plans] == ["narrow"]
        assert torch.equal(found.double(), gradient(x, grad, h, w))
