"""Tables for other programs: a reader finds in them the values that were written."""

from __future__ import annotations

import csv
import importlib.util
import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from groupwise import GroupwiseError
from groupwise.draw.text import table

TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"))
ROWS = st.lists(st.tuples(st.integers(), TEXT, st.none()))
HEAD = ("number", "text, with a comma", "nothing")


@given(ROWS)
def test_a_csv_reader_finds_the_values(rows):
    found = list(csv.reader(io.StringIO(table.csv(HEAD, rows), newline="")))
    assert found == [list(HEAD), *([str(number), text, ""] for number, text, _ in rows)]


@given(ROWS)
def test_a_markdown_table_has_a_line_a_row_and_as_many_cells(rows):
    lines = table.markdown(HEAD, rows).split("\n")
    assert len(lines) == len(rows) + 2
    assert lines[:2] == ["| number | text, with a comma | nothing |", "| --- | --- | --- |"]
    for line in lines:
        assert line.replace("\\|", "").count("|") == 4


def test_a_data_frame_or_how_to_have_one(monkeypatch):
    if importlib.util.find_spec("pandas"):
        frame = table.pandas(HEAD, [(1, "a", None), (2, "b", None)])
        assert list(frame.columns) == list(HEAD)
        assert frame["number"].sum() == 3
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GroupwiseError, match="to_pandas needs pandas; install it with: pip install pandas"):
        table.pandas(HEAD, [])
