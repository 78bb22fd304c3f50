"""Fold the repeats of a report's rows: the same convolution in every block of a stage becomes one row."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

_SAME = ("op", "in_channels", "weight_shape", "bias_shape", "stride", "padding", "dilation", "output_padding", "groups")
_SHAPES = ("input_size", "batch", "dtype", "passes", "kernels")


def fold(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with equal shapes and kernels whose names differ in numbers only, as one at the place of the first.

    A folded row has the first one's fields, a `name` with the numbers joined (`layer1.0-2.conv2`), `count`, sums of
    `parameters`, `macs`, `bytes` and times, the `speedup` and `roofline` of these, and the largest `max_error`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        pattern = re.sub(r"\d+", "*", layer["name"])
        found.setdefault(repr([pattern, *(layer[key] for key in (*_SAME, *_SHAPES))]), []).append(layer)
    return [_joined(same) for same in found.values()]


def _joined(same: list[dict[str, Any]]) -> dict[str, Any]:
    # A layer that runs several times has its parameters once.
    parameters = {layer["name"]: layer["parameters"] for layer in same}
    sums = {"parameters": sum(parameters.values()), "bytes": sum(layer["bytes"] for layer in same)}
    before, after = (_sum([layer[key] for layer in same]) for key in ("pytorch_ms", "groupwise_ms"))
    # A share of the bound times its time is the bound.
    bound = _sum([layer["roofline"] and layer["roofline"] * layer["groupwise_ms"] for layer in same])
    errors = [layer["max_error"] for layer in same if layer["max_error"] is not None]
    return {
        **same[0],
        **sums,
        "name": _join_names([layer["name"] for layer in same]),
        "count": len(same),
        "macs": {key: sum(layer["macs"][key] for layer in same) for key in same[0]["macs"]},
        "pytorch_ms": before,
        "groupwise_ms": after,
        "speedup": before / after if before is not None and after else None,
        "max_error": max(errors, default=None),
        "roofline": bound / after if bound is not None and after else None,
    }


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _join_names(names: Sequence[str]) -> str:
    """`a.0.x`, `a.1.x`, `a.2.x` become `a.0-2.x`; with gaps `a.0,3.x`; what no such name says, `a.0.x … a.2.y`."""
    if len(set(names)) == 1:
        return names[0]
    pieces = [re.split(r"(\d+)", name) for name in names]
    columns = [sorted({int(n) for n in column}) for column in list(zip(*pieces, strict=True))[1::2]]
    if math.prod(map(len, columns)) != len(names):
        return f"{names[0]} … {names[-1]}"
    joined = [_join_numbers(column) for column in columns]
    return "".join(text + number for text, number in zip(pieces[0][::2], [*joined, ""], strict=True))


def _join_numbers(numbers: Sequence[int]) -> str:
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], number]
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)
