"""The times of one layer as plain text."""

from __future__ import annotations

import textwrap
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import lines as text
from groupwise.draw.text.report import beyond, kernels, measured_on, milliseconds, percent, roofline_of, times
from groupwise.spec.cost import Cost

# What a table shows of each timing, by its key in the timing's dict.
_COLUMNS = ("work", "library", "memory_format", "kernels", "ms", "speedup", "roofline")
_HEAD = ("", "kernels of", "memory format", "kernel", "ms", "speedup", "roofline")


def columns(timings: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and values, one row for each timing."""
    rows = [{**timing, "kernels": kernels(timing["kernels"])} for timing in timings]
    return list(_COLUMNS), [[row[key] for key in _COLUMNS] for row in rows]


def table(bench: dict[str, Any], at: Cost) -> str:
    """A line for each timing, and sentences that say what the figures are."""
    lines = [_HEAD]
    for row in bench["timings"]:
        last = (milliseconds(row["ms"]), times(row["speedup"]), percent(row["roofline"]))
        lines.append((row["work"], row["library"], row["memory_format"], kernels(row["kernels"]), *last))
    rows = text.rows(lines, left=(0, 1, 2, 3))
    notes = [
        f"ms: median of {phrases.plural(bench['repeats'], 'sample')}, all taken in turn. A training step is the "
        "forward and the gradients of input, weight and bias. speedup: PyTorch's time in the same memory format over "
        "this one.",
        *_better_against_better(bench["timings"]),
        roofline_of(bench["machine"]["roofline"]),
        "Other work on the machine changes such times by some ten percent: measure twice before you rely on less.",
        measured_on(bench["machine"]),
    ]
    if any((row["roofline"] or 0) > 1 for row in bench["timings"]):
        notes.append(beyond("A time"))
    if bench["not_measured"]:
        notes.append(f"groupwise's kernels were not measured: {bench['not_measured']}.")
    where = f"{numbers.product(at.input_size)}, batch {at.batch}, {at.dtype}"
    below = [line for note in notes for line in textwrap.wrap(note, text.WIDTH)]
    return "\n".join(
        [f"{phrases.title(at.spec)}; {where}", "", rows[0], "─" * max(map(len, rows)), *rows[1:], "", *below]
    )


def _better_against_better(timings: list[dict[str, Any]]) -> list[str]:
    """Compares the libraries for a user who is free to choose the memory format."""
    best: dict[str, dict[str, float]] = {}
    for row in timings:
        libraries = best.setdefault(row["work"], {})
        libraries[row["library"]] = min(row["ms"], libraries.get(row["library"], row["ms"]))
    won = [f"{work} {times(ms['pytorch'] / ms['groupwise'])}" for work, ms in best.items() if len(ms) == 2]
    return [f"Each in its better memory format: {', '.join(won)}."] if won else []
