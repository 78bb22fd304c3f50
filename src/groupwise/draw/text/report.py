"""A report as plain text tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.folding import fold, known_sum, ratio
from groupwise.draw.text import lines as text
from groupwise.draw.text.busy import is_busy
from groupwise.draw.text.count import columns as columns_of_calls
from groupwise.draw.text.count import not_counted
from groupwise.draw.text.split import split_text
from groupwise.kernels.plan import DIRECTIONS
from groupwise.spec.legible import legible

_HEAD = ("kind", "groups", "weight", "params", "MACs", "bytes")
# The line above the tables, where other tables stand before them.
OF_CONVOLUTIONS = "Each convolution as the model runs it, by PyTorch's kernels and by groupwise's:\n"
# The measured columns, by their keys in a layer's dict.
_MEASURED = ("pytorch_ms", "groupwise_ms", "speedup", "kernel", "roofline", "max_error")
SPEED = ("kernel", "PyTorch ms", "groupwise ms", "speedup", "roofline", "max error")


def columns(layers: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and values, one row for each convolution executed."""
    head, rows = columns_of_calls(layers)
    measured = [[layer[key] for key in _MEASURED] for layer in layers]
    return [*head, *_MEASURED], [[*row, *more] for row, more in zip(rows, measured, strict=True)]


def table(report: dict[str, Any]) -> str:
    """Rows in order of execution with repeats folded (their figures are sums), totals, and sums of the grouped layers.

    Where groupwise's kernels were measured, the times are in a second table with the same rows.
    """
    spread = ["", split_text(report["split"])] if "split" in report else []
    if not report["layers"]:
        return "\n".join([legible(report["title"]), "", *_nothing(report), *spread])
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
    return "\n".join(
        [legible(report["title"]), *(line for shown in tables for line in ("", *shown)), "", *below, *spread]
    )


def _nothing(report: dict[str, Any]) -> list[str]:
    """What to say of a model without a convolution, in place of empty tables."""
    found = not_counted(report["not_counted"], False)
    nothing = "There is nothing to report: groupwise shows convolutions, and what they take."
    return [line for note in [*found, *([] if report["not_counted"] else [nothing])] for line in text.wrap(note)]


def _table(
    report: dict[str, Any],
    head: tuple[str, ...],
    facts: Sequence[tuple[str, ...]],
    sums: Sequence[tuple[str, ...]],
) -> list[str]:
    """A line for each folded row with its facts, a rule, and the sums of all rows and of the grouped ones."""
    total = report["total"]
    lines = [("", "layer", "", *head)]
    for row, fact in zip(fold(report["layers"]), facts, strict=True):
        count = f"×{row['count']}" if row["count"] > 1 else ""
        lines.append(("▌" if row["groups"] > 1 else "", text.shorten(row["name"]), count, *fact))
    lines.append(("", "all convolutions", f"×{total['convolutions']}", *sums[0]))
    lines.append(("▌", "grouped", f"×{total['grouped']['convolutions']}", *sums[1]))
    rows = text.rows(lines, left=(0, 1, 3))
    rule = "─" * max(map(len, rows))
    return [rows[0], rule, *rows[1:-2], rule, *rows[-2:]]


def notes(report: dict[str, Any], mark: str = "") -> list[str]:
    """Sentences that say which share the grouped layers have, and what the figures are.

    `mark` follows the words "Grouped layers".
    """
    total, machine = report["total"], report["machine"]
    share = total["grouped"]["share"]
    parts = [f"{percent(share['macs'])} of the MACs", f"{percent(share['parameters'])} of the parameters"]
    if share["time"] is not None:
        parts.append(f"{percent(share['time'])} of the time in convolutions")
        parts.append(f"{percent(share['time_of_model'])} of the whole model's time")
    lines = []
    if total["grouped"]["convolutions"]:
        lines.append(f"Grouped layers{mark} have {', '.join(parts)}.")
    elif total["convolutions"]:
        lines.append(f"No {'counted ' * bool(report['not_counted'])}convolution has groups above 1.")
    lines += not_counted(report["not_counted"], bool(total["convolutions"]))
    lines.append("MACs and bytes (each tensor moved once) are those of one forward pass; folded rows (×) are sums.")
    if total["pytorch_ms"] is not None:
        lines += _notes_on_times(report)
        if is_measured(report):
            lines += _notes_on_speed(report)
        lines.append(measured_on(machine))
    if report["not_measured"]:
        lines.append(f"groupwise's kernels were not measured: {report['not_measured']}.")
    return lines


def _notes_on_times(report: dict[str, Any]) -> list[str]:
    total = report["total"]
    passes = "forward and backward" if report["backward"] else "forward"
    lines = [
        f"ms: {passes}, median of {phrases.plural(report['repeats'], 'run')}. The whole model takes "
        f"{milliseconds(total['model_ms'])} ms, and {milliseconds(total['recorded_ms'])} ms while groupwise times each "
        "convolution; shares of the whole model's time refer to the latter."
    ]
    if report["compiled"]:
        lines.append(
            "PyTorch runs a compiled model uncompiled while groupwise records its convolutions, so only the time of "
            "the whole model is that of the compiled one."
        )
    return lines


def _notes_on_speed(report: dict[str, Any]) -> list[str]:
    total, outputs = report["total"], report["outputs"]
    lines = [
        *_hazards(report),
        _what_they_take(report),
        f"{roofline_of(report['machine']['roofline'])} max error: the largest difference from the same convolution in "
        "float64, relative to its largest value.",
    ]
    if report["backward"]:
        lines.append("kernel: forward/grad_input/grad_weight where they differ; - where no such gradient ran.")
    if (total["roofline"] or 0) > 1:
        lines.append(beyond("A total"))
    same = "" if outputs["top1"] is None else f", and top-1 agrees on {percent(outputs['top1'])} of the batch"
    verdict = "within rounding" if outputs["within_rounding"] else "MORE THAN ROUNDING"
    lines.append(
        f"By groupwise's kernels the model's outputs differ by at most {error(outputs['max_difference'])} of the "
        f"largest value{same}: {verdict}."
    )
    return lines


def _hazards(report: dict[str, Any]) -> list[str]:
    """Which convolutions have no time by PyTorch's kernels, and why."""
    found: dict[str, list[str]] = {}
    for row in fold(report["layers"]):
        if row["hazard"]:
            found.setdefault(row["hazard"], []).append(legible(row["name"]))
    return [
        f"{why}: {', '.join(names)}. It was not run: groupwise's kernels computed this on both sides, and the sums "
        "count it on both."
        for why, names in found.items()
    ]


def _what_they_take(report: dict[str, Any]) -> str:
    """What groupwise's kernels gain or lose, and in which convolutions: the rest ran the same code on both sides."""
    total = report["total"]
    ours = [row for row in report["layers"] if set(row["kernels"].values()) - {"pytorch"} and not row["hazard"]]
    if not ours:
        hazards = any(row["hazard"] for row in report["layers"])
        what, whose = ("no other convolution", "the same") if hazards else ("no convolution", "PyTorch's")
        return (
            f"groupwise's kernels computed {what}: both sides ran {whose} code, so this is neither a gain nor a loss. "
            "What their times differ by shows noise and caches."
        )

    def against(after: float | None, before: float | None) -> str:
        factor = "" if is_busy(report["interference"]) else f" ({times(ratio(before, after))})"
        return f"{milliseconds(after)} ms instead of {milliseconds(before)} ms{factor}"

    before, after = (known_sum(row[key] for row in ours) for key in ("pytorch_ms", "groupwise_ms"))
    return (
        f"By groupwise's kernels, timed in turn with PyTorch's, the convolutions take "
        f"{against(total['groupwise_ms'], total['pytorch_ms'])}, and the whole model takes "
        f"{against(total['groupwise_model_ms'], total['model_ms'])}. The convolutions that groupwise's kernels "
        f"computed take {against(after, before)}. In all others (kernel: pytorch) both sides ran the same code, and "
        "the difference shows noise and caches."
    )


def beyond(what: str) -> str:
    """What to say of a fraction of peak above 1: the peak, which is measured, was too low."""
    return (
        f"{what} above 100 % of the roofline means that the rates it is taken of were measured too low: the machine "
        "was busy with something else then. Do not trust "
        "these fractions; measure again when the machine is idle."
    )


def tiles(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The main figures, each as (label, figure, what it means)."""
    total, outputs, machine = report["total"], report["outputs"], report["machine"]
    share = total["grouped"]["share"]
    found = [("Whole model", *_whole_model(report))]
    if total["convolutions"]:
        time = "" if share["time"] is None else f" · {percent(share['time'])}"
        of = "MACs" if share["time"] is None else "MACs · of the time in convolutions"
        found.append(("Grouped layers", f"{percent(share['macs'])}{time}", f"of the {of}"))
    else:
        found.append(("Grouped layers", "-", "groupwise counted no convolution"))
    if outputs is None:
        found.append(("Agreement of outputs", "-", "groupwise's kernels were not measured"))
    else:
        verdict = "within rounding" if outputs["within_rounding"] else "MORE THAN ROUNDING"
        largest = f"{error(outputs['max_difference'])} of the largest output"
        if outputs["top1"] is None:
            found.append(("Largest difference", error(outputs["max_difference"]), f"of the largest output: {verdict}"))
        else:
            found.append(("Top-1 agreement", percent(outputs["top1"]), f"outputs differ by {largest}: {verdict}"))
    devices = [device for device in machine.get("devices", ()) if device != "cpu"]
    where = f"{phrases.plural(machine['threads'], 'thread')}, torch {machine['torch']}"
    found.append(("Machine", legible(", ".join([machine["processor"], *devices])), where))
    return found


def _whole_model(report: dict[str, Any]) -> tuple[str, str]:
    """Before and after; before alone where groupwise's kernels were not measured."""
    total = report["total"]
    passes = "forward and backward" if report["backward"] else "forward"
    if total["model_ms"] is None:
        return numbers.count(total["macs"]["forward"]), "MACs of the counted convolutions"
    before = f"{milliseconds(total['model_ms'])}"
    if not is_measured(report):
        return f"{before} ms", f"{passes}, PyTorch's kernels"
    if total["model_speedup"] is None:
        return f"{before} ms", f"{passes}; groupwise's kernels computed no convolution"
    gain = "the machine was busy" if is_busy(report["interference"]) else times(total["model_speedup"])
    after = milliseconds(total["groupwise_model_ms"])
    return f"{before} → {after} ms", f"{passes}, PyTorch's kernels → groupwise's: {gain}"


def roofline_of(machine: dict[str, float]) -> str:
    """Says what the fraction of peak refers to."""
    rates = f"{numbers.count(machine['flop_per_second'])}FLOP/s", f"{numbers.data(machine['bytes_per_second'])}/s"
    return (
        f"roofline: the fraction of peak, which is the roofline floor over the time; the floor follows from a peak of "
        f"{rates[0]} and a copy's {rates[1]}."
    )


def measured_on(machine: dict[str, Any]) -> str:
    """Says where it was measured."""
    devices = [device for device in machine.get("devices", ()) if device != "cpu"]
    where = ", ".join([machine["processor"], *devices])
    return f"Measured on {where}, {phrases.plural(machine['threads'], 'thread')}, torch {machine['torch']}."


def is_measured(report: dict[str, Any]) -> bool:
    """Whether groupwise's kernels were measured."""
    return report["outputs"] is not None


def kind(row: dict[str, Any]) -> str:
    """`dense`, `grouped` or `depthwise`, with the dimensions and `transposed` where it is not a plain 2-D one."""
    dims = "" if row["op"] == "conv2d" else f" {row['op'][-2:]}"
    return f"{row['kind']}{dims}{' transposed' * row['transposed']}"


def milliseconds(value: float | None) -> str:
    """Three digits, at most three decimals."""
    if value is None:
        return "-"
    decimals = 3 if value < 1 else max(0, 2 - math.floor(math.log10(value)))
    return f"{value:,.{decimals}f}"


def figures(row: dict[str, Any]) -> tuple[str, str, str]:
    """The parameters, MACs and bytes of a row or a total."""
    return numbers.count(row["parameters"]), numbers.count(row["macs"]["forward"]), numbers.data(row["bytes"])


def speed(row: dict[str, Any]) -> tuple[str, ...]:
    """The cells of the columns `SPEED`, for a row or a total."""
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
    """An error with two digits: `3.1e-07`."""
    if value is None:
        return "-"
    return f"{value:.1e}" if value else "0"


def percent(value: float | None) -> str:
    """A fraction as a percentage."""
    return "-" if value is None else numbers.percent(value, 1)
