"""The convolutions that a model executes as a table, and what could not be counted as a sentence."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import lines as text
from groupwise.spec.legible import legible

# What a table of calls shows of each, by its key in the call's dict.
_COLUMNS = "name operator kind in_channels out_channels groups weight_shape input_size output_size batch dtype".split()


def columns(layers: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and values, one row for each call."""
    head = [*_COLUMNS, "parameters", "macs", "bytes"]
    sizes = [(row["parameters"], row["macs"]["forward"], row["bytes"]) for row in layers]
    return head, [[*(row[key] for key in _COLUMNS), *size] for row, size in zip(layers, sizes, strict=True)]


def not_counted(operators: Mapping[str, int], counted: bool) -> list[str]:
    """The sentences that say what no figure includes. `counted`: whether any convolution was counted."""
    if not operators:
        return [] if counted else ["groupwise saw no convolution run."]
    names = ", ".join(f"{name} ({phrases.plural(calls, 'call')})" for name, calls in operators.items())
    return [
        f"Not counted: operators whose names suggest a convolution, but whose arguments do not tell its shape: {names}."
    ]


def table(facts: Mapping[str, Any]) -> str:
    """A line for each call, and below what could not be counted."""
    lines = [("layer", "kind", "groups", "weight", "params", "MACs", "bytes")]
    for row in facts["layers"]:
        sizes = (str(row["groups"]), numbers.product(row["weight_shape"]), numbers.count(row["parameters"]))
        moved = (numbers.count(row["macs"]["forward"]), numbers.data(row["bytes"]))
        lines.append((legible(row["name"]), row["kind"], *sizes, *moved))
    rows = text.rows(lines, left=(0, 1))
    shown = [rows[0], "─" * max(map(len, rows)), *rows[1:]] if facts["layers"] else []
    said = [line for note in not_counted(facts["not_counted"], bool(shown)) for line in textwrap.wrap(note, text.WIDTH)]
    return "\n".join([*shown, *([""] if shown and said else []), *said])
