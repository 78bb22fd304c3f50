"""Time each layer in PyTorch and with this package's kernels, forward and training step, in both memory formats.

A training step is the forward and the gradients of input, weight and bias, in one call of autograd. All cases of one
layer are timed in turn in one process. Before that, every result is compared with float64: a layer with a wrong one is
not timed, its rows leave the record, and the run ends with status 1. All layers are visited one after the other,
several times, and medians are over all visits: other guests of a machine slow it for a minute or so.

In other dtypes than float32 groupwise's float32 is timed beside the others. A memory format in which the first call
does not return in time (PyTorch compiles some kernels of 16 bits for minutes) is left out, and its row says why.

    python benchmarks/layers.py [--dtype float32 bfloat16] [--threads 1 2] [--batch 1 8] [--held-out] [--only resnext]
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import math
import pathlib
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import checking
import floor
import shapes
import torch
from measuring import RECORDS, Case, Effort, about, busy, figures, forget, interleaved, record_name, write_record
from shapes import DTYPES, FLOAT32, PASSES, RESULTS, Layer, Tensors
from watched import Returned, Stuck, Trying, Watched

import groupwise
from groupwise import GroupwiseError
from groupwise.kernels import native
from groupwise.kernels.processor import processor_class

UNIT = ("benchmark", "set", "layer", "pass", "batch", "threads", "dtype")
# No case takes more seconds than this for its repeats, if it has one. So PyTorch's slow kernels do not take hours.
SLOW = 3.0
# The script prints the microseconds of a convolution of one pixel that PyTorch computes: without this package, or with
# it registered, off and in turn enabled. When it is enabled, every call falls back.
FALLBACK = """
import contextlib, sys, time, torch
conv, pixel = torch.nn.Conv2d(40, 40, 1), torch.randn(1, 40, 1, 1)
without = sys.argv[1] == "without"
if not without:
    import groupwise
    from groupwise.kernels.dispatch import forced
    with forced(True, "pytorch"), groupwise.record_plans() as plans:
        conv(pixel)
    assert [plan.kernel for plan in plans] == ["pytorch"]
best = [float("inf")] * (1 if without else 2)
with torch.inference_mode():
    for _ in range(50):
        for state in range(len(best)):
            with contextlib.nullcontext() if without else forced(bool(state), "pytorch"):
                start = time.perf_counter()
                for _ in range(200):
                    conv(pixel)
                best[state] = min(best[state], time.perf_counter() - start)
print(*(seconds / 200 * 1e6 for seconds in best))
"""


Row = dict[str, Any]
Key = tuple[str, ...]


@dataclass(frozen=True)
class Unit:
    """What is timed in turn: one pass of a layer. `peak` gives its roofline floor, in float32."""

    layer: Layer
    which: str
    batch: int
    threads: int
    dtype: str
    peak: floor.Peaks | None = None


def main() -> None:
    """Measures layer by layer, and writes the rows of each as soon as they are there."""
    options = parse()
    refused = []
    try:
        if "float32" in options.dtype and not options.only and not options.held_out:
            write_record(options.output or record_of("float32"), [{**fallback(), **about()}], UNIT)
        for dtype in options.dtype:
            refused += run(dtype, options.output or record_of(dtype), options)
    except GroupwiseError as error:
        raise SystemExit(str(error)) from None
    if refused:
        raise SystemExit("not timed, as their results are wrong:\n" + "\n".join(refused))


def parse() -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description="Time layers in PyTorch and with groupwise.")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["float32"], metavar="DTYPE", help=f"{DTYPES}")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=Effort.repeats, help="the least for each median")
    parser.add_argument("--budget", type=float, default=Effort.budget, help="seconds for more repeats of a quick layer")
    parser.add_argument("--visits", type=int, default=3, help="rounds of all layers, which share the repeats")
    parser.add_argument("--patience", type=float, default=10, help="seconds for a first call, beyond float32")
    parser.add_argument("--only", default="", help="layers whose name or network contains this")
    parser.add_argument("--held-out", action="store_true", help="the layers that nothing is tuned to")
    parser.add_argument("--output", type=pathlib.Path, help="default: as `record_of` names it, in the records")
    options = parser.parse_args()
    if options.visits < 1:
        parser.error(f"--visits {options.visits} must be at least 1")
    return options


def record_of(dtype: str, record: str = "layers") -> pathlib.Path:
    """Returns the record of a dtype: those beside float32 have one for each processor class and instruction set."""
    folder = RECORDS if dtype == "float32" else RECORDS / f"{processor_class()}-{native.status().isa}"
    return folder / record_name(record, dtype)


def run(dtype: str, output: pathlib.Path, options: argparse.Namespace) -> list[str]:
    """Measures the layers in a dtype; returns what was refused."""
    which = "held_out" if options.held_out else "listed"
    effort = Effort(options.repeats, options.budget, max(options.repeats, Effort.most), SLOW).share(options.visits)
    plain = dtype == "float32"
    refused: dict[tuple[str, int], str] = {}
    left_out: dict[tuple[str, int, str], dict[Key, str]] = defaultdict(dict)
    known: dict[Key, Row] = {}
    with contextlib.ExitStack() as stack:
        ask = measure if plain else stack.enter_context(Watched(measure, options.patience)).ask
        for _ in range(options.visits):
            peaks = {threads: floor.measure(threads) if plain else None for threads in options.threads}
            for batch, layer in itertools.product(options.batch, shapes.chosen(which, options.only)):
                if (layer.name, batch) in refused:
                    continue
                facts = {"set": which, "layer": layer.name, "batch": batch, "samples": layer.samples(batch)}
                facts["busy"], start = busy(), time.perf_counter()
                try:
                    for threads, each in itertools.product(options.threads, PASSES):
                        unit = Unit(layer, each, batch, threads, dtype, peaks[threads])
                        for rows in whole(ask, unit, effort, left_out[layer.name, batch, each]):
                            every = [{**facts, **row, **about(dtype), "threads": threads} for row in rows]
                            write_record(output, [pooled(row, known) for row in every], UNIT)
                    took = time.perf_counter() - start
                    print(f"{layer.name}, batch {batch}, {dtype}: {took:.1f} s", file=sys.stderr)
                except checking.WrongResult as error:
                    refused[layer.name, batch] = f"{error} ({dtype})"
                    forget(output, {"set": which, "layer": layer.name, "batch": batch, "dtype": dtype})
                    print(f"refused: {error} ({dtype})", file=sys.stderr)
    print(f"wrote {output}; read it with: python benchmarks/summary.py")
    return list(refused.values())


def pooled(row: Row, known: dict[Key, Row]) -> Row:
    """Returns a row with the figures of all visits so far, which `known` has: the lowest floor, the largest error."""
    if (seconds := row.pop("seconds", None)) is None:
        return row
    before = known.setdefault(tuple(str(row.get(name)) for name in (*UNIT, "implementation", "memory_format")), {})
    before["seconds"] = before.get("seconds", []) + seconds
    for name, take in (("floor_ms", min), ("busy", max), ("error", max), ("error_of_pytorch", max)):
        if row.get(name) is not None:
            row[name] = before[name] = take(row[name], before.get(name, row[name]))
    return row | figures(before["seconds"])


def whole(
    ask: Callable[..., Iterator[Any]], unit: Unit, effort: Effort, left_out: dict[Key, str]
) -> Iterator[list[Row]]:
    """Yields the rows of a unit, and asks again without each case that got stuck, which it adds to `left_out`."""
    while True:
        try:
            yield from [rows for rows in ask(unit, effort, left_out) if isinstance(rows, list)]
            return
        except Stuck as error:
            print(f"{unit.layer.name}, {unit.which}, {', '.join(error.key)}: {error}", file=sys.stderr)
            if not error.key:
                return
            left_out[error.key] = str(error)


def measure(unit: Unit, effort: Effort, left_out: Mapping[Key, str]) -> Iterator[Trying | Returned | list[Row]]:
    """Yields the rows of a unit, in a list for each interleaved run, and before each first call that it is tried.

    A row has the seconds of all its calls.
    Raises `WrongResult` if a result of groupwise is wrong.
    """
    layer, which = unit.layer, unit.which
    torch.set_num_threads(unit.threads)
    given, exact, of_oracle = values(layer, unit.batch, unit.dtype)
    every = cases_of(layer, given, which)
    hazards = {("pytorch", name): hazard(unit, given.input.shape, name) for name in layer.memory_formats}
    left_out = {key: why for key, why in hazards.items() if why} | dict(left_out)
    cases, found = {key: case for key, case in every.items() if key not in left_out}, {}
    shared: Row = {"benchmark": "layer", "pass": which}
    rows = [{**shared, **named(key), "problem": why} for key, why in left_out.items()]
    # Without a time of either side there is nothing to compare.
    if {who for who, _ in cases} == {who for who, _ in every}:
        for key, case in cases.items():
            yield Trying(key)
            found[key] = results(case, which)
        yield Returned()
        errors = compare(layer.name, found, exact, getattr(torch, unit.dtype), of_oracle)
        if unit.dtype != "float32":
            beside = cases_of(layer, layer.tensors(unit.batch), which)
            cases |= {(FLOAT32, name): case for (who, name), case in beside.items() if who == "groupwise"}
        if unit.peak:
            shared["floor_ms"] = round(unit.peak.floor_ms(layer.cost(unit.batch), which == "training"), 6)
        for key, seconds in interleave(cases, which, effort).items():
            row = {**shared, **named(key), "seconds": seconds}
            if key[0] == "groupwise":
                row["kernels"] = kernels(given.in_format(key[1]), which)
                row["error"], row["error_of_pytorch"] = (float(f"{error:.3g}") for error in errors)
            rows.append(row)
    yield rows
    if layer.name in shapes.PAYOFF and unit.dtype == "float32":
        yield payoff(layer, given, layer.tensors(unit.batch, groups=1), which, effort)


def hazard(unit: Unit, sizes: torch.Size, memory_format: str) -> str:
    """Returns why PyTorch's kernels must not run a pass, and are no yardstick of its errors; empty if they may."""
    directions = ("forward", "grad_input", "grad_weight") if unit.which == "training" else ("forward",)
    asked = {"dtype": getattr(torch, unit.dtype), "memory_format": memory_format}
    plans = (groupwise.plan(unit.layer.spec, sizes, direction=one, **asked) for one in directions)
    return next((one.hazard for one in plans if one.hazard), "")


def named(key: Key) -> Row:
    """Returns a case's implementation and memory format."""
    return dict(zip(("implementation", "memory_format"), key, strict=True))


class Values(NamedTuple):
    """A layer's tensors, its results in float64, and how far each of these may be from the exact value."""

    given: Tensors
    exact: dict[str, torch.Tensor]
    of_oracle: dict[str, float]


@functools.lru_cache(maxsize=1)  # the next units are of the same layer
def values(layer: Layer, batch: int, dtype: str) -> Values:
    """Returns a layer's tensors in a dtype, and what they result in."""
    given = layer.tensors(batch).to(lambda t: t.to(getattr(torch, dtype)))
    return Values(given, *oracle(layer, given, "training"))


def oracle(layer: Layer, given: Tensors, which: str) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Returns what a pass results in, in float64, and how far that may be from the exact values."""
    wide = given.to(torch.Tensor.double)
    exact = computed(wide.forward() if which == "forward" else wide.step())
    if given.input.dtype != torch.float64:
        return exact, {}
    wide = wide.to(torch.abs)
    sizes = computed(wide.forward() if which == "forward" else wide.step())
    spec, taps = layer.spec, math.prod(layer.spec.kernel_size)
    positions = len(given.input) * max(math.prod(layer.size), exact["output"][0, 0].numel())
    products = {
        "output": taps * spec.inputs_per_filter + 1,
        "grad_input": taps * spec.out_channels // spec.groups,
        "grad_weight": positions,
        "grad_bias": positions,
    }
    return exact, {name: checking.bound_of_sum(products[name], sizes[name], exact[name]) for name in exact}


def computed(made: torch.Tensor | tuple[torch.Tensor, ...]) -> dict[str, torch.Tensor]:
    """Returns what a pass computed, by name."""
    return dict(zip(RESULTS, made if isinstance(made, tuple) else (made,), strict=False))


def check(layer: Layer, given: Tensors, which: str) -> tuple[float, float]:
    """Returns the errors of groupwise and of PyTorch in a pass. Raises `WrongResult` if groupwise's is too large."""
    exact, of_oracle = oracle(layer, given, which)
    found = {key: results(case, which) for key, case in cases_of(layer, given, which).items()}
    return compare(layer.name, found, exact, given.input.dtype, of_oracle)


def results(case: Case, which: str) -> dict[str, torch.Tensor]:
    """Returns what a case computes, by name."""
    with torch.inference_mode(which == "forward"), case.dispatching():
        return computed(case.call())


def compare(
    what: str,
    found: Mapping[Key, Mapping[str, torch.Tensor]],
    exact: Mapping[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
    of_oracle: Mapping[str, float] | None = None,
) -> tuple[float, float]:
    """Returns the largest error of groupwise and of PyTorch. Raises `WrongResult` if groupwise's is too large."""
    ours, pytorch = ([made for (who, _), made in found.items() if who == side] for side in ("groupwise", "pytorch"))
    return checking.check(what, ours, pytorch, {name: exact[name] for name in ours[0]}, dtype, of_oracle)


def cases_of(layer: Layer, given: Tensors, which: str) -> dict[Key, Case]:
    """Makes a case for each implementation and memory format."""
    cases = {}
    for implementation in ("pytorch", "groupwise"):
        for name in layer.memory_formats:
            formatted = given.in_format(name)
            call = formatted.forward if which == "forward" else formatted.step
            # Each timed call follows one that is not timed: so its input is in the caches, as it is behind another
            # layer, and the tensors of the other cases are not.
            cases[implementation, name] = Case(call, implementation == "groupwise", prepare=call)
    return cases


def interleave(cases: Mapping[Key, Case], which: str, effort: Effort) -> dict[Key, list[float]]:
    """Times the cases, a forward in inference mode; returns seconds."""
    with torch.inference_mode(which == "forward"):
        return interleaved(cases, effort)


def payoff(layer: Layer, given: Tensors, dense: Tensors, which: str, effort: Effort) -> list[dict[str, Any]]:
    """Returns the rows of a layer beside the dense one, which PyTorch computes."""
    cases = cases_of(layer, given, which)
    cases |= {("dense", name): case for (who, name), case in cases_of(layer, dense, which).items() if who == "pytorch"}
    groups = {"dense": 1}
    return [
        {"benchmark": "payoff", "pass": which, "implementation": who, "groups": groups.get(who, layer.groups)}
        | {"memory_format": name, "seconds": seconds}
        for (who, name), seconds in interleave(cases, which, effort).items()
    ]


def kernels(tensors: Tensors, which: str) -> list[str]:
    """Returns the kernel of each pass with groupwise enabled, as `forward planar`."""
    with groupwise.enabled(), groupwise.record_plans() as plans:
        if which == "training":
            tensors.step()
        else:
            with torch.inference_mode():
                tensors.forward()
    return [f"{plan.direction} {plan.kernel}" for plan in plans]


def fallback(runs: int = 11) -> dict[str, Any]:
    """Times a small convolution that falls back, without groupwise, with it off, and enabled, in processes in turn."""
    times: dict[str, list[float]] = {"without": [], "registered": [], "enabled": []}
    for _ in range(runs):
        for process, states in (("without", ["without"]), ("registered", ["registered", "enabled"])):
            command = [sys.executable, "-c", FALLBACK, process]
            told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            for state, found in zip(states, told.split(), strict=True):
                times[state].append(float(found))
    medians = {f"{state}_us": round(statistics.median(found), 4) for state, found in times.items()}
    return {"benchmark": "fallback", **medians, "repeats": runs}


if __name__ == "__main__":
    main()
