"""Print what the records of `layers.py` and `engines.py` say of each dtype and dimension, or write it into the docs.

    python benchmarks/layer_tables.py [--docs] [--records DIR]

Each processor class and instruction set has a folder of records, with one file for each dtype. Of each file only rows
of the machine and the torch that were measured last count. A ratio above 1 favours groupwise.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from measuring import RECORDS, ROOT, newest, read_record, record_name, records_of, show_record
from shapes import DTYPES, FLOAT32, KINDS, PASSES, read
from summary import BUSY, Table, Times, collect, engine_table, geometric_mean, problem_table, ratio, slower_table

Row = dict[str, Any]
BLOCK = "layers-DTYPE.jsonl"
NONE_YET = "No record is there yet: `python benchmarks/layers.py --dtype bfloat16` makes one."


def read_dtype(folder: pathlib.Path, dtype: str) -> list[Row]:
    """Returns the rows of the machine that was measured last in a dtype, in any of the folders of processors.

    They have the class and the instruction set that the folder is named after.
    """
    found = map(newest, records_of(folder, record_name("layers", dtype)))
    return max(
        filter(None, found), key=lambda rows: max((row["date"], row.get("time", "")) for row in rows), default=[]
    )


def times_of(rows: Sequence[Row]) -> list[Times]:
    """Returns the times of the listed layers with the fewest samples."""
    return collect([row for row in rows if (row.get("set"), row.get("batch")) == ("listed", 1)], "layer", KEY)


KEY = ("layer", "pass", "threads")


def tables(folder: pathlib.Path) -> list[Table]:
    """Returns the tables of one folder that have rows."""
    records = {dtype: newest(read_record(folder / record_name("layers", dtype))) for dtype in DTYPES}
    rows = [row for record in records.values() for row in record if "dtype" in row]
    if not rows:
        return []
    times = {
        dtype: times_of([row for row in record if row["benchmark"] == "layer"]) for dtype, record in records.items()
    }
    made = [means(times, where(rows)), missing(records)]
    for dtype, some in times.items():
        if some and dtype != "float32":
            made.append(replace(slower_table(some), title=f"Slower than PyTorch in {dtype} and the same memory format"))
    for dtype in DTYPES:
        engines = newest(read_record(folder / record_name("engines", dtype)))
        timed = collect(engines, "engine", ("set", "layer", "threads"))
        made.append(replace(engine_table(timed), title=f"Inference engines in {dtype}"))
        made.append(replace(problem_table(engines), title=f"Engines in {dtype} that were not timed"))
    machine = f"{rows[0]['processor']} ({folder.name})"
    return [replace(table, title=f"{machine}: {table.title}") for table in made if table.rows]


def where(rows: Sequence[Row]) -> str:
    """Says what was measured, and what was disturbed."""
    names = ("torch", "commit", "date")
    torch, commits, dates = (", ".join(sorted({str(row[name]) for row in rows})) for name in names)
    disturbed = sorted({row["layer"] for row in rows if (row.get("busy") or 0) > BUSY})
    note = f"One sample, or as many as the layer is listed with; torch {torch}, commits {commits}, {dates}."
    if disturbed:
        note += f" Others used more than {BUSY:.0%} of the processors just before: {', '.join(disturbed)}."
    return note


def means(times: dict[str, list[Times]], note: str) -> Table:
    """Compares all layers, and those of each dimension: a row for each dtype and number of threads."""
    kinds = {layer.name: layer.kind for layer in read("listed")}
    rows = []
    for dtype, some in times.items():
        for threads in sorted({one.facts["threads"] for one in some}):
            here = [one for one in some if one.facts["threads"] == threads and one.facts["layer"] in kinds]
            for kind in ("all", *KINDS):
                these = [one for one in here if kind in ("all", kinds[one.facts["layer"]])]
                by_pass = {which: [one for one in these if one.facts["pass"] == which] for which in PASSES}
                if these:
                    cells = [cell for found in by_pass.values() for cell in (*faster(found), *beside_float32(found))]
                    rows.append([dtype, str(threads), kind, *cells])
    head = ["dtype", "threads", "dimension"]
    for which in PASSES:
        head += [f"layers, {which}", "PyTorch / ours", "worst", "ours / our float32", "worst"]
    said = "Geometric means, each side in its better memory format; `worst` is a single layer."
    return Table("Layers by dtype and dimension", head, rows, f"{said} {note}")


def faster(found: Sequence[Times]) -> list[str]:
    """Returns how many layers there are, the mean ratio to PyTorch, and the worst."""
    if not found:
        return ["0", "", ""]
    worst = min(found, key=Times.speedup)
    mean = geometric_mean(map(Times.speedup, found))
    return [str(len(found)), ratio(mean), f"{ratio(worst.speedup())} {worst.facts['layer']}"]


def beside_float32(found: Sequence[Times]) -> list[str]:
    """Returns how many times as long groupwise takes as in float32: the mean and the worst."""
    timed = [(1 / one.speedup(FLOAT32), one.facts["layer"]) for one in found if one.has(FLOAT32)]
    if not timed:
        return ["", ""]
    worst, layer = max(timed)
    return [ratio(geometric_mean(times for times, _ in timed)), f"{ratio(worst)} {layer}"]


def missing(records: dict[str, list[Row]]) -> Table:
    """Lists the cases that were left out, and why."""
    reasons = defaultdict(set)
    for dtype, rows in records.items():
        for row in rows:
            if "problem" in row:
                key = (dtype, row["pass"], row["implementation"], row["memory_format"], row["problem"])
                reasons[key].add(row["layer"])
    cells = [[*key, ", ".join(sorted(layers))] for key, layers in sorted(reasons.items())]
    return Table("Not timed", ["dtype", "pass", "by", "format", "why", "layers"], cells)


def charts_text(folder: pathlib.Path) -> str:
    """Returns the chart of each dtype that was measured, as Markdown."""
    return "\n\n".join(
        f"![How many times as fast as PyTorch groupwise is in {dtype}, by dimension](pictures/layers-{dtype}.svg)"
        for dtype in DTYPES
        if times_of(read_dtype(folder, dtype))
    )


def docs_text(folder: pathlib.Path) -> str:
    """Returns the charts and the tables of every folder, as Markdown."""
    parts = [charts_text(folder), *(table.markdown() for table in every(folder))]
    return "\n\n".join(filter(None, parts)) or NONE_YET


def every(folder: pathlib.Path) -> Iterator[Table]:
    """Yields the tables of every folder."""
    for one in sorted({path.parent for path in folder.glob("*/layers*.jsonl")}):
        yield from tables(one)


PAGES = {ROOT / "docs" / "layers.md": docs_text, ROOT / "docs" / "gallery.md": charts_text}


def main() -> None:
    """Prints the tables, or writes them into the page."""
    parser = argparse.ArgumentParser(description="Say what the layers' records say of each dtype.")
    parser.add_argument(
        "--docs", action="store_true", help="write the charts and tables into docs/layers.md and gallery.md"
    )
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    options = parser.parse_args()
    if options.docs:
        for page, text in PAGES.items():
            show_record(page, BLOCK, text(options.records))
    else:
        print("\n\n".join(table.text() for table in every(options.records)) or NONE_YET)


if __name__ == "__main__":
    main()
