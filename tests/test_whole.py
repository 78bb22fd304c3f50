"""The benchmark of whole networks: what it times, what it refuses, and that docs and README show its record."""

from __future__ import annotations

import importlib.util
import os
import pathlib
import sys

import pytest
import torch
from torch import nn

import groupwise
from legible import check_legible
from scripts import ABOUT, load

ROOT = pathlib.Path(__file__).parent.parent
measuring, networks, engines, whole = map(load, ("measuring", "whole_networks", "whole_engines", "whole"))
tables, chart, run = map(load, ("whole_tables", "whole_chart", "run"))


def row(engine, ms, network="torchvision:a", which="forward", batch=1, threads=2, **more):
    facts = {**ABOUT, "benchmark": "whole", "isa": "avx2", "network": network, "pass": which, "batch": batch}
    times = {"ms": ms, "least_ms": ms, "repeats": 8, "peak_mib": 100.0, "runs_mib": 50.0} if ms else {}
    return {**facts, "implementation": engine, **times, **more, "threads": threads}


# The engines that no other package brings.
NAMES = ("eager", "eager channels_last", "groupwise")


def record():
    found = []
    for number, network in enumerate(("torchvision:a", "torchvision:b<", "timm:c")):
        for which, batch, threads in (("forward", 1, 1), ("forward", 1, 2), ("forward", 8, 2), ("training", 8, 2)):
            at = {"network": network, "which": which, "batch": batch, "threads": threads}
            found += [
                row("eager", 8.0, **at),
                row("eager channels_last", 6.0, **at),
                row("groupwise", 2.0 + number, **at),
            ]
            found += [row("openvino", 4.0, **at), row("freezing", None, problem="it fails", **at)]
    return found


def test_the_tables():
    made = {
        one.title: [dict(zip(one.head, cells, strict=True)) for cells in one.rows] for one in tables.tables(record())
    }
    wanted = {"networks of": "torchvision", "pass": "forward", "batch": "1", "threads": "2"}
    (means,) = [one for one in made["Means"] if wanted.items() <= one.items()]
    assert means["networks"] == "2"
    assert means["PyTorch / groupwise"] == "2.45", "the mean of 6 / 2 and 6 / 3"
    assert means["worst"] == "2 b<"
    assert (means["best other / groupwise"], means["fastest in"]) == ("1.63", "2")
    last = made["Inference, ms"][-1]
    assert (last["network"], last["PyTorch / groupwise"]) == ("timm:c", "1.5")
    assert last["best other / groupwise"] == "1 openvino"
    assert "freezing" not in last
    assert (made["Peak memory, MiB"][0]["groupwise"], made["Peak memory of calls, MiB"][0]["groupwise"]) == (
        "100",
        "50",
    )
    assert made["Not timed"] == [{"engine": "freezing", "why": "it fails", "networks": "a, b<, timm:c"}]
    assert made["Peak memory, MiB"][0]["openvino"] == "100"
    assert len(made["A training step, ms"]) == 3


def test_only_the_newest_machine_counts(tmp_path):
    old = {**row("eager", 1.0), "processor": "old", "date": "2000-01-01"}
    measuring.write_record(tmp_path / "a" / "whole.jsonl", [old, *record()], ())
    measuring.write_record(tmp_path / "b" / "whole.jsonl", [{**one, "processor": "b"} for one in record()[:8]], ())
    assert [len(rows) for rows in tables.read(tmp_path)] == [len(record()), 8]


def test_processors_of_one_name_are_told_apart(tmp_path):
    for folder in ("amd-25-1-avx2", "amd-25-17-avx2", "other-1-2-avx2"):
        measuring.write_record(tmp_path / folder / "whole.jsonl", [{**one, "processor": "E"} for one in record()], ())
    said = tables.docs_text(tables.read(tmp_path))
    headings = [line.removeprefix("## On ") for line in said.splitlines() if line.startswith("## On ")]
    assert headings == ["E (Zen 3, avx2)", "E (Zen 4, avx2)", "E (avx2)"]


def test_the_chart_is_legible():
    some = tables.chosen(tables.points(record()))
    assert [point.facts["network"] for point in some] == ["torchvision:a", "torchvision:b<", "timm:c"]
    assert {(point.facts["batch"], point.facts["threads"]) for point in some} == {(1, 2)}
    root = check_legible(chart.chart(some))
    assert float(root.get("width")) <= 800
    together = [row(name, 5.0) for name in engines.ENGINES]
    check_legible(chart.chart(tables.points(together)))


def test_without_a_record_there_is_no_chart_and_no_figure(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["whole_chart.py", "--records", str(tmp_path), "--pictures", str(tmp_path)])
    chart.main()
    assert not list(tmp_path.iterdir())
    assert tables.readme_text([]) == ""
    assert tables.docs_text([]) == tables.NONE_YET
    monkeypatch.setattr(sys, "argv", ["whole_tables.py", "--records", str(tmp_path)])
    with pytest.raises(SystemExit, match="measure first"):
        tables.main()


def test_the_readme_says_what_the_record_says():
    said = tables.readme_text([record(), [{**one, "processor": "Other(R) Processor"} for one in record()]])
    assert "Over 2 networks of torchvision, compared with PyTorch" in said
    assert "it is 2.45 times as fast (2.00 to 3.00) on" in said
    assert "and 2.45 times as fast (2.00 to 3.00) on Other (avx2) (geometric means; one image, 2 threads" in said
    assert "](docs/pictures/whole-networks.svg)" in said


@pytest.mark.parametrize("name", tables.PAGES)
def test_pages_show_the_record(name):
    page = (ROOT / name).read_text("utf-8")
    assert len(measuring.block_of(tables.RECORD).findall(page)) == 1
    made = getattr(tables, tables.PAGES[name])(tables.read())
    assert measuring.with_block(page, tables.RECORD, made) == page, (
        "out of date; run: python benchmarks/whole_tables.py --docs"
    )
    assert measuring.with_block(page, tables.RECORD, "| a \\1 |") != page


def test_a_point_is_timed_in_processes(tmp_path, monkeypatch):
    """Three engines on a small network."""
    code = """
import torch
from torch import nn
class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 4, 3, stride=32), nn.Flatten(), nn.Linear(196, 1000))
"""
    (tmp_path / "small_net.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    monkeypatch.setattr(networks, "NETWORKS", ("small_net:Net",))
    words = "--networks small --rounds 2 --budget 0 --batch 1 2 --threads 1".split()
    words += ["--engines", *NAMES, "--output", str(tmp_path / "whole.jsonl")]
    monkeypatch.setattr(sys, "argv", ["whole.py", *words])
    threads = torch.get_num_threads()
    try:
        whole.main()
    finally:
        torch.set_num_threads(threads)
    rows = measuring.read_record(tmp_path / "whole.jsonl")
    assert [one["implementation"] for one in rows if (one["pass"], one["batch"]) == ("forward", 2)] == list(NAMES)
    for one in rows:
        if one["implementation"] == "groupwise" and one["pass"] == "training" and "problem" in one:
            assert "no optimize(..., train=True)" in one["problem"]
            continue
        assert 0 < one["least_ms"] <= one["ms"]
        assert one["error"] < 1e-5
        assert one["repeats"] == 2
        assert {
            "processor",
            "threads",
            "torch",
            "commit",
            "dtype",
            "isa",
            "memory_format",
            "peak_mib",
            "runs_mib",
        } <= set(one)
        assert one.get("tensors_mib", 0) > 0 if one["pass"] == "training" else "tensors_mib" not in one
    assert tables.points(rows)


def test_memory_of_tensors_is_the_most_that_live_at_once():
    def call():
        first = torch.empty(3 << 18)
        del first
        return [torch.empty(1 << 18), torch.empty(1 << 18)]

    assert engines.tensors_mib(call) == pytest.approx(3, abs=0.1)


class Worker:
    """Stands in for an engine's process, which stops after some answers."""

    def __init__(self, seconds, answers=99):
        self.seconds, self.answers, self.asked = seconds, answers, []

    def ask(self, word, calls):
        self.asked.append(calls)
        self.answers -= 1
        return {"seconds": [9.0] + [self.seconds] * (calls - 1)} if self.answers >= 0 else {"problem": "it ended"}


def test_turns_alternate(monkeypatch):
    monkeypatch.setattr(whole, "PAUSE", 0)
    workers = {"slow": Worker(1.0), "quick": Worker(0.03), "stops": Worker(0.1, 2)}
    made = whole.alternate(workers, rounds=6, budget=0)
    assert made["slow"]["ms"] == 1000, "the first call of a turn is not counted"
    assert workers["slow"].asked == [2] * 5
    assert workers["quick"].asked == [2, *[4] * 4], "a turn takes about a tenth of a second"
    assert made["quick"]["repeats"] == 4, "the budget is spent after the least number of rounds"
    assert made["stops"] == {"problem": "it ended"}


def test_a_wrong_engine_has_no_time():
    rows = [{"implementation": "eager", "error": 1e-6}, {"implementation": "x", "error": 2e-4}]
    rows += [{"implementation": "y", "error": float("inf")}, {"implementation": "z", "problem": "fails"}]
    whole.refuse_wrong(rows, "forward")
    assert [one.get("problem", "")[:9] for one in rows] == ["", "its error", "its error", "fails"]


def test_errors_against_float64():
    exact = [torch.tensor([[3.0, 4.0]], dtype=torch.float64)]
    assert engines.error(torch.tensor([[3.0, 4.0], [9.0, 9.0]]), exact) == 0, "the first samples are compared"
    assert engines.error(torch.tensor([[3.0, 5.0]]), exact) == pytest.approx(0.2)
    assert engines.error([torch.tensor([[3.0, 4.0]])], exact) == 0
    assert engines.error(torch.tensor([[float("nan"), 4.0]]), exact) == float("inf")


def test_what_is_missing(monkeypatch):
    assert engines.missing("eager", True, None) is None
    assert engines.missing("freezing", True, None) == "it does not train"
    assert engines.missing(engines.RECOMPUTED, False, None) == "it is for training"
    monkeypatch.setattr(engines.shutil, "which", lambda name: None)
    assert engines.missing("torch.compile", False, None) == "there is no C++ compiler"
    monkeypatch.setattr(groupwise, "optimize", lambda model, *inputs: model)
    assert "train=True" in engines.missing("groupwise", True, None)
    monkeypatch.setattr(groupwise, "optimize", lambda model, *inputs, train=False: model)
    assert engines.missing("groupwise", True, None) is None
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None if name == "openvino" else name)
    assert "engines.py --make-envs DIR installs it" in engines.missing("openvino", False, None)


def test_an_environment_of_an_engine_is_found(tmp_path):
    assert engines._packages("openvino", tmp_path) is None
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "openvino" / "lib" / version / "site-packages" / "openvino").mkdir(parents=True)
    assert engines._packages("openvino", tmp_path).name == "site-packages"


def test_the_networks_of_timm_are_those_that_chance_chose():
    if not all(map(importlib.util.find_spec, ("torchvision", "timm"))):
        pytest.skip("torchvision or timm is not installed")
    networks.import_torchvision()
    timm = importlib.import_module("timm")
    if timm.__version__ != "1.0.31":
        pytest.skip("another timm has other networks")
    assert networks.draw() == list(networks.TIMM)


def test_networks_draw_no_random_numbers(monkeypatch):
    class DropPath(nn.Module):
        drop_prob = 0.3

    made = nn.Sequential(nn.Dropout(0.5), DropPath())
    monkeypatch.setattr(networks, "load_model", lambda name: made)
    networks.build("any")
    assert (made[0].p, made[1].drop_prob) == (0, 0)
    assert torch.equal(networks.inputs(1)[0], networks.inputs(8)[0][:1])


def test_run_starts_it_when_asked(monkeypatch):
    done = []
    monkeypatch.setattr(run, "run", lambda words: done.append(words) or 0)
    monkeypatch.setattr(sys, "argv", ["run.py", "whole", "--threads", "1", "2", "--envs", "E"])
    run.main()
    assert done[0] == ["whole.py", "--threads", "1", "2", "--envs", "E"]
    assert ["whole_chart.py"] in done
