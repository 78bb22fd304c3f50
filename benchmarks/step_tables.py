"""Write into docs/whole-networks.md what training steps spend their time on, by the record of each processor.

python benchmarks/step_tables.py [--records DIR]
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import steps
from measuring import RECORDS, ROOT, by_machine, name_of, read_record, show_record
from summary import Table

Row = dict[str, Any]
PAGE, RECORD = ROOT / "docs" / "whole-networks.md", "steps.jsonl"


def main() -> None:
    """Writes the tables."""
    parser = argparse.ArgumentParser(description="Write what training steps spend their time on.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    show_record(PAGE, RECORD, told(parser.parse_args().records))


def told(records: pathlib.Path) -> str:
    """Returns a table for each processor, instruction set and number of threads."""
    made = []
    for path in sorted(records.glob(f"*/{RECORD}")):
        class_of_all = path.parent.name.rpartition("-")[0]
        for rows in by_machine(read_record(path)).values():
            made.append(table([{**row, "class": class_of_all} for row in rows]).markdown())
    return "\n\n".join(made)


def table(rows: list[Row]) -> Table:
    """Returns the times and floors of the networks of one machine, of all work and of each kind."""
    first = rows[0]
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    peaks = [f"{spread(rows, 'gflops')} GFLOP/s", f"copies at {spread(rows, 'copied_gbs')} GB/s"]
    note = f"{first['batch']} images, {threads}, {first['dtype']}, torch {first['torch']}, commit {commits}. Peak: "
    head = ["network", "step", *steps.KINDS, steps.REST]
    return Table(
        f"Steps on {name_of(first)}, {threads}",
        head,
        [steps.cells(row["network"], row["kinds"]) for row in rows],
        f"{note}{', '.join(peaks)}.",
    )


def spread(rows: list[Row], name: str) -> str:
    """Returns the smallest and the largest of a fact of the rows."""
    least, most = (f"{end(row[name] for row in rows):.0f}" for end in (min, max))
    return least if least == most else f"{least} to {most}"


if __name__ == "__main__":
    main()
