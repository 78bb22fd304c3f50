"""The tiles of `planar` that read tensors in place, or compute many rows at once, at the edges of their sizes."""

from __future__ import annotations

import pytest
import torch

from accuracy import check
from cases import layer_of
from groupwise import ConvSpec
from kernels import needs_kernels

pytestmark = [needs_kernels, pytest.mark.usefixtures("isa")]


def among_nans(*shape):
    """Random values whose neighbours in memory are NaN, which stay in any sum that reads them."""
    floats = torch.full((torch.Size(shape).numel() + 128,), torch.nan)
    values = floats[64:-64].view(shape)
    return values.copy_(torch.randn(shape))


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 3), (3, 1), (1, 4), (4, 8), (5, 6)])
@pytest.mark.parametrize("kernel", [(5, 5), (3, 3), (4, 4), (2, 7), (7, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_rows_of_few_channels(inputs, outputs, kernel, stride):
    # The rows are fewer than a tile has, as many, or some more, and the same holds of the columns and a vector.
    for height, width in [(9, 16), (26, 38)]:
        for padding in {(0, 0), (kernel[0] // 2, kernel[1] // 2)}:
            spec = ConvSpec(3 * inputs, 3 * outputs, kernel, stride, padding, groups=3)
            source = among_nans(1, 3 * inputs, height, width)
            grad = among_nans(1, 3 * outputs, *spec.output_size((height, width)))
            check(layer_of(spec, torch.float32), source, grad, "planar")


@pytest.mark.parametrize("taps", [1, 4, 15])
@pytest.mark.parametrize("length", [263, 1024])
def test_long_rows(length, taps):
    # Each row begins at another place in its cache line.
    for padding in {0, taps - 1}:
        spec = ConvSpec(5, 5, taps, padding=padding, groups=5, dims=1)
        grad = among_nans(1, 5, *spec.output_size((length,)))
        check(layer_of(spec, torch.float32), among_nans(1, 5, length), grad, "planar")
