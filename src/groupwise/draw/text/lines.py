"""Lines of plain text: columns that align, and sentences that wrap."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from groupwise.spec.legible import legible

WIDTH = 80
# A table may be wider than sentences.
_WIDEST = 100
_LEAST_LAST = 24
_MOST_NAME = 32


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


def folded(table: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Returns the lines of a table of at most 100 columns: what does not fit of a last cell stands in the lines below.

    Where the other columns leave fewer than 24 for the last one, it gets these.
    """
    others = sum(max(map(len, column)) + 2 for column in list(zip(*table, strict=True))[:-1])
    width = max(_LEAST_LAST, _WIDEST - others)
    lines: list[Sequence[str]] = []
    for *cells, last in table:
        first, *more = textwrap.wrap(last, width, break_on_hyphens=False) or [""]
        lines.append((*cells, first))
        lines += [(*([""] * len(cells)), f"  {one}") for one in textwrap.wrap(" ".join(more), width - 2)]
    return rows(lines, left=left)


def shorten(name: str) -> str:
    """Returns a name in at most 32 columns, without its middle if it is longer."""
    name = legible(name)
    half = _MOST_NAME // 2
    return name if len(name) <= _MOST_NAME else f"{name[: half - 1]}…{name[-half:]}"


def wrap(text: str, start: str = "", indent: int = 0) -> list[str]:
    """Returns `text` as lines of at most 80 columns; the first begins with `start`, the others with `indent` spaces."""
    first = start or " " * indent
    return textwrap.wrap(text, WIDTH, initial_indent=first, subsequent_indent=" " * indent, break_on_hyphens=False)
