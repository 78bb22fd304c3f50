"""The times of one layer as plain text."""

from __future__ import annotations

import textwrap
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import busy
from groupwise.draw.text import lines as text
from groupwise.draw.text.report import beyond, kernels, measured_on, milliseconds, percent, roofline_of, times
from groupwise.spec.cost import Cost

# What a table shows of each timing, by its key in the timing's dict.
_COLUMNS = ("work", "library", "memory_format", "kernels", "ms", "q1_ms", "q3_ms", "speedup", "roofline")
_HEAD = ("", "kernels of", "memory format", "kernel", "ms", "quartiles", "speedup", "roofline")
_CHANGE = ("work", "library", "memory_format", "kernels_before", "kernels", "ms_before", "ms", "ratio", "changed")
_CHANGE_HEAD = ("", "kernels of", "memory format", "kernel", "ms before", "ms now", "before/now", "")


def columns(timings: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and values, one row for each timing."""
    rows = [{**timing, "kernels": kernels(timing["kernels"])} for timing in timings]
    return list(_COLUMNS), [[row[key] for key in _COLUMNS] for row in rows]


def table(bench: dict[str, Any], at: Cost) -> str:
    """A line for each timing, and sentences that say what the figures are."""
    disturbed = busy.is_busy(bench["interference"])
    lines = [_HEAD]
    for row in bench["timings"]:
        between = f"{milliseconds(row['q1_ms'])} - {milliseconds(row['q3_ms'])}"
        last = (milliseconds(row["ms"]), between, times(row["speedup"]), percent(row["roofline"]))
        lines.append((row["work"], row["library"], row["memory_format"], kernels(row["kernels"]), *last))
    rows = text.rows(lines, left=(0, 1, 2, 3))
    notes = [
        f"ms: median of {phrases.plural(bench['repeats'], 'sample')}, all taken in turn. A training step is the "
        "forward and the gradients of input, weight and bias. quartiles: half of the samples lie between them. "
        "speedup: PyTorch's time in the same memory format over this one.",
        *([] if disturbed else _better_against_better(bench["timings"])),
        roofline_of(bench["machine"]["roofline"]),
        "Other work on the machine changes such times, by some ten percent or, where threads must wait, several times "
        "over: measure on an idle machine, and twice before you rely on little.",
        measured_on(bench["machine"]),
    ]
    if any((row["roofline"] or 0) > 1 for row in bench["timings"]):
        notes.append(beyond("A time"))
    for why in dict.fromkeys(bench["hazards"].values()):
        what = "; ".join(one for one, hazard in bench["hazards"].items() if hazard == why)
        notes.append(f"{why}, and was not run: {what}.")
    if bench["not_measured"]:
        notes.append(f"groupwise's kernels were not measured: {bench['not_measured']}.")
    return _page(at, rows, notes, busy.paragraph(bench["interference"]))


def change_columns(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and values, one row for each timing of both runs."""
    shown = [{**row, **{key: kernels(row[key]) for key in ("kernels_before", "kernels")}} for row in rows]
    return list(_CHANGE), [[row[key] for key in _CHANGE] for row in shown]


def change(facts: dict[str, Any], at: Cost) -> str:
    """A line for each timing that both runs have, and sentences that say what the figures are."""
    lines = [_CHANGE_HEAD]
    for row in facts["rows"]:
        used = [kernels(row[key]) for key in ("kernels_before", "kernels")]
        said = "" if not row["changed"] else "faster" if row["ratio"] > 1 else "slower"
        last = (milliseconds(row["ms_before"]), milliseconds(row["ms"]), times(row["ratio"]), said)
        lines.append((row["work"], row["library"], row["memory_format"], " → ".join(dict.fromkeys(used)), *last))
    before, after = facts["before"], facts["after"]
    notes = [
        f"Medians of {before['repeats']} and {phrases.plural(after['repeats'], 'sample')}. The last column says what "
        "changed: the middle halves of the samples, between their quartiles, lie apart. Where it is empty, measure "
        "again before you rely on the difference. Two runs do not share the moments at which the machine is slow.",
        f"Before: {_made_by(before['machine'])}. Now: {_made_by(after['machine'])}.",
        measured_on(after["machine"]),
    ]
    first = busy.paragraph(after["interference"]) or busy.paragraph(
        before["interference"], "its times are not to be trusted"
    )
    return _page(at, text.rows(lines, left=(0, 1, 2, 3, 7)), notes, first)


def _made_by(machine: dict[str, Any]) -> str:
    return f"torch {machine['torch']}, groupwise {machine['groupwise']}, {machine['date']}"


def _page(at: Cost, rows: list[str], notes: list[str], first: list[str]) -> str:
    where = f"{numbers.product(at.input_size)}, batch {at.batch}, {at.dtype}"
    below = [line for note in notes for line in textwrap.wrap(note, text.WIDTH)]
    return "\n".join(
        [*first, f"{phrases.title(at.spec)}; {where}", "", rows[0], "─" * max(map(len, rows)), *rows[1:], "", *below]
    )


def _better_against_better(timings: list[dict[str, Any]]) -> list[str]:
    """Compares the libraries for a user who is free to choose the memory format."""
    best: dict[str, dict[str, float]] = {}
    for row in timings:
        libraries = best.setdefault(row["work"], {})
        libraries[row["library"]] = min(row["ms"], libraries.get(row["library"], row["ms"]))
    won = [f"{work} {times(ms['pytorch'] / ms['groupwise'])}" for work, ms in best.items() if len(ms) == 2]
    return [f"Each in its better memory format: {', '.join(won)}."] if won else []
