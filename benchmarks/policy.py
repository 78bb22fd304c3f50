"""Make the planner's tables from the sweep's record: which kernel to take for a layer, and how sure that is.

    python benchmarks/policy.py [--records DIR] [--output DIR]

It writes `<class>-<isa>.json` for each processor class and instruction set in the record of float32 layers,
`<class>-<isa>-3d.json` for 3-D ones, and `<class>-<isa>-bfloat16.json` and `<class>-<isa>-3d-bfloat16.json` for those
of another dtype. A table foresees the time of each kernel, and of PyTorch's. The planner takes the fastest kernel of
those that are faster than PyTorch's by a margin, even if both times are foreseen a little wrong.

## The file

A target is log2(the roofline's time / the kernel's time): how much of the roofline's speed a kernel reaches. So the
trees need to foresee neither what more products cost, nor, for each kernel anew, where PyTorch is slow.

- `format`: 3. `class`, `isa`, `processor`, `torch`, `commits`, `dates`: what was measured, and when
- `rows`: measured rows that count. `left_out`: rows whose times differ from themselves
- `features`: the names of `features.py`, in the order of a request's values. `kernels`, `directions`: as in the record
- `roofline`: products a second of each thread, bytes a second (4 of each number, whatever its dtype), and seconds of a
  call. Its time is the sum of all three, by the products that the kernel executes, those on padding and in empty lanes
  among them, and as if all threads computed
- `caution`, `margins`: a kernel is taken if its speed over PyTorch's exceeds 1 + the margin of the layer's family (one
  of `families`) when it is less than foreseen by `caution` times the spread of the trees
- `shared_from`: threads share work that gives each of them so many products for each lane of the vectors, if the record
  of `sharing.py` has enough rows of this class and instruction set; else the model's number holds
- `bounded`: the features that tell kinds of layers apart. A table knows nothing of a request of which one of these is
  below `least` or above `most`. Features that only grow with the work are not bounded, as fractions level off.
- `held_out`: what this policy does to layers that its trees did not see, by cross-validation (`Quality`). The caution,
  the margins and the size of the leaves were chosen by the same rows, so that it is a little better than for others.
- `tables`: one for PyTorch and one for each kernel, with `rows`, the measured rows in which it could run; `least` and
  `most` of each feature; and `trees`. A tree is a list: for a node its feature and threshold, then all of its left
  side, then all of its right side; for a leaf -1 and the mean of its targets, times 100. A request goes left if its
  value is at most the threshold. What is foreseen is the mean over the trees, and the spread is their standard
  deviation. That of a ratio of two times is the root of the sum of the squares of both.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import dataclasses
import json
import math
import multiprocessing
import pathlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import sharing
from features import FAMILIES, family, features
from foreseen import Estimates, Record, Roofline, Row, Table, candidates, estimates_of, tables_of
from measuring import RECORDS, ROOT, read_record
from sweep import BOUNDS, PYTORCH, record_of, speedup
from trees import Numbers

from groupwise.kernels.plan import DIRECTIONS, KERNELS
from groupwise.kernels.tables import FORMAT, KINDS

POLICY = ROOT / "src" / "groupwise" / "kernels" / "policy"
FOLDS = 5
# The fewest rows of a leaf: the number that gains most on held-out rows, of those whose file is not too large. Small
# leaves tell more layers apart, and the mean of a large one is surer.
LEAST = (2, 3, 4, 6, 9, 14, 27)
MOST_BYTES = 3_000_000
# Kernels that run only where a user allows them: tables tell their speed, and no choice counts on it.
UNASKED = ("fft",)
# Each family of layers has one of these margins, and all have one caution: those that gain most while at most this
# fraction of held-out rows is below 2/3 of PyTorch's speed. One margin for all would be set by the family that is
# hardest to foresee. A row below 0.95 counts beside its own loss as much as one of twice PyTorch's speed gains.
MARGINS = (0.0, 0.025, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7)
CAUTIONS = (0.0, 0.25, 0.5, 1.0)
FAR_BELOW = 0.002
# What a layer is, whichever pass, format, threads and batch were measured: all rows of a layer are held out together.
LAYER = tuple("in_channels out_channels groups input_size kernel_size stride padding dilation transposed".split())


class Rule(NamedTuple):
    """When a kernel is taken, as the file says it."""

    caution: float
    margins: list[float]


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

    @property
    def gained(self) -> float:
        """The sum of log2(PyTorch's time / the chosen kernel's), where a row below 0.95 counts 1 less."""
        return self.rows * math.log2(self.mean) - self.below_095

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
            mean=float(2 ** np.mean(gains)),
            kept=sum(gains) / sum(best) if sum(best) else 1.0,
        )

    def to_dict(self) -> dict[str, float]:
        """Returns the fields as the file holds them."""
        return {**dataclasses.asdict(self), "mean": round(self.mean, 3), "kept": round(self.kept, 3)}


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
        rule = f"caution {told['caution']}, margins {told['margins']}"
        print(f"{path.name}: {path.stat().st_size // 1000} kB, {rule}, held out: {told['held_out']}")
        ran = Quality.of(rows, [row["chosen"] for row in rows])
        print(f"  what ran when it was measured: {ran.to_dict()}")


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
    record = Record.of(steady)
    tables, rule, quality = best(sized(record, least) for least in LEAST)
    newest = max(steady, key=lambda row: (row["date"], row["time"]))
    return {
        "format": FORMAT,
        **{key: newest[key] for key in ("class", "isa", "processor", "torch")},
        "commits": sorted({row["commit"] for row in steady}),
        "dates": sorted({row["date"] for row in steady}),
        "rows": len(steady),
        "left_out": len(rows) - len(steady),
        "features": list(record.names),
        "kernels": [table["kernel"] for table in tables if table["kernel"] != PYTORCH],
        "directions": list(DIRECTIONS),
        "families": list(FAMILIES),
        "roofline": list(record.roofline),
        "caution": rule.caution,
        "margins": rule.margins,
        "bounded": record.bounded,
        "held_out": quality.to_dict(),
        "tables": tables,
    }


Made = tuple[list[dict[str, Any]], Rule, Quality]


def sized(record: Record, least: int) -> Made | None:
    """Returns the tables whose leaves have `least` rows or more, their rule and quality; None if too large."""
    tables = [table.to_dict() for table in tables_of(record, least)]
    if len(dumped({"tables": tables})) > MOST_BYTES and least < LEAST[-1]:
        return None
    estimates = held_out(record, least)
    rule = rule_of(record.rows, estimates)
    return tables, rule, Quality.of(record.rows, chosen(record.rows, estimates, rule))


def best(tried: Iterable[Made | None]) -> Made:
    """Returns the tables that gain most, of those with the fewest rows far below PyTorch's speed, or few enough."""
    made = [one for one in tried if one is not None]
    allowed = max(few(made[0][2].rows), min(quality.below_067 for *_, quality in made))
    return max((one for one in made if one[2].below_067 <= allowed), key=lambda one: one[2].gained)


def few(rows: int) -> int:
    """Returns how many of so many rows may be far below PyTorch's speed: at most `FAR_BELOW` of them."""
    return math.floor(FAR_BELOW * rows)


def dumped(told: dict[str, Any]) -> str:
    """Returns the file's text: one line a table, and one a tree."""
    text = json.dumps(told, separators=(",", ":"))
    return text.replace('{"kernel"', '\n{"kernel"').replace('"trees":[[', '"trees":[\n[').replace("],[", "],\n[") + "\n"


def target(row: Row, kernel: str) -> float:
    """Returns log2(PyTorch's time / the kernel's)."""
    return float(np.log2(speedup(row, kernel)))


def held_out(record: Record, least: int) -> list[Estimates]:
    """Returns the estimates of each row by trees that saw no row of its layer, for the kernels that can run."""
    fold = [zlib.crc32(json.dumps([row[key] for key in LAYER]).encode()) % FOLDS for row in record.rows]
    found: list[Estimates] = [{} for _ in fold]
    for number in range(FOLDS):
        tables = tables_of(record, least, [i for i, of in enumerate(fold) if of != number])
        for i in (i for i, of in enumerate(fold) if of == number):
            row, values = record.rows[i], record.values[i].tolist()
            found[i] = estimates_of(tables, record.roofline, record.bounded, row, values, candidates(row))
    return found


def choice(estimates: Estimates, margin: float, caution: float) -> str:
    """Returns the fastest kernel of those that are surely enough faster than PyTorch's, or PyTorch's."""
    sure = {
        name: one.mean
        for name, one in estimates.items()
        if 2 ** (one.mean - caution * one.spread) >= 1 + margin and name not in UNASKED
    }
    return max(sure, key=sure.__getitem__) if sure else PYTORCH


def chosen(rows: Sequence[Row], estimates: Sequence[Estimates], rule: Rule) -> list[str]:
    """Returns the choice of each row, by the margin of its family."""
    return [choice(one, rule.margins[family(row)], rule.caution) for row, one in zip(rows, estimates, strict=True)]


def rule_of(rows: Sequence[Row], estimates: Sequence[Estimates]) -> Rule:
    """Returns the rule that gains most while held-out rows are rarely far slower than PyTorch.

    Where no rule keeps to `FAR_BELOW`, those count that leave the fewest such rows.
    """
    tried = [(caution, *by_margins(rows, estimates, caution)) for caution in CAUTIONS]
    allowed = max(few(len(rows)), min(int(below.min()) for *_, below in tried))
    # Each array has an axis a family, along which is the number of its margin.
    caution, gained, below = max(tried, key=lambda one: float(np.where(one[2] <= allowed, one[1], -np.inf).max()))
    best_of_all = np.unravel_index(np.where(below <= allowed, gained, -np.inf).argmax(), gained.shape)
    return Rule(caution, [MARGINS[i] for i in best_of_all])


def by_margins(rows: Sequence[Row], estimates: Sequence[Estimates], caution: float) -> tuple[Numbers, Numbers]:
    """Returns for all margins of the families what the choices gain, and how many rows are far below."""
    gained, below = np.zeros((2, *[len(MARGINS)] * len(FAMILIES)))
    for number in range(len(FAMILIES)):
        some = [i for i, row in enumerate(rows) if family(row) == number]
        for at, margin in enumerate(MARGINS):
            choices = [(i, choice(estimates[i], margin, caution)) for i in some]
            gains = [target(rows[i], kernel) for i, kernel in choices if kernel != PYTORCH]
            slower = sum(2**gain < BOUNDS[1] for gain in gains)
            here = tuple(at if axis == number else slice(None) for axis in range(len(FAMILIES)))
            gained[here] += sum(gains) - slower
            below[here] += sum(2**gain < BOUNDS[0] for gain in gains)
    return gained, below


def decide(told: dict[str, Any], row: Row, can_run: Iterable[str]) -> str:
    """Returns the kernel that a file chooses for a request: the reference of the core's choice."""
    tables, values = map(Table.of, told["tables"]), list(features(row).values())
    estimates = estimates_of(tables, Roofline(*told["roofline"]), told["bounded"], row, values, can_run)
    return choice(estimates, told["margins"][family(row)], told["caution"])


if __name__ == "__main__":
    main()
