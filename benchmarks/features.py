"""The numbers by which the planner's tables tell layers apart. The core computes the same from a request.

A layer is described as the planner sees it: the plain convolution whose `direction` is computed, also where the layer
is transposed. Channels are counted in one group. Every feature is a finite number; `log2` is of a product of sizes, so
it is exact enough in either language for a threshold between two measured layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from groupwise.kernels.plan import DIRECTIONS

BLOCK = 16
# Kinds of layers whose speeds are foreseen more or less surely, in the order of csrc/plan/features.h.
FAMILIES = ("depthwise", "strided", "dense", "narrow", "wide")
# Features that grow with the work alone. Beyond the measured ones, the fraction of the roofline's speed levels off. Of
# weights that was tried, with trees of the speed over PyTorch's: tables of layers with at most so many foresaw those
# with up to four times as many, of which 2 in 1,689 ran below two thirds of PyTorch's speed (float32 of two classes,
# and the other dtypes of one).
GROWING = frozenset(
    """
    macs bytes macs_a_number weights positions sum batch samples_groups pixels_in pixels_out written_h written_w
    """.split()
)


def family(row: Mapping[str, Any]) -> int:
    """Returns the number of a row's layer in `FAMILIES`."""
    groups = row["groups"]
    fewest, most = sorted((row["in_channels"] // groups, row["out_channels"] // groups))
    if groups > 1 and most == 1:
        return 0
    if max(row["stride"][-2:]) > 2:
        return 1
    if groups == 1:
        return 2
    return 3 if fewest < 8 else 4


def bytes_moved(row: Mapping[str, Any]) -> int:
    """Returns the bytes of the tensors and the weight, as if each number had 4.

    A volume counts as many planes as it has outputs in depth, each of which reads one plane, and one plane of weights.
    """
    groups = row["groups"]
    (in_h, in_w), (out_h, out_w), taps = row["input_size"][-2:], row["output_size"][-2:], row["kernel_size"][-2:]
    planes = row["batch"] * math.prod(row["output_size"][:-2])
    images = planes * (row["in_channels"] * in_h * in_w + row["out_channels"] * out_h * out_w)
    return 4 * (images + row["in_channels"] * row["out_channels"] // groups * math.prod(taps))


def features(row: Mapping[str, Any]) -> dict[str, float]:
    """Returns each feature of a row of the sweep's record, by its name."""
    batch, groups = row["batch"], row["groups"]
    inputs, outputs = row["in_channels"] // groups, row["out_channels"] // groups
    *in_d, in_h, in_w = row["input_size"]
    *out_d, out_h, out_w = row["output_size"]
    *taps_d, taps_h, taps_w = row["kernel_size"]
    *stride_d, stride_h, stride_w = row["stride"]
    *pad_d, pad_h, pad_w = row["padding"]
    *dilation_d, dilation_h, dilation_w = row["dilation"]
    # A volume is as many planes, whose depth has features of its own.
    batch *= math.prod(out_d)
    macs = batch * groups * inputs * outputs * taps_h * taps_w * out_h * out_w
    weights = groups * inputs * outputs * taps_h * taps_w
    numbers = bytes_moved(row) // 4
    # The tensor that the pass writes: its width fills vectors of `planar`, its channels those of the others.
    written_w, written_h = (in_w, in_h) if row["direction"] == "grad_input" else (out_w, out_h)
    written_channels = inputs if row["direction"] == "grad_input" else outputs
    read_channels = outputs if row["direction"] == "grad_input" else inputs
    # How many products one number of the result sums.
    summed = batch * out_h * out_w if row["direction"] == "grad_weight" else read_channels * taps_h * taps_w
    found = {
        "channels_last": float(row["memory_format"] != "contiguous"),
        "transposed": float(row["transposed"]),
        "dims": float(row["dims"]),
        **{name: float(row["direction"] == name) for name in DIRECTIONS},
        "depthwise": float(inputs == outputs == 1),
        "dense": float(groups == 1),
        "threads": math.log2(row["threads"]),
        "macs": math.log2(macs),
        "bytes": math.log2(4 * numbers),
        "macs_a_number": math.log2(macs / numbers),
        "weights": math.log2(weights),
        "positions": math.log2(batch * out_h * out_w),
        "sum": math.log2(summed),
        "batch": math.log2(batch),
        "groups": math.log2(groups),
        "samples_groups": math.log2(batch * groups),
        "read_channels": math.log2(read_channels),
        "written_channels": math.log2(written_channels),
        "widest": math.log2(max(inputs, outputs)),
        "all_channels": math.log2(groups * max(inputs, outputs)),
        "taps": math.log2(taps_h * taps_w),
        "taps_h": math.log2(taps_h),
        "taps_w": math.log2(taps_w),
        "written_h": math.log2(written_h),
        "written_w": math.log2(written_w),
        "pixels_in": math.log2(in_h * in_w),
        "pixels_out": math.log2(out_h * out_w),
        "stride": math.log2(stride_h * stride_w),
        "stride_w": math.log2(stride_w),
        "dilation": math.log2(max(dilation_h, dilation_w)),
        "padding": math.log2(1 + max(pad_h, pad_w)),
        "inside": inside(in_h, out_h, taps_h, stride_h, pad_h, dilation_h)
        * inside(in_w, out_w, taps_w, stride_w, pad_w, dilation_w),
        "fill_w": fill(written_w, 8),
        "fill_read": fill(read_channels, BLOCK),
        "fill_written": fill(written_channels, BLOCK),
        "fill_all": fill(groups * max(inputs, outputs), BLOCK),
        # A bias was not always drawn.
        "biased": float(row.get("biased", False)),
    }
    for given, out, taps, stride, pad, dilation in zip(in_d, out_d, taps_d, stride_d, pad_d, dilation_d, strict=True):
        found |= {"depth_in": math.log2(given), "depth_out": math.log2(out), "taps_d": math.log2(taps)}
        found |= {"stride_d": math.log2(stride), "inside_d": inside(given, out, taps, stride, pad, dilation)}
    return found


def inside(given: int, out: int, taps: int, stride: int, pad: int, dilation: int) -> float:
    """Returns the fraction of an axis' products (an output and a tap) whose input is in the image."""
    found = 0
    for tap in range(taps):
        # Output o reads o * stride + shift; the first inside and the first beyond the image.
        shift = tap * dilation - pad
        first = max(0, -(shift // stride))
        beyond = min(out, (given - 1 - shift) // stride + 1)
        found += max(0, beyond - first)
    return found / (taps * out)


def fill(count: int, block: int) -> float:
    """Returns which fraction of the last block of that many the count fills, over all blocks."""
    return count / (-(-count // block) * block)
