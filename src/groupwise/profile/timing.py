"""Running a model by PyTorch's kernels and by groupwise's, in turn, with the time that each run took."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groupwise.errors import GroupwiseError
from groupwise.kernels import dispatch, native
from groupwise.profile import count as counting
from groupwise.profile.record import ConvCall


def not_measured(devices: set[str]) -> str | None:
    """Why groupwise's kernels cannot be measured on a model with tensors on these kinds of device; None if they can."""
    if elsewhere := ", ".join(sorted(devices - {"cpu"})):
        return f"they compute on the CPU, and the model has tensors on {elsewhere}"
    problem = native.status().problem
    return f"{problem}; `groupwise doctor` says how to have them" if problem else None


@dataclass
class Timed:
    """The calls of each recorded run, the seconds that it took, and the seconds of as many runs that were not."""

    calls: list[list[ConvCall]] = field(default_factory=list)
    recorded: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    @property
    def model_ms(self) -> float:
        """The median of the latter."""
        return statistics.median(self.whole) * 1e3

    @property
    def recorded_ms(self) -> float:
        """The median of the former."""
        return statistics.median(self.recorded) * 1e3


def measure(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    backward: bool,
    repeats: int,
    routes: Sequence[bool],
    progress: bool,
) -> dict[bool, Timed]:
    """Runs without and with groupwise's kernels in turn, so that a slow moment of the machine falls on both alike."""
    timed = {route: Timed() for route in routes}
    for number in _bar(range(-2, repeats), progress):
        # Each begins every other round: what runs first leaves the caches to what runs next.
        for route in routes if number % 2 else reversed(routes):
            here = timed[route]
            with routing_of(route):
                recorded = counting.run(model, inputs, keywords, backward)
                seconds = counting.time_run(model, inputs, keywords, backward)
            if number >= 0:
                here.calls.append(recorded.calls)
                here.recorded.append(recorded.seconds)
                here.whole.append(seconds)
    return timed


def routing_of(route: bool) -> contextlib.AbstractContextManager[None]:
    """Within it this thread's convolutions take groupwise's kernels, or PyTorch's whatever is enabled."""
    # Where the kernels cannot run there is no route to leave either.
    return contextlib.nullcontext() if native.status().problem else dispatch.forced(route)


def check_same(runs: Sequence[Sequence[ConvCall]]) -> None:
    """Refuse runs that did not execute the same convolutions."""
    costs = [[call.cost for call in calls] for calls in runs]
    if any(one != costs[0] for one in costs):
        raise GroupwiseError("the model executes other convolutions from one run to the next, so it has no one report")


def _bar(numbers: Iterable[int], progress: bool) -> Iterable[int]:
    if not progress:
        return numbers
    try:
        from tqdm import tqdm
    except ImportError:
        return numbers
    # disable=None: no bar where stderr is no terminal.
    return tqdm(numbers, desc="measuring", unit="run", leave=False, disable=None)
