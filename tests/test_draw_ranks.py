"""The pictures of which groups of one convolution each rank holds: legible, and the facts of the convolution."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupwise import ConvSpec
from groupwise.draw.base import numbers
from groupwise.draw.base.png import png_bytes
from groupwise.draw.views.ranks import ranks_svg
from groupwise.spec.cost import cost
from legible import NS, check_legible, words
from test_draw import specs
from test_draw_split import BOX, check_boxed


def columns(root):
    """The texts of each rank's column, from the top down."""
    middle = [e for e in root.iter(f"{NS}text") if e.get("text-anchor") and e.text]
    placed = [(float(e.get("x")), float(e.get("y")), e.text) for e in middle]
    heads = {int(m[1].replace(",", "")): x for x, _, text in placed if (m := re.fullmatch(r"rank ([\d,]+)", text))}
    return {rank: [text for x, _, text in sorted(placed) if x == at][1:] for rank, at in heads.items()}


def span(text):
    """The range in `groups 4-7`, `in 3`."""
    first, last = re.fullmatch(r"[a-z]+ (\d+)(?:-(\d+))?", text).groups()
    return range(int(first), int(last or first) + 1)


def check_ranks(spec, ranks, at=None):
    picture = ranks_svg(spec, ranks, at)
    root = check_boxed(picture)
    check_legible(BOX.sub("", picture))
    found = columns(root)
    assert list(found) == ([*range(ranks)] if ranks <= 7 else [0, 1, 2, 3, 4, ranks - 1])
    assert (f"… {ranks - 6:,} more" in words(root)) == (ranks > 7)
    assert words(root).count("collectives") == 1
    units = spec.groups if spec.groups > 1 else spec.out_channels
    inputs, outputs = spec.in_channels // spec.groups, spec.out_channels // units
    expected = 0
    for said in (found[rank] for rank in range(5 if ranks > 7 else ranks)):
        if said[0] == "nothing":
            assert said == ["nothing", "0 parameters"]
            assert expected == units
            continue
        read, held, own, made = said
        assert held.split()[0] == ("group" if spec.groups > 1 else "filter") + "s" * (len(span(held)) > 1)
        start, expected = expected, span(held).stop
        assert span(held).start == start
        wanted = range(start * inputs, expected * inputs) if spec.groups > 1 else range(spec.in_channels)
        assert (read.split()[0], span(read)) == ("in", wanted)
        assert (made.split()[0], span(made)) == ("out", range(start * outputs, expected * outputs))
        assert own == f"{numbers.count(spec.parameters * len(span(held)) / units)} parameters"
    if ranks <= 7:
        assert expected == units
    elif found[ranks - 1][0] != "nothing":
        assert span(found[ranks - 1][1]).stop == units
    return " ".join(words(root))


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(1, 40))
def test_any_convolution_over_any_ranks(spec, ranks):
    check_ranks(spec, ranks)


@pytest.mark.parametrize(
    ("spec", "ranks", "reading"),
    [
        (ConvSpec(128, 128, 3, groups=32), 4, "whole groups to each rank, 8 groups of 32."),
        (ConvSpec(20, 30, 3, groups=10), 4, "1 to 3 groups of 10."),
        (ConvSpec(8, 8, 3, groups=4), 6, "0 to 1 group of 4."),
        (ConvSpec(8, 16, 3, groups=4, transposed=True), 2, "2 groups of 4."),
        (ConvSpec(2048, 2048, 3, groups=2048), 1000, "2 to 3 groups of 2,048."),
        (ConvSpec(2048, 2048, 3, groups=2048), 1, "2,048 groups of 2,048."),
        (ConvSpec(3, 7, 3), 2, "a dense layer is split by its output channels (ColwiseParallel)."),
        (ConvSpec(3, 2, 3), 5, "a dense layer"),
    ],
)
def test_what_a_picture_of_ranks_reads(spec, ranks, reading):
    told = check_ranks(spec, ranks)
    assert reading in told
    assert f"over {ranks:,} rank{'s' if ranks > 1 else ''}" in told
    at = cost(spec, 9)
    told = check_ranks(spec, ranks, at)
    for size in (at.traffic.input, at.traffic.output):
        assert (f"({numbers.data(size)})" in told) == (ranks > 1)


def test_large_numbers_of_ranks_are_readable():
    for ranks, told in ((1000, {"… 994 more", "rank 999"}), (2**16, {"… 65,530 more", "rank 65,535"})):
        assert told <= set(words(check_boxed(ranks_svg(ConvSpec(2**16, 2**16, 3, groups=2**16), ranks))))


def test_png():
    pytest.importorskip("resvg_py")
    assert png_bytes(ranks_svg(ConvSpec(64, 64, 3, groups=8), 4)).startswith(b"\x89PNG")
