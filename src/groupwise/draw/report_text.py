"""A report as a plain text table."""

from __future__ import annotations

import math
import textwrap
from typing import Any

from groupwise.draw import numbers, phrases, text
from groupwise.draw.folding import fold

_HEAD = ("", "layer", "", "kind", "groups", "weight", "params", "MACs", "bytes", "ms")
_LEFT = (0, 1, 3)
_MOST_NAME = 32


def table(report: dict[str, Any]) -> str:
    """Rows in order of execution with repeats folded (their figures are sums), totals, and what is grouped."""
    total = report["total"]
    lines: list[tuple[str, ...]] = [_HEAD]
    for row in fold(report["layers"]):
        lines.append(
            (
                "▌" if row["groups"] > 1 else "",
                shorten(row["name"]),
                f"×{row['count']}" if row["count"] > 1 else "",
                kind(row),
                str(row["groups"]),
                numbers.product(row["weight_shape"]),
                *figures(row),
            )
        )
    lines.append(("", "all convolutions", f"×{total['convolutions']}", "", "", "", *figures(total)))
    grouped = total["grouped"]
    lines.append(("▌", "grouped", f"×{grouped['convolutions']}", "", "", "", *figures(grouped)))
    rows = text.rows(lines, left=_LEFT)
    rule = "─" * max(map(len, rows))
    below = [line for note in notes(report, " (▌)") for line in textwrap.wrap(note, max(len(rule), text.WIDTH))]
    return "\n".join([report["title"], "", rows[0], rule, *rows[1:-2], rule, *rows[-2:], "", *below])


def notes(report: dict[str, Any], mark: str = "") -> list[str]:
    """Sentences that say what the figures are and what share the grouped layers have; `mark` follows these words."""
    total, machine = report["total"], report["machine"]
    devices = [device for device in machine["devices"] if device != "cpu"]
    where = ", ".join([machine["processor"], *devices])
    count = phrases.plural
    share = total["grouped"]["share"]
    parts = [f"{_percent(share['macs'])} of the MACs", f"{_percent(share['parameters'])} of the parameters"]
    if share["time"] is not None:
        parts.append(f"{_percent(share['time'])} of the time in convolutions")
        parts.append(f"{_percent(share['time_of_model'])} of the whole model's time")
    passes = "forward and backward" if report["backward"] else "forward"
    lines = [f"Grouped layers{mark} have {', '.join(parts)}."]
    if not total["grouped"]["convolutions"]:
        lines = ["No convolution has groups above 1." if total["convolutions"] else "No convolution ran."]
    lines.append("MACs and bytes (each tensor moved once) are of one forward pass; folded rows (×) are sums.")
    if total["pytorch_ms"] is not None:
        lines.append(
            f"ms: {passes}, median of {count(report['repeats'], 'run')}; the whole model takes "
            f"{milliseconds(total['model_ms'])} ms, or {milliseconds(total['recorded_ms'])} ms while each convolution "
            "is timed, which is what the shares are of."
        )
        lines.append(f"Measured on {where}, {count(machine['threads'], 'thread')}, torch {machine['torch']}.")
    return lines


def kind(row: dict[str, Any]) -> str:
    """`dense`, `grouped` or `depthwise`; more for what is no plain 2-D convolution."""
    dims = "" if row["op"] == "conv2d" else f" {row['op'][-2:]}"
    return f"{row['kind']}{dims}{' transposed' * row['transposed']}"


def milliseconds(value: float | None) -> str:
    """Three digits, at most three decimals."""
    if value is None:
        return "-"
    decimals = 3 if value < 1 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def shorten(name: str) -> str:
    """A name in at most 32 columns, the middle left out."""
    half = _MOST_NAME // 2
    return name if len(name) <= _MOST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def figures(row: dict[str, Any]) -> tuple[str, str, str, str]:
    """Parameters, MACs, bytes and milliseconds of a row or a total."""
    return (
        numbers.count(row["parameters"]),
        numbers.count(row["macs"]["forward"]),
        numbers.data(row["bytes"]),
        milliseconds(row["pytorch_ms"]),
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else numbers.share(value, 1)
