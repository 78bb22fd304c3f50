"""The planner's tables: what `benchmarks/policy.py` makes of made-up records, and what its files then decide."""

from __future__ import annotations

import itertools
import json
import math
import random
import sys

import numpy as np
import pytest

from groupwise.kernels import processor
from groupwise.kernels.plan import DIRECTIONS, KERNELS
from scripts import ABOUT, load

features, foreseen, policy, sweep, trees = map(load, ("features", "foreseen", "policy", "sweep", "trees"))
sweeping = load("sweeping")
FIRST, SECOND = [name for name in KERNELS if name != "pytorch"][:2]
FACTS = {**ABOUT, "time": "10:00:00", "class": "amd-26-2", "isa": "avx2"}
SHAPE = {"batch": 2, "groups": 4, "in_channels": 24, "out_channels": 8, "input_size": [9, 20], "output_size": [5, 17]}
SHAPE |= {
    "kernel_size": [3, 4],
    "stride": [2, 1],
    "padding": [1, 0],
    "dilation": [1, 1],
    "dims": 2,
    "transposed": False,
}


def row(pytorch=8.0, again=None, **facts):
    """A row of the record; `ours` has the milliseconds of the kernels."""
    ours = facts.pop("ours", {FIRST: 2.0})
    ms = {"pytorch": pytorch, **ours, "pytorch again": again or pytorch}
    # Each call takes as long at such a roofline.
    roofline = {"products": dict.fromkeys(("pytorch", FIRST, SECOND), 10), "peak": 1e20, "bandwidth": 1e20}
    settings = {
        "direction": "forward",
        "memory_format": "contiguous",
        "threads": 1,
        "chosen": "pytorch",
        "steady": True,
    }
    return {**FACTS, "benchmark": "sweep", **settings, **SHAPE, **roofline, "least_ms": ms, "ms": ms, **facts}


def drawn(count, seed=0):
    """Rows of drawn layers: the first kernel is 4 times as fast in contiguous, and half as fast in channels_last."""
    chance, rows = random.Random(seed), []
    for number in range(count):
        channels, size = chance.choice((8, 16, 32, 64)), chance.choice((7, 14, 28))
        memory_format = chance.choice(("contiguous", "channels_last"))
        ours = {FIRST: (2.0 if memory_format == "contiguous" else 16.0) * chance.uniform(0.95, 1.05)}
        if number % 2:
            ours[SECOND] = 8.4 * chance.uniform(0.95, 1.05)
        shape = {"groups": channels, "in_channels": channels, "out_channels": channels, "padding": [1, 1]}
        shape |= {"kernel_size": [3, 3], "stride": [1, 1], "input_size": [size, size], "output_size": [size, size]}
        facts = {"memory_format": memory_format, "direction": chance.choice(DIRECTIONS), "batch": chance.choice((1, 8))}
        rows.append(row(ours=ours, **shape, **facts))
    return rows


@pytest.fixture(scope="module", autouse=True)
def few_trees():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(foreseen, "TREES", 4)
        yield


@pytest.fixture(scope="module")
def made(few_trees):
    rows = drawn(200)
    return rows, json.loads(policy.dumped(policy.made(rows)))


def test_of_several_sizes_of_leaves_the_one_that_gains_most_is_kept_unless_it_leaves_too_many_far_below():
    def of(mean, below, rows=1000):
        return ([], [], policy.Quality(rows, rows, 0, below, mean, 1.0))

    assert policy.best([None, of(2.0, 2), of(2.1, 1), of(2.2, 3)])[2].mean == 2.1
    assert policy.best([of(2.0, 5), of(2.1, 4)])[2].mean == 2.1, "none keeps to two of 1000"
    assert policy.best([of(2.0, 1), of(1.9, 0)])[2].mean == 2.0
    # Ten rows below 0.95 weigh more than 1000 that gain half a percent.
    slower = [([], [], policy.Quality(1000, 1000, below, 1, mean, 1.0)) for mean, below in ((2.0, 0), (2.01, 10))]
    assert policy.best(slower)[2].mean == 2.0
    assert [policy.few(rows) for rows in (40, 999, 1000)] == [0, 1, 2]


def test_leaves_keep_the_mean_of_their_targets():
    chance = np.random.default_rng(3)
    values = chance.integers(0, 9, (200, 4)).astype(float)
    targets = values[:, 1] + (values[:, 2] > 4) + chance.normal(0, 0.1, 200)
    tree = trees.grow(values, targets, 7, chance)
    means, tree.leaves = tree.leaves, list(range(len(tree.leaves)))
    reached = {}
    for at, one in enumerate(values):
        reached.setdefault(tree.leaf(one), []).append(targets[at])
    assert len(reached) == len(means) > 8
    for number, found in reached.items():
        assert len(found) >= 7
        assert means[number] == pytest.approx(np.mean(found), abs=0.006)
    spread = np.mean([np.var(found) for found in reached.values()])
    assert spread < 0.1 * np.var(targets), "the trees find what the targets depend on"


def test_equal_rows_make_one_leaf():
    tree = trees.grow(np.ones((30, 2)), np.arange(30.0), 4, np.random.default_rng(0))
    assert (tree.nodes, tree.leaves) == ([], [14.5])
    assert tree.to_list() == [-1, 1450]
    assert trees.Tree.of(tree.to_list()).leaf([5.0, 5.0]) == 14.5


def test_trees_say_how_far_they_are_from_each_other():
    told = [[0, 0.5, -1, 100, -1, 7], [-1, 300]]
    found = trees.estimate([trees.Tree.of(tree) for tree in told], [0.5])
    assert found == pytest.approx((2.0, 1.0))


def behind(tree, at):
    """Returns the place behind a node or leaf and all that is below it."""
    return at + 2 if tree[at] < 0 else behind(tree, behind(tree, at + 2))


def walk(told, values):
    """Reads the documented format with plain loops: the mean leaf of a table and the standard deviation."""
    leaves = []
    for tree in told["trees"]:
        at = 0
        # A request that goes right passes over the nodes and leaves of the left side.
        while tree[at] >= 0:
            at = behind(tree, at + 2) if values[tree[at]] > tree[at + 1] else at + 2
        leaves.append(tree[at + 1] / 100)
    return np.mean(leaves), np.std(leaves)


def test_a_file_is_read_as_it_says(made):
    rows, told = made
    assert told["features"] == list(features.features(rows[0]))
    assert [(table["kernel"], table["rows"]) for table in told["tables"]] == [
        ("pytorch", 200),
        (FIRST, 200),
        (SECOND, 100),
    ]
    assert told["kernels"] == [FIRST, SECOND]
    for table, one in itertools.product(told["tables"], rows[:40]):
        values = [features.features(one)[name] for name in told["features"]]
        assert foreseen.Table.of(table).estimate(values, told["bounded"]) == pytest.approx(walk(table, values))
    again = policy.made(rows)
    assert json.loads(policy.dumped(again)) == told, "the same rows make the same file"


def test_a_roofline_by_hand():
    rows = [row(peak=peak, bandwidth=2e10) for peak in (1e11, 3e11, 4e12)] + [row(0.25, peak=2e11, bandwidth=1e9)]
    found = foreseen.Roofline.of(rows)
    assert found == (1.25e11, 2e10, 0.25e-3)
    one = row(products={FIRST: 5e9}, threads=2)
    moved = 4 * (2 * (24 * 180 + 8 * 85) + 24 * 8 // 4 * 12)
    assert features.bytes_moved(one) == moved
    assert found.time(one, FIRST) == pytest.approx(math.log2(0.02 + moved / 2e10 + 0.00025))


def test_a_speedup_has_the_products_of_both_kernels():
    def table(kernel, leaf):
        return foreseen.Table(kernel, 9, [0.0], [1.0], [trees.Tree([], [leaf])])

    tables, roofline = [table("pytorch", 1.0), table(FIRST, 3.0)], foreseen.Roofline(1e9, 1e30, 1e-30)
    one = row(products={"pytorch": 1000, FIRST: 4000})
    (found,) = foreseen.estimates_of(tables, roofline, [0], one, [0.5], [FIRST, SECOND]).values()
    # Twice as much as PyTorch, of four times the products.
    assert found == pytest.approx((math.log2(1000) - math.log2(4000) + 3 - 1, 0))
    assert foreseen.estimates_of(tables[1:], roofline, [0], one, [0.5], [FIRST]) == {}
    assert foreseen.estimates_of(tables, roofline, [0], one, [1.5], [FIRST]) == {}


def test_what_kernels_reached_by_hand():
    rows = [row(8.0, 2.0, ours={FIRST: 0.5}), row(2.0)]
    record = foreseen.Record.of(rows)
    # The roofline takes the shortest call, 0.5 ms, and PyTorch the mean of its series.
    assert record.reached["pytorch"] == pytest.approx({0: -3.0, 1: -2.0})
    assert record.reached[FIRST] == pytest.approx({0: 0.0, 1: -2.0}, abs=1e-9)
    assert record.reached[SECOND] == {}


def test_a_file_s_caution_and_margins_leave_pytorchs(made):
    rows, told = made
    fast = [one for one in rows if one["memory_format"] == "contiguous"]
    assert {policy.decide(told, one, [FIRST]) for one in fast} == {FIRST}
    # Where the trees agree, no caution counts.
    assert "pytorch" in {policy.decide(told | {"caution": 1e3}, one, [FIRST]) for one in fast}
    one = fast[0]
    assert policy.decide(told | {"margins": [4.5] * 5}, one, [FIRST]) == "pytorch"
    assert policy.decide(told | {"margins": [3.2] * 5, "caution": 0}, one, [FIRST]) == "pytorch"
    assert policy.decide(told | {"margins": [2.5] * 5, "caution": 0}, one, [FIRST]) == FIRST


def test_a_kernel_is_taken_where_it_is_surely_faster(made):
    rows, told = made
    for one in rows:
        expected = FIRST if one["memory_format"] == "contiguous" else "pytorch"
        assert policy.decide(told, one, [FIRST, SECOND]) == expected
        assert policy.decide(told, one, [SECOND]) == "pytorch", "it is a little slower"
        assert policy.decide(told, one, []) == "pytorch"
    quality = told["held_out"]
    assert (quality["rows"], quality["below_095"], quality["below_067"]) == (200, 0, 0)
    assert quality["taken"] == sum(one["memory_format"] == "contiguous" for one in rows)
    assert quality["kept"] > 0.99, "but for a row or two of the second kernel"


def test_no_layer_judges_trees_that_saw_it(monkeypatch):
    rows, seen, read = drawn(150), [], []

    def layers(some):
        return {(one["in_channels"], *one["input_size"]) for one in some}

    def tables_of(record, least, numbers):
        seen.append(layers(record.rows[i] for i in numbers))
        return len(seen) - 1

    monkeypatch.setattr(policy, "tables_of", tables_of)
    monkeypatch.setattr(policy, "estimates_of", lambda fold, *_: read.append(fold) or {"fold": fold})
    found = policy.held_out(foreseen.Record.of(rows), 4)
    assert len(seen) == policy.FOLDS
    assert len(read) == len(rows)
    for one, estimates in zip(rows, found, strict=True):
        assert not layers([one]) & seen[estimates["fold"]]
    assert any(len(some) < len(layers(rows)) for some in seen)


def test_trees_see_the_rows_that_they_are_given():
    rows = drawn(120)
    record = foreseen.Record.of(rows)
    some = [i for i in range(120) if i % 3]
    (*known,) = foreseen.tables_of(record, 4, some)
    (*alone,) = foreseen.tables_of(foreseen.Record.of([rows[i] for i in some]), 4)
    assert [(one.kernel, one.rows) for one in known] == [("pytorch", 80), (FIRST, 80), (SECOND, 40)]
    assert [one.to_dict() for one in known] == [one.to_dict() for one in alone]


def test_a_table_knows_only_what_was_measured(made):
    rows, told = made
    one = next(one for one in rows if one["memory_format"] == "contiguous")
    assert policy.decide(told, {**one, "batch": 512}, [FIRST]) == FIRST, "fractions level off with much work"
    for other in ({"threads": 2}, {"kernel_size": [9, 9]}, {"stride": [2, 2]}, {"transposed": True}, {"dims": 1}):
        assert policy.decide(told, {**one, **other}, [FIRST]) == "pytorch"


def test_quality_by_hand():
    rows = [row(ours={FIRST: 2.0, SECOND: 1.0}), row(ours={FIRST: 10.0}), row(ours={FIRST: 16.0}), row(ours={})]
    found = policy.Quality.of(rows, [FIRST, FIRST, FIRST, "pytorch"])
    assert (found.rows, found.taken, found.below_095, found.below_067) == (4, 3, 2, 1)
    assert found.mean == pytest.approx((4 * 0.8 * 0.5) ** 0.25, abs=1e-3)
    assert found.kept == pytest.approx(math.log(4 * 0.8 * 0.5) / math.log(8), abs=1e-3)
    assert policy.target(row(8.0, again=2.0), FIRST) == 1, "the geometric mean of PyTorch's two series"


def of(speed, spread=0.0):
    """What is foreseen of the first kernel."""
    return {FIRST: trees.Estimate(math.log2(speed), spread)}


def test_the_margin_of_a_family_is_the_smallest_that_holds():
    rows = [row(ours={FIRST: 2.0})] * 96 + [row(ours={FIRST: 16.0})] * 4
    sure, unsure = of(2.0), of(1.17)
    least = min(policy.MARGINS)

    def margins(estimates):
        return policy.rule_of(rows, estimates).margins

    assert margins([sure] * 96 + [unsure] * 4) == [least, least, least, 0.2, least]
    assert margins([sure] * 96 + [{}] * 4) == [least] * 5
    # No margin helps against a sure estimate: those that leave the fewest rows far below count, and they gain most.
    assert margins([sure] * 100) == [least] * 5
    assert margins([sure] * 95 + [unsure] + [sure] * 4) == [least] * 5
    assert margins([sure] * 96 + [unsure] * 2 + [sure] * 2) == [least, least, least, 0.2, least]


def test_a_margin_weighs_slow_rows_more_than_what_they_lose():
    unsure = of(1.01)

    def margin(rows):
        return policy.rule_of(rows, [unsure] * len(rows)).margins[3]

    # Five rows gain 14 % each, which is more than the slow one loses, and less than it weighs; ten gain as much again.
    rows = [row(ours={FIRST: 7.0})] * 5 + [row(ours={FIRST: 9.0})]
    assert margin(rows) > 0.01
    assert margin(rows[:5] * 2 + rows[5:]) == min(policy.MARGINS)
    # A row of 0.97 is as fast as PyTorch, within what times differ by.
    assert margin([*rows[:5], row(ours={FIRST: 8.25})]) == min(policy.MARGINS)


def test_families_that_are_easy_to_foresee_have_smaller_margins():
    wide = {"in_channels": 64, "out_channels": 32}
    unsure = of(1.17)
    rows = [row(ours={FIRST: 4.0}, **wide)] * 50 + [row(ours={FIRST: 4.0})] * 46 + [row(ours={FIRST: 16.0})] * 4
    found = policy.rule_of(rows, [unsure] * 100)
    assert found.margins[3:] == [0.2, min(policy.MARGINS)]
    assert policy.chosen(rows, [unsure] * 100, found) == [FIRST] * 50 + ["pytorch"] * 50


def test_caution_leaves_out_what_the_trees_do_not_agree_on():
    # As far as the mean tells, the slow rows are the fastest; no margin leaves them out and keeps the others.
    rows = [row(ours={FIRST: 7.0})] * 90 + [row(ours={FIRST: 16.0})] * 10
    estimates = [of(1.15, 0.1)] * 90 + [of(1.3, 2.0)] * 10
    found = policy.rule_of(rows, estimates)
    assert 2 ** (0.1 * found.caution) <= 1.15
    assert policy.chosen(rows, estimates, found) == [FIRST] * 90 + ["pytorch"] * 10


def test_the_best_of_the_sure_kernels_is_taken():
    found = {FIRST: trees.Estimate(1.0, 0.5), SECOND: trees.Estimate(2.0, 1.8)}
    assert policy.choice(found, 0.05, caution=1) == SECOND
    assert policy.choice(found, 0.2, caution=1) == FIRST
    assert policy.choice(found, 0.2, caution=0.5) == SECOND
    assert policy.choice({SECOND: trees.Estimate(2.0, 2.1)}, 0.0, caution=1) == "pytorch"
    assert policy.choice({SECOND: trees.Estimate(0.0, 0.0)}, 0.0, caution=1) == SECOND


def test_a_file_for_each_processor_class_and_instruction_set(tmp_path, monkeypatch, capsys):
    rows = [*drawn(60), row(steady=False), row(torch="2.12.0"), row(ours={"gone": 1.0})]
    for row_of_old in rows[-2:]:
        row_of_old["date"] = "2026-01-01"
    others = [{**one, "isa": "avx512"} for one in drawn(50, 1)] + [{**one, "class": "intel-6-143"} for one in drawn(45)]
    (tmp_path / "sweep.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in [*rows, *others]))
    (tmp_path / "sweep-bfloat16.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in drawn(55, 2)))
    (tmp_path / "volumes-float64.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in drawn(48, 3)))
    monkeypatch.setattr(sys, "argv", ["policy.py", "--records", str(tmp_path), "--output", str(tmp_path / "made")])
    policy.main()
    told = {path.name: json.loads(path.read_text()) for path in (tmp_path / "made").iterdir()}
    assert {name: (one["rows"], one["left_out"]) for name, one in told.items()} == {
        "amd-26-2-avx2.json": (60, 1),
        "amd-26-2-avx2-bfloat16.json": (55, 0),
        "amd-26-2-avx2-3d-float64.json": (48, 0),
        "amd-26-2-avx512.json": (50, 0),
        "intel-6-143-avx2.json": (45, 0),
    }
    assert all(one["commits"] == ["abc1234"] and one["torch"] == "2.13.0" for one in told.values())
    assert "amd-26-2-avx2.json" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["policy.py", "--records", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="measure first"):
        policy.main()


def test_a_file_has_a_limit(monkeypatch):
    rows = drawn(120)
    large = policy.made(rows)
    monkeypatch.setattr(policy, "MOST_BYTES", len(policy.dumped({"tables": large["tables"]})) // 2)
    small = policy.made(rows)
    assert len(policy.dumped({"tables": small["tables"]})) <= policy.MOST_BYTES


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\n", "amd-26-2"),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n", "intel-6-143"),
        ("CPU implementer\t: 0x41\nCPU variant\t: 0x3\nCPU part\t: 0xd0c\n", "0x41-0x3-0xd0c"),
        ("vendor_id : Some / Body\nmodel : 1\n", "some-body-1"),
        ("", "unknown"),
    ],
)
def test_the_class_of_a_processor(tmp_path, monkeypatch, cpuinfo, expected):
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    monkeypatch.setattr(processor, "CPUINFO", path)
    assert processor.processor_class() == expected
