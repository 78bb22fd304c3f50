"""Time both ways to compute convolutions with weights of their own for each sample, and fit the rule that chooses.

    python benchmarks/per_sample.py [--count 150] [--seconds 240] [--seed 0] [--threads 1 2] [--output FILE]
    python benchmarks/per_sample.py --fit

Each row is one direction of one random layer, of kinds that StyleGAN2, hypernetworks and ensembles have: as one grouped
convolution by groupwise, the same by PyTorch, and as matrix products (`torch.bmm`) of unfolded images.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from measuring import (
    RECORDS,
    ROOT,
    Case,
    Effort,
    about,
    interleaved,
    keep_memory,
    read_record,
    show_record,
    write_record,
)

from groupwise.kernels import native
from groupwise.kernels.plan import DIRECTIONS
from groupwise.kernels.processor import processor_class
from groupwise.nn import per_sample_products as products

Row = dict[str, Any]
RECORD, PAGE = "per_sample.jsonl", ROOT / "docs" / "per-sample.md"
# How many pixels use a weight, over the output channels: bounds that the rule may have.
BOUNDS = [2.0**power for power in range(-8, 15)]
# Beyond these a row takes too long, or too much memory.
MOST_PRODUCTS, MOST_NUMBERS = 3e9, 3e7
GROUPED, PYTORCH, BMM = "grouped", "pytorch", "bmm"


def _always(*_: object) -> bool:
    return True


def _never(*_: object) -> bool:
    return False


@dataclass(frozen=True)
class Way(Case):
    """A case that is computed by matrix products, or as a grouped convolution by groupwise's kernels or PyTorch's."""

    multiplies: bool = False

    @contextlib.contextmanager
    def dispatching(self) -> Iterator[None]:
        """Within the block calls are computed that way."""
        with contextlib.ExitStack() as stack:
            # A mock that returns a value takes longer than a small layer.
            stack.enter_context(mock.patch.object(products, "multiplies", _always if self.multiplies else _never))
            if self.ours is False:
                stack.enter_context(mock.patch.object(products, "_kernels", contextlib.nullcontext))
            stack.enter_context(torch.inference_mode())
            yield


def main() -> None:
    """Writes the record of this machine, or the rule that all records give."""
    parser = argparse.ArgumentParser(description="Time both ways to compute per-sample convolutions.")
    parser.add_argument("--fit", action="store_true", help="write the rule, and what it does into docs/per-sample.md")
    parser.add_argument("--count", type=int, default=150, help="layers for each number of threads")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / RECORD)
    options = parser.parse_args()
    if not options.fit:
        keep_memory()
        write_record(options.output, measured(options), ("class", "isa", "threads", "seed"))
    rows = read_record(options.output)
    rules = fit_all(rows)
    print(told(rows, rules))
    if options.fit:
        products.RULE.write_text(json.dumps(rules, indent=1) + "\n", encoding="utf-8")
        show_record(PAGE, RECORD, told(rows, rules))


def measured(options: argparse.Namespace) -> list[Row]:
    """Times layers until their count or the time is reached."""
    rows: list[Row] = []
    end = time.perf_counter() + options.seconds
    for number in range(options.count):
        shape = drawn(random.Random(f"{options.seed} {number}"))
        for threads in options.threads:
            if time.perf_counter() > end:
                return rows
            torch.set_num_threads(threads)
            facts = {"benchmark": "per sample", "seed": options.seed, "draw": number, **about()}
            facts |= {"class": processor_class(), "isa": native.status().isa, **shape}
            for direction in DIRECTIONS:
                rows.append({**facts, "direction": direction, **timed(shape, direction)})
        if number % 25 == 24:
            print(f"{number + 1} layers, {end - time.perf_counter():.0f} s left", file=sys.stderr)
    return rows


def drawn(chance: random.Random) -> Row:
    """Returns the shape of a random layer."""
    while True:
        kind = chance.choice(("style", "style", "ensemble", "ensemble", "hyper", "1-D"))
        dims, kernel, groups, batch = 2, chance.choice((1, 3, 3, 3, 5)), 1, 1
        if kind == "style":
            samples, inputs = chance.choice((1, 2, 4, 8)), 2 ** chance.randint(4, 9)
            outputs = chance.choice((inputs, inputs, inputs // 2, 3))
            pixels = 2 ** chance.randint(2, 6)
        elif kind == "ensemble":
            samples, inputs = chance.randint(2, 64), chance.choice((1, 3, 8, 16, 32, 64))
            outputs, batch = chance.choice((8, 16, 32, 64, 128)), chance.choice((1, 1, 4, 16))
            pixels = chance.choice((4, 7, 14, 28, 32))
        elif kind == "hyper":
            samples, inputs = chance.randint(1, 16), chance.choice((4, 12, 24, 48, 96))
            outputs, groups = chance.choice((1, 2)) * inputs, chance.choice((1, 2, 4))
            pixels = chance.randint(3, 40)
        else:
            dims, kernel = 1, chance.choice((3, 9, 31))
            samples, inputs = chance.choice((1, 4, 16)), chance.choice((8, 32, 128))
            outputs, pixels = inputs, chance.choice((50, 200, 1000))
        size = [pixels] * dims
        work = batch * samples * inputs // groups * outputs * kernel**dims * math.prod(size)
        numbers = batch * samples * inputs * kernel**dims * math.prod(size)
        numbers = max(numbers, samples * inputs * outputs * kernel**dims)
        if work <= MOST_PRODUCTS and numbers <= MOST_NUMBERS:
            shape = {"kind": kind, "batch": batch, "samples": samples, "in_channels": inputs, "out_channels": outputs}
            return {**shape, "groups": groups, "size": size, "kernel_size": [kernel] * dims}


def timed(shape: Row, direction: str) -> Row:
    """Returns the least milliseconds of each way."""
    dims, groups = len(shape["size"]), shape["groups"]
    images = torch.randn(shape["batch"], shape["samples"], shape["in_channels"], *shape["size"])
    weights = torch.randn(
        shape["samples"], shape["out_channels"], shape["in_channels"] // groups, *shape["kernel_size"]
    )
    grad = torch.randn(shape["batch"], shape["samples"], shape["out_channels"], *shape["size"])
    rest = ([1] * dims, [k // 2 for k in shape["kernel_size"]], [1] * dims, groups)
    calls: dict[str, Callable[[], object]] = {
        "forward": lambda: products.forward(images, weights, None, *rest),
        "grad_input": lambda: products.grad_input(grad, weights, shape["size"], *rest),
        "grad_weight": lambda: products.grad_weights(grad, images, shape["kernel_size"], *rest),
    }
    call = calls[direction]
    # Each call follows one of its own kind, so that all find the caches as they left them.
    cases = {
        GROUPED: Way(call, prepare=call),
        PYTORCH: Way(call, prepare=call, ours=False),
        BMM: Way(call, prepare=call, multiplies=True),
    }
    seconds = interleaved(cases, Effort(5, 0.15, 100))
    return {"least_ms": {str(name): float(f"{min(some) * 1e3:.4g}") for name, some in seconds.items()}}


def fit_all(rows: Sequence[Row]) -> dict[str, products.Rule]:
    """Returns the rule of each processor class and instruction set, and that of all rows for the others."""
    names = sorted({name_of(row) for row in rows})
    found = {name: fit([row for row in rows if name_of(row) == name]) for name in names}
    return {**found, products.OTHERS: fit(rows)}


def name_of(row: Row) -> str:
    """Returns the name of the rule that a row is measured for."""
    return products.key(row["class"], row["isa"])


def fit(rows: Sequence[Row]) -> products.Rule:
    """Returns for each kind of layer and direction up to how many uses products are taken: what costs least time."""
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        found.setdefault(kind(row), {})
    for name, bounds in found.items():
        for direction in DIRECTIONS:
            some = [row for row in rows if (kind(row), row["direction"]) == (name, direction)]
            # Of bounds that cost the same, the most uses: a layer beyond all measured ones is like the last.
            bounds[direction] = min(reversed(BOUNDS), key=lambda bound: sum(cost(row, bound) for row in some))
    return found


def kind(row: Row) -> str:
    """Returns the kind of a row's layer, as the rule tells them apart."""
    taps = row["kernel_size"]
    return products.kind(row["batch"], taps, [1] * len(taps), [size // 2 for size in taps])


def chosen(row: Row, bound: float) -> str:
    """Returns the way that a row's layer is computed if products are taken up to so many uses."""
    used = products.uses(row["batch"], row["size"], row["out_channels"], row["groups"])
    return BMM if used <= bound else GROUPED


def cost(row: Row, bound: float) -> float:
    """Returns the logarithm of the time of the way chosen over that of the better one."""
    ms = row["least_ms"]
    return math.log(ms[chosen(row, bound)] / min(ms[BMM], ms[GROUPED]))


def told(rows: Sequence[Row], rules: dict[str, products.Rule]) -> str:
    """Returns what the rules do to the measured layers, as Markdown."""
    lines = [
        "| processor | threads | rows | the better of bmm and PyTorch / ours | least | below 0.95 | below 2/3 |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        ms = row["least_ms"]
        ratio = min(ms[BMM], ms[PYTORCH]) / ms[chosen(row, rules[name_of(row)][kind(row)][row["direction"]])]
        groups.setdefault((name_of(row), row["threads"]), []).append(ratio)
    for (name, threads), ratios in sorted(groups.items()):
        below = [sum(ratio < bound for ratio in ratios) for bound in (0.95, 2 / 3)]
        mean = statistics.geometric_mean(ratios)
        lines.append(
            f"| {name} | {threads} | {len(ratios)} | {mean:.2f} | {min(ratios):.2f} | {below[0]} | {below[1]} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
