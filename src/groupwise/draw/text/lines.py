"""Lines of plain text: columns that align, and sentences that wrap."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

WIDTH = 80


def rows(table: Sequence[Sequence[str]], indent: int = 0, left: Sequence[int] = (0,)) -> list[str]:
    """Returns the lines of a table; the columns in `left` align left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for row in table:
        cells = [
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return lines


def wrap(text: str, start: str = "", indent: int = 0) -> list[str]:
    """Returns `text` as lines of at most 80 columns; the first begins with `start`, the others with `indent` spaces."""
    first = start or " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
