"""Which engine runs a layer: each is timed on the layer's own input, in turn."""

from __future__ import annotations

import math
import os
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.kernels import tuning
from groupwise.rewrite.engines import (
    UNMEASURED,
    UNMEASURED_LOW,
    Engine,
    Maybe,
    Work,
    entering,
    expected_speeds,
    hazard_of,
    kernel_of,
)
from groupwise.rewrite.low_engines import engines_of
from groupwise.rewrite.plan import NO_TIME
from groupwise.rewrite.recipe import Call
from groupwise.rewrite.samples import cut, of_samples

# What is made ready by default is timed for so many seconds in all.
SECONDS = 4.5
# A call is timed on as many samples as take about so many seconds, if time is limited.
CALL = 1e-3
# Engines of one layer are timed in so many rounds as take about BUDGET seconds at their shortest, at least and at most
# so many. On a machine that does other work too rounds take longer, and end after PATIENCE times as long.
BUDGET, LEAST, MOST, PATIENCE = 0.02, 3, 40, 10
# A kernel of which records tell that it takes so many times as long as another is not tried, if time is limited.
SLOWER = 1.25
# An engine must be so much faster than one that comes before it in the table.
MARGIN = 0.97
# An engine that takes so many times as long as the fastest in each of its first SURE calls is measured no more. One
# call alone may have been interrupted. Of calls of LONG seconds or more the first counts too, which packs and plans.
HOPELESS, SURE = 3, 2
LONG, HOPELESS_IF_LONG = 5e-4, 1.2
# An engine whose values are farther from PyTorch's, as a fraction of the largest value, is wrong and not imprecise.
WRONG = 1e-3
# Two roundings to bfloat16, and room.
WRONG_LOW = 0.03
# So many numbers are compared at a time.
COMPARED = 1 << 18


@dataclass(frozen=True)
class Choice:
    """The engine of a layer.

    - `ms`: the shortest time of each engine that was measured
    - `samples`: how many samples these calls had, if fewer than the example
    - `refused`: why an engine cannot run the layer
    - `kernel`: the kernel of groupwise that runs; empty for another engine
    """

    engine: Engine
    reason: str
    ms: Mapping[str, float] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    kernel: str = ""
    samples: int | None = None


class Deadline:
    """Until when engines are timed: for so many seconds from now on, which may be `math.inf`."""

    def __init__(self, seconds: float) -> None:
        self._ends = time.perf_counter() + seconds

    @property
    def is_limited(self) -> bool:
        """Whether there is an end."""
        return not math.isinf(self._ends)

    @property
    def is_over(self) -> bool:
        """Whether it has come."""
        return time.perf_counter() >= self._ends

    def part(self, share: float) -> Deadline:
        """Returns the deadline that leaves the rest of the time to others."""
        return Deadline(share * (self._ends - time.perf_counter()))


def seconds_of(tune: Any) -> float:
    """Returns for how long engines are timed, for a `tune` that a user gave; 0 if they are not."""
    if tune is not None and not isinstance(tune, bool):
        raise GroupwiseError(f"tune={tune!r} is not known; choose one of: True, False, None")
    if tune is None:
        return {"0": 0.0, "1": math.inf}.get(os.environ.get(tuning.VARIABLE, ""), SECONDS)
    return math.inf if tune else 0.0


def choose(
    work: Work, weight: torch.Tensor, bias: Maybe, given: Sequence[torch.Tensor], deadline: Deadline | None
) -> Choice:
    """Chooses for a layer and what it reads: its input, and its residual if it has one.

    Times nothing after the deadline, nor without one.
    """
    if deadline is None or deadline.is_over:
        return _unmeasured(work, "" if deadline is None else NO_TIME)
    whole, (work, given) = work, _fewer(work, weight, bias, given, deadline)
    is_cut = work != whole
    slow = _slow(whole) if deadline.is_limited else ()
    able: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    kernels: dict[str, str] = {}
    for row in engines_of(work):
        # The planner may choose another kernel for the whole example: each kernel has a row of its own.
        if (is_cut and row.name == "groupwise" and not row.kernel) or row.kernel in slow:
            continue
        engine = entering(row, work) if work.enters else row
        reason = engine.refuse(work) or (engine.refuse(whole) if is_cut else None)
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
    exact = able["pytorch"].make(work, weight, bias)(*_copies(given))
    wrong = (WRONG_LOW if exact.dtype == torch.bfloat16 else WRONG) * _largest(exact)
    calls: dict[str, Call] = {}
    first: dict[str, float] = {}
    outputs: dict[tuple[int, ...], torch.Tensor] = {}
    for name, engine in able.items():
        if hazard and name == "pytorch" and len(able) > 1:
            # A kernel of groupwise would compute it. Those that are an engine also compute what follows the layer.
            refused[name] = hazard
            continue
        # A weight that is packed for an engine that is wrong is dropped before the next engine packs its own.
        recipe = engine.make(work, weight, bias)
        made, first[name] = _tried(recipe.call, given, exact, wrong)
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
    seconds = time_calls(calls, given, first)
    best = fastest(seconds)
    ms = {name: round(min(found) * 1e3, 4) for name, found in seconds.items()}
    samples = work.source[0] if is_cut else None
    return Choice(able[best], reason_of(seconds, best, samples), ms, refused, kernels[best], samples)


def _slow(work: Work) -> list[str]:
    """Returns the kernels that are expected to take `SLOWER` times as long as PyTorch's, or as another one."""
    speeds = expected_speeds(work)
    best = max(1.0, *speeds.values()) if speeds else 1.0
    return [kernel for kernel, speed in speeds.items() if SLOWER * speed < best]


def _unmeasured(work: Work, reason: str) -> Choice:
    """Returns the engine of a layer of which nothing is timed, for a reason if there is one."""
    able: dict[str, Engine] = {}
    refused: dict[str, str] = {}
    for row in engines_of(work):
        if not row.kernel:
            engine = entering(row, work) if work.enters else row
            reason_not = engine.refuse(work)
            if reason_not is None:
                able[engine.label] = engine
            elif engine.name != "matmul":
                refused[engine.label] = reason_not
    known = UNMEASURED_LOW if work.dtype == torch.bfloat16 else UNMEASURED
    name = next(name for name in known if name in able)
    expected = "the planner takes it" if name == "groupwise" else hazard_of(work)
    return Choice(able[name], "; ".join(filter(None, (expected, reason))), {}, refused, kernel_of(able[name], work))


def _fewer(
    work: Work, weight: torch.Tensor, bias: Maybe, given: Sequence[torch.Tensor], deadline: Deadline
) -> tuple[Work, Sequence[torch.Tensor]]:
    """Returns the work on as many samples as PyTorch's engine computes in about `CALL`, if time is limited."""
    samples, few = work.source[0], max(1, torch.get_num_threads())
    if not deadline.is_limited or len(work.source) < 2 or samples <= few:
        return work, given
    part, reads = _first(work, given, few)
    call = next(row for row in engines_of(work) if row.name == "pytorch").make(part, weight, bias)
    took = math.inf
    # The first call may compile a kernel.
    for _ in range(2):
        operands = _copies(reads)
        start = time.perf_counter()
        call(*operands)
        took = min(took, time.perf_counter() - start)
        if took * samples <= CALL * few:
            return work, given
    return _first(work, given, few * math.ceil(CALL / took))


def _first(work: Work, given: Sequence[torch.Tensor], samples: int) -> tuple[Work, Sequence[torch.Tensor]]:
    """Returns the work on the first samples, and what that reads."""
    whole = work.source[0]
    if samples >= whole:
        return work, given
    part = replace(work, source=(samples, *work.source[1:]), result=(samples, *work.result[1:]))
    return part, cut(given, whole, samples)


def _copies(given: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Returns the tensors, of which a residual may be overwritten."""
    return (given[0], *(tensor.clone() for tensor in given[1:]))


def problem_of(call: Call, given: Sequence[torch.Tensor], exact: torch.Tensor) -> tuple[str | None, float]:
    """Returns why a call does not compute what it should, or None; and the seconds that it took."""
    made, seconds = _tried(call, given, exact, WRONG * _largest(exact))
    return made if isinstance(made, str) else None, seconds


def _tried(
    call: Call, given: Sequence[torch.Tensor], exact: torch.Tensor, wrong: float
) -> tuple[torch.Tensor | str, float]:
    """Returns what a call computes, or why that is not what it should compute, within `wrong`; and its seconds."""
    operands = _copies(given)
    start = time.perf_counter()
    try:
        made: torch.Tensor = call(*operands)
    except RuntimeError as error:
        return f"it fails: {str(error).splitlines()[0][:80]}", math.inf
    seconds = time.perf_counter() - start
    if made.shape != exact.shape or not _is_close(made, exact, wrong):
        return "its values are wrong", math.inf
    return made, seconds


def _largest(exact: torch.Tensor) -> float:
    """Returns the largest finite value, by its size."""
    return max((part.nan_to_num(0, 0, 0).abs_().max().item() for part in _parts(exact)), default=0.0)


def _is_close(made: torch.Tensor, exact: torch.Tensor, wrong: float) -> bool:
    # Where there are infinities or NaN, the difference has NaN, and only the slow comparison tells.
    return all(
        torch.sub(one, other).abs_().max().item() <= wrong
        or torch.allclose(one, other, rtol=0, atol=wrong, equal_nan=True)
        for one, other in zip(_parts(made), _parts(exact), strict=True)
    )


def _parts(tensor: torch.Tensor) -> Sequence[torch.Tensor]:
    """Returns a few samples at a time: each comparison makes tensors of the size of what it compares."""
    if not tensor.numel():
        return ()
    if tensor.dim() == 0:
        return (tensor,)
    return torch.split(tensor, max(1, COMPARED * len(tensor) // tensor.numel()))


def fastest(seconds: Mapping[str, Sequence[float]]) -> str:
    """Returns the engine that is faster than all before it: at its best, by a margin, and in most rounds."""
    best, *others = seconds
    for name in others:
        shorter = min(seconds[name]) < min(seconds[best]) * MARGIN
        if shorter and statistics.median(seconds[name]) < statistics.median(seconds[best]):
            best = name
    return best


def reason_of(seconds: Mapping[str, Sequence[float]], best: str, samples: int | None = None) -> str:
    """Returns the shortest time of each engine, and why one that is shorter than the best's does not count."""
    least = {name: min(found) for name, found in seconds.items()}
    others = []
    for name, found in least.items():
        why = ""
        if found < least[best]:
            why = " (slower at its median)" if found < least[best] * MARGIN else " (too close to tell)"
        if name != best:
            others.append(f"{name} {found * 1e3:.3f}{why}")
    return ", ".join([f"{least[best] * 1e3:.3f} ms{of_samples(samples)}", *others])


def time_calls(
    calls: dict[str, Call],
    given: Sequence[torch.Tensor],
    first: Mapping[str, float] | None = None,
    budget: float = BUDGET,
) -> dict[str, list[float]]:
    """Returns the seconds of each call in each round. Takes out of `calls` those that are hopeless.

    `first` has the seconds of the call before these, if it is known.
    """
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
        if number == 1 and first and min(least.values()) >= LONG:
            least = {name: min(took, first[name]) for name, took in least.items()}
            _drop(calls, least, HOPELESS_IF_LONG)
        if number == SURE:
            _drop(calls, least, HOPELESS)
        # The last one that is left is the fastest.
        enough = number >= LEAST and (number * sum(least.values()) > budget or spent > PATIENCE * budget)
        if enough or len(calls) == 1 < len(seconds):
            break
    return seconds


def _drop(calls: dict[str, Call], least: dict[str, float], times: float) -> None:
    """Takes out the calls that take so many times as long as the fastest. With each goes the weight that it packed."""
    fastest = min(least.values())
    for name in [name for name in calls if least[name] > times * fastest]:
        del calls[name], least[name]
