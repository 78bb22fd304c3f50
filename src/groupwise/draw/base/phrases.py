"""The words that pictures and texts have in common: titles, counts and folds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from groupwise.draw.base import numbers
from groupwise.errors import list_some
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.wiring import Path, Wiring

T = TypeVar("T")


def title(spec: ConvSpec) -> str:
    """Returns `conv2d 8 → 4, kernel 5×5, stride 2×2, groups=4`, with the options that differ from their defaults."""
    return str(spec)


def plural(number: int, noun: str) -> str:
    """Returns `1 channel`, `2,048 channels`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def pairs(spec: ConvSpec) -> str:
    """Returns how many of the channel pairs are connected, and which fraction that is."""
    wires = Wiring(spec)
    if spec.groups == 1:
        return "the only channel pair" if wires.all_pairs == 1 else f"all {wires.all_pairs:,} channel pairs"
    return f"{wires.connected_pairs:,} of {wires.all_pairs:,} channel pairs (1/{spec.groups:,})"


def joins(path: Path) -> str:
    """Returns `in 0-31 → out 0-31 (32×32)`."""
    shape = f"{len(path.inputs):,}×{len(path.outputs):,}"
    return f"in {numbers.channels(path.inputs)} → out {numbers.channels(path.outputs)} ({shape})"


def valid(spec: ConvSpec) -> str:
    """Returns the valid groups, a long list without its middle."""
    return list_some(list(spec.valid_groups), near=spec.groups).replace("...", "…")


def elide(items: Sequence[T], most: int, head: int, tail: int) -> list[T | None]:
    """Returns all of `items`; above `most` the first `head` and the last `tail` of them, with None between."""
    if len(items) <= most:
        return list(items)
    return [*items[:head], None, *items[-tail:]]
