"""The figures of README and how-to pages are those of the records, and name the processor."""

from __future__ import annotations

import json
import math
import pathlib
import re
from collections import defaultdict

import pytest

ROOT = pathlib.Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"
README = (ROOT / "README.md").read_text("utf-8")
FASTER = (ROOT / "docs" / "make-it-faster.md").read_text("utf-8")
QUESTIONS = (ROOT / "docs" / "faq.md").read_text("utf-8")


def rows_of(name: str) -> list[dict]:
    return [json.loads(line) for line in (RECORDS / f"{name}.jsonl").read_text("utf-8").splitlines()]


def speedups(rows: list[dict], *key: str) -> dict[tuple, float]:
    """PyTorch's time over groupwise's, each in its better memory format, by `key`."""
    best: dict[tuple, dict[str, float]] = defaultdict(lambda: {"pytorch": math.inf, "groupwise": math.inf})
    for row in rows:
        times = best[tuple(row[name] for name in key)]
        if row.get("implementation") in times and "ms" in row:
            times[row["implementation"]] = min(times[row["implementation"]], row["ms"])
    return {
        at: times["pytorch"] / times["groupwise"] for at, times in best.items() if math.isfinite(max(times.values()))
    }


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        (
            "listed",
            r"Over (\d+) layers .*? is ([\d.]+) times as fast as PyTorch forward and ([\d.]+) times in a training",
        ),
        ("held_out", r"Over (\d+) held-out layers.*? it is ([\d.]+) times as fast in (both)"),
    ],
)
def test_the_means_of_the_readme(layers, sentence):
    count, forward, training = re.search(sentence, README, re.S).groups()
    rows = [row for row in rows_of("layers") if row.get("set") == layers and (row["threads"], row["batch"]) == (2, 1)]
    by_pass = defaultdict(list)
    for (_, which), value in speedups(rows, "layer", "pass").items():
        by_pass[which].append(value)
    assert {len(values) for values in by_pass.values()} == {int(count)}
    assert f"{geometric_mean(by_pass['forward']):.1f}" == forward
    assert f"{geometric_mean(by_pass['training']):.1f}" == (forward if training == "both" else training)


def networks() -> dict[tuple, float]:
    return speedups([row for row in rows_of("networks") if row["threads"] == 2], "network", "batch", "pass")


def test_the_range_of_the_readme():
    low, high = map(int, re.search(r"whole networks gain (\d+) to (\d+) %", README).groups())
    gains = [round(100 * (value - 1)) for (_, batch, _), value in networks().items() if batch == 1]
    assert (min(gains), max(gains)) == (low, high)


def test_the_table_of_networks():
    table = re.findall(r"^\| (\w+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", FASTER, re.M)
    shown = {(name, int(batch), "forward"): forward for name, batch, forward, _ in table}
    shown |= {(name, int(batch), "training"): training for name, batch, _, training in table}
    assert shown == {key: f"{value:.2f}" for key, value in networks().items()}


def test_the_table_of_the_questions():
    record = re.search(r"from\s+`benchmarks/records/([\w/-]+)\.jsonl`", QUESTIONS).group(1)
    rows = [row for row in rows_of(record) if (row.get("channels"), row.get("size"), row.get("kernel")) == (128, 56, 3)]
    assert {(row["processor"], row["isa"], row["threads"], row["dtype"]) for row in rows} == {
        ("AMD EPYC", "avx512", 2, "float32")
    }
    times = {
        (row["groups"], side): min(
            other["ms"] for other in rows if (other["groups"], other["implementation"]) == (row["groups"], side)
        )
        for row in rows
        for side in ("pytorch", "groupwise")
    }
    groups = sorted({groups for groups, _ in times})
    shown = re.findall(r"^\| (\d+) \| (1(?:/\d+)?) \| ([\d.]+) \| ([\d.]+) \|$", QUESTIONS, re.M)
    assert shown == [
        (str(g), f"1/{g}" if g > 1 else "1", f"{times[g, 'pytorch']:.2f}", f"{times[g, 'groupwise']:.2f}")
        for g in groups
    ]
    gains = [round(times[1, side] / times[32, side]) for side in ("pytorch", "groupwise")]
    assert f"PyTorch is {gains[0]} times as fast as dense, and groupwise {gains[1]} times" in QUESTIONS


@pytest.mark.parametrize("page", [README, FASTER], ids=["README", "make-it-faster"])
def test_figures_name_the_processor(page):
    (processor,) = {row["processor"] for name in ("layers", "networks") for row in rows_of(name)}
    assert re.search(rf"measured on an {re.escape(processor)} \(AVX2\), float32, two threads", page, re.I)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 105
