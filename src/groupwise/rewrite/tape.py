"""`Tape`: calls in a list, each with what it reads and writes. It holds no values, so threads may run it at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._pytree import TreeSpec, tree_unflatten

Call = Callable[..., Any]


@dataclass(frozen=True)
class Tape:
    """The calls of a program, with packed weights.

    - `steps`: (call, slots that it reads, slot that it writes, slots that nothing reads after it)
    - `inputs`: the slots of the leaves of the arguments
    - `constants`: the slots that have a value from the beginning
    - `outputs`: the slot of each leaf of the output, or the value itself as a tuple of one
    """

    steps: Sequence[tuple[Call, tuple[int, ...], int, tuple[int, ...]]]
    inputs: Sequence[int]
    constants: Mapping[int, Any]
    slots: int
    outputs: Sequence[int | tuple[Any]]
    out_spec: TreeSpec

    def run(self, leaves: Sequence[Any]) -> Any:
        """Computes the output of the leaves of the arguments."""
        slots = self._filled(leaves)
        for call, reads, write, dead in self.steps:
            slots[write] = call(*[slots[read] for read in reads])
            for slot in dead:
                slots[slot] = None
        return self._output(slots)

    def visit(self, leaves: Sequence[Any], around: Callable[[int, Callable[[], Any]], Any]) -> Any:
        """Computes the output with `around(number, call)` in the place of each call, whose value it returns."""
        slots = self._filled(leaves)
        for number, (call, reads, write, dead) in enumerate(self.steps):
            slots[write] = around(number, partial(call, *[slots[read] for read in reads]))
            for slot in dead:
                slots[slot] = None
        return self._output(slots)

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


def bind(
    function: Call, args: Sequence[Any], kwargs: Mapping[str, Any], constants: Mapping[Node, Any]
) -> tuple[Call, list[Node]]:
    """Returns a call that takes the values of the nodes among the arguments in order, and those nodes.

    Constants are bound in. The two usual forms get a call that does no more than it must.
    """
    reads: list[Node] = []

    def keep(node: Node) -> Any:
        if node in constants:
            return constants[node]
        reads.append(node)
        return node

    args, kwargs = map_arg((tuple(args), dict(kwargs)), keep)
    lead = next((number for number, given in enumerate(args) if not isinstance(given, Node)), len(args))
    rest = tuple(args[lead:])
    if len(reads) == lead:
        if not rest and not kwargs:
            return function, reads
        return (lambda *given: function(*given, *rest, **kwargs)), reads
    first = args[0] if args else None
    if isinstance(first, list | tuple) and len(reads) == len(first):
        rest = tuple(args[1:])
        return (lambda *given: function(list(given), *rest, **kwargs)), reads

    def general(*given: Any) -> Any:
        values = iter(given)
        filled, named = map_arg((args, kwargs), lambda node: next(values))
        return function(*filled, **named)

    return general, reads
