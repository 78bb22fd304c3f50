"""What the planner's tables foresee: how much of the roofline's speed each kernel reaches, PyTorch's among them.

A kernel's time is the roofline's over this fraction, and its speed over PyTorch's is a ratio of two such times. So a
table needs to tell neither what more products cost, nor, for each kernel anew, where PyTorch is slow.
"""

from __future__ import annotations

import math
import statistics
import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from features import GROWING, bytes_moved, features
from sweep import AGAIN, PYTORCH, speedup
from trees import Estimate, Numbers, Tree, estimate, grow

from groupwise.kernels.plan import KERNELS

Row = dict[str, Any]
Estimates = dict[str, Estimate]
TREES = 12
# A table is made from this many rows or more.
FEWEST = 40


class Roofline(NamedTuple):
    """What a processor computes and moves at most, as its rows measured it."""

    products: float
    """Of a thread, in a second."""
    bytes: float
    """In a second."""
    seconds: float
    """Of the shortest call."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Roofline:
        """Returns the medians of the peaks and bandwidths beside which rows were measured, and their least time."""
        peak, bandwidth = (statistics.median(row[name] for row in rows) for name in ("peak", "bandwidth"))
        numbers = peak / 2, bandwidth, min(min(row["least_ms"].values()) for row in rows) / 1e3
        return cls(*(float(f"{number:.3g}") for number in numbers))

    def time(self, row: Row, kernel: str) -> float:
        """Returns log2 of the seconds that a kernel takes at the roofline."""
        computed = row["products"][kernel] / (self.products * row["threads"])
        return math.log2(computed + bytes_moved(row) / self.bytes + self.seconds)


@dataclass(frozen=True)
class Table:
    """The trees of one kernel, and the range of the measured values."""

    kernel: str
    rows: int
    least: list[float]
    most: list[float]
    trees: list[Tree]

    def to_dict(self) -> dict[str, Any]:
        """Returns the table as the file holds it."""
        return {
            "kernel": self.kernel,
            "rows": self.rows,
            "least": [round(value, 3) for value in self.least],
            "most": [round(value, 3) for value in self.most],
            "trees": [tree.to_list() for tree in self.trees],
        }

    @classmethod
    def of(cls, told: dict[str, Any]) -> Table:
        """Reads a table of the file."""
        return cls(**{**told, "trees": [Tree.of(tree) for tree in told["trees"]]})

    def estimate(self, values: Sequence[float], bounded: Sequence[int]) -> Estimate | None:
        """Foresees how much of the roofline's speed is reached; None for a request unlike all measured ones."""
        # The file rounds the range to three digits.
        if any(not self.least[i] - 1e-3 <= values[i] <= self.most[i] + 1e-3 for i in bounded):
            return None
        return estimate(self.trees, values)


@dataclass(frozen=True)
class Record:
    """Rows of one processor class and instruction set, the values of their features, and what kernels reached there."""

    rows: Sequence[Row]
    names: Sequence[str]
    values: Numbers
    roofline: Roofline
    reached: dict[str, dict[int, float]]
    """For each kernel log2(the roofline's time / its own), by the numbers of the rows that timed it."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Record:
        """Reads rows."""
        told, roofline = [features(row) for row in rows], Roofline.of(rows)
        reached: dict[str, dict[int, float]] = {name: {} for name in (PYTORCH, *KERNELS)}
        for i, row in enumerate(rows):
            for name in (PYTORCH, *candidates(row)):
                reached[name][i] = roofline.time(row, name) - math.log2(seconds(row, name))
        return cls(rows, list(told[0]), np.array([list(one.values()) for one in told]), roofline, reached)

    @property
    def bounded(self) -> list[int]:
        """The features that tell kinds of layers apart."""
        return [i for i, name in enumerate(self.names) if name not in GROWING]


def candidates(row: Row) -> list[str]:
    """Returns the kernels of groupwise that were timed."""
    return [name for name in row["least_ms"] if name not in (PYTORCH, AGAIN)]


def seconds(row: Row, kernel: str) -> float:
    """Returns the least seconds of a kernel; PyTorch was timed twice."""
    ms = row["least_ms"]
    return float(ms[AGAIN] * speedup(row, AGAIN) if kernel == PYTORCH else ms[kernel]) / 1e3


def tables_of(record: Record, least: int, seen: Collection[int] | None = None) -> list[Table]:
    """Grows the trees of every kernel that enough rows timed: of all rows, or of those whose numbers are `seen`."""
    seen = set(range(len(record.rows)) if seen is None else seen)
    tables = []
    for kernel, reached in record.reached.items():
        timed = [i for i in reached if i in seen]
        if len(timed) < FEWEST:
            continue
        values, targets = record.values[timed], np.array([reached[i] for i in timed])
        chance = np.random.default_rng(zlib.crc32(kernel.encode()))
        trees = [grow(values, targets, least, chance) for _ in range(TREES)]
        tables.append(Table(kernel, len(timed), values.min(0).tolist(), values.max(0).tolist(), trees))
    return tables


def estimates_of(
    tables: Iterable[Table],
    roofline: Roofline,
    bounded: Sequence[int],
    row: Row,
    values: Sequence[float],
    can_run: Iterable[str],
) -> Estimates:
    """Foresees log2(PyTorch's time / the kernel's) of each kernel that can run and that ran on requests like this."""
    some = (PYTORCH, *can_run)
    reached = {table.kernel: table.estimate(values, bounded) for table in tables if table.kernel in some}
    known = {name: (one, roofline.time(row, name)) for name, one in reached.items() if one is not None}
    if PYTORCH not in known:
        return {}
    theirs, longest = known.pop(PYTORCH)
    return {
        name: Estimate(longest - least + one.mean - theirs.mean, math.hypot(one.spread, theirs.spread))
        for name, (one, least) in known.items()
    }
