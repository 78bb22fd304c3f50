"""What other processes took while something was timed: counted by hand, and told first wherever times are shown."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest
import torch
from torch import nn

from groupwise import ConvSpec, Grouping, bench, report
from groupwise.draw.text import busy
from groupwise.profile import bench as benching
from groupwise.profile import measuring
from groupwise.profile.bench_change import BenchChange
from groupwise.profile.faster import Comparison, compare
from groupwise.profile.measuring import Interference, Meter, Reading, judged, reading
from groupwise.profile.report import Report
from groupwise.profile.tune import Tuned
from kernels import without_kernels
from reports import canned, small_model
from sweeps import LAYERS, made_up

BUSY = Interference(0.37, True)
FIRST = "The machine was busy: other processes took 37 % of the processors' time during the measurement; "


def at(total, others, own, processors=(0, 1)):
    return Reading(total, others + own, own, 0.01, frozenset(processors))


@pytest.mark.parametrize(
    ("total", "others", "own", "fraction", "is_busy"),
    [
        (20.0, 0.0, 18.0, 0.0, False),
        (20.0, 1.9, 18.0, 0.095, False),
        (20.0, 2.1, 1.0, 0.105, True),
        # Three ticks of ten milliseconds may be off: of 0.2 seconds in all, 0.03 more than a tenth are needed.
        (0.2, 0.04, 0.1, 0.2, False),
        (0.2, 0.06, 0.1, 0.3, True),
        # What the process counts for itself may be more than what the processors have counted yet.
        (0.2, -0.03, 0.2, 0.0, False),
        (0.0, 0.0, 0.0, None, False),
    ],
)
def test_what_others_took_by_hand(total, others, own, fraction, is_busy):
    found = judged(at(100.0, 40.0, 7.0), at(100.0 + total, 40.0 + others, 7.0 + own))
    assert found.fraction == (None if fraction is None else pytest.approx(fraction, abs=1e-9))
    assert found.busy is is_busy


def test_only_the_processors_of_this_process_count(monkeypatch, tmp_path):
    """user nice system idle iowait irq softirq steal guest guest_nice: what waits is not busy, a guest is in user."""
    stat = tmp_path / "stat"
    stat.write_text("cpu 9 9 9 9 9 9 9 9 9 9\ncpu0 1 2 3 40 5 6 7 8 1 2\ncpu1 9 9 9 9 9 9 9 9 9 9\nintr 5\n")
    monkeypatch.setattr(measuring, "_STAT", stat)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda name: 100)
    found = reading()
    assert (found.total, found.busy, found.processors) == (pytest.approx(0.72), pytest.approx(0.27), frozenset({0}))
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 7})
    assert reading() is None, "a processor that is not listed"
    monkeypatch.setattr(measuring, "_STAT", tmp_path / "none")
    assert reading() is None


@pytest.mark.parametrize("readings", [[None, at(9, 9, 0)], [at(9, 9, 0), None], [at(9, 9, 0), at(99, 9, 0, (1,))]])
def test_what_is_not_known_is_not_told(monkeypatch, readings):
    left = iter(readings)
    monkeypatch.setattr(measuring, "reading", lambda: next(left))
    assert Meter().read() == Interference(None, False)
    assert busy.paragraph(Interference().to_dict()) == busy.paragraph(None) == []


@pytest.fixture
def disturbed(monkeypatch):
    """Lets every measurement find that others took 37 %."""
    monkeypatch.setattr(Meter, "read", lambda self: BUSY)


def first(text):
    return " ".join(text.split()).startswith(FIRST)


def test_a_report_says_it_first_and_claims_no_speedup(monkeypatch, disturbed):
    canned(monkeypatch, [0.001] * 3, [0.0004] * 3)
    made = report(small_model().eval(), torch.randn(1, 3, 8, 8), repeats=1)
    made = replace(made, rows=tuple(replace(row, kernels={"forward": "planar"}) for row in made.rows))
    facts = made.to_dict()
    assert facts["interference"] == {"fraction": 0.37, "busy": True}
    assert first(str(made))
    notes = str(made).split("\n\n")[-1]
    assert "instead of" in notes
    assert "×)" not in notes.replace("(×)", "")
    page = made.to_html()
    assert page.index("The machine was busy") < page.index('<div class="tiles">')
    assert "the machine was busy</dd>" in page
    assert made._repr_html_().startswith('<p class="warning">The machine was busy')
    quiet = replace(made, interference=Interference(0.02))
    assert "machine was busy:" not in " ".join(f"{quiet}{quiet.to_html()}".split())
    assert "the whole model takes 250 ms instead of 500 ms (2.00×)" in " ".join(str(quiet).split())


@pytest.mark.parametrize("busy_part", ["report", "comparison"])
def test_both_parts_of_a_report_are_trusted_or_neither(monkeypatch, busy_part):
    readings = iter([BUSY, Interference(0.01)] if busy_part == "comparison" else [Interference(0.01), BUSY])
    monkeypatch.setattr(measuring.Meter, "read", lambda self: next(readings))
    made = report(small_model().eval(), torch.randn(1, 3, 8, 8), repeats=1, optimize=True)
    assert made.interference == made.optimized.interference == BUSY
    assert first(str(made))


def test_a_difference_between_the_same_code_is_no_gain(monkeypatch):
    """Both sides ran PyTorch's kernels, one of them in less than half of the time."""
    canned(monkeypatch, [0.001] * 3, [0.0004] * 3)
    made = report(small_model().eval(), torch.randn(1, 3, 8, 8), repeats=1)
    total = made.to_dict()["total"]
    assert {row.speedup for row in made.rows} == {None}
    assert total["speedup"] is total["model_speedup"] is total["grouped"]["speedup"] is None
    text = " ".join(str(made).split())
    assert "groupwise's kernels computed no convolution: both sides ran PyTorch's code" in text
    assert "instead of" not in text
    assert "2.50×" not in f"{text}{made.to_html()}"
    some = replace(made, rows=(*made.rows[:-1], replace(made.rows[-1], kernels={"forward": "planar"})))
    assert some.to_dict()["total"]["speedup"] == pytest.approx(2.5)
    assert [row["speedup"] for row in some.to_dict()["layers"]] == [None, None, None, pytest.approx(2.5)]


def test_a_comparison_claims_no_gain():
    made = Comparison(4.0, 3.0, 1.5, 1e-7, 1e-7, 2, 5, 1e-7, 5, 1e-6, interference=BUSY)
    assert replace(made, interference=Interference(0.02)).gains
    assert not made.gains
    assert first(str(made))
    assert "but the machine was busy, so no gain is claimed" in " ".join(str(made).split())
    assert made.to_dict()["interference"]["busy"]


def test_what_compare_measures_is_watched(disturbed):
    model = nn.Sequential(nn.Conv2d(2, 2, 1)).eval()
    assert compare(model, model, (torch.ones(1, 2, 3, 3),), repeats=1).interference == BUSY


def test_a_bench_and_its_comparison(monkeypatch, disturbed):
    without_kernels(monkeypatch)
    made = bench(ConvSpec(2, 2, 1), (1, 2, 3, 3), repeats=1)
    assert first(str(made))
    facts = made.to_dict()
    assert facts["interference"]["busy"]
    quiet = {**facts, "interference": {"fraction": 0.0, "busy": False}}
    slower = {**facts, "timings": [{**row, "ms": 9e9, "q1_ms": 8e9, "q3_ms": 1e10} for row in facts["timings"]]}
    for before, after in ((facts, slower), (quiet, slower), (facts, {**slower, "interference": quiet["interference"]})):
        found = BenchChange(made.cost, before, after)
        assert first(str(found))
        assert not any(row["changed"] for row in found.rows())
    older = {key: value for key, value in quiet.items() if key != "interference"}
    found = BenchChange(made.cost, older, {**slower, "interference": quiet["interference"]})
    assert "busy" not in str(found)
    assert all(row["changed"] for row in found.rows())


def test_no_layer_is_told_to_be_faster_of_a_busy_machine(monkeypatch, disturbed):
    """`bench` compares the libraries, each in its better memory format, in a sentence of its own."""
    monkeypatch.setattr(benching, "not_measured", lambda devices: None)
    made = bench(ConvSpec(2, 2, 1), (1, 2, 3, 3), repeats=1)
    assert "Each in its better memory format" not in str(made)
    assert "Each in its better memory format" in str(replace(made, interference=Interference()))


def test_tuned_kernels():
    made = Tuned((), (), 1, 0.5, 1, None, BUSY)
    assert made.to_dict()["interference"]["busy"]
    assert "nothing to measure" in str(made)


def test_a_sweep_and_its_choice():
    made = replace(made_up(*LAYERS), interference=BUSY)
    assert first(str(made))
    assert "in every layer" in str(replace(made, interference=Interference()))
    assert "in every layer" not in str(made)
    page = made.to_html()
    assert page.index("The machine was busy") < page.index('<div class="tiles">')
    assert made._repr_html_().startswith('<p class="warning">The machine was busy')
    assert made.to_dict()["interference"] == BUSY.to_dict()
    choice = made.predicted()[0]
    assert choice.to_dict()["facts"]["interference"]["busy"]
    assert first(str(choice))
    assert not str(Grouping({"1": 2}, 1.5, 100, 10, 0.1)).startswith("The machine")


def test_a_report_without_times_says_nothing_of_the_machine():
    made = Report("Net", (), 0, None, None, False, 1, {"processor": "a", "threads": 1, "torch": "2"}, interference=BUSY)
    assert "busy" not in str(made)
