"""From how much work on threads share it: what `benchmarks/sharing.py` measures, and what is fitted to made-up rows."""

from __future__ import annotations

import json
import sys

import pytest

from accuracy import threads
from groupwise.kernels import native, tables
from kernels import needs_kernels
from scripts import load

sharing = load("sharing")


def row(products, shared, isa="avx2", threads=2):
    return {"products": products, "isa": isa, "threads": threads, "ms_alone": 1.0, "ms_shared": shared}


def rows(pays_from, **options):
    return [row(1000 * n, 0.6 if 1000 * n >= pays_from else 1.5, **options) for n in range(1, 81)]


@pytest.mark.parametrize(("options", "each"), [({}, 16), ({"isa": "avx512"}, 32), ({"threads": 4}, 32)])
def test_the_number_is_that_from_which_sharing_pays(options, each):
    assert sharing.fitted(rows(32_000, **options)) == 32_000 // each


def test_all_work_is_shared_where_that_always_pays_and_few_rows_say_nothing():
    assert sharing.fitted(rows(0)) == 0
    assert sharing.fitted(rows(32_000)[: sharing.FEWEST - 1]) is None


def test_rows_that_were_disturbed_count_little():
    disturbed = [row(70_000 + n, 50.0) for n in range(5)]
    assert sharing.fitted([*rows(32_000), *disturbed]) == 2000


@needs_kernels
def test_the_record_has_both_times_of_each_row(monkeypatch, tmp_path, capsys):
    words = ["--count", "2", "--seconds", "60", "--records", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["sharing.py", *words])
    with threads(2):
        sharing.main()
    found = [json.loads(line) for line in (tmp_path / "sharing.jsonl").read_text().splitlines()]
    assert len(found) >= 2
    for one in found:
        assert one["ms_alone"] > 0 < one["ms_shared"]
        assert sharing.LEAST <= one["products"] <= sharing.MOST
        assert (one["isa"], one["threads"]) == (native.status().isa, 2)
    assert "shared_from None" in capsys.readouterr().out


def test_the_shipped_model_has_a_number():
    assert json.loads(tables.MODEL.read_text())["shared_from"] >= 0
