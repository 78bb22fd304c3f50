"""The benchmarks of choices and of digits: what they make of made-up rows, and that their pages show their records."""

from __future__ import annotations

import math
import statistics

import pytest

from scripts import ABOUT, load

choices, digits, measuring = map(load, ("choices", "digits", "measuring"))


@pytest.mark.parametrize("script", [choices, digits])
def test_the_page_shows_the_record(script):
    page = script.PAGE.read_text("utf-8")
    assert len(measuring.block_of(script.RECORD).findall(page)) == 1
    said = script.docs_text(script.read_record(script.RECORDS / script.RECORD))
    assert measuring.with_block(page, script.RECORD, said) == page, (
        f"out of date; run: python benchmarks/{script.__name__}.py --docs"
    )


def test_expected_times_are_compared_with_measured_ones_and_the_chosen_network_with_the_dense_one():
    facts = {**ABOUT, "benchmark": "choices", "network": "ResNet-50", "size": 224, "isa": "avx2", "busy": 0.3}
    points = [
        *(("front", 9.0, 10.0, {"a": 4}), ("front", 12.0, 10.0, {"a": 2, "b": 8}), ("front", 15.0, 10.0, {"a": 2})),
        *(("chosen", 9.0, 10.0, {"a": 4}), ("dense", 14.0, 15.0, {})),
    ]
    rows = [
        {**facts, "point": point, "expected_ms": expected, "ms": ms, "layers": layers}
        for point, expected, ms, layers in points
    ]
    assert choices.errors(rows) == pytest.approx([0.1, 0.2, 0.5])
    said = choices.docs_text(rows)
    assert "off by 20.0% (median)" in said
    assert "no evidence" in said
    assert "whose time is no sum" not in said
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in said.splitlines()[-5:]]
    assert [line[-1] for line in cells] == ["", "", "", "1.5", "1"]
    assert cells[1][1] == "2 layers, groups 2 to 8"


def test_how_far_sums_are_off_is_relative_to_the_network_of_which_nothing_is_summed():
    facts = {**ABOUT, "benchmark": "choices", "network": "ResNet-50", "size": 224, "isa": "avx2", "busy": 0.0}
    points = [
        *(("front", 8.0, 10.0, {"a": 4}), ("front", 9.0, 10.0, {"a": 2}), ("front", 16.0, 20.0, {})),
        *(("chosen", 8.0, 10.0, {"a": 4}), ("dense", 16.0, 20.0, {})),
    ]
    said = choices.docs_text(
        [dict(zip(("point", "expected_ms", "ms", "layers"), one, strict=True)) | facts for one in points]
    )
    assert "is off by 20.0% itself; relative to it the others are off by 0.0% to 12.5%." in said


def test_the_interval_of_paired_differences_is_students():
    values = [0.1, -0.3, 0.2, 0.0, -0.1]
    mean, low, high = digits.interval(values)
    half = 2.776 * statistics.stdev(values) / math.sqrt(5)
    assert (mean, low, high) == pytest.approx((-0.02, -0.02 - half, -0.02 + half))
    assert digits.interval([1.0]) == (1.0, -math.inf, math.inf)
    # Between two rows of the table the wider interval is taken.
    many = [float(number % 2) for number in range(13)]
    assert digits.interval(many)[2] - digits.interval(many)[0] == pytest.approx(
        digits.T_95[9] * statistics.stdev(many) / math.sqrt(13)
    )
    stats = pytest.importorskip("scipy.stats")
    assert all(value == pytest.approx(stats.t.ppf(0.975, freedom), abs=6e-4) for freedom, value in digits.T_95.items())


def test_the_table_of_digits_pairs_each_seed_with_its_dense_network():
    facts = {**ABOUT, "benchmark": "digits", "isa": "avx2", "of": 1000}
    rows = []
    for seed, (dense, tuned) in enumerate([(980, 985), (990, 985)]):
        rows.append({**facts, "seed": seed, "groups": 1, "network": digits.DENSE, "epochs": 12, "right": dense})
        for name, right in ((digits.BLOCKS, 300), (digits.FITTED, 970), (digits.TUNED, tuned)):
            epochs = 4 if name == digits.TUNED else 0
            found = {**facts, "seed": seed, "groups": 4, "kept": [0.3, 0.33], "network": name}
            rows.append({**found, "epochs": epochs, "right": right})
    said = digits.docs_text(rows)
    half = 12.706 * statistics.stdev([0.5, -0.5]) / math.sqrt(2)
    assert f"tuned minus dense is +0.00 points ({-half:+.2f} to {half:+.2f})" in said
    assert "keep 30 to 33 %" in said
    assert "| 4 groups, tuned for 4 epochs | 985 | 985 |" in said
    assert said.index("dense, 12 epochs") < said.index("4 groups, blocks")
