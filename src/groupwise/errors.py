"""The one exception of this package, and the checks whose messages every door shares.

A message says what was wrong, the value, the rule and the fix, in that order and in one line.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

# Above every published layer (the widest found: 200 models of 512 channels joined by groups=200), and low
# enough that the lists this package makes (paths, divisors) stay finite.
MAX_CHANNELS = 2**24
MAX_EXTENT = 2**31 - 1  # torch's kernels index one dimension with 32 bits


class GroupwiseError(ValueError):
    """Bad input, refused before any work: what was wrong, the value, the rule, the fix."""


def check_integer(name: str, value: object, minimum: int, maximum: int = MAX_EXTENT) -> int:
    """Return `value` as an int within [minimum, maximum], or raise `GroupwiseError` naming all three.

    Anything with `__index__` counts as an integer (numpy's integers do), but a bool does not: `groups=True`
    is a slip, not a one.
    """
    rule = f"{name} must be an integer from {minimum} to {maximum}"
    if isinstance(value, bool):
        raise GroupwiseError(f"{name}={value!r} is a bool; {rule}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]  # the point is to find out
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
    """The number, or its size: Python prints no int of thousands of digits."""
    if abs(number) < 10**30:
        return str(number)
    return f"{'-' * (number < 0)}2**{abs(number).bit_length() - 1}"


def check_choice(name: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, or raise `GroupwiseError` that lists them."""
    known = list(choices)
    if not isinstance(value, str) or value not in known:
        raise GroupwiseError(f"{name}={value!r} is not known; choose one of: {', '.join(known)}")
    return value


def list_some(values: list[int], near: int | None = None, most: int = 12) -> str:
    """`values` (sorted) as text; of more than `most`, the ends and those nearest to `near`."""
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
