"""Print what the records of `whole.py` say, or write their tables and figures into the docs and the README.

    python benchmarks/whole_tables.py [--docs] [--records DIR]

Each processor class and instruction set has a record of its own, of which only rows of the machine and the torch that
were measured last count. A ratio above 1 favours groupwise.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from measuring import RECORDS, ROOT, machine_of, name_of, newest_machine, records_of, show_record
from summary import BUSY, Table, geometric_mean, ratio, time
from whole_engines import DTYPES, ENGINES, OURS, TUNED

Row = dict[str, Any]
RECORD, PICTURE = "whole.jsonl", "whole-networks.svg"
PAGES = {"docs/whole-networks.md": "docs_text", "README.md": "readme_text"}
NONE_YET = "No record is there yet: `python benchmarks/whole.py` makes one."
EAGER = ("eager", "eager channels_last")
PASSES = {"forward": "Inference", "training": "A training step"}


class Point:
    """The rows of one network, pass, batch, number of threads and dtype, which were timed in turn."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = {row["implementation"]: row for row in rows}
        self.facts = rows[0]
        self.ms = {name: row["ms"] for name, row in self.rows.items() if "ms" in row}

    @property
    def is_whole(self) -> bool:
        """Whether groupwise and PyTorch have times."""
        return "groupwise" in self.ms and any(name in self.ms for name in EAGER)

    @property
    def speedup(self) -> float:
        """How many times as long PyTorch takes, in its better memory format."""
        return min(self.ms[name] for name in EAGER if name in self.ms) / self.ms["groupwise"]

    @property
    def best_other(self) -> tuple[str, float]:
        """The fastest of all others, and how many times as long it takes."""
        name = min((name for name in self.ms if name not in OURS), key=self.ms.__getitem__)
        return name, self.ms[name] / self.ms["groupwise"]

    @property
    def tuned(self) -> float | None:
        """How many times as long the fastest of all others takes as groupwise with `tune=True`, if that has a time."""
        return self.ms[self.best_other[0]] / self.ms[TUNED] if TUNED in self.ms else None


def read(folder: pathlib.Path = RECORDS) -> list[list[Row]]:
    """Returns the rows of each record that share the machine and the torch of its newest, the largest record first."""
    found = []
    for rows_of_class in records_of(folder, RECORD):
        rows = [row for row in rows_of_class if row["benchmark"] == "whole"]
        newest = newest_machine(rows)
        found.append([row for row in rows if machine_of(row) == newest])
    return sorted(filter(None, found), key=len, reverse=True)


def points(rows: Iterable[Row]) -> list[Point]:
    """Returns the points that can be compared, in the order of the record."""
    found: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        found[tuple(row[name] for name in ("pass", "network", "batch", "threads", "dtype"))].append(row)
    return [point for point in map(Point, found.values()) if point.is_whole]


def tables(rows: Sequence[Row]) -> list[Table]:
    """Returns every table that has rows."""
    some = points(rows)
    made = [where(rows), means(some)]
    for dtype in DTYPES:
        here = [point for point in some if point.facts["dtype"] == dtype]
        made += [times_table(which, dtype, [p for p in here if p.facts["pass"] == which]) for which in PASSES]
    return [table for table in (*made, *memory_tables(some), problem_table(rows)) if table.rows]


def where(rows: Sequence[Row]) -> Table:
    """The machine, versions and commits, and what was disturbed."""
    names = ("processor", "isa", "torch", "groupwise", "commit", "date", "dtype")
    disturbed = sorted({short(row["network"]) for row in rows if (row.get("busy") or 0) > BUSY})
    note = ""
    if disturbed:
        note = f"Others used more than {BUSY:.0%} of the processors just before: {', '.join(disturbed)}."
    return Table("Measured", names, sorted({tuple(str(row[name]) for name in names) for row in rows}), note)


def means(some: Sequence[Point]) -> Table:
    """Geometric means over the networks of torchvision, and over those of timm."""
    found: dict[tuple[str, ...], list[Point]] = defaultdict(list)
    for point in some:
        key = ("pass", "dtype", "batch", "threads")
        source = point.facts["network"].split(":")[0]
        found[(source, *(str(point.facts[name]) for name in key))].append(point)
    cells = []
    for key, those in found.items():
        worst = min(those, key=lambda point: point.speedup)
        cells.append(
            [
                *key,
                str(len(those)),
                ratio(geometric_mean(point.speedup for point in those)),
                f"{ratio(worst.speedup)} {short(worst.facts['network'])}",
                ratio(geometric_mean(point.best_other[1] for point in those)),
                str(sum(point.best_other[1] > 1 for point in those)),
            ]
        )
    head = ["networks of", "pass", "dtype", "batch", "threads", "networks", "PyTorch / groupwise", "worst"]
    head += ["best other / groupwise", "fastest in"]
    note = (
        "PyTorch is eager, in its better memory format; the best other is the fastest engine, network by network. "
        "Below 1 the other is faster."
    )
    return Table("Means", head, cells, note)


def times_table(which: str, dtype: str, some: Sequence[Point]) -> Table:
    """The times of all engines, in ms, and two ratios."""
    engines = [name for name in ENGINES if any(name in point.ms for point in some)]
    cells = []
    for point in some:
        name, best = point.best_other
        facts = [short(point.facts["network"]), str(point.facts["batch"]), str(point.facts["threads"])]
        shown = (time(point.ms[engine]) if engine in point.ms else "" for engine in engines)
        tuned = [ratio(point.tuned) if point.tuned else ""] if TUNED in engines else []
        cells.append([*facts, *shown, ratio(point.speedup), f"{ratio(best)} {name}", *tuned])
    head = ["network", "batch", "threads", *engines, "PyTorch / groupwise", "best other / groupwise"]
    head += ["best other / tune=True"] if TUNED in engines else []
    turns = f" {least(some)} turns or more." if some else ""
    title = PASSES[which] if dtype == "float32" else f"{PASSES[which]} in {dtype}"
    return Table(f"{title}, ms", head, cells, f"Medians of turns that alternate.{turns}")


def memory_tables(some: Sequence[Point]) -> list[Table]:
    """The memory of each engine: of its process beyond what that began with, and of the tensors of a training step."""
    note = "The peak of the process from before it builds the model until it has run, less what it began with."
    calls = "The peak of the process in calls alone, when the network is ready, less what it began with."
    tensors = "The most that the tensors of a training step hold at once. Parameters are not counted, gradients are."
    return [
        memory_table("Peak memory, MiB", "peak_mib", some, note),
        memory_table("Peak memory of calls, MiB", "runs_mib", some, calls),
        memory_table("Peak memory of tensors, MiB", "tensors_mib", some, tensors),
    ]


def memory_table(title: str, field: str, some: Sequence[Point], note: str) -> Table:
    """One kind of memory, in float32 and with the most threads."""
    most = max((point.facts["threads"] for point in some), default=0)
    kept = [p for p in some if p.facts["threads"] == most and p.facts["dtype"] == "float32"]
    engines = [name for name in ENGINES if any(name in point.rows for point in kept)]
    cells = []
    for point in kept:
        peaks = [point.rows.get(name, {}).get(field) for name in engines]
        if not any(peaks):
            continue
        facts = [short(point.facts["network"]), point.facts["pass"], str(point.facts["batch"])]
        cells.append([*facts, *("" if peak is None else f"{peak:.0f}" for peak in peaks)])
    return Table(title, ["network", "pass", "batch", *engines], cells, note)


def problem_table(rows: Sequence[Row]) -> Table:
    """What was not timed, and why."""
    reasons: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in rows:
        if row.get("problem"):
            reasons[row["implementation"], row["problem"]].add(short(row["network"]))
    cells = [[name, problem, ", ".join(sorted(names))] for (name, problem), names in sorted(reasons.items())]
    return Table("Not timed", ["engine", "why", "networks"], cells)


def docs_text(machines: Sequence[Sequence[Row]]) -> str:
    """Returns the chart, and all tables of each machine, as Markdown."""
    machines = [rows for rows in machines if points(rows)]
    if not machines:
        return NONE_YET
    said = [f"![How many times as fast as eager PyTorch each engine is](pictures/{PICTURE})"]
    for rows in machines:
        said.append(f"## On {name_of(rows[0])}")
        # Headings of two processors must differ, because they are links too.
        said += [replace(one, title=f"{one.title}: {name_of(rows[0])}").markdown() for one in tables(rows)]
    return "\n\n".join(said)


def readme_text(machines: Sequence[Sequence[Row]]) -> str:
    """Returns the chart and the main figures in a sentence, or nothing without a record."""
    found = [shown for rows in machines if (shown := chosen(torchvision(points(rows))))]
    if not found:
        return ""
    facts = found[0][0].facts
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    each = []
    for shown in found:
        speedups = [point.speedup for point in shown]
        each.append(
            f"{geometric_mean(speedups):.2f} times as fast ({min(speedups):.2f} to {max(speedups):.2f}) on "
            f"{name_of(shown[0].facts)}"
        )
    listed = " and ".join(filter(None, [", ".join(each[:-1]), each[-1]]))
    said = (
        f"Over {len(found[0])} networks of torchvision, compared with PyTorch in its better memory format, it is "
        f"{listed} (geometric means; one image, {threads}, {facts['dtype']})."
    )
    return f"![How many times as fast as eager PyTorch each engine is](docs/pictures/{PICTURE})\n\n{said}"


def torchvision(some: Iterable[Point]) -> list[Point]:
    """Returns the points of torchvision's networks."""
    return [point for point in some if point.facts["network"].startswith("torchvision")]


def chosen(some: Sequence[Point]) -> list[Point]:
    """Returns the points of the chart: inference of one image in float32 with the most threads."""
    wanted = ("forward", 1, "float32")
    here = [p for p in some if (p.facts["pass"], p.facts["batch"], p.facts["dtype"]) == wanted]
    most = max((point.facts["threads"] for point in here), default=0)
    return [point for point in here if point.facts["threads"] == most]


def least(some: Sequence[Point]) -> int:
    """Returns the fewest turns of any engine."""
    return min(row["repeats"] for point in some for row in point.rows.values() if "ms" in row)


def short(network: str) -> str:
    """Returns the name of a network without torchvision's, which most have."""
    return network.removeprefix("torchvision:")


def main() -> None:
    """Prints the tables, or writes them into the pages."""
    parser = argparse.ArgumentParser(description="Summarise whole.jsonl.")
    parser.add_argument(
        "--docs", action="store_true", help="write the tables into docs/whole-networks.md and the README"
    )
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    options = parser.parse_args()
    machines = read(options.records)
    if options.docs:
        for name, function in PAGES.items():
            show_record(ROOT / name, RECORD, globals()[function](machines))
    elif not machines:
        raise SystemExit(f"there is no {RECORD} in {options.records}; measure first: python benchmarks/whole.py")
    else:
        print("\n\n".join(table.text() for rows in machines for table in tables(rows)))


if __name__ == "__main__":
    main()
