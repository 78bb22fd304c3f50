"""A table of facts as HTML, for notebooks; the numbers need no picture."""

from __future__ import annotations

import html
from collections.abc import Sequence


def html_table(caption: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Returns a `<table>` with a caption, a head and rows of cells; all text is escaped."""
    lines = [f"<table><caption>{html.escape(caption)}</caption>", _row("th", head)]
    return "".join([*lines, *(_row("td", row) for row in rows), "</table>"])


def _row(tag: str, cells: Sequence[object]) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(str(cell))}</{tag}>' for cell in cells)}</tr>"
