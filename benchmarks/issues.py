"""Time the layers of PyTorch's well-known issues about groups, and write their table into docs/pytorch-issues.md.

Forward and training step, by PyTorch and by groupwise, in both memory formats; every result is first compared with
float64. A ratio above 1 favours groupwise.

    python benchmarks/issues.py [--only 10229] [--repeats 7]     # measures, adds to issues.jsonl
    python benchmarks/issues.py --docs                           # writes the table
"""

from __future__ import annotations

import argparse
import collections
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import layers
import shapes
from measuring import RECORDS, ROOT, Effort, about, busy, by_machine, figures, read_record, show_record, write_record
from summary import BUSY, Table, ratio, time

from groupwise.kernels import native

UNIT = ("benchmark", "layer", "pass", "threads", "processor", "isa")
RECORD, PAGE = "issues.jsonl", ROOT / "docs" / "pytorch-issues.md"
SIDES = [(who, name) for who in ("pytorch", "groupwise") for name in shapes.FORMATS]


def main() -> None:
    """Measures issue by issue, and writes the rows of each as soon as they are there; or writes the table."""
    parser = argparse.ArgumentParser(description="Time the layers of PyTorch's issues.")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/pytorch-issues.md")
    parser.add_argument("--only", default="", help="issues whose name contains this")
    parser.add_argument("--repeats", type=int, default=7, help="the least for each median")
    parser.add_argument("--budget", type=float, default=1.0, help="seconds for more repeats of a quick layer")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / RECORD)
    options = parser.parse_args()
    if options.docs:
        show_record(PAGE, RECORD, docs_text(read_record(options.output)))
        return
    effort = Effort(options.repeats, options.budget, max(options.repeats, 60))
    for layer in shapes.read_file("issues.json"):
        if options.only in layer.name:
            used = busy()
            for rows in measure(layer, effort):
                write_record(options.output, [{**row, "busy": used, **about()} for row in rows], UNIT)
            print(f"{layer.name}: done", file=sys.stderr)


def measure(layer: shapes.Layer, effort: Effort) -> list[list[dict[str, Any]]]:
    """Returns the rows of the forward and of the training step. Raises `WrongResult` for a wrong result."""
    given = layer.tensors(layer.batch)
    facts = {"benchmark": "issue", "layer": layer.name, "source": layer.source, "samples": layer.batch}
    found = []
    for which in layers.PASSES:
        layers.check(layer, given, which)
        times = layers.interleave(layers.cases_of(layer, given, which), which, effort)
        found.append(
            [
                {**facts, "isa": native.status().isa, "pass": which, "implementation": who, "memory_format": name}
                | figures(seconds)
                | ({"kernels": layers.kernels(given.in_format(name), which)} if who == "groupwise" else {})
                for (who, name), seconds in times.items()
            ]
        )
    return found


def docs_text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table for each processor, instruction set and number of threads, as Markdown."""
    machines = by_machine(rows)
    if not machines:
        return "No record is there yet: `python benchmarks/issues.py` makes one."
    return "\n\n".join(_table(key, found).markdown() for key, found in machines.items())


def _table(key: tuple[Any, ...], rows: Sequence[dict[str, Any]]) -> Table:
    processor, isa, threads, version = key
    points: dict[tuple[str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for row in rows:
        points[row["layer"], row["pass"]].append(row)
    cells = []
    for (name, which), sides in points.items():
        ms = {(row["implementation"], row["memory_format"].removesuffix("_3d")): row["ms"] for row in sides}
        best = {side: min(value for (who, _), value in ms.items() if who == side) for side in ("pytorch", "groupwise")}
        shown = [time(ms[side]) if side in ms else "" for side in SIDES]
        used = max(row["busy"] or 0 for row in sides)
        cells.append([name, which, *shown, ratio(best["pytorch"] / best["groupwise"]), f"{used:.0%}"])
    head = ["issue", "pass", "PyTorch, ms", "channels_last", "groupwise, ms", "channels_last", "ratio", "busy"]
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    note = (
        f"Medians in ms, float32, {threads} threads, torch {version}, commit {commits}. The ratio compares each side "
        "in its better memory format. Busy is the fraction of the processors that other programs used just before."
    )
    if any((row["busy"] or 0) > BUSY for row in rows):
        note += f" Other programs disturbed the rows above {BUSY:.0%}, which are no evidence."
    if missing := [
        layer.name for layer in shapes.read_file("issues.json") if layer.name not in {name for name, _ in points}
    ]:
        note += f" Not measured yet: {', '.join(missing)}."
    return Table(f"{processor} ({isa}), {threads} threads", head, cells, note)


if __name__ == "__main__":
    main()
