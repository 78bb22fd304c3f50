"""A table of raw column names and values as Markdown, CSV or a pandas data frame."""

from __future__ import annotations

import csv as csv_module
import importlib
import io
from collections.abc import Sequence
from typing import Any

from groupwise.errors import GroupwiseError


def markdown(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns the table in GitHub's Markdown, without a newline at its end; None becomes an empty cell."""
    rule = ["---"] * len(head)
    return "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in (head, rule, *rows))


def csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Returns the table as comma-separated values (RFC 4180, with newlines of one character)."""
    text = io.StringIO()
    csv_module.writer(text, lineterminator="\n").writerows([head, *rows])
    return text.getvalue()


def pandas(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> Any:
    """Returns the table as a `pandas.DataFrame`; raises `GroupwiseError` where pandas is not installed."""
    try:
        library: Any = importlib.import_module("pandas")
    except ImportError:
        raise GroupwiseError("to_pandas needs pandas; install it with: pip install pandas") from None
    return library.DataFrame(list(rows), columns=list(head))


def _cell(value: Any) -> str:
    return "" if value is None else str(value).replace("|", "\\|").replace("\n", " ")
