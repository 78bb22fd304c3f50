"""Layers timed in other dtypes: what is refused, what is left out, and what the tables and charts say."""

from __future__ import annotations

import contextlib
import itertools
import os
import sys
import time

import pytest
import torch

from kernels import needs_kernels
from legible import check_legible
from scripts import ABOUT, load

layers, shapes, checking, measuring, watched = map(load, ("layers", "shapes", "checking", "measuring", "watched"))
tables, chart = map(load, ("layer_tables", "chart"))
SMALL = next(layer for layer in shapes.read("held_out") if layer.name == "odd-width6")
QUICK = measuring.Effort(2, 0, 2)
PAIRS = list(itertools.product(("pytorch", "groupwise"), shapes.FORMATS))


def work(what):
    """What a watched process does."""
    yield ["before"]
    yield watched.Trying(("pytorch", what))
    if what == "sleeps":
        time.sleep(600)
    if what == "dies":
        os._exit(3)
    if what == "raises":
        raise checking.WrongResult("it is wrong")
    yield [what]


def test_a_call_that_never_returns_ends_the_process_alone():
    with watched.Watched(work, 60) as process:
        assert list(process.ask("returns")) == [["before"], watched.Trying(("pytorch", "returns")), ["returns"]]
        with pytest.raises(checking.WrongResult, match="it is wrong"):
            list(process.ask("raises"))
        with pytest.raises(watched.Stuck, match="a call ended the process") as died:
            list(process.ask("dies"))
        assert died.value.key == ("pytorch", "dies")
        process.patience = 0.1
        with pytest.raises(watched.Stuck, match=r"the first call takes more than 0\.1 s") as slept:
            list(process.ask("sleeps"))
        assert slept.value.key == ("pytorch", "sleeps")
        process.patience = 60
        assert list(process.ask("returns"))[-1] == ["returns"]


class Pipe:
    """Gives messages, and keeps how long each was waited for."""

    def __init__(self, *messages):
        self.messages, self.waited = list(messages), []

    def send(self, question):
        pass

    def poll(self, seconds):
        self.waited.append(seconds)
        return True

    def recv(self):
        return self.messages.pop(0)


def test_only_first_calls_have_a_limit():
    process = watched.Watched(work, 7)
    messages = [watched.Trying(("a", "b")), watched.Trying(("c", "d")), watched.Returned(), ["rows"]]
    process.pipe = Pipe(*(("message", one) for one in messages), ("end", None))
    assert list(process.ask("it")) == messages
    assert process.pipe.waited == [None, 7, 7, None, None]


class Takes:
    """A case that takes so many seconds, of no time at all."""

    def __init__(self, seconds):
        self.takes, self.prepared = seconds, []

    def seconds(self, prepared=True):
        self.prepared.append(prepared)
        return self.takes


def test_slow_cases_are_timed_less_often():
    cases = {name: Takes(seconds) for name, seconds in (("quick", 0.001), ("slow", 0.9), ("slowest", 5.0))}
    times = measuring.interleaved(cases, measuring.Effort(10, 60, 12, slow=3.0))
    # By the tenth round a case may take 3 seconds, so one of 0.9 is timed in the rounds after 0, 0.9, 1.8 and 2.7.
    assert {name: len(found) for name, found in times.items()} == {"quick": 12, "slow": 4, "slowest": 1}
    assert times["slowest"] == [5.0]
    assert len(cases["slowest"].prepared) == 1, "its first call is its time"
    assert not any(cases["slow"].prepared), "a long call fills the caches itself"
    assert all(cases["quick"].prepared[1:])
    every = measuring.interleaved(cases, measuring.Effort(10, 0, 10))
    assert {len(found) for found in every.values()} == {10}


def measured(dtype, left_out=()):
    threads = torch.get_num_threads()
    unit = layers.Unit(SMALL, "training", 1, 1, dtype)
    try:
        return list(layers.measure(unit, QUICK, dict(left_out)))
    finally:
        torch.set_num_threads(threads)


@needs_kernels
@pytest.mark.parametrize("dtype", shapes.OTHER_DTYPES)
def test_the_rows_of_a_dtype(dtype):
    *tried, rows = measured(dtype)
    assert tried == [*(watched.Trying(pair) for pair in PAIRS), watched.Returned()], "what follows has no limit"
    assert [(row["implementation"], row["memory_format"]) for row in rows] == [
        *PAIRS,
        *((layers.FLOAT32, name) for name in shapes.FORMATS),
    ]
    assert not any("floor_ms" in row for row in rows), "the floor is that of float32"
    ours = [row for row in rows if row["implementation"] == "groupwise"]
    assert all(row["error"] < 4 * torch.finfo(getattr(torch, dtype)).eps for row in ours)


@needs_kernels
@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-5), ("float16", 2**-7), ("float64", 1e-9)])
@pytest.mark.parametrize("name", shapes.RESULTS)
def test_a_wrong_result_is_refused_by_the_bound_of_its_dtype(monkeypatch, dtype, error, name):
    real = layers.results

    def off(case, which):
        found = real(case, which)
        if case.ours:
            found[name] = found[name].double() * (1 + error)
        return found

    monkeypatch.setattr(layers, "results", off)
    with pytest.raises(checking.WrongResult, match=f"odd-width6: {name} is "):
        measured(dtype)


def test_the_bound_of_a_sum():
    exact = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert checking.bound_of_sum(10, torch.tensor([8.0, 6.0]), exact) == pytest.approx(10 * 2**-52 * 8 / 4)


@needs_kernels
def test_a_case_that_got_stuck_is_left_out():
    why = {("pytorch", "contiguous"): "the first call takes more than 10 s"}
    *tried, rows = measured("bfloat16", why)
    assert tried == [*(watched.Trying(pair) for pair in PAIRS[1:]), watched.Returned()]
    assert rows[0]["problem"] == why["pytorch", "contiguous"]
    assert sum("seconds" in row for row in rows) == 5
    both = why | {("pytorch", "channels_last"): "a call ended the process"}
    (rows,) = measured("bfloat16", both)
    assert [row["problem"] for row in rows] == list(both.values()), "without PyTorch there is nothing to compare"


def test_the_record_says_what_got_stuck(tmp_path, monkeypatch):
    key = ("pytorch", "contiguous")

    def ask(unit, effort, left_out):
        if key not in left_out:
            raise watched.Stuck(key, "too slow")
        row = {"benchmark": "layer", "pass": unit.which, "implementation": "groupwise", "memory_format": "contiguous"}
        yield [{**row, "ms": 1.0}, {**row, "implementation": "pytorch", "problem": left_out[key]}]

    class Process(contextlib.nullcontext):
        def __init__(self, work, patience):
            super().__init__(self)
            self.ask = ask

    monkeypatch.setattr(layers, "Watched", Process)
    words = "--held-out --only odd-width6 --threads 1 2 --dtype float16".split()
    monkeypatch.setattr(sys, "argv", ["layers.py", *words, "--output", str(tmp_path / "layers.jsonl")])
    layers.main()
    rows = measuring.read_record(tmp_path / "layers.jsonl")
    assert [(row["threads"], row["pass"]) for row in rows[::2]] == list(itertools.product((1, 2), layers.PASSES))
    assert {row["dtype"] for row in rows} == {"float16"}
    assert [row.get("problem") for row in rows[:2]] == [None, "too slow"]


def test_figures_are_over_all_visits(tmp_path, monkeypatch):
    visits = iter([[3e-3, 1e-3], [5e-3], [7e-3, 9e-3]])
    floors = iter([2.0, 1.0, 4.0])

    def measure(unit, effort, left_out):
        assert effort == measuring.Effort(2, 0.5, 34, layers.SLOW / 3)
        row = {"benchmark": "layer", "pass": unit.which, "implementation": "pytorch", "memory_format": "contiguous"}
        if unit.which == "forward":
            yield [{**row, "seconds": next(visits), "floor_ms": next(floors)}]

    monkeypatch.setattr(layers, "measure", measure)
    monkeypatch.setattr(layers.floor, "measure", lambda threads: None)
    words = "--held-out --only odd-width6 --threads 1 --repeats 5".split()
    monkeypatch.setattr(sys, "argv", ["layers.py", *words, "--output", str(tmp_path / "layers.jsonl")])
    layers.main()
    (found,) = measuring.read_record(tmp_path / "layers.jsonl")
    assert (found["ms"], found["repeats"], found["floor_ms"]) == (5.0, 5, 1.0)
    assert "seconds" not in found


def row(layer, who, ms, which="forward", name="contiguous", **more):
    facts = {"benchmark": "layer", "set": "listed", "layer": layer, "pass": which, "memory_format": name}
    kernels = {"kernels": ["forward planar"]} if who == "groupwise" else {}
    return {**ABOUT, "dtype": "bfloat16", **facts, **kernels, "implementation": who, "ms": ms, **more}


def made_up():
    """A 1-D layer at 4 and 2, a 2-D one at 9 and 0.5, and one that was not timed."""
    stuck = {**row("dw3d-64", "pytorch", 0, which="training"), "problem": "too slow"}
    del stuck["ms"]
    found = [stuck]
    for layer, forward, training in (("mamba-conv1d", 4.0, 2.0), ("alexnet-conv2", 9.0, 0.5)):
        for which, ratio in (("forward", forward), ("training", training)):
            found += [row(layer, "pytorch", 2 * ratio, which), row(layer, "pytorch", ratio, which, "channels_last")]
            found += [row(layer, "groupwise", 1.0, which), row(layer, tables.FLOAT32, 0.8, which)]
    return found


@pytest.fixture
def folder(tmp_path):
    older = [{**one, "ms": 99.0, "processor": "Xeon", "date": "2026-01-01"} for one in made_up() if "ms" in one]
    measuring.write_record(tmp_path / "amd-1-avx2" / "layers-bfloat16.jsonl", [*older, *made_up()], ())
    return tmp_path


def test_the_tables_of_a_dtype(folder):
    means, missing, slower = tables.every(folder)
    assert means.title == "AMD EPYC (amd-1-avx2): Layers by dtype and dimension"
    beside = ["1.25", "1.25 mamba-conv1d"]
    of_alexnet = ["1.25", "1.25 alexnet-conv2"]
    assert [list(cells) for cells in means.rows] == [
        ["bfloat16", "2", "all", "2", "6", "4 mamba-conv1d", *beside, "2", "1", "0.5 alexnet-conv2", *beside],
        ["bfloat16", "2", "1-D", "1", "4", "4 mamba-conv1d", *beside, "1", "2", "2 mamba-conv1d", *beside],
        [
            "bfloat16",
            "2",
            "2-D",
            "1",
            "9",
            "9 alexnet-conv2",
            *of_alexnet,
            "1",
            "0.5",
            "0.5 alexnet-conv2",
            *of_alexnet,
        ],
    ]
    assert missing.rows == [["bfloat16", "training", "pytorch", "contiguous", "too slow", "dw3d-64"]]
    assert slower.title.endswith("Slower than PyTorch in bfloat16 and the same memory format")
    assert slower.rows[0][0] == "none", "2 x 0.5 is as fast in the same memory format"


def test_what_was_not_measured_is_left_out(folder, tmp_path):
    said = tables.docs_text(folder)
    assert "pictures/layers-bfloat16.svg" in said
    assert "layers-float16" not in said
    assert tables.docs_text(tmp_path / "none") == tables.NONE_YET


@pytest.mark.parametrize("path", tables.PAGES, ids=lambda path: path.name)
def test_the_pages_show_the_records(path):
    page = path.read_text("utf-8")
    assert len(measuring.block_of(tables.BLOCK).findall(page)) == 1
    shown = measuring.with_block(page, tables.BLOCK, tables.PAGES[path](measuring.RECORDS))
    assert shown == page, "out of date; run: python benchmarks/layer_tables.py --docs"


def test_the_chart_of_a_dtype_has_its_dimensions(folder, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["chart.py", "--records", str(folder), "--pictures", str(folder)])
    chart.main()
    assert [path.name for path in folder.glob("*.svg")] == ["layers-bfloat16.svg"]
    words = " ".join(check_legible((folder / "layers-bfloat16.svg").read_text("utf-8")).itertext())
    assert "in bfloat16" in words
    assert "(avx2), " in words
    heading = words.index("1-D: 4.0×, 2.0×")
    assert heading < words.index("mamba-conv1d", heading) < words.index("2-D: 9.0×, 0.5×")
