"""Fit the planner's cost model to the sweep's record: how fast each kernel is where no table knows of a layer.

    python benchmarks/model.py [--records DIR] [--output FILE]

A kernel is expected to take its overhead, and the time of the roofline by the fraction of it that the kernel reached on
layers of the same direction, memory format and kind. The roofline has the products that the kernel executes and the
bytes that it must move, over the peak and the bandwidth that were measured on the machine of each row. So the fractions
hold on processors of any speed, as far as their kernels are alike.

The file has `kernels`, PyTorch's among them, and of each `overhead` in seconds and `reached`, a fraction for each
direction, format and kind (0 where fewer than FEWEST rows tell it); `spread`: one of ten layers ran slower than
expected by more than that factor; and `shared_from`: threads share work that gives each of them so many products for
each lane of the vectors, by the record of `sharing.py`. Without that record the file keeps its number.
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import sharing
from foreseen import seconds
from measuring import RECORDS, ROOT, read_record
from sweep import BOUNDS, PYTORCH, speedup

from groupwise.kernels.plan import DIRECTIONS, KERNELS, MEMORY_FORMATS
from groupwise.kernels.tables import FORMAT

Row = dict[str, Any]
OUTPUT = ROOT / "src" / "groupwise" / "kernels" / "policy" / "model.json"
FEWEST = 10
KINDS = ("depthwise", "below 8", "below 32", "wide", "dense")


def main() -> None:
    """Writes the model, and says how its choices would have done on the rows that it was fitted to."""
    parser = argparse.ArgumentParser(description="Fit the planner's cost model to the sweep's record.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    parser.add_argument("--output", type=pathlib.Path, default=OUTPUT)
    options = parser.parse_args()
    rows = [row for row in read_record(options.records / "sweep.jsonl") if row["steady"] and "products" in row]
    if not rows:
        raise SystemExit(f"no sweep.jsonl in {options.records}; measure first with: python benchmarks/sweep.py")
    told = fitted(rows)
    number = sharing.fitted(read_record(options.records / "sharing.jsonl"))
    if number is None and options.output.is_file():
        number = json.loads(options.output.read_text(encoding="utf-8")).get("shared_from")
    if number is not None:
        told["shared_from"] = number
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    ratios = [chosen(told, row) for row in rows]
    taken = [ratio for ratio in ratios if ratio is not None]
    below = [sum(one < bound for one in taken) for bound in BOUNDS]
    mean = statistics.geometric_mean(taken) if taken else 1.0
    print(f"{options.output.name}: {len(rows)} rows, spread {told['spread']}")
    print(
        f"  {len(taken)} in which a kernel of groupwise is chosen: {below[1]} below 0.95, {below[0]} below 2/3 "
        f"of PyTorch's speed, geometric mean {mean:.2f}"
    )


def fitted(rows: Sequence[Row]) -> dict[str, Any]:
    """Fits the model to rows of any processors."""
    costs = {kernel: cost_of([row for row in rows if kernel in row["products"]], kernel) for kernel in (*KERNELS,)}
    costs = {kernel: cost for kernel, cost in costs.items() if cost is not None}
    told = {
        "format": FORMAT,
        "classes": sorted({f"{row['class']}-{row['isa']}" for row in rows}),
        "rows": len(rows),
        "torch": sorted({row["torch"] for row in rows}),
        "kinds": list(KINDS),
        "spread": 1.0,
        "kernels": costs,
    }
    off = sorted(
        expected(told, row, PYTORCH) / expected(told, row, kernel) / speedup(row, kernel)
        for row in rows
        for kernel in row["products"]
        if kernel != PYTORCH and expected(told, row, kernel) and expected(told, row, PYTORCH)
    )
    # One of ten is slower by more.
    told["spread"] = round(max(1.0, off[math.ceil(0.9 * len(off)) - 1]), 2) if off else 1.0
    return told


def cost_of(rows: Sequence[Row], kernel: str) -> dict[str, Any] | None:
    """Returns the overhead of a kernel, in seconds, and the fractions of the roofline that it reached."""
    if len(rows) < FEWEST:
        return None
    smallest = sorted(rows, key=lambda row: roofline(row, kernel))[: max(FEWEST, len(rows) // 50)]
    overhead = statistics.median(max(0.0, seconds(row, kernel) - roofline(row, kernel)) for row in smallest)
    found: dict[tuple[int, int, int], list[float]] = defaultdict(list)
    for row in rows:
        took = seconds(row, kernel)
        if took > 2 * overhead:
            found[place(row)].append(roofline(row, kernel) / (took - overhead))

    def reached(direction: int, memory_format: int, kind: int) -> float:
        some = found[direction, memory_format, kind]
        return float(f"{statistics.median(some):.3g}") if len(some) >= FEWEST else 0.0

    return {
        "overhead": float(f"{overhead:.3g}"),
        "reached": [
            [[reached(d, f, k) for k in range(len(KINDS))] for f in range(len(MEMORY_FORMATS))]
            for d in range(len(DIRECTIONS))
        ],
    }


def place(row: Row) -> tuple[int, int, int]:
    """Returns the direction, the memory format and the kind of a row, as numbers."""
    groups = row["groups"]
    inputs, outputs = row["in_channels"] // groups, row["out_channels"] // groups
    widest = max(inputs, outputs)
    if widest == 1:
        kind = 0
    elif groups == 1:
        kind = 4
    else:
        kind = 1 if widest < 8 else 2 if widest < 32 else 3
    return DIRECTIONS.index(row["direction"]), MEMORY_FORMATS.index(row["memory_format"]), kind


def roofline(row: Row, kernel: str) -> float:
    """Returns the least seconds by the products that a kernel executes and the bytes that it must move."""
    batch, groups = row["batch"], row["groups"]
    inputs, outputs = row["in_channels"], row["out_channels"]
    weights = inputs * outputs // groups * math.prod(row["kernel_size"])
    images = batch * (inputs * math.prod(row["input_size"]) + outputs * math.prod(row["output_size"]))
    threads = row["working"]
    return max(2 * row["products"][kernel] / (threads * row["peak"]), 4 * (images + weights) / row["bandwidth"])


def expected(told: dict[str, Any], row: Row, kernel: str) -> float:
    """Returns the seconds that the model expects, or 0 where it knows nothing: the reference of the core's."""
    cost = told["kernels"].get(kernel)
    if cost is None:
        return 0.0
    direction, memory_format, kind = place(row)
    reached = cost["reached"][direction][memory_format][kind]
    return cost["overhead"] + roofline(row, kernel) / reached if reached else 0.0


def chosen(told: dict[str, Any], row: Row) -> float | None:
    """Returns how many times as fast as PyTorch the kernel is that the model chooses; None for PyTorch's own."""
    theirs = expected(told, row, PYTORCH)
    ours = {kernel: expected(told, row, kernel) for kernel in row["products"] if kernel != PYTORCH}
    known = {kernel: took for kernel, took in ours.items() if took}
    if not known or not theirs:
        return None
    best = min(known, key=known.__getitem__)
    return speedup(row, best) if theirs / known[best] / told["spread"] >= 1 else None


if __name__ == "__main__":
    main()
