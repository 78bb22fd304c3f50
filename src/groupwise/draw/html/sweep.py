"""A sweep of groups values as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers
from groupwise.draw.html import page as html
from groupwise.draw.text import busy
from groupwise.draw.text import sweep as text
from groupwise.draw.text.report import milliseconds
from groupwise.draw.views.front import front_svg

# How a row looks, and what its cells say and sort by.
Row = tuple[str, list[tuple[str, float | None]]]


def page(sweep: dict[str, Any]) -> str:
    """The whole document: the front, its choices, every layer at every value, and how it was measured."""
    return html.page(f"{sweep['title']}: which groups", _body(sweep), sortable=True)


def fragment(sweep: dict[str, Any]) -> str:
    """The picture and the table, for a notebook."""
    return "".join([*_warning(sweep), html.figure(front_svg(sweep)), _layers(sweep)])


def _warning(sweep: dict[str, Any]) -> list[str]:
    return [html.element("p", line, "warning") for line in busy.warning(sweep["interference"])]


def _body(sweep: dict[str, Any]) -> str:
    what = "a training step" if sweep["train"] else "forward"
    tiles = [
        ("time", f"{milliseconds(sweep['model_ms'])} ms", f"{what}, as it is"),
        ("work", numbers.count(sweep["macs"]), "MACs of convolutions"),
        ("parameters", numbers.count(sweep["parameters"]), "of convolutions"),
    ]
    if sweep["loss"] is not None:
        tiles.append(("loss", f"{sweep['loss']:.4g}", "as it is"))
    parts = [html.element("h1", f"{sweep['title']}: which groups"), *_warning(sweep), html.tiles(tiles)]
    parts.append(html.figure(front_svg(sweep)))
    chosen = sweep["measured"] or sweep["front"]
    parts += [html.element("h2", "The choices"), _choices(chosen, sweep["risk"])]
    parts += [html.element("h2", "Every layer at every value"), _layers(sweep)]
    refused = [row for row in sweep["rows"] if row["refused"]]
    if refused:
        parts.append(html.element("h2", "Layers that stay as they are"))
        parts += [html.element("p", f"{row['layer']}: {row['refused']}", "soft") for row in refused]
    parts.append(html.element("h2", "How this was measured"))
    parts += [html.element("p", line, "soft") for line in text.notes(sweep)]
    return "\n".join(parts)


def _choices(choices: list[dict[str, Any]], risk: str) -> str:
    rows: list[Row] = []
    for one in choices:
        groups = ", ".join(f"{name}: {value}" for name, value in one["layers"].items()) or "as it is"
        rows.append(
            (
                "",
                [
                    (groups, None),
                    _ms(one["ms"]),
                    _ms(one["measured_ms"]),
                    _value(one["risk"]),
                    _value(one["measured_risk"]),
                ],
            )
        )
    return _table(("groups", "ms expected", "ms measured", f"{risk} expected", f"{risk} measured"), rows)


def _layers(sweep: dict[str, Any]) -> str:
    rows: list[Row] = []
    for row in sweep["rows"]:
        if row["refused"]:
            continue
        amounts = [
            (str(row["groups"]), row["groups"]),
            (numbers.count(row["parameters"]), row["parameters"]),
            (numbers.count(row["macs"]), row["macs"]),
            (numbers.data(row["bytes"]), row["bytes"]),
            *[_ms(row["forward_ms"])] * sweep["train"],
            _ms(row["ms"]),
        ]
        ends = [*(_value(row[key]) for key in ("kept", "bound", "error", "risk")), _ms(row["gather_ms"])]
        rows.append(("grouped" if row["current"] else "", [(row["layer"], None), *amounts, *ends]))
    return _table((*text.head(sweep), "gathers, ms"), rows)


def _table(head: Sequence[str], rows: Sequence[Row]) -> str:
    """The table without the columns that no row fills: what was not measured needs no place."""
    filled = [i for i in range(len(head)) if any(cells[i][0] for _, cells in rows)]
    return html.table([head[i] for i in filled], [(kind, [cells[i] for i in filled]) for kind, cells in rows])


def _ms(value: float | None) -> tuple[str, float | None]:
    return ("", None) if value is None else (milliseconds(value), value)


def _value(value: float | None) -> tuple[str, float | None]:
    return ("", None) if value is None else (f"{value:.3g}", value)
