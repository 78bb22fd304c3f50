"""docs/planner.md lists the tables that are shipped."""

from __future__ import annotations

import json
import pathlib

from scripts import load

measuring, shipped = map(load, ("measuring", "shipped_tables"))
PAGE = pathlib.Path(__file__).parents[1] / "docs" / "planner.md"


def test_a_row_for_each_file_in_the_order_of_the_kinds(tmp_path):
    held_out = {"rows": 1200, "taken": 900, "below_095": 3, "below_067": 1, "mean": 2.5}
    names = ("a-1-avx2-float64", "a-1-avx2-3d", "a-1-avx2", "b-2-neon")
    for name in names:
        processor, isa = name[:3], name.split("-")[2]
        (tmp_path / f"{name}.json").write_text(json.dumps({"class": processor, "isa": isa, "held_out": held_out}))
    (tmp_path / "model.json").write_text("{}")
    rest = "1,200 | 900 | 3 | 1 | 2.50 |"
    assert shipped.told(tmp_path).splitlines()[2:] == [
        f"| a-1, avx2 | float32 | {rest}",
        f"| a-1, avx2 | float32 3-D | {rest}",
        f"| a-1, avx2 | float64 | {rest}",
        f"| b-2, neon | float32 | {rest}",
    ]


def test_the_page_shows_the_files():
    (block,) = measuring.block_of(shipped.NAME).findall(PAGE.read_text("utf-8"))
    assert block[1] == shipped.told(shipped.POLICY) + "\n", "run: python benchmarks/shipped_tables.py"
