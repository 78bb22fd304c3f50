"""What the records are made into: tables with ratios the right way up, and charts that are legible."""

from __future__ import annotations

import sys

import pytest

from legible import check_legible
from scripts import ABOUT, load

measuring, shapes, summary, chart = map(load, ("measuring", "shapes", "summary", "chart"))


def row(layer="a<b", which="forward", who="pytorch", ms=1.0, **facts):
    facts = {"benchmark": "layer", "memory_format": "contiguous", "floor_ms": 0.5, **facts}
    return {**ABOUT, "set": "listed", "layer": layer, "pass": which, "implementation": who, "ms": ms, **facts}


def made_up():
    found = [row(ms=8.0), row(ms=4.0, memory_format="channels_last")]
    found += [row(who="groupwise", ms=2.0, kernels=["forward planar"])]
    found += [row(who="groupwise", ms=5.0, memory_format="channels_last", kernels=["forward channels"])]
    found += [row("c", ms=8.0), row("c", who="groupwise", ms=1.0, kernels=["forward planar"])]
    found += [row("d", ms=8.0)]
    facts = {"benchmark": "payoff", "groups": 32}
    found += [row(ms=4.0, **facts), row(who="groupwise", ms=1.0, **facts)]
    return [*found, row(who="dense", ms=16.0, benchmark="payoff", groups=1)]


def table(tables, title):
    (found,) = [table for table in tables if table.title.startswith(title)]
    return [dict(zip(found.head, cells, strict=True)) for cells in found.rows]


def test_the_summary_of_layers():
    tables = summary.summarise([row("e", busy=0.2), row("f", busy=0.05), *made_up()], [], [])
    assert tables[0].note == "Others used more than 10% of the processors just before: e."
    (facts,) = table(tables, "Layers")
    assert facts["layers"] == "2", "d was not timed with our kernels"
    assert facts["PyTorch / ours"] == "4", "the mean of 4 / 2 and 8 / 1"
    assert facts["worst"] == "2 a<b"
    assert (facts["PyTorch / floor"], facts["ours / floor"], facts["farthest"]) == ("11.3", "2.83", "4 a<b")
    (slower,) = table(tables, "Slower")
    assert (slower["layer"], slower["format"], slower["PyTorch / ours"]) == ("a<b", "channels_last", "0.8")
    assert slower["kernels"] == "forward channels"
    (payoff,) = table(tables, "Payoff")
    assert (payoff["PyTorch faster"], payoff["ours faster"]) == ("4", "16")
    assert (payoff["PyTorch's payoff"], payoff["our payoff"]) == ("0.125", "0.5")
    assert "| a&lt;b |" in "\n".join(table.markdown() for table in tables)
    assert "4 a<b" in "\n".join(table.text() for table in tables)


def test_the_summary_of_random_layers():
    shape = {"groups": 2, "in_channels": 8, "out_channels": 4, "input_size": [5, 6], "output_size": [3, 4]}
    shape |= {"kernel_size": [3, 3], "stride": [1, 1], "dilation": [1, 1], "direction": "forward", "isa": "avx2"}
    facts = {**ABOUT, **shape, "memory_format": "contiguous", "steady": True, "chosen": "planar"}

    def drawn(ours, again=8.0, **more):
        return {**facts, "least_ms": {"pytorch": 8.0, "planar": ours, "pytorch again": again}, **more}

    rows = [drawn(4.0), drawn(16.0), drawn(1.0, chosen="pytorch"), drawn(9.0, again=18.0), drawn(99.0, steady=False)]
    tables = summary.summarise([], [], [], [], [], [], [*rows, drawn(99.0, processor="old", date="2026-01-01")])
    (facts,) = table(tables[:-1], "Random layers")
    assert list(facts.values()) == ["avx2", "4", "3", "1.1", "1", "1", "1", "1"]
    lost = table(tables, "Random layers that lose")
    assert [next(iter(one.values()))[:20] for one in lost] == ["0.50 (8 | 16 ms) pla", "1.33 (8 | 9 ms) plan"]


def note(tables, title):
    (found,) = [table.note for table in tables if table.title.startswith(title)]
    return found


def test_pairs_of_the_same_kernels_are_no_loss():
    pairs = {"a": (0.8, ["forward pytorch"]), "b": (1.25, ["forward pytorch", "grad_input pytorch"]), "c": (1.0, [])}
    pairs |= {"d": (0.9, ["forward pytorch", "grad_input planar"]), "e": (0.5, ["forward planar"])}
    rows = [row(name, ms=ms) for name, (ms, _) in pairs.items()]
    rows += [row(name, who="groupwise", kernels=ran) for name, (_, ran) in pairs.items()]
    tables = summary.summarise(rows)
    assert [facts["layer"] for facts in table(tables, "Slower")] == ["e", "d"]
    told = "In 3 pairs PyTorch's kernels ran on both sides: their ratios, 0.8 to 1.25, are the spread of the machine."
    assert told in note(tables, "Slower")
    tables = summary.summarise([row("a"), row("a", who="groupwise", kernels=["forward planar"])])
    assert table(tables, "Slower")[0]["layer"] == "none"
    assert "pairs" not in note(tables, "Slower")


def test_the_fewest_repeats_stand_beside_every_table():
    of_9, of_4 = {"repeats": 9}, {"repeats": 4, "who": "groupwise", "kernels": ["forward planar"]}
    layers = [row(**of_9), row(**of_4)]
    layers += [row(benchmark="payoff", groups=32, **one) for one in (of_9, of_4, {"who": "dense", "repeats": 7})]
    layers.append({**row(benchmark="fallback", repeats=5), "without_us": 1, "registered_us": 1, "enabled_us": 1})
    formats = ("contiguous", "channels_last")
    nets = [
        row(benchmark="network", network="net", memory_format=name, **one) for one in (of_9, of_4) for name in formats
    ]
    engines = [row(benchmark="engine", **one) for one in (of_9, of_4, {"who": "x", "repeats": 3})]
    kind = {"kind": "a", "direction": "forward", "memory_format": "contiguous", "kernel": "planar"}
    peak = [{**ABOUT, **kind, "fraction_of_peak": 0.5, "attainable": 1.0, "repeats": 20}]
    groups = [row(benchmark="groups", channels=8, size=9, groups=g, of_dense=1 / g, repeats=30) for g in (1, 2, 8)]
    groups.append({**ABOUT, "benchmark": summary.COLD_START, "ms": 150.0, "repeats": 11})
    tables = summary.summarise(layers, nets, engines, peak, groups)
    expected = {"Layers": 4, "Slower": 4, "Payoff": 4, "Fraction": 20, "What groups": 30, "Networks": 4}
    expected |= {"Inference": 3, "A convolution of one pixel": 5}
    assert {title: f"Medians of {few} runs or more." in note(tables, title) for title, few in expected.items()} == (
        dict.fromkeys(expected, True)
    )
    assert "A cold start of `groupwise explain` takes 150 ms." in note(tables, "What groups")
    (facts,) = table(tables, "What groups")
    assert (facts["groups=2"], facts["groups=8"], facts["groups=32"], facts["depthwise"]) == ("50%", "12%", "", "12.5%")
    assert (facts["channels"], facts["size"], facts["dense ms"]) == ("8", "9×9", "1")


def test_layers_that_are_missing_are_named():
    names = [layer.name for layer in shapes.read("listed")]

    def timed(name, **facts):
        return [row(name, **facts), row(name, who="groupwise", kernels=["forward planar"], **facts)]

    rows = [one for name in names for which in ("forward", "training") for one in timed(name, which=which)]
    engines = [one for name in names[1:] for one in timed(name, benchmark="engine")]
    assert "Not in the records" not in {table.title for table in summary.summarise(rows)}
    gone = [one for one in rows if (one["layer"], one["pass"]) not in ((names[0], "forward"), (names[2], "training"))]
    more = timed(names[1], batch=8)
    found = table(summary.summarise([*gone, *more], [], engines), "Not in the records")
    assert [tuple(facts.values()) for facts in found] == [
        ("layers", "listed", "2", "1", "forward", "1", names[0]),
        ("layers", "listed", "2", "1", "training", "1", names[2]),
        ("layers", "listed", "2", "8", "forward", "48", f"all but {names[1]}"),
        ("layers", "listed", "2", "8", "training", "49", "all"),
        ("engines", "listed", "2", "1", "forward", "1", names[0]),
    ]


@pytest.mark.parametrize("other", [{"processor": "Xeon"}, {"torch": "2.14.0"}])
def test_rows_of_another_machine_are_left_out(other):
    rows = [row(ms=8.0), row(who="groupwise", ms=2.0, kernels=["forward planar"])]
    older = [{**one, **other, "layer": "older", "date": "2026-11-21"} for one in rows]
    tables = summary.summarise([*rows, *older], [], [{**one, "benchmark": "engine"} for one in older])
    (facts,) = table(tables, "Layers")
    assert (facts["layers"], facts["worst"]) == ("1", "4 a<b")
    assert "Inference engines" not in {table.title for table in tables}
    (facts,) = table(tables, "Measured")
    assert (facts["processor"], facts["torch"]) == ("AMD EPYC", "2.13.0")
    machine = {"processor": "AMD EPYC", "torch": "2.13.0", **other}
    told = f"of another machine or torch: 4 of {machine['processor']} with torch {machine['torch']}."
    assert told in note(tables, "Measured")


def test_the_summary_of_engines_and_networks():
    found = [row(who=who, ms=ms, benchmark="engine") for who, ms in (("pytorch", 4.0), ("groupwise", 1.0))]
    found += [row(who="x", ms=0.5, benchmark="engine"), row(who="y", ms=2.0, benchmark="engine")]
    broken = row(who="z", benchmark="engine", problem="no groups")
    del broken["ms"]
    formats = ("contiguous", "channels_last")
    nets = [
        row(who=who, ms=ms, benchmark="network", network="net", memory_format=name)
        for who, ms in (("pytorch", 30.0), ("groupwise", 20.0))
        for name in formats
    ]
    tables = summary.summarise([], nets, [*found, broken])
    speedups = {facts["engine"]: facts["engine / ours"] for facts in table(tables, "Inference")}
    assert speedups == {"pytorch": "4", "x": "0.5", "y": "2", "best engine": "0.5"}
    assert table(tables, "Not timed") == [{"engine": "z", "why": "no groups", "layers": "a<b"}]
    assert table(tables, "Networks")[0]["PyTorch / ours"] == "1.5"


def test_without_records_there_is_no_summary(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["summary.py", "--records", str(tmp_path)])
    with pytest.raises(SystemExit, match="measure first"):
        summary.main()


def test_the_charts_are_legible(tmp_path, monkeypatch):
    rows = []
    for number, layer in enumerate(shapes.read("listed")):
        for which, share in (("forward", 0.8), ("training", 1.3)):
            rows += [row(layer.name, which, "pytorch", 1.0), row(layer.name, which, "groupwise", share ** (number / 3))]
    facts = {"benchmark": "groups", "channels": 32, "size": 9}
    groups = [row(memory_format=f, groups=2**i, of_dense=0.7**i, **facts) for f in shapes.FORMATS for i in range(6)]
    measuring.write_record(tmp_path / "layers.jsonl", rows, ())
    measuring.write_record(tmp_path / "groups.jsonl", groups, ())
    monkeypatch.setattr(sys, "argv", ["chart.py", "--records", str(tmp_path), "--pictures", str(tmp_path)])
    chart.main()
    root = check_legible((tmp_path / "speedup.svg").read_text(encoding="utf-8"))
    assert float(root.get("width")) <= 800
    check_legible((tmp_path / "payoff.svg").read_text(encoding="utf-8"))
    check_legible(chart.speedup_chart(chart.chosen(rows[:4])))


def test_a_chart_is_of_one_machine_and_names_its_commits(tmp_path, monkeypatch):
    names = [layer.name for layer in shapes.read("listed")][:3]
    rows = []
    for name, more in zip(names, ({}, {"commit": "def5678", "repeats": 9}, {"processor": "Xeon"}), strict=True):
        date = {"date": "2026-11-21"} if "processor" in more else {}
        for who, ms in (("pytorch", 2.0), ("groupwise", 1.0)):
            rows += [row(name, which, who, ms, **more, **date) for which in ("forward", "training")]
    facts = {"benchmark": "groups", "channels": 4, "size": 9}
    groups = [
        row(groups=2**i, of_dense=0.7**i, commit=f"abc123{i}", memory_format=name, **facts)
        for name in shapes.FORMATS
        for i in range(3)
    ]
    measuring.write_record(tmp_path / "layers.jsonl", rows, ())
    measuring.write_record(tmp_path / "groups.jsonl", groups, ())
    monkeypatch.setattr(sys, "argv", ["chart.py", "--records", str(tmp_path), "--pictures", str(tmp_path)])
    chart.main()
    speedup, payoff = (
        " ".join(check_legible((tmp_path / f"{name}.svg").read_text()).itertext()).split()
        for name in ("speedup", "payoff")
    )
    assert set(names) & set(speedup) == set(names[:2])
    assert "median of 9 or more, interleaved; torch 2.13.0, commits abc1234, def5678, 2026-11-22" in " ".join(speedup)
    assert "commits abc1230, abc1231, abc1232, 2026-11-22" in " ".join(payoff)
