"""Write into docs/whole-networks.md what calls and training steps spend their time on, by each processor's records.

python benchmarks/step_tables.py [--records DIR]
"""

from __future__ import annotations

import argparse
import pathlib
from collections.abc import Sequence
from typing import Any

import call_steps
import steps
from measuring import RECORDS, ROOT, by_machine, name_of, records_of, show_record
from summary import Table

Row = dict[str, Any]
PAGE = ROOT / "docs" / "whole-networks.md"
# What each record is of, and the kinds of work that it tells apart.
OF = {"steps.jsonl": ("Training steps", steps.KINDS), "call_steps.jsonl": ("Calls", call_steps.KINDS)}


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description="Write what calls and training steps spend their time on.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    records = parser.parse_args().records
    for record in OF:
        show_record(PAGE, record, told(records, record))


def told(records: pathlib.Path, record: str) -> str:
    """Returns a table for each processor, instruction set, number of threads, dtype and number of images."""
    return "\n\n".join(
        table(record, [row for row in rows if (row["dtype"], row["batch"]) == which]).markdown()
        for of_class in records_of(records, record)
        for rows in by_machine(of_class).values()
        for which in dict.fromkeys((row["dtype"], row["batch"]) for row in rows)
    )


def table(record: str, rows: Sequence[Row]) -> Table:
    """Returns the times and floors of the networks of one machine, of all work and of each kind."""
    what, kinds = OF[record]
    first = rows[0]
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    images = f"{first['batch']} image{'s' * (first['batch'] > 1)}"
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    peaks = f"{spread(rows, 'gflops')} GFLOP/s, copies at {spread(rows, 'copied_gbs')} GB/s"
    return Table(
        f"{what} on {name_of(first)}: {first['dtype']}, {images}, {threads}",
        ["network", "all", *kinds, steps.REST],
        [steps.cells(row["network"], row["kinds"]) for row in rows],
        f"torch {first['torch']}, commit {commits}. Peak: {peaks}.",
    )


def spread(rows: Sequence[Row], name: str) -> str:
    """Returns the smallest and the largest of a fact of the rows."""
    least, most = (f"{end(row[name] for row in rows):.0f}" for end in (min, max))
    return least if least == most else f"{least} to {most}"


if __name__ == "__main__":
    main()
