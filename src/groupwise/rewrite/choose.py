"""Which engine runs a layer: each is timed on the layer's own input, in turn."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.kernels import tuning
from groupwise.rewrite.engines import UNMEASURED, UNMEASURED_LOW, Engine, Maybe, Work, entering, hazard_of, kernel_of
from groupwise.rewrite.low_engines import engines_of
from groupwise.rewrite.recipe import Call

# Engines of one layer are timed in so many rounds as take about BUDGET seconds at their shortest, at least and at most
# so many. On a machine that does other work too rounds take longer, and end after PATIENCE times as long.
BUDGET, LEAST, MOST, PATIENCE = 0.02, 3, 40, 10
# An engine must be so much faster than one that comes before it in the table.
MARGIN = 0.97
# An engine that takes so many times as long as the fastest in each of the first SURE rounds is measured no more. One
# round alone may have been interrupted.
HOPELESS, SURE = 3, 2
# An engine whose values are farther from PyTorch's, as a fraction of the largest value, is wrong and not imprecise.
WRONG = 1e-3
# Two roundings to bfloat16, and room.
WRONG_LOW = 0.03
# So many numbers are compared at a time.
COMPARED = 1 << 20


@dataclass(frozen=True)
class Choice:
    """The engine of a layer.

    - `ms`: the shortest time of each engine that was measured
    - `refused`: why an engine cannot run the layer
    - `kernel`: the kernel of groupwise that runs; empty for another engine
    """

    engine: Engine
    reason: str
    ms: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    kernel: str = ""


def measures(tune: Any) -> bool:
    """Tells whether engines are timed, for a `tune` that a user gave."""
    if tune is not None and not isinstance(tune, bool):
        raise GroupwiseError(f"tune={tune!r} is not known; choose one of: True, False, None")
    return os.environ.get(tuning.VARIABLE) != "0" if tune is None else tune


def choose(work: Work, weight: torch.Tensor, bias: Maybe, given: Sequence[torch.Tensor], measure: bool) -> Choice:
    """Chooses for a layer and what it reads: its input, and its residual if it has one."""
    able: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    kernels: dict[str, str] = {}
    for row in engines_of(work):
        if row.kernel and not measure:
            continue
        engine = entering(row, work) if work.enters else row
        reason = engine.refuse(work)
        if reason is None:
            kernel = kernel_of(engine, work)
            # The planner may have chosen it.
            if not kernel or kernel not in kernels.values():
                able[engine.label] = engine
                kernels[engine.label] = kernel
        elif engine.name != "matmul" and not engine.kernel:
            refused[engine.label] = reason
    hazard = hazard_of(work)
    if any(kernels.values()):
        # Some kernel runs the layer, whatever the planner expects of it.
        refused.pop("groupwise", None)
    if not measure:
        known = UNMEASURED_LOW if work.dtype == torch.bfloat16 else UNMEASURED
        name = next(name for name in known if name in able)
        reason = "the planner takes it" if name == "groupwise" else hazard
        return Choice(able[name], reason, {}, refused, kernels[name])
    exact = able["pytorch"].make(work, weight, bias)(*_copies(given))
    calls: dict[str, Call] = {}
    outputs: dict[tuple[int, ...], torch.Tensor] = {}
    for name, engine in able.items():
        if hazard and name == "pytorch" and len(able) > 1:
            # A kernel of groupwise would compute it. Those that are an engine also compute what follows the layer.
            refused[name] = hazard
            continue
        # A weight that is packed for an engine that is wrong is dropped before the next engine packs its own.
        recipe = engine.make(work, weight, bias)
        made = _tried(recipe.call, given, exact)
        if isinstance(made, str):
            refused[name] = made
            continue
        # In the network, too, an engine gets memory that is there already, or asks for some at each call. Engines
        # that write in one format share the memory.
        calls[name] = recipe.again(outputs.setdefault(made.stride(), made))
    del exact
    if len(calls) <= 1:
        # Where not even PyTorch's runs a second time, for want of memory, the network says so itself.
        name = next(iter(calls), "pytorch")
        return Choice(able[name], hazard if name == "pytorch" else "", {}, refused, kernels[name])
    seconds = time_calls(calls, given)
    best = fastest(seconds)
    ms = {name: round(min(found) * 1e3, 4) for name, found in seconds.items()}
    return Choice(able[best], reason_of(seconds, best), ms, refused, kernels[best])


def _copies(given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns the tensors, of which a residual may be overwritten."""
    return (given[0], *(tensor.clone() for tensor in given[1:]))


def problem_of(call: Call, given: Sequence[torch.Tensor], exact: torch.Tensor) -> str | None:
    """Returns why a call does not compute what it should, or None."""
    made = _tried(call, given, exact)
    return made if isinstance(made, str) else None


def _tried(call: Call, given: Sequence[torch.Tensor], exact: torch.Tensor) -> torch.Tensor | str:
    """Returns what a call computes, or why that is not what it should compute."""
    try:
        made: torch.Tensor = call(*_copies(given))
    except RuntimeError as error:
        return f"it fails: {str(error).splitlines()[0][:80]}"
    if made.shape != exact.shape or not _close(made, exact):
        return "its values are wrong"
    return made


def _close(made: torch.Tensor, exact: torch.Tensor) -> bool:
    """Compares a few samples at a time: each comparison makes several tensors of the size of what it compares."""
    if not exact.numel():
        return True
    samples = max(1, COMPARED * len(exact) // exact.numel())
    pairs = list(zip(torch.split(made, samples), torch.split(exact, samples), strict=True))
    largest = max(one.nan_to_num(0, 0, 0).abs().max().item() for _, one in pairs)
    wrong = (WRONG_LOW if exact.dtype == torch.bfloat16 else WRONG) * largest
    return all(torch.allclose(*pair, rtol=0, atol=wrong, equal_nan=True) for pair in pairs)


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """Returns the engine that is faster than all before it: at its best, by a margin, and in most rounds."""
    best, *others = seconds
    for name in others:
        shorter = min(seconds[name]) < min(seconds[best]) * MARGIN
        if shorter and statistics.median(seconds[name]) < statistics.median(seconds[best]):
            best = name
    return best


def reason_of(seconds: Mapping[str, Sequence[float]], best: str) -> str:
    """Returns the shortest time of each engine, and why one that is shorter than the best's does not count."""
    least = {name: min(found) for name, found in seconds.items()}
    others = []
    for name, found in least.items():
        why = ""
        if found < least[best]:
            why = " (slower at its median)" if found < least[best] * MARGIN else " (too close to tell)"
        if name != best:
            others.append(f"{name} {found * 1e3:.3f}{why}")
    return ", ".join([f"{least[best] * 1e3:.3f} ms", *others])


def time_calls(calls: dict[str, Call], given: Sequence[torch.Tensor], budget: float = BUDGET) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round. Takes out of `calls` those that are hopeless."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    tensors, spent = _copies(given), 0.0
    for number in range(1, MOST + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(*tensors)
            elapsed = time.perf_counter() - start
            seconds[name].append(elapsed)
            spent += elapsed
        least = {name: min(seconds[name]) for name in calls}
        if number == SURE:
            for name in [name for name in calls if least[name] > HOPELESS * min(least.values())]:
                # With it goes the weight that it packed.
                del calls[name]
        if number >= LEAST and (number * sum(least.values()) > budget or spent > PATIENCE * budget):
            break
    return seconds
