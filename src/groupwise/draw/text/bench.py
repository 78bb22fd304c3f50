"""The times of one layer as plain text."""

from __future__ import annotations

import textwrap
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import lines as text
from groupwise.draw.text.report import kernels, measured_on, milliseconds, percent, roofline_of, times
from groupwise.spec.cost import Cost

_HEAD = ("", "kernels of", "memory format", "kernel", "ms", "speedup", "roofline")


def table(bench: dict[str, Any], at: Cost) -> str:
    """A line for each way to compute the layer, and what the figures are."""
    lines = [_HEAD]
    for row in bench["timings"]:
        last = (milliseconds(row["ms"]), times(row["speedup"]), percent(row["roofline"]))
        lines.append((row["work"], row["library"], row["memory_format"], kernels(row["kernels"]), *last))
    rows = text.rows(lines, left=(0, 1, 2, 3))
    notes = [
        f"ms: medians of {phrases.plural(bench['repeats'], 'sample')}, all in turn. A training step is the forward and "
        "the gradients of input, weight and bias. speedup: against PyTorch in the same memory format.",
        *_better_against_better(bench["timings"]),
        roofline_of(bench["machine"]["roofline"]),
        "What else the machine does moves such times by some ten percent: measure twice before you decide by less.",
        measured_on(bench["machine"]),
    ]
    if any((row["roofline"] or 0) > 1 for row in bench["timings"]):
        notes.append(
            "A share of the roofline above 100 % cannot be: the machine was busy with something else while its rates "
            "were measured, or while the layer was. Do not trust these times; measure again when it is idle."
        )
    if bench["not_measured"]:
        notes.append(f"groupwise's kernels were not measured: {bench['not_measured']}.")
    where = f"{numbers.product(at.input_size)}, batch {at.batch}, {at.dtype}"
    below = [line for note in notes for line in textwrap.wrap(note, text.WIDTH)]
    return "\n".join(
        [f"{phrases.title(at.spec)}; {where}", "", rows[0], "─" * max(map(len, rows)), *rows[1:], "", *below]
    )


def _better_against_better(timings: list[dict[str, Any]]) -> list[str]:
    """What a user wins who is free to choose the memory format, with groupwise and without."""
    best: dict[str, dict[str, float]] = {}
    for row in timings:
        libraries = best.setdefault(row["work"], {})
        libraries[row["library"]] = min(row["ms"], libraries.get(row["library"], row["ms"]))
    won = [f"{work} {times(ms['pytorch'] / ms['groupwise'])}" for work, ms in best.items() if len(ms) == 2]
    return [f"Each in its better memory format: {', '.join(won)}."] if won else []
