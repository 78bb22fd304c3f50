"""The pages of the kernels: each has a picture of its tile, and tells by the record where it was fastest."""

from __future__ import annotations

import functools
import pathlib
import re
import runpy

import pytest

from groupwise.kernels.plan import KERNELS
from legible import check_legible
from scripts import load

DOCS = pathlib.Path(__file__).parent.parent / "docs"
measuring, tables = map(load, ("measuring", "kernel_tables"))
OURS = [kernel for kernel in KERNELS if kernel != "pytorch"]


def row(least_ms, direction="forward", groups=8, memory_format="contiguous", steady=True):
    size = {"input_size": [8, 8], "output_size": [8, 8], "kernel_size": [3, 3], "stride": [1, 1]}
    facts = {"class": "some-1", "isa": "avx2", "torch": "2.13.0", "date": "2026-01-01", "time": "00:00:00"}
    channels = {"groups": groups, "in_channels": 8, "out_channels": 8}
    rest = {"direction": direction, "memory_format": memory_format, "steady": steady, "least_ms": least_ms}
    return {**facts, **channels, **size, **rest}


def test_the_table_counts_where_a_kernel_beat_pytorch_and_all_others():
    rows = [
        row({"pytorch": 4.0, "pytorch again": 4.0, "planar": 1.0, "narrow": 2.0}),
        row({"pytorch": 4.0, "pytorch again": 4.0, "planar": 2.0}, memory_format="channels_last"),
        row({"pytorch": 4.0, "pytorch again": 4.0, "planar": 2.5}, memory_format="channels_last"),
        row({"pytorch": 4.0, "pytorch again": 4.0, "planar": 2.0, "narrow": 1.0}),
        row({"pytorch": 1.0, "pytorch again": 0.9, "planar": 2.0}),
        row({"pytorch": 9.0, "pytorch again": 5.0, "planar": 1.0}, steady=False),
    ]
    (line,) = tables.told("planar", rows).splitlines()[2:]
    assert line.startswith("| some-1, avx2 | forward | 5 | 3 (60 %) | 2.0 |")
    assert line.endswith("| depthwise, channels_last (67 %); depthwise, contiguous (33 %) |")
    assert "| 2 | 1 (50 %) | 4.0 | depthwise, contiguous (100 %) |" in tables.told("narrow", rows)
    assert tables.told("dots", rows) == tables.HEAD
    assert "| 1 | 0 | | |" in tables.told("planar", rows[4:5])


@functools.cache
def record(name):
    return measuring.read_record(measuring.RECORDS / name)


@pytest.mark.parametrize("kernel", OURS)
def test_every_page_shows_the_record(kernel):
    page = (DOCS / f"kernel-{kernel}.md").read_text("utf-8")
    name = tables.record_of(kernel)
    (block,) = measuring.block_of(name).findall(page)
    assert block[1] == tables.told(kernel, record(name)) + "\n", "run: python benchmarks/kernel_tables.py"


def test_every_kernel_has_a_picture_that_the_script_draws():
    drawn = runpy.run_path(str(DOCS / "draw_kernels.py"))["drawn"]()
    assert sorted(drawn) == sorted(f"kernel-{kernel}.svg" for kernel in OURS)
    for name, svg in drawn.items():
        check_legible(svg)
        assert (DOCS / "pictures" / name).read_text("utf-8") == svg, "run: python docs/draw.py"
        page = (DOCS / name.replace(".svg", ".md")).read_text("utf-8")
        assert re.search(rf"!\[[^\]]+\]\(pictures/{re.escape(name)}\)", page)
