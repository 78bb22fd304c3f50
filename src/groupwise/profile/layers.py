"""Layers of a model before and after `optimize`: each with all that follows it until the next layer."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from groupwise.profile.hooks import hooked
from groupwise.profile.timing import dispatching
from groupwise.rewrite import Optimized, Step
from groupwise.rewrite.timing import step_times

_LAYERS = ("convolution", "linear")
_CONVOLUTIONS = {torch.ops.aten.convolution.default}
_PRODUCTS = {torch.ops.aten.linear.default, torch.ops.aten.addmm.default, torch.ops.aten.mm.default}


@dataclass(frozen=True)
class LayerTimes:
    """A layer and what follows it until the next one. Times are medians, in milliseconds.

    Layers that are one step of the optimized network, as in squeeze and excitation or a chain, are one row.
    """

    name: str
    """The module, the first of several; empty for what runs before the first layer."""
    kind: str
    """`convolution`, `linear`, or nothing before the first layer."""
    groups: int | None
    fused: tuple[str, ...]
    """What the optimized layer computes beside itself."""
    engine: str | None
    """Which engine runs the layer; None where the optimized network has no such layer."""
    kernel: str | None
    """The kernel of groupwise that computes it, if one does."""
    contiguous_ms: float
    channels_last_ms: float
    optimized_ms: float | None

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the model in its better memory format it is."""
        return min(self.contiguous_ms, self.channels_last_ms) / self.optimized_ms if self.optimized_ms else None

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types, and the speedup."""
        return {**asdict(self), "fused": list(self.fused), "speedup": self.speedup}


@dataclass
class _Row:
    """A layer of one run, or what comes before the first; `seconds` include what follows it."""

    name: str = ""
    kind: str = ""
    groups: int | None = None
    seconds: float = 0.0
    step: Step | None = None


def layer_times(
    model: torch.nn.Module,
    last: torch.nn.Module,
    network: Optimized,
    given: tuple[Sequence[Any], Sequence[Any]],
    repeats: int,
    kwargs: Mapping[str, Any] | None = None,
) -> tuple[LayerTimes, ...]:
    """Times the layers of a model, of its channels_last form, and of the network that was made of it, in turn.

    `given` has the inputs, contiguous and channels_last. Returns nothing if the two forms run different layers.
    """
    keywords = dict(kwargs or {})
    found: list[list[list[_Row]]] = [[], [], []]
    runs: list[Callable[[], list[_Row]]] = [
        lambda: _eager(model, given[0], keywords),
        lambda: _eager(last, given[1], keywords),
        lambda: _optimized(network, given[0], keywords),
    ]
    # Under inference mode composite operators would reach the clock whole.
    with torch.no_grad(), dispatching(False):
        for number in range(-1, repeats):
            for run, rows in zip(runs, found, strict=True):
                made = run()
                if number >= 0:
                    rows.append(made)
    contiguous, channels_last, optimized = map(_medians, found)
    if [row.name for row in contiguous] != [row.name for row in channels_last]:
        return ()
    # Layers that are one step of the network are one row.
    first = {layer: row.name for row in optimized if row.step for layer in row.step.layers[1:]}
    contiguous, channels_last = _merged(contiguous, first), _merged(channels_last, first)
    return tuple(_joined(*rows) for rows in zip(contiguous, channels_last, _placed(contiguous, optimized), strict=True))


def _merged(rows: Sequence[_Row], first: Mapping[str, str]) -> list[_Row]:
    """Returns the rows without those of layers that have a first one, to which their times are added."""
    found: list[_Row] = []
    last: dict[str, _Row] = {}
    for row in rows:
        before = last.get(first[row.name]) if row.name in first else None
        if before is not None:
            before.seconds += row.seconds
            continue
        found.append(row)
        last[row.name] = row
    return found


def _joined(one: _Row, other: _Row, after: _Row | None) -> LayerTimes:
    step = None if after is None else after.step
    return LayerTimes(
        name=one.name,
        kind=one.kind,
        groups=one.groups,
        fused=() if step is None else step.fused,
        engine=None if step is None else step.engine,
        kernel=None if step is None else step.kernel or (step.kind if step.layers else None),
        contiguous_ms=one.seconds * 1e3,
        channels_last_ms=other.seconds * 1e3,
        optimized_ms=None if after is None else after.seconds * 1e3,
    )


def _placed(model: Sequence[_Row], network: Sequence[_Row]) -> list[_Row | None]:
    """Returns for each row of the model the network's row of the same layer.

    A layer that the model does not run adds its time to the row before it, so that no time is lost.
    """
    free: dict[str, list[int]] = {}
    for place, row in enumerate(model):
        free.setdefault(row.name, []).append(place)
    found: list[_Row | None] = [None] * len(model)
    before: _Row | None = None
    for row in network:
        # A part of the model that is one operator has a step with the operator's name below the part's.
        name = row.name if free.get(row.name) else row.name.rpartition(".")[0]
        if free.get(name):
            found[free[name].pop(0)] = before = row
        elif before is not None:
            before.seconds += row.seconds
    return found


def _medians(runs: Sequence[Sequence[_Row]]) -> list[_Row]:
    """Returns the rows of the last run, with medians; rows that differ from run to run have no median."""
    rows = list(runs[-1])
    for place, row in enumerate(rows):
        row.seconds = statistics.median(run[place].seconds for run in runs if len(run) == len(rows))
    return rows


def _optimized(network: Optimized, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> list[_Row]:
    rows = [_Row()]
    for step, seconds in step_times(network, inputs, kwargs):
        if step is not None and (step.kind in _LAYERS or step.layers):
            rows.append(_Row(step.layers[0] if step.layers else step.name, step.kind, step.groups, step=step))
        rows[-1].seconds += seconds
    return rows


def _eager(model: torch.nn.Module, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> list[_Row]:
    clock = _Clock()
    with hooked(model.named_modules(), clock.enter, clock.leave), clock:
        model(*inputs, **kwargs)
    return clock.rows


class _Clock(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, without types
    """Times every operator, and adds the time to the layer that ran last."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows = [_Row()]
        self._names: list[str] = [""]

    def enter(self, name: str) -> Callable[..., None]:
        """Returns the hook that says which module begins to run."""
        return lambda *_: self._names.append(name)

    def leave(self, *_: Any) -> None:
        """The module that began last ends."""
        self._names.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operator by the clock."""
        if func in _CONVOLUTIONS:
            self.rows.append(_Row(self._names[-1], "convolution", args[8]))
        elif func in _PRODUCTS:
            self.rows.append(_Row(self._names[-1], "linear"))
        start = time.perf_counter()
        made = func(*args, **(kwargs or {}))
        self.rows[-1].seconds += time.perf_counter() - start
        return made
