"""The benchmark of PyTorch's issues, and that its page shows the record."""

from __future__ import annotations

import re

from scripts import ABOUT, load

shapes, issues, measuring = map(load, ("shapes", "issues", "measuring"))
PAGE = issues.PAGE.read_text("utf-8")


def test_the_page_shows_the_record():
    assert len(measuring.block_of(issues.RECORD).findall(PAGE)) == 1
    said = issues.docs_text(issues.read_record(issues.RECORDS / issues.RECORD))
    assert measuring.with_block(PAGE, issues.RECORD, said) == PAGE, (
        "out of date; run: python benchmarks/issues.py --docs"
    )
    assert measuring.with_block(PAGE, issues.RECORD, "other") != PAGE


def test_every_layer_is_of_an_issue_on_the_page():
    listed = set(re.findall(r"^\| \[(\d+)\]", PAGE, re.M))
    found = {layer.source.split("#")[1].split()[0] for layer in shapes.read_file("issues.json")}
    assert found <= listed
    assert listed - found == {"13716"}


def test_the_ratio_compares_the_better_formats():
    facts = {**ABOUT, "isa": "avx2", "layer": "a", "pass": "forward", "busy": 0.5}
    times = {"pytorch": (8.0, 6.0), "groupwise": (2.0, 3.0)}
    rows = [
        {**facts, "implementation": who, "memory_format": name, "ms": ms}
        for who, pair in times.items()
        for name, ms in zip(("contiguous", "channels_last"), pair, strict=True)
    ]
    last = issues.docs_text(rows).splitlines()[-1]
    assert [cell.strip() for cell in last.strip("|").split("|")][-2:] == ["3", "50%"]
