"""Checks of the arguments of a convolution, each by itself."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from groupwise.errors import MAX_CHANNELS, GroupwiseError, check_integer, list_some

Extent = int | Sequence[int]


def valid_groups(in_channels: int, out_channels: int) -> tuple[int, ...]:
    """Returns every valid `groups` in ascending order: the common divisors of both channel counts.

    Raises `GroupwiseError` for a channel count that is not an integer from 1 to 2**24.

    Examples:
        >>> valid_groups(8, 4)
        (1, 2, 4)
    """
    common = math.gcd(
        check_integer("in_channels", in_channels, 1, MAX_CHANNELS),
        check_integer("out_channels", out_channels, 1, MAX_CHANNELS),
    )
    low = [d for d in range(1, math.isqrt(common) + 1) if common % d == 0]
    return tuple(low + [common // d for d in reversed(low) if d * d != common])


def check_groups(in_channels: int, out_channels: int, groups: object) -> int:
    """Returns `groups` as an int; raises `GroupwiseError` with the valid values and the nearest channel counts."""
    valid = list(valid_groups(in_channels, out_channels))
    try:
        number = check_integer("groups", groups, 1, MAX_CHANNELS)
    except GroupwiseError as error:
        raise GroupwiseError(f"{error}; valid groups: {list_some(valid)}") from None
    if in_channels % number or out_channels % number:
        keep = [
            f"{name} {' or '.join(str(m) for m in (n // number * number, (n // number + 1) * number) if m)}"
            for name, n in (("in_channels", in_channels), ("out_channels", out_channels))
            if n % number
        ]
        raise GroupwiseError(
            f"groups={number} must divide in_channels={in_channels} and out_channels={out_channels}; "
            f"valid groups: {list_some(valid, near=number)}; to keep groups={number} use {' and '.join(keep)}"
        )
    return number


def per_dimension(name: str, value: object, dims: int, minimum: int) -> tuple[int, ...]:
    """Returns `value`, an int or a sequence of `dims` ints, as a tuple of `dims` ints of at least `minimum`."""
    entries = _entries(value)
    if entries is None:
        return (check_integer(name, value, minimum),) * dims
    if len(entries) != dims:
        raise GroupwiseError(
            f"{name}={entries} has {len(entries)} values; a {dims}-D convolution takes one int or {dims} of them"
        )
    return tuple(check_integer(name, entry, minimum) for entry in entries)


def dims_of(kernel_size: object, dims: int | None) -> int:
    """Returns the number of spatial dimensions: the length of `kernel_size`, or `dims` (2 if None) for an int."""
    given = _entries(kernel_size)
    if given is None:
        return check_integer("dims", 2 if dims is None else dims, 1, 3)
    if not 1 <= len(given) <= 3 or dims not in (None, len(given)):
        wanted = "1, 2 or 3" if dims is None else str(dims)
        raise GroupwiseError(f"kernel_size={given} has {len(given)} values; it must have {wanted}")
    return len(given)


def padding_of(padding: object, dims: int, transposed: bool) -> tuple[int, ...] | str:
    """Returns `padding` as a tuple of ints, or as "same" or "valid"."""
    if not isinstance(padding, str):
        return per_dimension("padding", padding, dims, 0)
    if transposed:
        raise GroupwiseError(f"padding={padding!r}: a transposed convolution takes its padding as numbers")
    if padding not in ("same", "valid"):
        raise GroupwiseError(f"padding={padding!r} must be 'same', 'valid', an int or {dims} of them")
    return padding


def shape_of(name: str, value: Any) -> tuple[int, ...]:
    """Returns the shape of a tensor, or a shape as a tuple."""
    shape = getattr(value, "shape", value)
    if isinstance(shape, str) or not isinstance(shape, Iterable):
        raise GroupwiseError(f"{name}={value!r} is neither a tensor nor a shape")
    return tuple(shape)


def expand(value: Any, dims: int) -> Any:
    """Returns `value`, repeated `dims` times if it is a list of one: `aten::convolution` takes both forms."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1:
        return tuple(value) * dims
    return value


def _entries(value: Any) -> tuple[object, ...] | None:
    """Returns the entries of a sequence (tuple, list, array), or None for anything else."""
    if isinstance(value, str | Mapping) or not hasattr(value, "__getitem__"):
        return None
    try:
        return tuple(value)
    except TypeError:  # An array of no dimensions is a number.
        return None
