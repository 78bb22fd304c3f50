"""Write into docs/whole-networks.md what training steps spend their time on, by the record of each processor.

python benchmarks/step_tables.py [--records DIR]
"""

from __future__ import annotations

import argparse
import pathlib
from typing import Any

import steps
from measuring import RECORDS, ROOT, by_machine, name_of, records_of, show_record
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
    machines = [rows for of_class in records_of(records, RECORD) for rows in by_machine(of_class).values()]
    return "\n\n".join(table(rows).markdown() for rows in machines)


def table(rows: list[Row]) -> Table:
    """Returns the times and floors of the networks of one machine, of all work and of each kind."""
    first = rows[0]
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    where = f"{first['batch']} images, {threads}, {first['dtype']}, torch {first['torch']}, commit {commits}"
    peaks = f"{spread(rows, 'gflops')} GFLOP/s, copies at {spread(rows, 'copied_gbs')} GB/s"
    return Table(
        f"Steps on {name_of(first)}, {threads}",
        ["network", "step", *steps.KINDS, steps.REST],
        [steps.cells(row["network"], row["kinds"]) for row in rows],
        f"{where}. Peak: {peaks}.",
    )


def spread(rows: list[Row], name: str) -> str:
    """Returns the smallest and the largest of a fact of the rows."""
    least, most = (f"{end(row[name] for row in rows):.0f}" for end in (min, max))
    return least if least == most else f"{least} to {most}"


if __name__ == "__main__":
    main()
