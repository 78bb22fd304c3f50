"""What the pictures say: titles, counts and folds, worded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from groupwise.draw.base import numbers
from groupwise.errors import list_some
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.wiring import Path, Wiring

T = TypeVar("T")


def title(spec: ConvSpec) -> str:
    """`conv2d 8 → 4, kernel 5×5, stride 2×2, groups=4`: the options that are not their defaults."""
    facts = [f"{spec.op} {spec.in_channels:,} → {spec.out_channels:,}", f"kernel {numbers.product(spec.kernel_size)}"]
    for name, value, default in (
        ("stride", spec.stride, 1),
        ("padding", spec.padding, 0),
        ("dilation", spec.dilation, 1),
        ("output_padding", spec.output_padding, 0),
    ):
        if isinstance(value, str):
            facts.append(f"{name} {value}")
        elif set(value) != {default}:
            facts.append(f"{name} {numbers.product(value)}")
    if spec.padding_mode != "zeros":
        facts.append(spec.padding_mode)
    return ", ".join([*facts, f"groups={spec.groups}"])


def plural(number: int, noun: str) -> str:
    """`1 channel`, `2,048 channels`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def pairs(spec: ConvSpec) -> str:
    """Which share of the channel pairs is connected."""
    wires = Wiring(spec)
    if spec.groups == 1:
        return "the only channel pair" if wires.all_pairs == 1 else f"all {wires.all_pairs:,} channel pairs"
    return f"{wires.connected_pairs:,} of {wires.all_pairs:,} channel pairs (1/{spec.groups:,})"


def joins(path: Path) -> str:
    """`in 0-31 → out 0-31 (32×32)`."""
    shape = f"{len(path.inputs):,}×{len(path.outputs):,}"
    return f"in {numbers.channels(path.inputs)} → out {numbers.channels(path.outputs)} ({shape})"


def valid(spec: ConvSpec) -> str:
    """The valid groups, the middle of a long list left out."""
    return list_some(list(spec.valid_groups), near=spec.groups).replace("...", "…")


def elide(items: Sequence[T], most: int, head: int, tail: int) -> list[T | None]:
    """All of `items`, or of more than `most` the first and last with None between."""
    if len(items) <= most:
        return list(items)
    return [*items[:head], None, *items[-tail:]]
