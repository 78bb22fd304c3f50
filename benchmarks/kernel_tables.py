"""Write into each kernel's page of the docs where it was the fastest, by the sweep's record.

    python benchmarks/kernel_tables.py [--records DIR]

Of every processor class and instruction set, a table counts the layers that the kernel could run, those in which it was
faster than PyTorch and than every other kernel, and says what kinds of layers these mostly are.
"""

from __future__ import annotations

import argparse
import pathlib
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from features import FAMILIES, family
from measuring import RECORDS, ROOT, read_record, show_record
from policy import candidates, groups_of, target
from sweep import PYTORCH

from groupwise.kernels.plan import DIRECTIONS, KERNELS

Row = dict[str, Any]
OURS = tuple(kernel for kernel in KERNELS if kernel != PYTORCH)
# Of which record a kernel's layers are. Those that are not named compute float32 layers.
RECORDS_OF = {"pairs": "sweep-bfloat16.jsonl"}
RECORD = "sweep.jsonl"
COLUMNS = ("processor", "direction", "layers", "fastest", "PyTorch's time / its", "most of these")
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"
KINDS = dict(
    zip(
        FAMILIES,
        ("depthwise", "stride above 2", "dense", "groups of fewer than 8 channels", "wider groups"),
        strict=True,
    )
)


def main() -> None:
    """Writes the table of each kernel into its page."""
    parser = argparse.ArgumentParser(description="Write where each kernel was the fastest into its page of the docs.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    records = parser.parse_args().records
    rows = {name: read_record(records / name) for name in {record_of(kernel) for kernel in OURS}}
    for kernel in OURS:
        name = record_of(kernel)
        show_record(ROOT / "docs" / f"kernel-{kernel}.md", name, told(kernel, rows[name]))


def record_of(kernel: str) -> str:
    """Returns the name of the record that has a kernel's layers."""
    return RECORDS_OF.get(kernel, RECORD)


def told(kernel: str, rows: Iterable[Row]) -> str:
    """Returns the table of a kernel: a row for each processor class, instruction set and direction."""
    lines = []
    for (name, isa), some in sorted(groups_of(rows).items()):
        for direction in DIRECTIONS:
            timed = [
                row for row in some if row["steady"] and row["direction"] == direction and kernel in candidates(row)
            ]
            if timed:
                lines.append(f"| {name}, {isa} | {direction} | {len(timed)} | {_won(kernel, timed)} |")
    return "\n".join([HEAD, *lines])


def _won(kernel: str, timed: Sequence[Row]) -> str:
    """Returns in how many layers the kernel was the fastest, its median speed there, and their kinds."""
    won = [row for row in timed if min(row["least_ms"], key=row["least_ms"].__getitem__) == kernel]
    if not won:
        return "0 | |"
    ratio = 2 ** float(np.median([target(row, kernel) for row in won]))
    kinds = Counter((KINDS[FAMILIES[family(row)]], row["memory_format"]) for row in won).most_common(2)
    said = "; ".join(f"{kind}, {form} ({round(100 * count / len(won))} %)" for (kind, form), count in kinds)
    return f"{len(won)} ({round(100 * len(won) / len(timed))} %) | {ratio:.1f} | {said}"


if __name__ == "__main__":
    main()
