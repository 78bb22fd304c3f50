"""Rows by rows of taps, which `planar` reads and writes where they are.

Numbers are small and whole, so that every sum is exact, in any order. Rows lie between NaNs, which no result may show.
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


def between(values, value=torch.nan):
    """Returns the same rows, each with a few of `value` before and behind it in memory."""
    wide = torch.full((*values.shape[:-1], values.shape[-1] + 6), value, dtype=values.dtype)
    wide[..., 3:-3] = values
    return wide[..., 3:-3]


def tap_by_tap(x, w, grad, padding, stride, dilation):
    """Returns the output and both gradients, in float64, of products that meet the image alone."""
    x, w, grad = x.double(), w.double(), grad.double()
    each = w.shape[0] // x.shape[1]
    output, grad_x, grad_w = torch.zeros_like(grad), torch.zeros_like(x), torch.zeros_like(w)
    for o in range(w.shape[0]):
        for tap in range(w.shape[-1]):
            shift = tap * dilation - padding
            first = max(0, -(shift // stride))
            last = min(grad.shape[-1], -((shift - x.shape[-1]) // stride))
            if first >= last:
                continue
            read = slice(first * stride + shift, (last - 1) * stride + shift + 1, stride)
            output[:, o, :, first:last] += w[o, 0, 0, tap] * x[:, o // each, :, read]
            grad_x[:, o // each, :, read] += w[o, 0, 0, tap] * grad[:, o, :, first:last]
            grad_w[o, 0, 0, tap] = (grad[:, o, :, first:last] * x[:, o // each, :, read]).sum()
    return output, grad_x, grad_w


@settings(max_examples=240, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    taps=st.one_of(st.integers(2, 10), st.sampled_from([11, 15, 16, 17, 31, 32, 33, 48, 70])),
    dilation=st.sampled_from([1, 1, 1, 2, 5, 40]),
    stride=st.sampled_from([1, 1, 2, 2, 3, 3, 4, 4, 5]),
    size=st.sampled_from([1, 7, 16, 50, 95, 96, 131, 200, 1024]),
    after=st.one_of(st.integers(0, 9), st.sampled_from([15, 31, 69])),
    channels=st.sampled_from([1, 3, 40]),
    multiplier=st.sampled_from([1, 1, 2, 3]),
    rows=st.sampled_from([1, 1, 3]),
    samples=st.integers(1, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    workers=st.sampled_from([1, 2, 3]),
    seed=st.integers(0, 2**16),
)
@example(4, 1, 1, 1024, 3, 40, 1, 1, 1, torch.float32, 2, 0)
@example(9, 1, 1, 50_000, 8, 1, 1, 1, 1, torch.float32, 3, 1)
@example(3, 1, 1, 5_000, 1, 3, 2, 1, 40, torch.float32, 2, 2)
@example(31, 1, 1, 800, 15, 40, 1, 1, 2, torch.float32, 1, 3)
@example(130, 1, 1, 20, 129, 3, 1, 1, 1, torch.float32, 1, 4)
@example(6, 1, 3, 95, 2, 40, 1, 1, 3, torch.float32, 2, 5)
@example(9, 1, 4, 40_000, 4, 1, 1, 1, 1, torch.float32, 3, 6)
@example(31, 1, 1, 2_000, 15, 3, 1, 1, 3, torch.float32, 1, 7)
@example(5, 1, 2, 64, 2, 40, 1, 1, 70, torch.float32, 2, 8)
def test_rows_are_computed_in_place(
    taps, dilation, stride, size, after, channels, multiplier, rows, samples, dtype, workers, seed
):
    generator = torch.Generator().manual_seed(seed)
    padding = min(after, dilation * (taps - 1))
    size = max(size, dilation * (taps - 1) + 1 - 2 * padding)

    def whole(*shape):
        return torch.randint(-4, 5, shape, generator=generator).to(dtype)

    x = between(whole(samples, channels, rows, size))
    w = whole(channels * multiplier, 1, 1, taps)
    grad = between(whole(samples, w.shape[0], rows, (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1))
    expected = tap_by_tap(x, w, grad, padding, stride, dilation)
    bias, grad_bias = (whole(w.shape[0]), grad.double().sum((0, 2, 3))) if seed % 2 else (None, None)
    added = 0 if bias is None else bias[None, :, None, None]
    axes = [1, stride], [0, padding], [1, dilation]
    more = size - ((grad.shape[-1] - 1) * stride - 2 * padding + dilation * (taps - 1) + 1)
    with forced(True, "planar"), threads(workers), poisoned(), record_plans() as plans:
        output = torch.ops.aten.convolution(x, w, bias, *axes, False, [0, 0], channels)
        # The gradient of the bias is summed beside that of the weight.
        sizes, mask = None if bias is None else [w.shape[0]], [True, True, bias is not None]
        back = torch.ops.aten.convolution_backward(grad, x, w, sizes, *axes, False, [0, 0], channels, mask)
        # What comes back is what the transposed layer computes.
        transposed = torch.ops.aten.convolution(grad, w, x.new_ones(channels), *axes, True, [0, more], channels)
    assert [plan.kernel for plan in plans] == ["planar"] * 4
    exact = (expected[0] + added, *expected[1:], grad_bias, expected[1] + 1)
    names = ("output", "grad_input", "grad_weight", "grad_bias", "transposed")
    for name, found, wanted in zip(names, (output, *back, transposed), exact, strict=True):
        assert wanted is None or torch.equal(found.double(), wanted), name


@pytest.mark.parametrize(("taps", "stride", "dilation"), [(5, 5, 1), (3, 2, 2), (10, 2, 1)])
def test_rows_with_other_strides_are_copied(taps, stride, dilation):
    layer = torch.nn.Conv1d(12, 12, taps, stride, dilation=dilation, groups=12)
    with forced(True, "planar"), record_plans() as plans:
        layer(torch.randn(1, 12, 900, requires_grad=True)).sum().backward()
    assert not plans[0].tile.endswith("in place")
    assert not plans[2].tile.endswith("in place")


@pytest.mark.parametrize(
    ("taps", "columns", "stride"), [(4, 200, 1), (9, 1000, 1), (31, 800, 1), (3, 400, 2), (6, 300, 3), (9, 800, 4)]
)
def test_plans_tell_where_rows_are_computed_in_place(taps, columns, stride):
    layer = torch.nn.Conv1d(12, 12, taps, stride, padding=taps // 2, groups=12)
    with forced(True, "planar"), record_plans() as plans:
        layer(torch.randn(1, 12, columns, requires_grad=True)).sum().backward()
    assert len(plans) == 3
    # More taps need masks.
    expected = [taps < 10 or plan.isa == "avx512" for plan in plans]
    assert [plan.tile.endswith("columns, in place") for plan in plans] == expected
    assert stride == 1 or plans[1].tile.startswith("all phases of the width x ")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("stride", [2, 3, 4, 5, 7, 9])
def test_rows_of_many_taps_with_a_stride(stride, dilation, dtype):
    # Where a stride deals taps to rows of their own, the first and the last may be as far apart as neighbours would be.
    generator = torch.Generator().manual_seed(0)
    for taps in range(10, 64):
        for out in (5, 16, 31):
            size = (out - 1) * stride + (taps - 1) * dilation + 1
            x = torch.randint(-4, 5, (1, 2, size), generator=generator).to(dtype)
            w = torch.randint(-4, 5, (1, 2, taps), generator=generator).to(dtype)
            exact = torch.einsum("nclk,ock->nol", x.unfold(2, size - (out - 1) * stride, stride)[..., ::dilation], w)
            with forced(True, "planar"):
                assert torch.equal(torch.nn.functional.conv1d(x, w, stride=stride, dilation=dilation), exact), taps


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_taps_that_meet_padding_alone_are_left_out(value):
    layer = torch.nn.Conv1d(20, 20, 3, padding=100, dilation=100, groups=20, bias=False)
    layer.weight.data[:, :, [0, 2]] = value
    source = torch.randn(1, 20, 96, requires_grad=True)
    with forced(True, "planar"), record_plans() as plans:
        output = layer(source)
        output.backward(torch.full_like(output, value))
    assert [plan.kernel for plan in plans] == ["planar"] * 3
    assert torch.equal(output, layer.weight[None, :, 0, 1, None] * source)
    assert torch.equal(layer.weight.grad[:, :, [0, 2]], torch.zeros(20, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
@pytest.mark.parametrize("taps", [2, 5, 9, 10, 16, 17, 31, 40])
def test_inputs_that_no_output_reads_by_a_tap_add_nothing_to_its_gradient(taps, stride, dtype):
    # Only the first tap reads the first input, and only the last tap the last one.
    for out in (1, 15, 16, 17, 33, 100):
        x = torch.ones(2, 3, (out - 1) * stride + taps, dtype=dtype)
        x[..., 0] = x[..., -1] = torch.nan
        weight = torch.ones(3, 1, taps, dtype=dtype, requires_grad=True)
        with forced(True, "planar"), poisoned():
            torch.nn.functional.conv1d(x, weight, stride=stride, groups=3).sum().backward()
        assert torch.equal(weight.grad[..., 1:-1], torch.full((3, 1, taps - 2), 2.0 * out, dtype=dtype)), out
        assert weight.grad[..., [0, -1]].isnan().all()
