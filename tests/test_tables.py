"""Results as tables for other programs: the same columns and values in Markdown, CSV and pandas."""

from __future__ import annotations

import csv
import io
import json
import sys
import types
import xml.etree.ElementTree as ET

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributed.tensor.parallel import ParallelStyle

import groupwise
from groupwise import (
    ConvSpec,
    Grouping,
    GroupwiseError,
    Tuned,
    Wiring,
    assign,
    bench,
    cost,
    count,
    explain,
    explore,
    parallel,
    plan,
    regroup,
    report,
)
from groupwise.draw.text import table
from groupwise.parallel import Collective, Collectives, Link, Machine, plan_split, predict
from kernels import without_kernels
from sweeps import LAYERS, made_up

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
    "bench change": lambda: (change(), "rows", "work"),
    "regroup": lambda: (regroup(SPLIT, {"1": 2}), "rows", "layer"),
    "sweep": lambda: (made_up(*LAYERS, refused=False), "rows", "layer"),
}


def change():
    made = bench(ConvSpec(8, 8, 3, groups=8), (1, 8, 9, 9), repeats=1)
    return made.compare(made)


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


LINK = Link(1e-6, 1e9)
SPEC = ConvSpec(8, 8, 3, groups=4)
ALL_REDUCE = Collective("a <b>\x1b", False, "all_reduce", 8)
SPLIT = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 4, 1))
# How each public result is made, and those that are parts of one.
MADE = {
    "Assignment": lambda: assign(torch.eye(4), 2),
    "Bench": lambda: RESULTS["bench"]()[0],
    "BenchChange": lambda: RESULTS["bench change"]()[0],
    "Choice": lambda: plan_split(SPLIT, 2).choices[0],
    "Collective": lambda: ALL_REDUCE,
    "Collectives": lambda: Collectives([ALL_REDUCE]),
    "ConvCall": lambda: count(MODEL, X)[0],
    "ConvSpec": lambda: SPEC,
    "Cost": lambda: cost(SPEC, 9),
    "Count": lambda: RESULTS["count"]()[0],
    "Explanation": lambda: explain(SPEC),
    "Explorer": lambda: explore(SPEC),
    "Grouping": lambda: Grouping({"1": 2}, 1.5, 100, 10, 0.1),
    "Path": lambda: Wiring(SPEC).path(1),
    "Plan": lambda: plan(SPEC, (1, 8, 9, 9)),
    "Prediction": lambda: predict(plan_split(SPLIT, 2, input_shape=(2, 3, 9, 9)), Machine(1e9, 1e9, LINK, LINK)),
    "Regrouped": lambda: RESULTS["regroup"]()[0],
    "Report": lambda: RESULTS["report"]()[0],
    "SplitPlan": lambda: plan_split(SPLIT, 2),
    "Sweep": lambda: RESULTS["sweep"]()[0],
    "Tuned": lambda: Tuned((plan(SPEC, (1, 8, 9, 9)),), (2,), 1, 0.5, 1, None),
    "Wiring": lambda: Wiring(SPEC),
}
PARTS = {"Macs": lambda: cost(SPEC, 9).macs, "Traffic": lambda: cost(SPEC, 9).traffic}
# What you give to a function, rather than get from one; and a network.
GIVEN = {"GroupwiseError", "Link", "Machine", "Optimized", "Partition", "Trainable"}
IN_ONE_LINE = {"Assignment", "Choice", "Collective", "ConvCall", "ConvSpec", "Macs", "Path", "Prediction", "Traffic"}


def test_every_public_class_is_a_result_or_is_given():
    public = [getattr(module, name) for module in (groupwise, parallel) for name in module.__all__]
    classes = [one for one in public if isinstance(one, type) and not issubclass(one, ParallelStyle)]
    assert sorted({one.__name__ for one in classes}) == sorted({*MADE, *GIVEN})


@pytest.mark.parametrize("name", [*MADE, *PARTS])
def test_every_result_has_its_forms(monkeypatch, name):
    if name not in ("Plan", "Tuned"):
        without_kernels(monkeypatch)
    made = (MADE | PARTS)[name]()
    assert type(made).__name__ == name
    json.dumps(made.to_dict())
    shown, page = str(made), made._repr_html_()
    assert shown
    assert not shown.startswith(f"{name}(")
    assert ET.fromstring(f"<div>{page}</div>")[0].tag in {"pre", "table", "figure", "div", "iframe"}
    if name in IN_ONE_LINE:
        assert shown.isprintable()
        assert ET.fromstring(page).text == shown


def test_one_line_by_hand():
    assert str(cost(SPEC, 3).macs) == "144 MACs forward, 144 grad_input, 144 grad_weight"
    assert str(cost(SPEC, 3).traffic) == "288 bytes of input, 576 of weight, 32 of output"
    assert str(ALL_REDUCE) == "all_reduce of 8 bytes for a <b>\\x1b, forward"
    assert str(Collective("", True, "all_gather", 1)) == "all_gather of 1 byte for the model, backward"
    first, second, third = plan_split(SPLIT, 3).choices
    assert str(first) == "0: Conv2d, ColwiseParallel; 32 parameters, of which a rank holds 8 to 16; moves rows"
    assert str(second).startswith("1: Conv2d, GroupParallel; 152 parameters, of which a rank holds 38 to 76")
    assert (
        str(third)
        == "2: Conv2d, RowwiseParallel; 36 parameters, of which a rank holds 12 to 20; all-reduces outputs, moves rows"
    )
    assert str(count(MODEL, X)[0]).startswith(f"0: {ConvSpec(3, 8, 3)}; 9×9 → 7×7, batch 1, float32; ")


def test_a_report_has_its_picture(monkeypatch):
    without_kernels(monkeypatch)
    root = ET.fromstring(report(MODEL, X, repeats=1).to_svg())
    assert "parameters: dense" in "".join(root.itertext())


def test_a_count_is_a_list():
    found = count(MODEL, X)
    assert found[1].name == "1"
    assert [call.spec.groups for call in found] == [1, 4]
    assert "8×2×3×3" in str(found)
