"""The numbers by which the planner's tables tell layers apart, and the families of layers."""

from __future__ import annotations

import itertools
import math

import pytest

from scripts import load
from test_policy_table import row

features = load("features")


def test_features_by_hand():
    found = features.features(row())
    expected = {"channels_last": 0, "transposed": 0, "dims": 2, "depthwise": 0, "dense": 0, "threads": 0}
    expected |= {"forward": 1, "grad_input": 0, "grad_weight": 0}
    macs, weights = 2 * 4 * 6 * 2 * 12 * 5 * 17, 4 * 6 * 2 * 12
    numbers = 2 * 4 * (6 * 180 + 2 * 85) + weights
    logs = {"macs": macs, "bytes": 4 * numbers, "macs_a_number": macs / numbers, "weights": weights}
    logs |= {"positions": 2 * 85, "sum": 6 * 12, "batch": 2, "groups": 4, "samples_groups": 8, "read_channels": 6}
    logs |= {"written_channels": 2, "widest": 6, "all_channels": 24, "taps": 12, "taps_h": 3, "taps_w": 4}
    logs |= {"written_h": 5, "written_w": 17, "pixels_in": 180, "pixels_out": 85, "stride": 2, "stride_w": 1}
    logs |= {"dilation": 1, "padding": 2}
    expected |= {name: math.log2(value) for name, value in logs.items()}
    expected["biased"] = 0
    # Both ends of the height see one row of padding.
    expected |= {"inside": 13 / 15, "fill_w": 17 / 24, "fill_read": 6 / 16, "fill_written": 2 / 16, "fill_all": 24 / 32}
    assert found == pytest.approx(expected)
    gradient = features.features(row(direction="grad_input", memory_format="channels_last", threads=2))
    changed = {"read_channels": 2, "written_channels": 6, "sum": 24, "written_h": 9, "written_w": 20}
    assert {name: gradient[name] for name in changed} == pytest.approx({k: math.log2(v) for k, v in changed.items()})
    assert (gradient["fill_w"], gradient["fill_read"], gradient["fill_written"]) == (20 / 24, 2 / 16, 6 / 16)
    assert (gradient["channels_last"], gradient["threads"], gradient["grad_input"]) == (1, 1, 1)
    assert features.features(row(direction="grad_weight"))["sum"] == math.log2(2 * 85)


@pytest.mark.parametrize("given", [1, 4, 7])
@pytest.mark.parametrize("taps", [1, 2, 5])
def test_products_inside_the_image(given, taps):
    for stride, pad, dilation in itertools.product((1, 2, 3), (0, 1, 4), (1, 2)):
        out = (given + 2 * pad - dilation * (taps - 1) - 1) // stride + 1
        if out >= 1:
            reads = [o * stride + t * dilation - pad for o in range(out) for t in range(taps)]
            found = features.inside(given, out, taps, stride, pad, dilation)
            assert found == pytest.approx(sum(0 <= at < given for at in reads) / len(reads))


def test_the_bytes_of_a_volume_by_hand():
    deep = {"input_size": [5, 9, 20], "output_size": [3, 5, 17], "kernel_size": [3, 3, 4]}
    assert features.bytes_moved(row(**deep)) == 4 * (2 * 3 * (24 * 180 + 8 * 85) + 24 * 8 // 4 * 12)


@pytest.mark.parametrize(
    ("groups", "inputs", "outputs", "stride", "family"),
    [
        (1, 1, 1, 2, "dense"),
        (4, 4, 4, 3, "depthwise"),
        (4, 4, 64, 1, "narrow"),
        (4, 28, 64, 1, "narrow"),
        (4, 32, 64, 1, "wide"),
        (1, 1, 1, 3, "strided"),
    ],
)
def test_the_families_of_layers(groups, inputs, outputs, stride, family):
    numbers = {"groups": groups, "in_channels": inputs, "out_channels": outputs, "stride": [1, stride]}
    assert features.FAMILIES[features.family(numbers)] == family
