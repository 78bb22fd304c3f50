"""Train, convert and tune the network of 5,000 digits with several seeds, and write their table into docs/regroup.md.

Each seed has a fold of its own: the dense network is trained on 4,000 pictures, its 3x3 layers are converted, fitted to
512 of these pictures and tuned for a third of the epochs, and every network is tested on the other 1,000 pictures.

    python benchmarks/digits.py [--seeds 0 1 2 3 4] [--groups 2 4] [--threads 2]     # trains, adds to digits.jsonl
    python benchmarks/digits.py --docs                                               # writes the table

An accuracy does not depend on what else runs on the machine. It does depend on the number of threads, which round
differently and so end in other networks.
"""

from __future__ import annotations

import argparse
import math
import pathlib
import statistics
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from measuring import RECORDS, ROOT, about, by_machine, read_record, show_record, write_record
from summary import Table

import groupwise
from groupwise.choose.convert.regroup import regroup
from groupwise.choose.tune.distill import distill
from groupwise.examples.choose import LAYERS, LR, TUNING_LR, Digits
from groupwise.examples.mnist import FOLDS, MnistNet
from groupwise.kernels import native

UNIT = ("benchmark", "seed", "threads", "processor")
RECORD, PAGE = "digits.jsonl", ROOT / "docs" / "regroup.md"
EPOCHS = 12
DENSE, BLOCKS, FITTED, TUNED = "dense", "blocks of the weight alone", "fitted to 512 pictures", "tuned"
# Student's t for an interval of 95 %, by degrees of freedom. Source: any table of the distribution.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 14: 2.145, 19: 2.093}


def main() -> None:
    """Trains seed by seed, and writes the rows of each as soon as they are there; or writes the table."""
    parser = argparse.ArgumentParser(description="Convert and tune the network of 5,000 digits.")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/regroup.md")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / RECORD)
    options = parser.parse_args()
    if options.docs:
        show_record(PAGE, RECORD, docs_text(read_record(options.output)))
        return
    torch.set_num_threads(options.threads)
    for seed in options.seeds:
        with groupwise.enabled():
            rows = [{**row, **about(), "isa": native.status().isa} for row in measure(seed, options.groups)]
        write_record(options.output, rows, UNIT)
        print(f"seed {seed}: {[row['right'] for row in rows]}", file=sys.stderr)


def measure(seed: int, groups: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yields how many test pictures each network of a seed classifies correctly."""
    digits = Digits(seed % FOLDS, seed)
    facts = {"benchmark": "digits", "seed": seed, "fold": seed % FOLDS, "of": len(digits.test_labels)}
    torch.manual_seed(seed)
    dense = distill(MnistNet(), None, digits.batches, EPOCHS, lr=LR)
    yield {**facts, "network": DENSE, "groups": 1, "epochs": EPOCHS, "right": digits.right(dense)}
    data = digits.calibration()
    for value in groups:
        wanted = dict.fromkeys(LAYERS, value)
        cut = regroup(dense, wanted, seed=seed)
        kept = [row.kept for row in cut.rows]
        found = {**facts, "groups": value, "kept": [round(min(kept), 4), round(max(kept), 4)]}
        yield {**found, "network": BLOCKS, "epochs": 0, "right": digits.right(cut.model)}
        made = regroup(dense, wanted, data=data, seed=seed).model
        yield {**found, "network": FITTED, "epochs": 0, "right": digits.right(made)}
        tuned = distill(made, dense, digits.batches, EPOCHS // 3, lr=TUNING_LR)
        yield {**found, "network": TUNED, "epochs": EPOCHS // 3, "right": digits.right(tuned)}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Returns the mean of paired differences, and the ends of its 95 % interval (t)."""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return mean, -math.inf, math.inf
    # Fewer degrees of freedom than there are make the interval wider, never narrower.
    freedom = max(known for known in T_95 if known < len(differences))
    half = T_95[freedom] * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


def docs_text(rows: Sequence[dict[str, Any]]) -> str:
    """Returns a table for each processor and number of threads, with the intervals below it, as Markdown."""
    machines = by_machine(rows)
    if not machines:
        return "No record is there yet: `python benchmarks/digits.py` makes one."
    return "\n\n".join(_table(key, found) for key, found in sorted(machines.items()))


def _table(key: tuple[Any, ...], rows: Sequence[dict[str, Any]]) -> str:
    processor, isa, threads, version = key
    right = {(row["groups"], row["network"], row["seed"]): row for row in rows}
    seeds = sorted({row["seed"] for row in rows})
    cells, told = [], []
    for groups in sorted({row["groups"] for row in rows}):
        for name in (DENSE, BLOCKS, FITTED, TUNED):
            found = [right[groups, name, seed] for seed in seeds if (groups, name, seed) in right]
            if not found:
                continue
            epochs = f" for {found[0]['epochs']} epochs" if found[0]["epochs"] else ""
            what = f"{name}, {EPOCHS} epochs" if name == DENSE else f"{groups} groups, {name}{epochs}"
            cells.append([what, *(str(row["right"]) for row in found)])
        tuned = [seed for seed in seeds if (groups, TUNED, seed) in right]
        if not tuned:
            continue
        points = [
            100 * (one["right"] - other["right"]) / one["of"]
            for one, other in ((right[groups, TUNED, seed], right[1, DENSE, seed]) for seed in tuned)
        ]
        mean, low, high = interval(points)
        kept = [value for seed in tuned for value in right[groups, TUNED, seed]["kept"]]
        told.append(
            f"With {groups} groups the blocks keep {100 * min(kept):.0f} to {100 * max(kept):.0f} % of the squared "
            f"weight, and tuned minus dense is {mean:+.2f} points ({low:+.2f} to {high:+.2f})."
        )
    commits = ", ".join(sorted({row["commit"] for row in rows}))
    note = (
        f"Right answers of {rows[0]['of']} test pictures; torch {version}, commit {commits}. {' '.join(told)} "
        "The differences are paired, and the intervals those of 95 % (t)."
    )
    head = ["network", *(f"seed {seed}" for seed in seeds)]
    return Table(
        f"{processor} ({isa}), {threads} {'thread' if threads == 1 else 'threads'}", head, cells, note
    ).markdown()


if __name__ == "__main__":
    main()
