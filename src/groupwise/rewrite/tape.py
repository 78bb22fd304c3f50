"""`Tape`: calls in a list, each with what it reads and writes. It holds no values, so threads may run it at once."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch.utils._pytree import TreeSpec, tree_unflatten

from groupwise.rewrite.recipe import Call, Recipe


@dataclass(frozen=True)
class Tape:
    """The calls of a program, with packed weights.

    - `steps`: (recipe, slots that it reads, slot that it writes, slots that nothing reads after it)
    - `inputs`: the slots of the leaves of the arguments
    - `constants`: the slots that have a value from the beginning
    - `outputs`: the slot of each leaf of the output, or the value itself as a tuple of one
    """

    steps: Sequence[tuple[Recipe, tuple[int, ...], int, tuple[int, ...]]]
    inputs: Sequence[int]
    constants: Mapping[int, Any]
    slots: int
    outputs: Sequence[int | tuple[Any]]
    out_spec: TreeSpec

    def run(self, leaves: Sequence[Any]) -> Any:
        """Computes the output of the leaves of the arguments."""
        slots = self._filled(leaves)
        for call, reads, write, dead in self._calls:
            slots[write] = call(*[slots[read] for read in reads])
            for slot in dead:
                slots[slot] = None
        return self._output(slots)

    def time(self, leaves: Sequence[Any]) -> list[float]:
        """Runs once, and returns the seconds of each step."""
        slots, seconds = self._filled(leaves), []
        for call, reads, write, dead in self._calls:
            given = [slots[read] for read in reads]
            start = time.perf_counter()
            slots[write] = call(*given)
            seconds.append(time.perf_counter() - start)
            del given
            for slot in dead:
                slots[slot] = None
        return seconds

    @cached_property
    def _calls(self) -> list[tuple[Call, tuple[int, ...], int, tuple[int, ...]]]:
        return [(recipe.call, reads, write, dead) for recipe, reads, write, dead in self.steps]

    def _filled(self, leaves: Sequence[Any]) -> list[Any]:
        slots: list[Any] = [None] * self.slots
        for slot, constant in self.constants.items():
            slots[slot] = constant
        for slot, leaf in zip(self.inputs, leaves, strict=True):
            slots[slot] = leaf
        return slots

    def _output(self, slots: Sequence[Any]) -> Any:
        found = [slots[leaf] if isinstance(leaf, int) else leaf[0] for leaf in self.outputs]
        return tree_unflatten(found, self.out_spec)
