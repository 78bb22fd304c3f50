"""A table of facts as HTML, for notebooks. It is in this room because `Wiring` and `Cost` show themselves by it."""

from __future__ import annotations

from collections.abc import Sequence

from groupwise.spec.legible import escape


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a `<table>` with a caption, a head and rows of cells; all text is escaped."""
    lines = [f"<table><caption>{escape(caption)}</caption>", _row("th", head)]
    return "".join([*lines, *(_row("td", row) for row in rows), "</table>"])


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
