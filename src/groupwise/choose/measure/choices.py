"""`Choices`: several choices of groups, in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.choose.measure.choice import Grouping
from groupwise.draw.base import numbers
from groupwise.draw.text import busy
from groupwise.draw.text import lines as text
from groupwise.draw.text.report import milliseconds
from groupwise.draw.text.table import Tabular
from groupwise.spec.legible import pre

_COLUMNS = ("ms", "macs", "parameters", "risk", "measured_ms", "measured_risk")
_NOTE = (
    "layers: how many change. Choices are numbered from 0: print(choices[0]) lists the layers of the first, and "
    "groupwise.regroup(model, choices[0]) makes its network."
)


class Choices(tuple[Grouping, ...], Tabular):
    """A tuple of `Grouping`, the choices of a `Sweep`. `print()` it for the table."""

    __slots__ = ()

    def __str__(self) -> str:
        if not self:
            return "no choice: no layer can have other groups"
        risk = self[0].facts.get("risk", "risk")
        measured = any(one.measured_ms is not None for one in self)
        head = ("choice", "layers", "groups", "ms expected", *["ms measured"] * measured, "MACs", "parameters", risk)
        lines: list[Sequence[str]] = [(*head, *[f"{risk} measured"] * measured)]
        for number, one in enumerate(self):
            costs = (numbers.count(one.macs), numbers.count(one.parameters), _number(one.risk))
            times = (milliseconds(one.ms), *[milliseconds(one.measured_ms)] * measured)
            more = [_number(one.measured_risk)] * measured
            lines.append((str(number), str(len(one.groups)), _values(one), *times, *costs, *more))
        table = text.rows(lines)
        first = next((found for one in self if (found := busy.paragraph(one.facts.get("interference")))), [])
        return "\n".join([*first, table[0], "─" * max(map(len, table)), *table[1:], "", *text.wrap(_NOTE)])

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return pre(str(self))

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and a row for each choice, whose `layers` are `name=groups`."""
        rows = [
            [" ".join(f"{name}={value}" for name, value in one.groups.items()), *(getattr(one, it) for it in _COLUMNS)]
            for one in self
        ]
        return ["layers", *_COLUMNS], rows

    def to_dict(self) -> dict[str, Any]:
        """Returns `choices`, each as plain JSON types."""
        return {"choices": [one.to_dict() for one in self]}


def _values(choice: Grouping) -> str:
    values = choice.groups.values()
    if not values:
        return "as it is"
    least, most = min(values), max(values)
    return str(least) if least == most else f"{least} to {most}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
