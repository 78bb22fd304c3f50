"""`Recipe`: operators and their arguments as data, which Python runs, and the native core without Python."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from groupwise.kernels import dispatch, native

Call = Callable[..., Any]


@dataclass(frozen=True)
class Slot:
    """Stands for a value among arguments: what a recipe is given comes first, then the result of each operation."""

    number: int


@dataclass(frozen=True)
class Method:
    """A method of an object of the native core."""

    owner: Any
    name: str


@dataclass(frozen=True)
class Operation:
    """A call of an operator, or of a method of the native core.

    - `state`: 1 dispatches its convolutions to groupwise's kernels, -1 does not, 0 leaves it to the process
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    state: int = 0

    @property
    def reads(self) -> list[int]:
        """The numbers of the slots among the arguments, in order."""
        found: list[int] = []
        _visit((self.args, tuple(self.kwargs.values())), found.append)
        return found


class Recipe:
    """Operations that follow each other. The last one's result is the recipe's.

    - `given`: how many values it takes
    """

    def __init__(self, given: int, *operations: Operation) -> None:
        self.given, self.operations = given, operations
        self._calls = [(_bound(operation), operation.reads) for operation in operations]

    def __call__(self, *values: Any) -> Any:
        """Computes the result in Python."""
        slots = list(values)
        for call, reads in self._calls:
            slots.append(call(*[slots[read] for read in reads]))
        return slots[-1]

    @property
    def call(self) -> Call:
        """The same, by as few calls as there can be."""
        call, reads = self._calls[0]
        return call if len(self._calls) == 1 and reads == list(range(self.given)) else self

    def behind(self, change: Operation) -> Recipe:
        """Returns a recipe that changes the first value that it is given by an operator, and reads the result."""

        def moved(slot: Slot) -> Slot:
            if slot.number == 0:
                return Slot(self.given)
            return slot if slot.number < self.given else Slot(slot.number + 1)

        def later(each: Operation) -> Operation:
            words = {name: _mapped(given, moved) for name, given in each.kwargs.items()}
            return replace(each, args=_mapped(each.args, moved), kwargs=words)

        return Recipe(self.given, change, *map(later, self.operations))

    def again(self, result: Any) -> Call:
        """Returns what computes the same in the memory of an earlier result, where the native core could do so."""
        first = self.operations[0]
        if len(self.operations) > 1 or not isinstance(first.target, Method) or first.target.name.endswith("_out"):
            return self.call
        into = Method(first.target.owner, f"{first.target.name}_out")
        return Recipe(self.given, replace(first, target=into, args=(*first.args, result))).call


def _visit(argument: Any, found: Callable[[int], None]) -> None:
    if isinstance(argument, Slot):
        found(argument.number)
    elif isinstance(argument, list | tuple):
        for part in argument:
            _visit(part, found)
    elif isinstance(argument, slice):
        _visit((argument.start, argument.stop, argument.step), found)


def _mapped(argument: Any, change: Callable[[Slot], Slot]) -> Any:
    """Returns the argument with other slots in place of its own."""
    if isinstance(argument, Slot):
        return change(argument)
    if isinstance(argument, list | tuple):
        return type(argument)(_mapped(part, change) for part in argument)
    return argument


def _filled(argument: Any, values: Any) -> Any:
    """Returns the argument with the next value in place of each slot."""
    if isinstance(argument, Slot):
        return next(values)
    if isinstance(argument, list | tuple):
        return type(argument)(_filled(part, values) for part in argument)
    return argument


def _bound(operation: Operation) -> Call:
    """Returns what calls the operator of the values of its slots, in order."""
    target = operation.target
    function = getattr(target.owner, target.name) if isinstance(target, Method) else target
    call = _with_arguments(function, operation.args, operation.kwargs)
    if operation.state == 0 or native.status().operators_problem:
        return call
    switch, state = dispatch.thread_switch(), operation.state

    def switched(*given: Any) -> Any:
        before = switch(state)
        try:
            return call(*given)
        finally:
            switch(before)

    return switched


def _with_arguments(target: Call, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
    """Returns a call that fills the slots. The two usual forms get one that does no more than it must."""
    named: list[int] = []
    _visit(tuple(kwargs.values()), named.append)
    lead = next((number for number, given in enumerate(args) if not isinstance(given, Slot)), len(args))
    rest, others = tuple(args[lead:]), list(named)
    _visit(rest, others.append)
    if not others:
        if not rest and not kwargs:
            return target
        return lambda *given: target(*given, *rest, **kwargs)
    first, after = (args[0], tuple(args[1:])) if args else (None, ())
    others = list(named)
    _visit(after, others.append)
    if isinstance(first, list | tuple) and all(isinstance(part, Slot) for part in first) and not others:
        return lambda *given: target(list(given), *after, **kwargs)

    def general(*given: Any) -> Any:
        values = iter(given)
        filled = _filled(tuple(args), values)
        return target(*filled, **{name: _filled(each, values) for name, each in kwargs.items()})

    return general


def is_operator(target: Any) -> bool:
    """Tells whether the native core can call it by its name."""
    return isinstance(target, torch._ops.OpOverload)
