"""`step_times`: what each step of an optimized network takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from groupwise.rewrite.network import Optimized
from groupwise.rewrite.plan import Step
from groupwise.rewrite.region import Ready, Region, placed

# A step, or None for what gives an output its strides, and its seconds.
Timed = tuple[Step | None, float]


def step_times(network: Optimized, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Timed]:
    """Calls a network, and returns its steps and the seconds of each, in the order in which they ran.

    The network must have a plan for these inputs. Parts of the model that stay as they are have no steps.
    """
    found: list[Timed] = []
    with _timed(vars(network)["_region"], found):
        network(*inputs, **kwargs)
    return found


class _Timed:
    """Stands in for the tape of a program. It runs twice: by the clock, and for the output."""

    def __init__(self, region: Region, ready: Ready, found: list[Timed]) -> None:
        self._tape, self._found = ready.tape, found
        self._steps = [placed(step, region.name) for step in ready.program.steps]

    def run(self, leaves: Sequence[Any]) -> Any:
        self._found += zip_longest(self._steps, self._tape.time(leaves))
        return self._tape.run(leaves)


@contextmanager
def _timed(region: Region, found: list[Timed]) -> Iterator[None]:
    """Lets the programs of a region and its children add the times of their steps."""
    regions = list(_all(region))
    kept = [(one, dict(one.programs())) for one in regions]
    for one, programs in kept:
        one.put({key: replace(ready, tape=_Timed(one, ready, found)) for key, ready in programs.items()})  # type: ignore[arg-type]
    try:
        yield
    finally:
        for one, programs in kept:
            one.put(programs)


def _all(region: Region) -> Iterator[Region]:
    yield region
    for child in region.children:
        yield from _all(child)
