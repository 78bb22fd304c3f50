"""A run of `bench` beside a saved one: what changed, and what cannot be compared."""

from __future__ import annotations

import copy
import json

import pytest

from commands import run
from groupwise import ConvSpec, GroupwiseError, bench
from groupwise.profile import bench as benching
from groupwise.profile.bench_change import BenchChange, read_bench
from kernels import without_kernels

SPEC = ConvSpec(8, 8, 3, groups=8)
WORDS = "bench 8 8 -g 8 --size 9 --repeats 1".split()


@pytest.fixture
def made(monkeypatch):
    without_kernels(monkeypatch)
    return bench(SPEC, (1, 8, 9, 9), repeats=3)


def change(made, *middles):
    """What changed for the first timing, whose quartiles and median were (3, 4, 5) before."""
    before, after = copy.deepcopy(made.to_dict()), copy.deepcopy(made.to_dict())
    for facts, (q1, ms, q3) in ((before, (3.0, 4.0, 5.0)), (after, middles)):
        facts["timings"][0].update(q1_ms=q1, ms=ms, q3_ms=q3)
    return BenchChange(made.cost, before, after)


@pytest.mark.parametrize(
    ("middles", "ratio", "said"),
    [
        ((1.0, 2.0, 2.9), 2.0, "faster"),
        ((5.1, 8.0, 9.0), 0.5, "slower"),
        ((1.0, 2.0, 3.0), 2.0, ""),
        ((4.9, 8.0, 9.0), 0.5, ""),
    ],
)
def test_what_lies_apart_has_changed(made, middles, ratio, said):
    found = change(made, *middles)
    row = found.rows()[0]
    assert (row["ratio"], row["changed"]) == (ratio, bool(said))
    assert (row["ms_before"], row["ms"], row["q1_ms_before"], row["q3_ms"]) == (4.0, middles[1], 3.0, middles[2])
    line = str(found).split("\n")[4]
    assert line.split()[4:] == ["4.00", f"{middles[1]:.2f}", f"{ratio:.2f}×", *([said] if said else [])]
    assert max(map(len, str(found).split("\n"))) <= 100


def test_kernels_of_both_runs_are_shown(made):
    found = change(made, 3.0, 4.0, 5.0)
    found.before["timings"][0]["kernels"] = {"forward": "planar"}
    assert "planar → pytorch" in str(found)
    head, rows = found.columns()
    assert dict(zip(head, rows[0], strict=True))["kernels_before"] == "planar"


def test_a_timing_of_one_run_alone_is_left_out(made):
    found = change(made, 3.0, 4.0, 5.0)
    del found.before["timings"][1]
    keys = [(row["work"], row["memory_format"]) for row in found.rows()]
    assert keys == [("forward", "contiguous"), ("training step", "contiguous"), ("training step", "channels_last")]


def test_a_saved_run_is_read_back(made, tmp_path):
    path = tmp_path / "run.json"
    made.save(path)
    assert read_bench(path) == made.to_dict()
    found = made.compare(path)
    assert found.to_dict() == made.compare(made).to_dict()
    assert all(row["ratio"] == 1 and not row["changed"] for row in found.rows())


@pytest.mark.parametrize(
    ("where", "key", "value", "said"),
    [
        ((), "groups", 4, "the saved run had groups 4 instead of 8; compare runs of one layer on one machine"),
        ((), "kernel_size", [3, 5], "kernel_size 3x5 instead of 3x3"),
        ((), "op", "conv_transpose2d", "op 'conv_transpose2d' instead of 'conv2d'"),
        ((), "bias_shape", None, "bias_shape None instead of 8"),
        ((), "batch", 2, "batch 2 instead of 1"),
        ((), "dtype", "float64", "dtype 'float64' instead of 'float32'"),
        (("machine",), "threads", 99, "threads 99 instead of "),
        (("machine",), "processor", "another", "processor 'another' instead of "),
    ],
)
def test_a_run_of_something_else_is_refused(made, tmp_path, where, key, value, said):
    path = tmp_path / "run.json"
    facts = copy.deepcopy(made.to_dict())
    place = facts
    for name in where:
        place = place[name]
    place[key] = value
    path.write_text(json.dumps(facts))
    with pytest.raises(GroupwiseError) as caught:
        made.compare(path)
    assert said in str(caught.value)


def test_another_torch_is_what_one_compares(made, tmp_path):
    path = tmp_path / "run.json"
    facts = copy.deepcopy(made.to_dict())
    facts["machine"]["torch"] = "1.2.3"
    path.write_text(json.dumps(facts))
    assert "Before: torch 1.2.3, groupwise" in " ".join(str(made.compare(path)).split())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"timings": [{}], "machine": {"threads": 1}}', "\x00", "7"])
def test_what_is_no_saved_run_is_refused(tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(GroupwiseError, match=r"run.json is no .*; make one with: groupwise bench"):
        read_bench(path)
    with pytest.raises(GroupwiseError, match="does not exist"):
        read_bench(tmp_path / "none.json")


@pytest.mark.parametrize(
    ("place", "key"),
    [
        ((), "repeats"),
        ((), "not_measured"),
        (("machine",), "torch"),
        (("machine",), "date"),
        (("timings", 1), "kernels"),
        (("timings", 1), "q1_ms"),
    ],
)
def test_a_damaged_run_is_refused(made, tmp_path, place, key):
    path = tmp_path / "run.json"
    facts = copy.deepcopy(made.to_dict())
    part = facts
    for name in place:
        part = part[name]
    del part[key]
    path.write_text(json.dumps(facts))
    with pytest.raises(GroupwiseError, match="is no saved run of bench"):
        read_bench(path)


def test_a_run_that_took_no_time_is_refused(made, tmp_path):
    path = tmp_path / "run.json"
    facts = copy.deepcopy(made.to_dict())
    facts["timings"][0]["ms"] = 0
    path.write_text(json.dumps(facts))
    with pytest.raises(GroupwiseError, match="is no saved run of bench"):
        read_bench(path)


def test_the_command_saves_and_compares(capsys, tmp_path, monkeypatch):
    without_kernels(monkeypatch)
    path, table = tmp_path / "run.json", tmp_path / "change.csv"
    status, out, err = run(capsys, *WORDS, "--save", str(path))
    assert (status, err) == (0, f"groupwise: wrote {path}\n")
    assert "quartiles" in out
    assert run(capsys, *WORDS, "--compare", str(path), "-o", str(table)) == (0, "", "")
    head = table.read_text().split("\n")[0].split(",")
    assert head[:3] + head[-4:] == ["work", "library", "memory_format", "ms_before", "ms", "ratio", "changed"]
    # What was written by -o is the same.
    other = tmp_path / "other.json"
    assert run(capsys, *WORDS, "-o", str(other)) == (0, "", "")
    assert run(capsys, *WORDS, "--compare", str(other))[0] == 0


def test_the_command_refuses_before_it_measures(capsys, tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    assert run(capsys, *WORDS, "--save", str(path))[0] == 0
    monkeypatch.setattr(benching, "bench", lambda *_, **__: pytest.fail("it measured"))
    for words, said in (
        ([*WORDS, "--compare", str(path), "--threads", "77"], "instead of 77"),
        (["bench", "8", "8", "--size", "9", "--compare", str(path)], "groups 8 instead of 1"),
        ([*WORDS, "--compare", str(tmp_path / "none.json")], "does not exist"),
        ([*WORDS, "--save", str(tmp_path / "none" / "run.json")], "there is no folder"),
        ([*WORDS, "--compare", str(path), "-o", str(path)], "--output and --compare name one file"),
        ([*WORDS, "--save", str(path), "-o", str(path)], "--output and --save name one file"),
        ([*WORDS, "-o", "a.html"], "name a file that ends in one of .txt, .json, .csv, .md"),
    ):
        status, out, err = run(capsys, *words)
        assert (status, out) == (2, "")
        assert said in err
