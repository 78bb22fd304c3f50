"""`tune`: measures the kernels of every convolution that a model runs, before the model is used."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import busy
from groupwise.draw.text import lines as text
from groupwise.errors import GroupwiseError
from groupwise.kernels import dispatch, tuning
from groupwise.kernels.plan import Plan, record_plans
from groupwise.profile.measuring import UNKNOWN, Interference, Meter
from groupwise.profile.progress import Progress, shown
from groupwise.profile.timing import not_measured
from groupwise.profile.workload import Workload
from groupwise.spec.legible import Printed

# A model that takes another path each time it runs never ends to meet new convolutions.
_MOST_RUNS = 5
_DISTURBED = "the kernels below may not be the fastest ones. groupwise.forget() clears the measurements"


@dataclass(frozen=True)
class Tuned(Printed):
    """The kernels that a model's convolutions run after they were measured. `print()` it for the table.

    - `plans`: one for each convolution or gradient that differs from the others, in the order in which they first ran
    - `runs`: how often each of them ran in one run of the model
    - `measured`: how many were measured now; the others were known, or only one kernel can run them
    - `seconds`: how long measuring took
    - `threads`: for how many threads the results hold
    - `path`: the file that keeps the results for later processes; None if there is none
    - `interference`: what other processes took meanwhile
    """

    plans: tuple[Plan, ...]
    runs: tuple[int, ...]
    measured: int
    seconds: float
    threads: int
    path: str | None
    interference: Interference = UNKNOWN

    def __str__(self) -> str:
        table = [("pass", "convolution", "groups", "kernel", "input", "batch", "runs", "chosen", "speedup", "source")]
        for plan, count in zip(self.plans, self.runs, strict=True):
            shape = plan.shape
            channels = f"{shape['in_channels']} → {shape['out_channels']}"
            sizes = (numbers.product(shape["kernel_size"]), numbers.product(shape["input_size"]), str(shape["batch"]))
            # No gain is claimed of what a busy machine disturbed.
            disturbed = self.interference.busy and plan.source == "measured"
            told = (plan.kernel, "" if plan.speedup is None or disturbed else f"{plan.speedup:.2f}x", plan.source)
            table.append((plan.direction, channels, str(shape["groups"]), *sizes, str(count), *told))
        ours = sum(plan.kernel != "pytorch" for plan in self.plans)
        found = [
            f"{phrases.plural(len(self.plans), 'convolution')}, {self.measured} measured now in {self.seconds:.1f} s "
            f"with {phrases.plural(self.threads, 'thread')}; "
            f"groupwise's kernels run {ours}, PyTorch's {len(self.plans) - ours}.",
            f"The measurements are in {self.path}." if self.path else "The measurements end with this process.",
        ]
        if not self.plans:
            return "The model runs no convolution, so there is nothing to measure."
        first = busy.paragraph(self.interference.to_dict(), _DISTURBED) if self.measured else []
        return "\n".join([*first, *text.rows(table, left=(0, 7, 9)), *found])

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        rows = [{**plan.to_dict(), "runs": count} for plan, count in zip(self.plans, self.runs, strict=True)]
        facts = {"measured": self.measured, "seconds": self.seconds, "threads": self.threads, "path": self.path}
        return {"plans": rows, **facts, "interference": self.interference.to_dict()}


def tune(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    calls: int = tuning.CALLS,
    progress: bool | Progress | None = None,
) -> Tuned:
    """Measures the kernels of every convolution of `model(*inputs, **kwargs)` that was not measured before.

    Results choose kernels in this process from now on and in later ones, wherever `enable` is not told `tune=False`.
    They hold for these shapes and this number of threads. The model stays as it is, except that it runs.

    - `train`: also measures the gradients of every parameter and input that requires one
    - `calls`: as `enable` takes it
    - `progress`: True shows how far it is, as the command line does; a function is called with the numbers of
      convolutions that are measured and that are to be

    Raises `GroupwiseError` where the kernels cannot run, for a model with tensors on other devices, and while
    `torch.use_deterministic_algorithms` is on.

    Examples:
        >>> import torch
        >>> tune(torch.nn.Conv2d(8, 8, 3), torch.randn(1, 8, 9, 9)).plans[0].source
        'measured'
    """
    workload = Workload(model, inputs, dict(kwargs or {}), train)
    if reason := not_measured({tensor.device.type for tensor in workload.tensors()}):
        raise GroupwiseError(f"groupwise's kernels cannot be measured: {reason}")
    if torch.are_deterministic_algorithms_enabled():
        raise GroupwiseError(
            "torch.use_deterministic_algorithms(True) is on, which keeps groupwise from choosing by time; turn it off"
        )
    before, meter = tuning.measured(), Meter()
    with workload.unchanged() as twin:
        with dispatch.measuring_nothing(), dispatch.forced(True):
            known = _run(twin)
        unknown = [plan for plan in known if plan.source not in ("sole", "measured")]
        with (
            dispatch.enabled(tune=True, calls=calls, seconds=math.inf),
            dispatch.forced(True),
            _watched(len(_distinct(unknown)), progress),
        ):
            path, plans = dispatch.kept_in(), known
            for _ in range(_MOST_RUNS):
                seen = tuning.measured()["requests"]
                plans = _run(twin)
                if tuning.measured()["requests"] == seen:
                    break
    after, interference = tuning.measured(), meter.read()
    runs = _distinct(plans)
    first = {_key(plan): plan for plan in reversed(plans)}
    return Tuned(
        plans=tuple(first[key] for key in runs),
        runs=tuple(runs.values()),
        measured=after["requests"] - before["requests"],
        seconds=after["seconds"] - before["seconds"],
        threads=torch.get_num_threads(),
        path=None if path is None or after["lost"] > before["lost"] else str(path),
        interference=interference,
    )


def _run(workload: Workload) -> list[Plan]:
    with record_plans() as plans:
        workload.execute()
    return plans


def _key(plan: Plan) -> tuple[Any, ...]:
    return (plan.direction, plan.memory_format, *(str(value) for value in plan.shape.values()))


def _distinct(plans: list[Plan]) -> dict[tuple[Any, ...], int]:
    """Returns how often each of the plans' convolutions ran, in the order of their first runs."""
    counts: dict[tuple[Any, ...], int] = {}
    for key in map(_key, plans):
        counts[key] = counts.get(key, 0) + 1
    return counts


@contextmanager
def _watched(total: int, progress: bool | Progress | None) -> Iterator[None]:
    """Tells `progress` from another thread how many convolutions are measured: PyTorch runs them without Python."""
    if not progress:
        yield
        return
    before, done = tuning.measured()["requests"], threading.Event()

    with shown(progress, "measuring", "convolution") as tell:

        def watch() -> None:
            while not done.wait(0.1):
                tell(min(tuning.measured()["requests"] - before, total), total)

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
        tell(total, total)
