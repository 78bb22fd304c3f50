"""Time each layer in PyTorch and with this package's kernels, forward and training step, in both memory formats.

A training step is the forward and the gradients of input, weight and bias, in one call of autograd. All cases of one
layer are timed in turn in one process. Before that, every result is compared with float64: a layer with a wrong one is
not timed, its rows leave the record, and the run ends with status 1.

    python benchmarks/layers.py [--threads 1 2] [--batch 1 8] [--held-out] [--only resnext] [--repeats 15]
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import checking
import floor
import shapes
import torch
from measuring import RECORDS, Case, Effort, about, busy, figures, forget, interleaved, write_record
from shapes import RESULTS, Layer, Tensors

import groupwise
from groupwise import GroupwiseError

UNIT = ("benchmark", "set", "layer", "pass", "batch", "threads")
PASSES = ("forward", "training")
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


def main() -> None:
    """Measures layer by layer, and writes the rows of each as soon as they are there."""
    options = parse()
    which = "held_out" if options.held_out else "listed"
    effort = Effort(options.repeats, options.budget, max(options.repeats, Effort.most))
    refused = []
    try:
        if not options.only and not options.held_out:
            write_record(options.output, [{**fallback(), **about()}], UNIT)
        peaks = {threads: floor.measure(threads) for threads in options.threads}
        for batch, layer in itertools.product(options.batch, shapes.chosen(which, options.only)):
            facts = {"set": which, "layer": layer.name, "batch": batch, "samples": layer.samples(batch)}
            facts["busy"] = busy()
            try:
                for rows in measure(layer, batch, peaks, effort):
                    write_record(options.output, [{**facts, **row, **about()} for row in rows], UNIT)
                print(f"{layer.name}, batch {batch}: done", file=sys.stderr)
            except checking.WrongResult as error:
                refused.append(str(error))
                forget(options.output, {"set": which, "layer": layer.name, "batch": batch})
                print(f"refused: {error}", file=sys.stderr)
    except GroupwiseError as error:
        raise SystemExit(str(error)) from None
    print(f"wrote {options.output}; read it with: python benchmarks/summary.py")
    if refused:
        raise SystemExit("not timed, as their results are wrong:\n" + "\n".join(refused))


def parse() -> argparse.Namespace:
    """Parses the options."""
    parser = argparse.ArgumentParser(description="Time layers in PyTorch and with groupwise.")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    parser.add_argument("--batch", type=int, nargs="+", default=[1])
    parser.add_argument("--repeats", type=int, default=Effort.repeats, help="the least for each median")
    parser.add_argument("--budget", type=float, default=Effort.budget, help="seconds for more repeats of a quick layer")
    parser.add_argument("--only", default="", help="layers whose name or network contains this")
    parser.add_argument("--held-out", action="store_true", help="the layers that nothing is tuned to")
    parser.add_argument("--output", type=pathlib.Path, default=RECORDS / "layers.jsonl")
    return parser.parse_args()


def measure(layer: Layer, batch: int, peaks: dict[int, floor.Peaks], effort: Effort) -> Iterator[list[dict[str, Any]]]:
    """Yields the rows of one layer: a list for each number of threads and each pass."""
    given = layer.tensors(batch)
    exact = dict(zip(RESULTS, given.to(torch.Tensor.double).step(), strict=True))
    dense = layer.tensors(batch, groups=1) if layer.name in shapes.PAYOFF else None
    for threads, peak in peaks.items():
        torch.set_num_threads(threads)
        errors = check(layer, given, exact)
        for which in PASSES:
            floor_ms = round(peak.floor_ms(layer.cost(batch), which == "training"), 6)
            rows = []
            for (implementation, name), seconds in interleave(cases_of(layer, given, which), which, effort).items():
                row = {"benchmark": "layer", "pass": which, "implementation": implementation, "memory_format": name}
                row |= {**figures(seconds), "floor_ms": floor_ms}
                if implementation == "groupwise":
                    row["kernels"] = kernels(given.in_format(name), which)
                    row["error"], row["error_of_pytorch"] = (float(f"{error:.3g}") for error in errors)
                rows.append(row)
            yield rows
            if dense is not None:
                yield payoff(layer, given, dense, which, effort)


def check(layer: Layer, given: Tensors, exact: dict[str, torch.Tensor]) -> tuple[float, float]:
    """Returns the errors of groupwise and of PyTorch. Raises `WrongResult` if groupwise's is too large."""
    results: dict[bool, list[dict[str, torch.Tensor]]] = {True: [], False: []}
    for name in layer.memory_formats:
        tensors = given.in_format(name)
        for ours, found in results.items():
            with Case(tensors.step, ours).dispatching():
                with torch.inference_mode():
                    output = tensors.forward()
                found.append(dict(zip(RESULTS, tensors.step(), strict=True)) | {"inference": output})
    return checking.check(layer.name, results[True], results[False], exact | {"inference": exact["output"]})


def cases_of(layer: Layer, given: Tensors, which: str) -> dict[tuple[str, str], Case]:
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


def interleave(cases: dict[tuple[str, str], Case], which: str, effort: Effort) -> dict[tuple[str, str], list[float]]:
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
        | {"memory_format": name, **figures(seconds)}
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
