"""`watched`: calls an optimized network, and shows each of its steps while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from groupwise.rewrite.network import Optimized
from groupwise.rewrite.plan import Step
from groupwise.rewrite.region import Ready, Region, under

# It gets a step, or None for what gives an output its strides, and the call of the step; it returns what the call does.
Around = Callable[[Step | None, Callable[[], Any]], Any]


def watched(network: Optimized, inputs: Sequence[Any], kwargs: Mapping[str, Any], around: Around) -> Any:
    """Calls a network with `around` in the place of each step, and returns its output.

    The network must have a plan for these inputs. Parts of the model that stay as they are have no steps.
    """
    with _replaced(vars(network)["_region"], around):
        return network(*inputs, **kwargs)


class _Shown:
    """A tape that shows its steps; it stands in for the tape of a program."""

    def __init__(self, region: Region, ready: Ready, around: Around) -> None:
        self._tape, self._around = ready.tape, around
        self._steps = [under(region.name, step) for step in ready.program.steps]

    def run(self, leaves: Sequence[Any]) -> Any:
        def one(number: int, call: Callable[[], Any]) -> Any:
            return self._around(self._steps[number] if number < len(self._steps) else None, call)

        return self._tape.visit(leaves, one)


@contextmanager
def _replaced(region: Region, around: Around) -> Iterator[None]:
    """Lets the programs of a region and its children show their steps."""
    regions = list(_all(region))
    kept = [(one, dict(one.programs())) for one in regions]
    for one, programs in kept:
        one.put({key: replace(ready, tape=_Shown(one, ready, around)) for key, ready in programs.items()})  # type: ignore[arg-type]
    try:
        yield
    finally:
        for one, programs in kept:
            one.put(programs)


def _all(region: Region) -> Iterator[Region]:
    yield region
    for child in region.children:
        yield from _all(child)
