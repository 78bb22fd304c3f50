"""Make the planner's tables from the sweep's record: which kernel to take for a layer, and how sure that is.

    python benchmarks/policy.py [--records DIR] [--output DIR]

It writes `<class>-<isa>.json` for each processor class and instruction set in the record of float32 layers,
`<class>-<isa>-3d.json` for 3-D ones, and `<class>-<isa>-bfloat16.json` and `<class>-<isa>-3d-bfloat16.json` for those
of another dtype. A table estimates by how much a kernel is faster than PyTorch's; the planner takes the kernel only if
even a low quantile exceeds a margin.

## The file

Every target is log2(PyTorch's time / the kernel's time).

- `format`: 2. `class`, `isa`, `processor`, `torch`, `commits`, `dates`: what was measured, and when
- `rows`: measured rows that count. `left_out`: rows whose times differ from themselves
- `features`: the names of `features.py`, in the order of a request's values. `kernels`, `directions`: as in the record
- `margins`: for each of the `families` of layers, a kernel is taken if 2 ** (10 % quantile) exceeds 1 + margin
- `shared_from`: threads share work that gives each of them so many products for each lane of the vectors, if the record
  of `sharing.py` has enough rows of this class and instruction set; else the model's number holds
- `bounded`: the features that tell kinds of layers apart. A table knows nothing of a request of which one of these is
  below `least` or above `most`. Features that only grow with the work are not bounded, as ratios level off.
- `held_out`: what this policy does to layers that it was not made from, by cross-validation (`Quality`)
- `tables`: one for each kernel, with `rows`, the measured rows in which the kernel could run; `least` and `most` of
  each feature; and `trees`. A tree has `nodes`: for a node its feature and threshold, then all of its left side, then
  all of its right side; for a leaf -1. A request goes left if its value is at most the threshold. `leaves` has three
  numbers for each leaf, in the order of the nodes: how many measured rows are in it, the 10 % quantile and the median
  of their targets, times 100. The estimate is the mean of each number over the trees.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import itertools
import json
import math
import multiprocessing
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sharing
from features import FAMILIES, GROWING, family, features
from measuring import RECORDS, ROOT, read_record
from sweep import AGAIN, BOUNDS, PYTORCH, record_of, speedup
from trees import Estimate, Numbers, Tree, estimate, grow

from groupwise.kernels.plan import DIRECTIONS, KERNELS
from groupwise.kernels.tables import FORMAT, KINDS

Row = dict[str, Any]
Margins = list[float]
POLICY = ROOT / "src" / "groupwise" / "kernels" / "policy"
FOLDS = 5
TREES = 12
# The fewest rows of a leaf: the number that gains most on held-out rows, of those whose file is not too large. Small
# leaves tell more layers apart, large ones foresee the slowest tenth.
LEAST = (3, 4, 6, 9, 14, 27)
MOST_BYTES = 2_500_000
# Kernels that run only where a user allows them: tables tell their speed, and no choice counts on it.
UNASKED = ("fft",)
# A table is made from this many rows or more.
FEWEST = 40
# Each family of layers has one of these margins: those that gain most while at most this fraction of held-out rows is
# below 2/3 of PyTorch's speed. One margin for all would be set by the family that is hardest to foresee. A row below
# 0.95 counts beside its own loss as much as one of twice PyTorch's speed gains.
MARGINS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
FAR_BELOW = 0.002
# What a layer is, whichever pass, format, threads and batch were measured: all rows of a layer are held out together.
LAYER = tuple("in_channels out_channels groups input_size kernel_size stride padding dilation transposed".split())


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
            "trees": [tree.to_dict() for tree in self.trees],
        }

    @classmethod
    def of(cls, told: dict[str, Any]) -> Table:
        """Reads a table of the file."""
        return cls(**{**told, "trees": [Tree.of(tree) for tree in told["trees"]]})

    def estimate(self, values: Sequence[float], bounded: Sequence[int]) -> Estimate | None:
        """Estimates log2(PyTorch's time / the kernel's), or returns None for a request unlike all measured ones."""
        # The file rounds the range to three digits.
        if any(not self.least[i] - 1e-3 <= values[i] <= self.most[i] + 1e-3 for i in bounded):
            return None
        return estimate(self.trees, values)


@dataclass(frozen=True)
class Quality:
    """What choices do to rows: all of them, also those that PyTorch computes."""

    rows: int
    taken: int
    """Rows in which a kernel of groupwise ran."""
    below_095: int
    below_067: int
    """Rows that took longer than in PyTorch: below 0.95 and below 2/3 of its speed."""
    mean: float
    """The geometric mean of PyTorch's time / the chosen kernel's."""
    kept: float
    """Which fraction is kept of the logarithm of the mean that the best kernel of each row would have."""

    @classmethod
    def of(cls, rows: Sequence[Row], choices: Sequence[str]) -> Quality:
        """Judges the chosen kernel of each row by the row's times."""
        gains = [0.0 if name == PYTORCH else target(row, name) for row, name in zip(rows, choices, strict=True)]
        best = [max([0.0, *(target(row, name) for name in candidates(row) if name not in UNASKED)]) for row in rows]
        return cls(
            rows=len(rows),
            taken=sum(name != PYTORCH for name in choices),
            below_095=sum(2**gain < BOUNDS[1] for gain in gains),
            below_067=sum(2**gain < BOUNDS[0] for gain in gains),
            mean=round(float(2 ** np.mean(gains)), 3),
            kept=round(sum(gains) / sum(best), 3) if sum(best) else 1.0,
        )


def main() -> None:
    """Writes a file for each processor class and instruction set, and says how good each is."""
    parser = argparse.ArgumentParser(description="Make the planner's tables from the sweep's record.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    parser.add_argument("--output", type=pathlib.Path, default=POLICY)
    options = parser.parse_args()
    found = {
        (*key, kind): rows
        for kind in KINDS
        for key, rows in groups_of(read_record(options.records / record_of(kind))).items()
    }
    if not found:
        raise SystemExit(f"no sweep.jsonl in {options.records}; measure first with: python benchmarks/sweep.py")
    shared = read_record(options.records / "sharing.jsonl")
    options.output.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as workers:
        files = list(zip(found.items(), workers.map(made, found.values()), strict=True))
    for ((name, isa, kind), rows), told in files:
        path = options.output / f"{name}-{isa}{kind.file_suffix}.json"
        number = sharing.fitted([row for row in shared if (row["class"], row["isa"]) == (name, isa)])
        if number is not None and kind == KINDS[0]:
            told["shared_from"] = number
        path.write_text(dumped(told), encoding="utf-8")
        print(f"{path.name}: {path.stat().st_size // 1000} kB, margins {told['margins']}, held out: {told['held_out']}")
        print(
            f"  what ran when it was measured: {dataclasses.asdict(Quality.of(rows, [row['chosen'] for row in rows]))}"
        )


def groups_of(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """Groups the rows of this version's kernels by processor class and instruction set, of the newest torch each."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row["class"], row["isa"]), []).append(row)
    for key, some in found.items():
        newest = max(some, key=lambda row: (row["date"], row["time"]))
        # Rows of other kernels are of another version of groupwise.
        found[key] = [row for row in some if row["torch"] == newest["torch"] and set(candidates(row)) <= set(KERNELS)]
    return {key: some for key, some in found.items() if some}


def made(rows: Sequence[Row]) -> dict[str, Any]:
    """Makes the file's contents from the rows of one processor class and instruction set."""
    steady = [row for row in rows if row["steady"]]
    names = list(features(steady[0]))
    values = np.array([list(features(row).values()) for row in steady])
    bounded = [i for i, name in enumerate(names) if name not in GROWING]
    tables, margins, quality = best(sized(steady, values, least, bounded) for least in LEAST)
    newest = max(steady, key=lambda row: (row["date"], row["time"]))
    return {
        "format": FORMAT,
        **{key: newest[key] for key in ("class", "isa", "processor", "torch")},
        "commits": sorted({row["commit"] for row in steady}),
        "dates": sorted({row["date"] for row in steady}),
        "rows": len(steady),
        "left_out": len(rows) - len(steady),
        "features": names,
        "kernels": [table["kernel"] for table in tables],
        "directions": list(DIRECTIONS),
        "families": list(FAMILIES),
        "margins": margins,
        "bounded": bounded,
        "held_out": dataclasses.asdict(quality),
        "tables": tables,
    }


Made = tuple[list[dict[str, Any]], Margins, Quality]


def sized(rows: Sequence[Row], values: Numbers, least: int, bounded: Sequence[int]) -> Made | None:
    """Returns the tables whose leaves have `least` rows or more, their margins and quality; None if too large."""
    tables = [table.to_dict() for table in tables_of(rows, values, least)]
    if len(dumped({"tables": tables})) > MOST_BYTES and least < LEAST[-1]:
        return None
    estimates = held_out(rows, values, least, bounded)
    margins = margins_of(rows, estimates)
    return tables, margins, Quality.of(rows, chosen(rows, estimates, margins))


def best(tried: Iterable[Made | None]) -> Made:
    """Returns the tables that gain most, of those with the fewest rows far below PyTorch's speed, or few enough."""
    made = [one for one in tried if one is not None]
    allowed = max(few(made[0][2].rows), min(quality.below_067 for *_, quality in made))
    return max((one for one in made if one[2].below_067 <= allowed), key=lambda one: one[2].mean)


def few(rows: int) -> int:
    """Returns how many of so many rows may be far below PyTorch's speed: `FAR_BELOW` of them, rounded up."""
    return math.ceil(FAR_BELOW * rows)


def dumped(told: dict[str, Any]) -> str:
    """Returns the file's text: one line a fact, one line a list of numbers."""
    text = json.dumps(told, separators=(",", ":"))
    return (
        text.replace('{"nodes"', '\n{"nodes"').replace(',"leaves"', ',\n"leaves"').replace('{"kernel"', '\n{"kernel"')
        + "\n"
    )


def candidates(row: Row) -> list[str]:
    """Returns the kernels of groupwise that were timed."""
    return [name for name in row["least_ms"] if name not in (PYTORCH, AGAIN)]


def target(row: Row, kernel: str) -> float:
    """Returns log2(PyTorch's time / the kernel's)."""
    return float(np.log2(speedup(row, kernel)))


def tables_of(rows: Sequence[Row], values: Numbers, least: int) -> list[Table]:
    """Grows the trees of every kernel that enough rows timed."""
    tables = []
    for kernel in KERNELS:
        timed = [i for i, row in enumerate(rows) if kernel in candidates(row)]
        if len(timed) < FEWEST:
            continue
        targets = np.array([target(rows[i], kernel) for i in timed])
        chance = np.random.default_rng(zlib.crc32(kernel.encode()))
        trees = [grow(values[timed], targets, least, chance) for _ in range(TREES)]
        tables.append(Table(kernel, len(timed), values[timed].min(0).tolist(), values[timed].max(0).tolist(), trees))
    return tables


Estimates = dict[str, Estimate]


def held_out(rows: Sequence[Row], values: Numbers, least: int, bounded: Sequence[int]) -> list[Estimates]:
    """Returns the estimates of each row by trees that saw no row of its layer, for the kernels that can run."""
    fold = np.array([zlib.crc32(json.dumps([row[key] for key in LAYER]).encode()) % FOLDS for row in rows])
    found: list[Estimates] = [{} for _ in rows]
    for number in range(FOLDS):
        seen = np.flatnonzero(fold != number)
        tables = tables_of([rows[i] for i in seen], values[seen], least)
        for i in np.flatnonzero(fold == number):
            found[i] = estimates_of(tables, values[i].tolist(), bounded, candidates(rows[i]))
    return found


def estimates_of(
    tables: Iterable[Table], values: Sequence[float], bounded: Sequence[int], can_run: Iterable[str]
) -> Estimates:
    """Returns the estimate for each kernel that can run and that was measured on requests like this one."""
    found = {table.kernel: table.estimate(values, bounded) for table in tables if table.kernel in can_run}
    return {kernel: one for kernel, one in found.items() if one is not None}


def choice(estimates: Estimates, margin: float) -> str:
    """Returns the kernel of the best median among those that are faster almost surely, or PyTorch's."""
    sure = {name: one for name, one in estimates.items() if 2**one.low > 1 + margin and name not in UNASKED}
    return max(sure, key=lambda kernel: sure[kernel].median) if sure else PYTORCH


def chosen(rows: Sequence[Row], estimates: Sequence[Estimates], margins: Margins) -> list[str]:
    """Returns the choice of each row, by the margin of its family."""
    return [choice(one, margins[family(row)]) for row, one in zip(rows, estimates, strict=True)]


def margins_of(rows: Sequence[Row], estimates: Sequence[Estimates]) -> Margins:
    """Returns the margins that gain most while held-out rows are rarely far slower than PyTorch.

    Where no margins keep to `FAR_BELOW`, those count that leave the fewest such rows.
    """
    tried: list[list[tuple[float, float, int]]] = [[] for _ in FAMILIES]
    for number, some in enumerate(tried):
        numbers = [i for i, row in enumerate(rows) if family(row) == number]
        for margin in MARGINS:
            choices = [(i, choice(estimates[i], margin)) for i in numbers]
            gains = [target(rows[i], kernel) for i, kernel in choices if kernel != PYTORCH]
            slower = sum(2**gain < BOUNDS[1] for gain in gains)
            some.append((margin, sum(gains) - slower, sum(2**gain < BOUNDS[0] for gain in gains)))
    allowed = max(few(len(rows)), sum(min(below for *_, below in some) for some in tried))
    kept = (those for those in itertools.product(*tried) if sum(below for *_, below in those) <= allowed)
    return [margin for margin, *_ in max(kept, key=lambda those: sum(gained for _, gained, _ in those))]


def reasons(told: dict[str, Any], row: Row, can_run: Iterable[str]) -> dict[str, str]:
    """Returns what a file says of each kernel that can run, in a sentence: the reference of the core's."""
    tables, values = map(Table.of, told["tables"]), list(features(row).values())
    record = f"{told['class']}, {told['isa']}, torch {told['torch']}"
    return {
        kernel: f"of {one.count:.0f} measured layers like this, half ran at {2**one.median:.2g}x PyTorch's speed or "
        f"more and a tenth at {2**one.low:.2g}x or less ({record})"
        for kernel, one in estimates_of(tables, values, told["bounded"], can_run).items()
    }


def decide(told: dict[str, Any], row: Row, can_run: Iterable[str]) -> str:
    """Returns the kernel that a file chooses for a request: the reference of the core's choice."""
    tables, values = map(Table.of, told["tables"]), list(features(row).values())
    return choice(estimates_of(tables, values, told["bounded"], can_run), told["margins"][family(row)])


if __name__ == "__main__":
    main()
