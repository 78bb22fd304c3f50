"""Results as tables for other programs: the same columns and values in Markdown, CSV and pandas."""

from __future__ import annotations

import csv
import io
import sys
import types
import xml.etree.ElementTree as ET

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from groupwise import ConvSpec, GroupwiseError, bench, count, report
from groupwise.draw.text import table
from kernels import without_kernels

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
    assert len(lines) == len(rows) + 3
    for line in lines[:-1]:
        assert line.replace("\\\\", "").replace("\\|", "").count("|") == 4


def test_markdown_by_hand():
    rows = [["a|b", 1234567, 0.123456789, None], ["c\nd", True, 2.0, [3, 5]]]
    assert table.markdown(["name", "n", "x", "size"], rows) == (
        "| name | n | x | size |\n"
        "| --- | --- | --- | --- |\n"
        "| a\\|b | 1234567 | 0.123457 |  |\n"
        "| c d | True | 2 | 3×5 |\n"
    )


def test_csv_reads_back():
    rows = [['a,"b"\n', 0.1 + 0.2, None], ["c", 1e-30, (1, 2)]]
    found = list(csv.reader(io.StringIO(table.csv(["name", "x", "y"], rows))))
    assert found == [["name", "x", "y"], ['a,"b"\n', repr(0.1 + 0.2), ""], ["c", "1e-30", "1×2"]]
    assert float(found[1][1]) == 0.1 + 0.2


def test_pandas_is_asked_for_where_it_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(GroupwiseError, match="to_pandas needs pandas; install it with: pip install pandas"):
        table.pandas(["a"], [[1]])
    stand_in = types.SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    assert table.pandas(("a", "b"), [(1, None)]) == ([[1, None]], ["a", "b"])


MODEL = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=4))
X = torch.randn(1, 3, 9, 9)
RESULTS = {
    "count": lambda: (count(MODEL, X), "layers", "name"),
    "report": lambda: (report(MODEL, X, repeats=1), "layers", "name"),
    "bench": lambda: (bench(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9), repeats=1), "timings", "work"),
}


@pytest.mark.parametrize("name", RESULTS)
def test_every_result(monkeypatch, name):
    without_kernels(monkeypatch)
    made, rows, key = RESULTS[name]()
    facts = made.to_dict()[rows]
    head, *lines = csv.reader(io.StringIO(made.to_csv()))
    assert len(head) == len(set(head))
    assert [line[head.index(key)] for line in lines] == [row[key] for row in facts]
    for column in {"ms", "bytes", "parameters"} & set(head):
        assert [float(line[head.index(column)]) for line in lines] == [row[column] for row in facts]
    shown = made.to_markdown().split("\n")
    assert [cell.strip() for cell in shown[0].strip("|").split("|")] == head
    assert len(shown) == len(facts) + 3
    stand_in = types.SimpleNamespace(DataFrame=lambda rows, columns: (rows, columns))
    monkeypatch.setitem(sys.modules, "pandas", stand_in)
    values, names = made.to_pandas()
    assert (names, len(values)) == (head, len(facts))
    assert repr(made) == str(made) != ""
    assert made._repr_html_().startswith("<")


def test_a_report_has_its_picture(monkeypatch):
    without_kernels(monkeypatch)
    root = ET.fromstring(report(MODEL, X, repeats=1).to_svg())
    assert "parameters: dense" in "".join(root.itertext())


def test_a_count_is_a_list():
    found = count(MODEL, X)
    assert found[1].name == "1"
    assert [call.spec.groups for call in found] == [1, 4]
    assert "8×2×3×3" in str(found)
