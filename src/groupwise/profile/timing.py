"""Timing: a workload run by PyTorch's kernels and by groupwise's, in turn."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from groupwise.errors import GroupwiseError
from groupwise.kernels import dispatch, native
from groupwise.profile import record
from groupwise.profile.progress import Progress, shown
from groupwise.profile.record import ConvCall
from groupwise.profile.workload import Workload

# Rounds that warm up and do not count.
_WARM = 2


def not_measured(devices: set[str]) -> str | None:
    """Why groupwise's kernels cannot be measured on a model with tensors on these kinds of device; None if they can."""
    if elsewhere := ", ".join(sorted(devices - {"cpu"})):
        return f"they compute on the CPU, and the model has tensors on {elsewhere}"
    problem = native.status().problem
    return f"{problem}; `groupwise doctor` says how to have them" if problem else None


@dataclass
class Timed:
    """The runs of a workload by one library's kernels.

    - `runs`: those that were recorded; `whole`: the seconds of as many runs that were not
    """

    runs: list[record.Run] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)

    @property
    def calls(self) -> list[list[ConvCall]]:
        """The convolutions of each recorded run."""
        return [run.calls for run in self.runs]

    @property
    def model_ms(self) -> float:
        """The median time of a run with nothing recorded."""
        return statistics.median(self.whole) * 1e3

    @property
    def recorded_ms(self) -> float:
        """The median time of a recorded run."""
        return statistics.median(run.seconds for run in self.runs) * 1e3


def measure(
    workload: Workload, repeats: int, libraries: Sequence[bool], progress: bool | Progress | None
) -> dict[bool, Timed]:
    """Time a workload by the kernels of each library, in turn, so that a slow moment of the machine affects both alike.

    `libraries` are False for PyTorch's kernels and True for groupwise's. The first two rounds warm up and do not count.
    """
    timed = {ours: Timed() for ours in libraries}
    with shown(progress, "measuring", "run") as tell:
        for number in range(-_WARM, repeats):
            # Each library begins every other round: what runs first leaves the caches to what runs next.
            for ours in libraries if number % 2 else reversed(libraries):
                with dispatching(ours):
                    run = record.run(workload)
                    seconds = record.time_run(workload)
                if number >= 0:
                    timed[ours].runs.append(run)
                    timed[ours].whole.append(seconds)
            tell(number + _WARM + 1, repeats + _WARM)
    return timed


def dispatching(ours: bool) -> contextlib.AbstractContextManager[None]:
    """Within the block this thread's convolutions use groupwise's kernels, or PyTorch's, whatever is enabled.

    What PyTorch's kernels may harm the process by uses groupwise's all the same.
    """
    if not ours:
        return dispatch.by_pytorch()
    # Where groupwise's kernels cannot run, nothing dispatches to them.
    return contextlib.nullcontext() if native.status().problem else dispatch.forced(True)


def check_same(runs: Sequence[Sequence[ConvCall]]) -> None:
    """Refuses runs that did not execute the same convolutions."""
    costs = [[call.cost for call in calls] for calls in runs]
    if any(one != costs[0] for one in costs):
        raise GroupwiseError("the model executes other convolutions from one run to the next, so it has no one report")
