"""docs/floor.md shows how far each kind of layer is from its floor, by the records."""

from __future__ import annotations

import json

import pytest

from scripts import load

measuring, shapes, tables = map(load, ("measuring", "shapes", "floor_table"))


def row(side, memory_format, ms, layer="mobilenetv2-dw144", **facts):
    known = {
        "benchmark": "layer",
        "set": "listed",
        "batch": 1,
        "threads": 1,
        "pass": "forward",
        "floor_ms": 2.0,
        "repeats": 15,
    }
    return {**known, "layer": layer, "implementation": side, "memory_format": memory_format, "ms": ms, **facts}


def both_passes(*rows):
    return [{**one, "pass": name} for one in rows for name in tables.PASSES]


def test_a_kind_counts_by_the_better_format_of_one_sample_and_one_thread(tmp_path):
    rows = both_passes(
        row("pytorch", "contiguous", 8.0),
        row("pytorch", "channels_last", 6.0),
        row("groupwise", "contiguous", 3.0),
        row("groupwise", "channels_last", 5.0),
        row("groupwise", "contiguous", 1.0, threads=2),
        row("groupwise", "contiguous", 1.0, batch=8),
        row("groupwise", "contiguous", 1.0, set="held_out"),
        row("pytorch", "contiguous", 48.0, layer="mobilenetv2-dw960"),
        row("groupwise", "contiguous", 12.0, layer="mobilenetv2-dw960"),
    )
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / tables.RECORD).write_text("\n".join(map(json.dumps, [{"benchmark": "fallback"}, *rows])))
    head, line, cells = tables.told(tmp_path).splitlines()
    assert f"{head}\n{line}" == tables.HEAD
    # The geometric means of 3 and 24, and of 1.5 and 6.
    assert cells == "| some | depthwise 3x3 | 2 | 8.5 | 3.0 | 8.5 | 3.0 |"


def test_every_listed_layer_is_of_a_kind_and_every_kind_has_layers():
    assert {tables.kind_of(layer.name) for layer in shapes.read("listed")} == set(tables.KINDS)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("resnext50-s1", "groups of up to 8 channels"),
        ("resnext50-s3", "groups of 9 to 80 channels on 28x28 and less"),
        ("issue-70954", "wider groups, larger images, dense layers"),
        ("convnext-dw7-96", "depthwise 5x5 and larger"),
        ("wav2vec2-position", "1-D"),
    ],
)
def test_known_layers_are_of_their_kinds(name, kind):
    assert tables.kind_of(name) == kind


def test_the_page_shows_the_records():
    (block,) = measuring.block_of(tables.RECORD).findall(tables.PAGE.read_text("utf-8"))
    assert block[1] == tables.told(measuring.RECORDS) + "\n", "run: python benchmarks/floor_table.py"
