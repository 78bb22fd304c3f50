"""Time random layers with PyTorch and with every kernel of groupwise that can run: the data of the planner's tables.

    python benchmarks/sweep.py [--count 4000] [--seconds 720] [--seed 0] [--threads 1 2] [--volumes] [--dtype bfloat16]
    python benchmarks/sweep.py --family few whole --seed 1 --seconds 300
    python benchmarks/sweep.py --changed pixels                  after a change of a kernel, or for a new one

Each row is one pass of one layer in one memory format and at one number of threads. PyTorch is timed twice a round, so
that the record says how far its times differ from themselves. --isa chooses the instruction set.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import multiprocessing
import pathlib
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import torch
from measuring import RECORDS, Case, Forced, about, in_turn, keep_memory, read_record, record_name, takes, write_record
from sweeping import FAMILIES, MOST_NUMBERS, Draw, draw

import groupwise
from groupwise import GroupwiseError
from groupwise.kernels import native
from groupwise.kernels.dispatch import forced
from groupwise.kernels.plan import KERNELS
from groupwise.kernels.processor import processor_class
from groupwise.kernels.tables import OTHER_DTYPES, Kind

UNIT = ("benchmark", "class", "isa", "seed", "only")
# A kernel whose least time is beyond this factor of that in a row, either way, takes another time now.
CHANGED = 1.15
PYTORCH, AGAIN = "pytorch", "pytorch again"
# A pass that takes PyTorch longer (in seconds) is not timed: the first bound is that of float32. In other dtypes it
# takes up to 40 times as long for the same layer, which gets fewer rounds beyond the first bound.
SLOW, SLOW_OTHERS, SLOW_ROUNDS = 0.06, 1.0, 2
# A kernel that takes so many times as long as PyTorch is settled by the first rounds.
FAR_SLOWER, SETTLED = 3.0, 3
# An untimed call comes before each timed one that is quicker than this. A slower one fills the caches itself.
QUICK = 2e-3
# A row is timed this often at most, until its series agree within this factor.
TRIES, AGREE = 3, 1.1
# A layer that has no row after so many seconds never gets one: oneDNN 3.12 does not end compiling some float16 layers.
PATIENCE = 30.0
# The summary counts the rows below these. Two thirds is slower beyond the spread of any machine that was measured.
BOUNDS = (2 / 3, 0.95)


@dataclass(frozen=True)
class Effort:
    """Rounds for each row: at least `least`, then as many as fit `budget` seconds, at most `most`."""

    least: int = 4
    budget: float = 0.12
    most: int = 25


def main() -> None:
    """Draws and times layers until there are enough, or the time is over."""
    parser = argparse.ArgumentParser(description="Time random layers with every kernel.")
    parser.add_argument("--count", type=int, default=4000, help="layers to draw")
    parser.add_argument("--seconds", type=float, default=720, help="stop drawing after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="each row draws one of them")
    parser.add_argument("--isa", default="", help="the instruction set, by default the one in use")
    parser.add_argument("--volumes", action="store_true", help="draw 3-D layers, which have tables of their own")
    parser.add_argument("--family", nargs="+", default=[], choices=list(FAMILIES), help="draw these kinds alone")
    parser.add_argument("--dtype", choices=["float32", *OTHER_DTYPES], default="float32")
    parser.add_argument(
        "--changed",
        metavar="KERNEL",
        choices=[name for name in KERNELS if name != PYTORCH],
        help="draw no new layers: time the record's rows again where this kernel's time is another one, or missing",
    )
    parser.add_argument("--output", type=pathlib.Path, help="default: as `record_of` names it, in the records")
    options = parser.parse_args()
    if options.volumes and options.family:
        parser.error("--family draws 1-D and 2-D layers; 3-D ones (--volumes) have kinds of their own")
    options.output = options.output or RECORDS / record_of(Kind(options.volumes, options.dtype))
    rows: list[dict[str, Any]] = []
    unit = UNIT
    try:
        native.library()
        if options.changed:
            unit, options.before = (*UNIT, "draw"), rows_of(options)
            options.count = len(options.before)
        for row in drawn(options, time.perf_counter() + options.seconds):
            rows.append(row)
    except GroupwiseError as error:
        raise SystemExit(str(error)) from None
    write_record(options.output, rows, unit)
    print("\n".join(report(rows)))
    print(f"wrote {len(rows)} rows to {options.output}; make the tables with: python benchmarks/policy.py")


def record_of(kind: Kind) -> str:
    """Returns the name of the record of which the tables of a kind of layers are made."""
    return record_name("volumes" if kind.volumes else "sweep", kind.dtype)


def rows_of(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Returns the record's rows of this machine."""
    here = (processor_class(), options.isa or native.status().isa)
    return [row for row in read_record(options.output) if (row["class"], row["isa"]) == here]


def drawn(options: argparse.Namespace, end: float) -> Iterator[dict[str, Any]]:
    """Yields the rows of the layers that are drawn until `end`, of processes that may die or never answer.

    PyTorch 2.13's own kernel ends the process for some layers (on AVX-512 a 1x1 layer of stride 4, say), and does not
    end for others. The next process goes on after such a layer, which has no row.
    """
    context = multiprocessing.get_context("spawn")
    first = 0
    while first < options.count and time.perf_counter() < end:
        here, there = context.Pipe(duplex=False)
        worker = context.Process(target=work, args=(options, first, there), daemon=True)
        worker.start()
        there.close()
        ended = "ended the process"
        with contextlib.suppress(EOFError):
            while time.perf_counter() < end:
                if not here.poll(min(PATIENCE, max(0.0, end - time.perf_counter()))):
                    ended = f"took more than {PATIENCE:g} s"
                    break
                number, row = here.recv()
                first = number + 1
                if row:
                    yield row
                if number % 250 == 249:
                    print(f"{number + 1} layers, {end - time.perf_counter():.0f} s left", file=sys.stderr)
        worker.kill()
        worker.join()
        if first < options.count and time.perf_counter() < end:
            print(f"layer {first} of seed {options.seed} {ended} in PyTorch's kernel or ours", file=sys.stderr)
        first += 1


def work(options: argparse.Namespace, first: int, pipe: connection.Connection) -> None:
    """Sends each layer's number and its row, from `first` on."""
    keep_memory()
    pool = torch.randn(MOST_NUMBERS).to(getattr(torch, options.dtype))
    with forced(isa=options.isa):
        # The peak of the instruction set, and the bandwidth.
        facts = {"benchmark": "sweep", **native.machine(), **about(), "dtype": options.dtype}
        for index in range(first, options.count):
            before = options.before[index] if options.changed else None
            origin = before or {"seed": options.seed, "only": " ".join(options.family), "draw": index}
            drawing = {name: origin[name] for name in ("seed", "draw", "only") if origin.get(name, "") != ""}
            families = tuple(drawing.get("only", "").split())
            one = draw(drawing["seed"], drawing["draw"], tuple(options.threads), options.volumes, families)
            wanted = before is None or is_changed(one, pool, options.changed, before)
            row = measure(one, pool, Effort()) if wanted else None
            pipe.send((index, {**facts, **drawing, **row} if row else None))


def is_changed(one: Draw, pool: torch.Tensor, kernel: str, before: dict[str, Any]) -> bool:
    """Tells whether a kernel takes another time than in the row of a draw, or can run and has no time there.

    A row whose seed draws another layer now stays as it is.
    """
    spec = one.spec
    again = {name: getattr(one, name) for name in ("family", "direction", "memory_format", "threads", "batch")}
    again |= {"in_channels": spec.in_channels, "out_channels": spec.out_channels, "groups": spec.groups}
    again["kernel_size"] = list(spec.kernel_size)
    if any(before[name] != value for name, value in again.items()):
        return False
    torch.set_num_threads(one.threads)
    call = one.operator(pool)
    with torch.inference_mode():
        if not takes(call, kernel):
            return False
        if kernel not in before["least_ms"]:
            return True
        case = Forced(call, kernel=kernel)
        ratio = min(case.seconds() for _ in range(Effort().least)) * 1e3 / before["least_ms"][kernel]
    return not 1 / CHANGED < ratio < CHANGED


def measure(one: Draw, pool: torch.Tensor, effort: Effort) -> dict[str, Any] | None:
    """Returns the row of a layer, or None where PyTorch is too slow for the time of a sweep."""
    torch.set_num_threads(one.threads)
    call = one.operator(pool)
    with torch.inference_mode():
        slow = SLOW if pool.dtype == torch.float32 else SLOW_OTHERS
        if Case(call, ours=False).seconds() > 3 * slow or Case(call, ours=False).seconds() > slow:
            return None
        with forced(True), groupwise.record_plans() as plans:
            call()
        if not plans:
            # Beyond what any kernel of groupwise supports.
            return None
        (plan,) = plans
        cases: dict[str, Case] = {PYTORCH: Case(call, ours=False)}
        made = {name: told for name in KERNELS if name != PYTORCH and (told := takes(call, name))}
        cases |= {name: Forced(call, kernel=name) for name in made}
        cases[AGAIN] = cases[PYTORCH]
        for _ in range(TRIES):
            seconds = times(cases, effort)
            if steady(seconds):
                break
    shape = {key: list(value) if isinstance(value, tuple | list) else value for key, value in plan.shape.items()}
    return {
        "family": one.family,
        "class": processor_class(),
        "isa": plan.isa,
        "direction": plan.direction,
        "transposed": one.spec.transposed,
        "biased": one.biased,
        "dims": one.spec.dims,
        "memory_format": plan.memory_format,
        "threads": one.threads,
        **shape,
        "chosen": plan.kernel,
        "products": {PYTORCH: products(plan), **{name: told.products for name, told in made.items()}},
        # Threads that compute: one for little work.
        "working": min([told.threads for told in made.values()], default=one.threads),
        "least_ms": {name: of(min(found)) for name, found in seconds.items()},
        "repeats": len(seconds[PYTORCH]),
        "steady": steady(seconds),
    }


def products(plan: groupwise.Plan) -> int:
    """Returns the multiply-accumulates of a convolution, those on padding among them."""
    shape = plan.shape
    pairs = shape["in_channels"] * shape["out_channels"] // shape["groups"]
    return shape["batch"] * pairs * math.prod(shape["kernel_size"]) * math.prod(shape["output_size"])


def steady(seconds: dict[str, list[float]]) -> bool:
    """Returns whether PyTorch's two series agree, and the halves of every series: no other process disturbed one."""
    pairs = [(seconds[PYTORCH], seconds[AGAIN])]
    pairs += [(series[::2], series[1::2]) for series in seconds.values() if len(series) > 1]
    return all(max(map(min, pair)) <= AGREE * min(map(min, pair)) for pair in pairs)


def of(seconds: float) -> float:
    """Returns milliseconds with four digits, as many as a repeat of the measurement shares."""
    return float(f"{seconds * 1e3:.4g}")


def times(cases: dict[str, Case], effort: Effort) -> dict[str, list[float]]:
    """Times the cases in turn; returns seconds.

    A case far slower than PyTorch is settled by its first times, so that the others have the rest of the budget.
    """
    found: dict[str, list[float]] = {name: [] for name in cases}
    first = {name: case.seconds() for name, case in cases.items()}
    warm = {name: seconds < QUICK for name, seconds in first.items()}
    least = SLOW_ROUNDS if first[PYTORCH] > SLOW else effort.least
    start = time.perf_counter()
    for number in range(effort.most):
        if number >= least and time.perf_counter() - start > effort.budget:
            break
        for name in in_turn(cases, number):
            if number >= SETTLED and min(found[name]) > FAR_SLOWER * min(found[PYTORCH]):
                continue
            if warm[name]:
                cases[name].seconds()
            found[name].append(cases[name].seconds())
    return found


def speedup(row: dict[str, Any], kernel: str) -> float:
    """Returns how many times as long as a kernel PyTorch takes, by the mean of its two series.

    Each series counts by its least time, which other processes disturb least.
    """
    ms = row["least_ms"]
    return float((ms[PYTORCH] * ms[AGAIN]) ** 0.5 / ms[kernel])


def report(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Compares the chosen kernels with PyTorch, and PyTorch with itself, by the least times of the steady rows."""
    kept = [row for row in rows if row["steady"]]
    ran = [row for row in kept if row["chosen"] != PYTORCH]
    if not ran:
        return [f"{len(rows)} rows; in none a kernel of groupwise ran, or other processes disturbed them."]
    lines = [f"{len(rows)} rows, {len(rows) - len(kept)} disturbed; a kernel of groupwise ran in {len(ran)} others."]
    lines.append(f"PyTorch / ours   {distribution([speedup(row, row['chosen']) for row in ran])}")
    lines.append(
        f"PyTorch / itself {distribution([row['least_ms'][PYTORCH] / row['least_ms'][AGAIN] for row in kept])}"
    )
    # Layers count by their cost here.
    alone = sum(row["least_ms"][PYTORCH] for row in kept)
    spent = sum(row["least_ms"][row["chosen"]] for row in kept)
    least = sum(min(row["least_ms"].values()) for row in kept)
    lines.append(f"These take {alone:.0f} ms in PyTorch, {spent:.0f} as chosen, {least:.0f} with the best kernel each.")
    lines.append("The rows that lose most time to PyTorch:")
    lines += [f"  {told(row)}" for row in worst(kept)]
    lines.append("The rows of the lowest ratios:")
    lines += [f"  {told(row)}" for row in sorted(ran, key=lambda row: speedup(row, row["chosen"]))[:10]]
    return lines


def totals(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the cells of the summary's table of random layers: a row for each instruction set.

    Layers of kinds that were asked for by name are left out: they are not drawn as the others are.
    """
    rows = [row for row in rows if "only" not in row]
    cells = []
    for isa in sorted({row["isa"] for row in rows}):
        kept = [row for row in rows if row["isa"] == isa and row["steady"]]
        ratios = [speedup(row, row["chosen"]) for row in kept if row["chosen"] != PYTORCH]
        itself = [row["least_ms"][PYTORCH] / row["least_ms"][AGAIN] for row in kept]
        mean = f"{statistics.geometric_mean(ratios):.3g}" if ratios else ""
        below = [str(sum(ratio < bound for ratio in some)) for some in (ratios, itself) for bound in BOUNDS]
        cells.append([isa, str(len(kept)), str(len(ratios)), mean, *below])
    return cells


def worst(rows: Sequence[dict[str, Any]], count: int = 10) -> list[dict[str, Any]]:
    """Returns the steady rows in which a kernel of groupwise ran and lost most time to PyTorch."""

    def gained(row: dict[str, Any]) -> float:
        return float(row["least_ms"][PYTORCH] - row["least_ms"][row["chosen"]])

    return sorted((row for row in rows if row["steady"] and gained(row) < 0), key=gained)[:count]


def distribution(ratios: Sequence[float]) -> str:
    """Tells the quantiles of ratios and how many are below each bound."""
    some = sorted(ratios)
    shares = (0, 0.01, 0.1, 0.5, 0.9, 0.99, 1)
    quantiles = ", ".join(f"{share:.0%} {some[round(share * (len(some) - 1))]:.2f}" for share in shares)
    below = ", ".join(f"{sum(ratio < bound for ratio in some)} below {bound:.2f}" for bound in BOUNDS)
    return f"{quantiles}; {below} of {len(some)}"


def told(row: dict[str, Any]) -> str:
    """Tells a row in one line."""

    def pair(key: str) -> str:
        return "x".join(map(str, row[key]))

    kernel = row["chosen"]
    numbers = f"{row['batch']} of {row['in_channels']} to {row['out_channels']}, groups {row['groups']}"
    numbers += f", kernel {pair('kernel_size')}, {pair('input_size')} to {pair('output_size')}"
    numbers += f", stride {pair('stride')}, dilation {pair('dilation')}"
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    ratio = f"{speedup(row, kernel):.2f} ({row['least_ms'][PYTORCH]:.3g} | {row['least_ms'][kernel]:.3g} ms)"
    return f"{ratio} {kernel} {row['direction']} {row['memory_format']} {threads}: {numbers}"


if __name__ == "__main__":
    main()
