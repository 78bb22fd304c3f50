"""Measure from how much work on a second thread pays, which is data of the planner.

    python benchmarks/sharing.py [--count 400] [--seconds 240] [--seed 0] [--threads 2] [--isa ISA] [--records DIR]

Each row is one pass of one small random layer by one kernel: computed by one thread, and shared by `--threads` of them.
A row of the record has the milliseconds of both. `model.py` and `policy.py` take the number of products, for each lane
of the vectors and each thread, from which sharing costs these layers the least time. The calls of a row follow each
other at once, so that threads wait awake, as they do between the layers of a network.
"""

from __future__ import annotations

import argparse
import itertools
import math
import pathlib
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from measuring import RECORDS, Effort, Forced, about, interleaved, keep_memory, takes, write_record
from sweep import of, products
from sweeping import MOST_NUMBERS, draw

from groupwise.kernels import dispatch, native
from groupwise.kernels.plan import KERNELS
from groupwise.kernels.processor import processor_class

Row = dict[str, Any]
LANES = {"baseline": 4, "neon": 4, "avx2": 8, "avx512": 16}
# Beyond these a second thread hardly pays, or surely.
LEAST, MOST = 4_000, 1_000_000
# A number of products is fitted to this many rows or more.
FEWEST = 40
# A larger ratio is that of a row which another process disturbed.
FURTHEST = math.log(2)


def main() -> None:
    """Writes the record of one instruction set and number of threads, and says what follows."""
    parser = argparse.ArgumentParser(description="Measure from how much work on a second thread pays.")
    parser.add_argument("--count", type=int, default=400)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default=native.status().isa)
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    options = parser.parse_args()
    keep_memory()
    with dispatch.forced(isa=options.isa):
        native.library().groupwise_share(options.isa.encode(), 0.0)
        rows = measured(options)
    if not rows:
        raise SystemExit("no layer was measured; give more --seconds")
    write_record(options.records / "sharing.jsonl", rows, ("class", "isa", "threads", "seed"))
    print(f"{len(rows)} rows of {options.isa}; shared_from {fitted(rows)}")


def measured(options: argparse.Namespace) -> list[Row]:
    """Times layers until their count or the time is reached."""
    pool, facts = torch.randn(MOST_NUMBERS), about()
    rows: list[Row] = []
    end, number = time.perf_counter() + options.seconds, 0
    while len(rows) < options.count and time.perf_counter() < end:
        one = draw(options.seed, number, (options.threads,))
        torch.set_num_threads(options.threads)
        call = one.operator(pool)
        for kernel in KERNELS[:-1]:
            with torch.inference_mode():
                plan = takes(call, kernel)
                if plan is None or not LEAST <= products(plan) <= MOST or plan.tasks == 1:
                    continue
                row = {"benchmark": "sharing", **facts, "class": processor_class(), "isa": options.isa}
                row |= {"seed": options.seed, "draw": number, "kernel": kernel, "direction": plan.direction}
                row |= {"threads": options.threads, "products": products(plan), **timed(call, kernel, options.threads)}
            rows.append(row)
        number += 1
        if number % 100 == 0:
            print(f"{number} draws, {len(rows)} rows", file=sys.stderr)
    return rows


def timed(call: Callable[[], object], kernel: str, threads: int) -> Row:
    """Returns the milliseconds of one thread and of several: of each the fifth that is fastest ends there."""
    cases = {
        count: Forced(call, prepare=lambda count=count: torch.set_num_threads(count), kernel=kernel)
        for count in (1, threads)
    }
    seconds = interleaved(cases, Effort(40, 0.05, 400))
    return {
        f"ms_{name}": of(statistics.quantiles(seconds[count], n=5)[0])
        for name, count in (("alone", 1), ("shared", threads))
    }


def fitted(rows: Sequence[Row]) -> int | None:
    """Returns the products of each lane and thread from which sharing costs the least time, by logarithms."""
    if len(rows) < FEWEST:
        return None
    # The costs of sharing, of the least work first.
    costs = sorted((row["products"] / LANES[row["isa"]] / row["threads"], cost(row)) for row in rows)
    left = least = sum(lost for _, lost in costs)
    best = 0.0
    for (here, lost), (after, _) in itertools.pairwise(costs):
        left -= lost
        if left < least and after > here:
            least, best = left, after
    return int(float(f"{best:.2g}"))


def cost(row: Row) -> float:
    """Returns the logarithm of the time of shared work over that of one thread."""
    return max(-FURTHEST, min(FURTHEST, math.log(row["ms_shared"] / row["ms_alone"])))


if __name__ == "__main__":
    main()
