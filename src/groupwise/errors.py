"""The one exception that groupwise raises for bad input, and the checks that its messages come from.

A message is one line. It says what was wrong, the value, the rule and the fix, in this order.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence

# The limit exceeds every published layer (the widest found joins 200 models of 512 channels by groups=200), and keeps
# the lists of paths and divisors small enough to print.
MAX_CHANNELS = 2**24
# PyTorch's kernels index one dimension with 32 bits.
MAX_EXTENT = 2**31 - 1


class GroupwiseError(ValueError):
    """Bad input. groupwise raises it before any work; the message gives the value, the rule and the fix."""


def check_integer(name: str, value: object, minimum: int, maximum: int = MAX_EXTENT) -> int:
    """Returns `value` as an int from `minimum` to `maximum`; raises `GroupwiseError`, which names all three.

    Anything with `__index__` is an integer, such as numpy's integers. A bool is not: `groups=True` is a slip, and
    not a 1.
    """
    rule = f"{name} must be an integer from {minimum} to {maximum}"
    if isinstance(value, bool):
        raise GroupwiseError(f"{name}={value!r} is a bool; {rule}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # it may be anything
    except TypeError:
        fix = ""
        if isinstance(value, float) and value.is_integer():
            fix = f"; write {name}={int(value)}"
        raise GroupwiseError(f"{name}={value!r} is a {type(value).__name__}; {rule}{fix}") from None
    if number < minimum:
        raise GroupwiseError(f"{name}={_show(number)} is too small; {rule}; the nearest is {minimum}")
    if number > maximum:
        raise GroupwiseError(f"{name}={_show(number)} is too large; {rule}; the nearest is {maximum}")
    return number


def _show(number: int) -> str:
    """Returns the number as text, or its magnitude: Python refuses to print an int of thousands of digits."""
    if abs(number) < 10**30:
        return str(number)
    return f"{'-' * (number < 0)}2**{abs(number).bit_length() - 1}"


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Returns `value` if it is one of `choices`; raises `GroupwiseError`, which lists them."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise GroupwiseError(f"{name}={value!r} is not known; choose one of: {', '.join(known)}")
    return value


def list_some(values: list[int], near: int | None = None, most: int = 12) -> str:
    """Returns the sorted `values` as text: all of them, or above `most` the ends and the ones nearest to `near`."""
    if len(values) <= most:
        return ", ".join(map(str, values))
    keep = {*values[:3], *values[-1:]}
    if near is not None:
        keep |= set(sorted(values, key=lambda value: abs(value - near))[:4])
    shown: list[str] = []
    for value, before in zip(values, [values[0], *values], strict=False):
        if value in keep:
            if value != before and before not in keep:
                shown.append("...")
            shown.append(str(value))
    return f"{', '.join(shown)} ({len(values)} in all)"


def name_some(names: Sequence[str], most: int) -> str:
    """Returns the first names, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


class RefusedExample(GroupwiseError):
    """A model fails on the example that `groupwise.optimize` was given; `error` is what it raised."""

    def __init__(self, message: str, error: Exception) -> None:
        super().__init__(message)
        self.error = error
