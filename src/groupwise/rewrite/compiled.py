"""`Compiled`: the steps of a tape in the native core, which runs them without Python and plans their memory."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import TreeSpec, tree_unflatten

from groupwise.kernels import native
from groupwise.rewrite.recipe import Method, Operation, Recipe, Slot, is_operator
from groupwise.rewrite.tape import Tape

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_NAMED = (torch.memory_format, torch.layout, torch.device)


class NotCompiled(Exception):
    """A tape that Python must run; the message is the reason."""


class Compiled:
    """A tape in the native core.

    - `shares`: whether an output may share memory with an input
    """

    def __init__(self, tape: Tape, shares: bool) -> None:
        if problem := native.status().operators_problem:
            raise NotCompiled(problem)
        self.tape = tape
        builder = _Builder(tape)
        steps = [builder.step(*step) for step in tape.steps]
        self._outputs = tape.outputs
        self._out_spec: TreeSpec = tape.out_spec
        # Only tensors reach the core, and no step reads another leaf.
        self._leaves = [number for number, slot in enumerate(tape.inputs) if slot in builder.read]
        written = [builder.slot_of(leaf) for leaf in tape.outputs if isinstance(leaf, int)]
        inputs = [tape.inputs[number] for number in self._leaves]
        self.program = torch.classes.groupwise.Program(builder.slots, inputs, written, shares)
        for slot, constant in tape.constants.items():
            self.program.constant(slot, _encoded(constant))
        # The number of calls of the core that each step of the tape is.
        self._counts = [len(calls) for calls in steps]
        for calls in steps:
            for kind, *arguments in calls:
                getattr(self.program, kind)(*arguments)
        self._run = self.program.run
        self._whole = self._leaves == list(range(len(tape.inputs)))
        single = tree_unflatten([0], self._out_spec) == 0 if len(tape.outputs) == 1 else False
        self._single = single and isinstance(tape.outputs[0], int)

    def run(self, leaves: Sequence[Any]) -> Any:
        """Computes the output of the leaves of the arguments."""
        found = self._run(self._tensors(leaves))
        if self._single:
            return found[0]
        values = iter(found)
        outputs = [next(values) if isinstance(leaf, int) else leaf[0] for leaf in self._outputs]
        return tree_unflatten(outputs, self._out_spec)

    def time(self, leaves: Sequence[Any]) -> list[float]:
        """Runs once, and returns the seconds of each step."""
        seconds = iter(self.program.time(self._tensors(leaves)))
        return [sum(next(seconds) for _ in range(count)) for count in self._counts]

    def _tensors(self, leaves: Sequence[Any]) -> list[Any]:
        return list(leaves) if self._whole else [leaves[number] for number in self._leaves]


class _Builder:
    """Gives each value a slot of its own, and each operation the words that the core knows it by."""

    def __init__(self, tape: Tape) -> None:
        self.slots = tape.slots
        self.read: set[int] = {leaf for leaf in tape.outputs if isinstance(leaf, int)}
        self._inputs = set(tape.inputs)
        # A slot of the tape that is written again is another one in the core.
        self._again: dict[int, int] = {}
        self._written: set[int] = set()

    def slot_of(self, slot: int) -> int:
        """Returns the slot of the core that has the value now."""
        return self._again.get(slot, slot)

    def step(self, recipe: Any, reads: Sequence[int], write: int, dead: Sequence[int]) -> list[tuple[Any, ...]]:
        """Returns the calls that make the step in the core."""
        if not isinstance(recipe, Recipe):
            raise NotCompiled(f"{getattr(recipe, '__name__', recipe)} is a Python function")
        self.read.update(reads)
        slots = [self.slot_of(read) for read in reads]
        made = []
        for number, operation in enumerate(recipe.operations):
            own = write if number + 1 == len(recipe.operations) else self._new()
            if own in self._written or own in self._inputs:
                own = self._again[write] = self._new()
            self._written.add(own)
            made.append(_call(operation, slots, own))
            slots.append(own)
        return made

    def _new(self) -> int:
        self.slots += 1
        return self.slots - 1


def _call(operation: Operation, slots: Sequence[int], write: int) -> tuple[Any, ...]:
    """Returns the name of the builder's method in the core, and its arguments."""
    target, args = operation.target, operation.args
    if target is operator.getitem:
        source, index = args
        if not isinstance(source, Slot) or type(index) is not int or index < 0:
            raise NotCompiled("it takes an element that is known by no number")
        return "element", slots[source.number], index, write
    fills: list[int] = []
    if isinstance(target, Method):
        out = f"{target.name}_out" if not target.name.endswith("_out") else None
        given = list(range(1, len(args) + 1))
        values = tuple(_argument(argument, place, slots, fills) for place, argument in zip(given, args, strict=True))
        return "method", target.owner, target.name, out, given, values, fills, write
    if not is_operator(target):
        raise NotCompiled(f"{getattr(target, '__name__', target)} is no operator of PyTorch")
    schema = target._schema
    names = [argument.name for argument in schema.arguments]
    places = [*range(len(args)), *(names.index(name) for name in operation.kwargs)]
    every = (*args, *operation.kwargs.values())
    values = tuple(_argument(argument, place, slots, fills) for place, argument in zip(places, every, strict=True))
    overload = schema.overload_name
    return "operator", schema.name, overload, out_overload(target), places, values, fills, write, operation.state


def _argument(argument: Any, place: int, slots: Sequence[int], fills: list[int]) -> Any:
    """Returns the argument without its slots, which it adds to the fills."""
    if isinstance(argument, Slot):
        fills += [place, -1, slots[argument.number]]
        return None
    if not isinstance(argument, list | tuple):
        return _encoded(argument)
    parts = []
    for number, part in enumerate(argument):
        if isinstance(part, Slot):
            fills += [place, number, slots[part.number]]
        parts.append(None if isinstance(part, Slot) else _encoded(part))
    return tuple(parts)


def _encoded(argument: Any) -> Any:
    """Returns a Python value in a form whose type the core can tell."""
    if argument is None or type(argument) in (bool, int, float, complex, str, torch.dtype, *_PLAIN):
        return argument
    if isinstance(argument, _NAMED):
        return str(argument)
    if isinstance(argument, list | tuple):
        return tuple(_encoded(part) for part in argument)
    raise NotCompiled(f"a step has an argument that is a {type(argument).__name__}")


@cache
def out_overload(target: Any) -> str | None:
    """Returns the overload of an operator that computes the same into a given tensor; None if there is none.

    Those that PyTorch derives allocate the result and copy it.
    """
    schema = target._schema
    returns = [(str(result.type), result.alias_info) for result in schema.returns]
    if returns != [("Tensor", None)] or not _on_cpu(target):
        return None
    for name in target.overloadpacket.overloads():
        other = getattr(target.overloadpacket, name)
        *same, last = other._schema.arguments or [None]
        if last is None or not last.is_out or any(argument.is_out for argument in same):
            continue
        if _types(same) == _types(schema.arguments) and _on_cpu(other):
            return str(other._schema.overload_name)
    return None


def _types(arguments: Sequence[Any]) -> list[tuple[str, str]]:
    return [(argument.name, str(argument.type)) for argument in arguments]


def _on_cpu(target: Any) -> bool:
    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), "CPU"))
