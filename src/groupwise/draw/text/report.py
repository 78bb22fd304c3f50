"""A report as plain text tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.folding import fold
from groupwise.draw.base.legible import legible
from groupwise.draw.text import lines as text
from groupwise.draw.text.split import split_text
from groupwise.kernels.plan import DIRECTIONS

_HEAD = ("kind", "groups", "weight", "params", "MACs", "bytes")
_MOST_NAME = 32
SPEED = ("kernel", "PyTorch ms", "groupwise ms", "speedup", "roofline", "max error")


def table(report: dict[str, Any]) -> str:
    """Rows in order of execution with repeats folded (their figures are sums), totals, and what is grouped.

    Where groupwise's kernels were measured, the times are in a second table with the same rows.
    """
    rows, totals = fold(report["layers"]), (report["total"], report["total"]["grouped"])
    facts = [(kind(row), str(row["groups"]), numbers.product(row["weight_shape"]), *figures(row)) for row in rows]
    sums = [("", "", "", *figures(total)) for total in totals]
    if is_measured(report):
        faster = [speed(row) for row in rows], [speed(total) for total in totals]
        tables = [_table(report, _HEAD, facts, sums), _table(report, SPEED, *faster)]
    else:
        times = [(milliseconds(row["pytorch_ms"]),) for row in (*rows, *totals)]
        timed = [(*fact, *time) for fact, time in zip([*facts, *sums], times, strict=True)]
        tables = [_table(report, (*_HEAD, "ms"), timed[:-2], timed[-2:])]
    width = max(text.WIDTH, *(len(line) for shown in tables for line in shown))
    below = [line for note in notes(report, " (▌)") for line in textwrap.wrap(note, width)]
    spread = ["", split_text(report["split"])] if "split" in report else []
    return "\n".join(
        [legible(report["title"]), *(line for shown in tables for line in ("", *shown)), "", *below, *spread]
    )


def _table(
    report: dict[str, Any],
    head: tuple[str, ...],
    facts: Sequence[tuple[str, ...]],
    sums: Sequence[tuple[str, ...]],
) -> list[str]:
    """A line for each folded row and its facts, and below a rule the sums: of all, and of the grouped ones."""
    total = report["total"]
    lines = [("", "layer", "", *head)]
    for row, fact in zip(fold(report["layers"]), facts, strict=True):
        count = f"×{row['count']}" if row["count"] > 1 else ""
        lines.append(("▌" if row["groups"] > 1 else "", shorten(row["name"]), count, *fact))
    lines.append(("", "all convolutions", f"×{total['convolutions']}", *sums[0]))
    lines.append(("▌", "grouped", f"×{total['grouped']['convolutions']}", *sums[1]))
    rows = text.rows(lines, left=(0, 1, 3))
    rule = "─" * max(map(len, rows))
    return [rows[0], rule, *rows[1:-2], rule, *rows[-2:]]


def notes(report: dict[str, Any], mark: str = "") -> list[str]:
    """Sentences that say what the figures are and what share the grouped layers have; `mark` follows these words."""
    total, machine = report["total"], report["machine"]
    count = phrases.plural
    share = total["grouped"]["share"]
    parts = [f"{percent(share['macs'])} of the MACs", f"{percent(share['parameters'])} of the parameters"]
    if share["time"] is not None:
        parts.append(f"{percent(share['time'])} of the time in convolutions")
        parts.append(f"{percent(share['time_of_model'])} of the whole model's time")
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
        if is_measured(report):
            lines += _notes_on_speed(report)
        lines.append(measured_on(machine))
    if report["not_measured"]:
        lines.append(f"groupwise's kernels were not measured: {report['not_measured']}.")
    return lines


def _notes_on_speed(report: dict[str, Any]) -> list[str]:
    total, outputs = report["total"], report["outputs"]
    lines = [
        f"With groupwise's kernels, timed in turn with PyTorch's, the convolutions take "
        f"{_against(total['groupwise_ms'], total['pytorch_ms'], total['speedup'])}, and the whole model "
        f"{_against(total['groupwise_model_ms'], total['model_ms'], total['model_speedup'])}. Where the kernel is "
        "pytorch both ran the same code, and the speedup shows noise and caches.",
        f"{roofline_of(report['machine']['roofline'])} max error: the largest difference from the same convolution in "
        "float64, relative to its largest value.",
    ]
    if report["backward"]:
        lines.append("kernel: of forward/grad_input/grad_weight where they differ; - where no such gradient ran.")
    same = "" if outputs["top1"] is None else f", and the top-1 of {percent(outputs['top1'])} of the batch is the same"
    verdict = "within rounding" if outputs["within_rounding"] else "MORE THAN ROUNDING"
    lines.append(
        f"With groupwise's kernels the model's outputs differ by at most {error(outputs['max_difference'])} of the "
        f"largest{same}: {verdict}."
    )
    return lines


def roofline_of(machine: dict[str, float]) -> str:
    """What a share of the roofline is of."""
    rates = f"{numbers.count(machine['flop_per_second'])}FLOP/s", f"{numbers.data(machine['bytes_per_second'])}/s"
    return f"roofline: the share of the least time that a matrix product's {rates[0]} and a copy's {rates[1]} allow."


def measured_on(machine: dict[str, Any]) -> str:
    """Where it was measured."""
    devices = [device for device in machine.get("devices", ()) if device != "cpu"]
    where = ", ".join([machine["processor"], *devices])
    return f"Measured on {where}, {phrases.plural(machine['threads'], 'thread')}, torch {machine['torch']}."


def _against(after: float | None, before: float | None, speedup: float | None) -> str:
    return f"{milliseconds(after)} ms instead of {milliseconds(before)} ({times(speedup)})"


def is_measured(report: dict[str, Any]) -> bool:
    """Whether groupwise's kernels were."""
    return report["outputs"] is not None


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
    name = legible(name)
    half = _MOST_NAME // 2
    return name if len(name) <= _MOST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def figures(row: dict[str, Any]) -> tuple[str, str, str]:
    """Parameters, MACs and bytes of a row or a total."""
    return numbers.count(row["parameters"]), numbers.count(row["macs"]["forward"]), numbers.data(row["bytes"])


def speed(row: dict[str, Any]) -> tuple[str, ...]:
    """What `SPEED` names, of a row or a total."""
    return (
        kernels(row["kernels"]) if "kernel" in row else "",
        milliseconds(row["pytorch_ms"]),
        milliseconds(row["groupwise_ms"]),
        times(row["speedup"]),
        percent(row["roofline"]),
        error(row["max_error"]),
    )


def kernels(used: dict[str, str]) -> str:
    """The one kernel of all passes, or the kernels of the three where they differ."""
    if len(set(used.values())) < 2:
        return next(iter(used.values()), "-")
    return "/".join(used.get(name, "-") for name in DIRECTIONS)


def times(value: float | None) -> str:
    """A factor: `2.35×`."""
    return "-" if value is None else f"{value:.2f}×"


def error(value: float | None) -> str:
    """Two digits of what is small: `3.1e-07`."""
    if value is None:
        return "-"
    return f"{value:.1e}" if value else "0"


def percent(value: float | None) -> str:
    """A share as a percentage."""
    return "-" if value is None else numbers.percent(value, 1)
