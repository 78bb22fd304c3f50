"""One table as Markdown, CSV or a pandas data frame: raw column names and raw values."""

from __future__ import annotations

import csv as comma_separated
import importlib
import io
from collections.abc import Iterable, Sequence
from typing import Any

from groupwise.errors import GroupwiseError


class Tabular:
    """A result that is a table: what derives from it says its columns once, and has every format."""

    __slots__ = ()

    def columns(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """Returns the column names, and the values of each row."""
        raise NotImplementedError

    def to_markdown(self) -> str:
        """Returns the table as Markdown."""
        return markdown(*self.columns())

    def to_csv(self) -> str:
        """Returns the table as comma-separated values."""
        return csv(*self.columns())

    def to_pandas(self) -> Any:
        """Returns the table as a `pandas.DataFrame`. Raises `GroupwiseError` if pandas is not installed."""
        return pandas(*self.columns())


def markdown(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a Markdown table: None is an empty cell, a float has six digits, a sequence of sizes reads `3×3`."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines) + "\n"


def csv(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns comma-separated values with every digit: None is an empty cell, a sequence of sizes reads `3×3`."""
    text = io.StringIO()
    writer = comma_separated.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows([_joined(value) for value in row] for row in rows)
    return text.getvalue()


def pandas(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> Any:
    """Returns a `pandas.DataFrame` of the values as they are. Raises `GroupwiseError` if pandas is not installed."""
    try:
        library: Any = importlib.import_module("pandas")
    except ImportError:
        raise GroupwiseError("to_pandas needs pandas; install it with: pip install pandas") from None
    return library.DataFrame([list(row) for row in rows], columns=list(head))


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(_joined(value))
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def _joined(value: Any) -> Any:
    return "×".join(map(str, value)) if isinstance(value, (list, tuple)) else value
