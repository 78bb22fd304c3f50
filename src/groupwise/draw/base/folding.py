"""Folding: the same convolution in every block of a stage becomes one row of a report."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

_SAME = (
    "operator",
    "op",
    "in_channels",
    "weight_shape",
    "bias_shape",
    "stride",
    "padding",
    "dilation",
    "output_padding",
    "groups",
)
_SHAPES = ("input_size", "batch", "dtype", "passes", "kernels", "hazard")


def fold(layers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Joins rows with equal shapes and kernels whose names differ only in numbers, at the place of the first.

    A folded row has the first one's fields, a `name` with the numbers joined (`layer1.0-2.conv2`), `count`, sums of
    `parameters`, `macs`, `bytes` and times, the `speedup` and `roofline` of these, and the largest `max_error`.
    """
    found: dict[str, list[dict[str, Any]]] = {}
    for layer in layers:
        pattern = re.sub(r"\d+", "*", layer["name"])
        found.setdefault(repr([pattern, *(layer[key] for key in (*_SAME, *_SHAPES))]), []).append(layer)
    return [_joined(same) for same in found.values()]


def _joined(same: list[dict[str, Any]]) -> dict[str, Any]:
    # The parameters of a layer that runs several times count once.
    parameters = {layer["name"]: layer["parameters"] for layer in same}
    sums = {"parameters": sum(parameters.values()), "bytes": sum(layer["bytes"] for layer in same)}
    before, after = (known_sum(layer[key] for layer in same) for key in ("pytorch_ms", "groupwise_ms"))
    # The fraction of peak times the time is the roofline floor.
    floor = known_sum(layer["roofline"] and layer["roofline"] * layer["groupwise_ms"] for layer in same)
    errors = [layer["max_error"] for layer in same if layer["max_error"] is not None]
    return {
        **same[0],
        **sums,
        "name": _join_names([layer["name"] for layer in same]),
        "count": len(same),
        "macs": {key: sum(layer["macs"][key] for layer in same) for key in same[0]["macs"]},
        "pytorch_ms": before,
        "groupwise_ms": after,
        # Where both sides ran PyTorch's code the difference is noise.
        "speedup": None if set(same[0]["kernels"].values()) == {"pytorch"} else ratio(before, after),
        "max_error": max(errors, default=None),
        "roofline": ratio(floor, after),
    }


def known_sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None where one of the values is not known."""
    given = list(values)
    known = [value for value in given if value is not None]
    return sum(known) if len(known) == len(given) else None


def ratio(part: float | None, whole: float | None) -> float | None:
    """`part / whole`, or None where one of them is not known or the whole is nothing."""
    return part / whole if part is not None and whole else None


def _join_names(names: Sequence[str]) -> str:
    """Joins `a.0.x`, `a.1.x`, `a.2.x` to `a.0-2.x`, with gaps to `a.0,3.x`, else to `a.0.x … a.2.y`."""
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
