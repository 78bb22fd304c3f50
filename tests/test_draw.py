"""The pictures: legible, complete, true, and the same on every run."""

import itertools
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groupwise.draw.base import numbers, svg
from groupwise.draw.views.cost import cost_svg
from groupwise.draw.views.weight import weight_svg
from groupwise.draw.views.wiring import wiring_svg
from groupwise.errors import GroupwiseError
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import cost
from legible import NS, check_legible, texts, words

GOLDEN = Path(__file__).parent / "golden"
CHANNELS = (1, 2, 3, 4, 8, 24, 25, 64, 128, 1024, 2048)


def views(spec: ConvSpec) -> dict[str, str]:
    return {
        "wiring": wiring_svg(spec),
        "weight": weight_svg(spec),
        "parameters": cost_svg(spec),
        "cost": cost_svg(spec, 7),
    }


def family() -> Iterator[ConvSpec]:
    """Every pair of CHANNELS with a few of its groups; dimensions and transposition take turns."""
    turns = itertools.cycle(itertools.product((1, 2, 3), (False, True)))
    for n_in, n_out in itertools.product(CHANNELS, CHANNELS):
        valid = ConvSpec(n_in, n_out, 1).valid_groups
        chosen = {valid[0], valid[-1], valid[len(valid) // 2]} | ({2, 4, 24, 32, 256} & set(valid))
        for groups in sorted(chosen):
            dims, transposed = next(turns)
            yield ConvSpec(n_in, n_out, 3, groups=groups, dims=dims, transposed=transposed)


EXTREMES = [
    ConvSpec(2**24, 2**24, 3, groups=2, dims=3, transposed=True),
    ConvSpec(2**24, 2**24, 3, groups=2**24, dims=1),
    ConvSpec(2**24, 1, 1),
    ConvSpec(1, 2**24, (2**31 - 1,) * 3, padding=2**31 - 4),
    ConvSpec(14_414_400, 14_414_400, 3, groups=840),
    ConvSpec(256, 2**24, 5, groups=256),
    ConvSpec(384, 384, 3, groups=24),
    ConvSpec(384, 360, 3, groups=24),
    ConvSpec(115, 115, 3, groups=5),
    ConvSpec(23, 24, 3),
]


# What an SVG says, read without the code that wrote it.


def check_groups_told(root: ET.Element, groups: int) -> None:
    """Each group's number is there, or within a fold that says how many it holds."""
    said = words(root)
    named = {int(match[1]) for text in said if (match := re.fullmatch(r"group (\d+)", text))}
    folded = [int(match[1].replace(",", "")) for text in said if (match := re.match(r"… ([\d,]+) more group", text))]
    assert {0, groups - 1} <= named
    assert len(named) + sum(folded) == groups


def plain_pairs(spec: ConvSpec) -> set[tuple[int, int]]:
    """Connected (input, output) pairs, by the definition."""
    return {
        (i, o)
        for i in range(spec.in_channels)
        for o in range(spec.out_channels)
        if i * spec.groups // spec.in_channels == o * spec.groups // spec.out_channels
    }


def drawn_pairs(root: ET.Element) -> list[tuple[int, int]]:
    """The (input, output) index pairs of the curves, by where they start and end."""
    circles = {float(c.get("cy")): i for i, c in enumerate(root.iter(f"{NS}circle"))}
    # Squares are the boxes of 10 × 10; other boxes are frames and ribbons.
    squares = [r for r in root.iter(f"{NS}rect") if r.get("width") == r.get("height") == "10"]
    outputs = {float(s.get("y")) + 5: o for o, s in enumerate(squares)}
    pairs = []
    for wire in root.iter(f"{NS}path"):
        for curve in re.findall(r"M[^Mz]*c[^Mz]*", wire.get("d")) if wire.get("class") == "gw-wire" else ():
            _, start, *_, rise = map(float, re.findall(r"-?[\d.]+", curve))
            (end,) = (o for y, o in outputs.items() if abs(y - start - rise) < 0.1)
            pairs.append((circles[start], end))
    return pairs


def test_family_is_legible_and_complete():
    for spec in family():
        for view, picture in views(spec).items():
            root = check_legible(picture)
            assert words(root)[0].startswith(f"{spec.op} {spec.in_channels:,} → "), (view, spec)
            if view in ("wiring", "weight"):
                check_groups_told(root, spec.groups)
                assert str(spec.weight_shape) in " ".join(words(root))
            else:
                check_values_told(root, spec)


def check_values_told(root: ET.Element, spec: ConvSpec) -> None:
    """Every valid groups value has a row or is counted by a fold, and the current one is marked."""
    said = words(root)
    rows = {int(match[1]) for text in said if (match := re.fullmatch(r"groups=(\d+)", text))}
    folded = [int(match[1]) for text in said if (match := re.fullmatch(r"… (\d+) more", text))]
    assert rows <= set(spec.valid_groups)
    assert {1, spec.groups, spec.valid_groups[-1]} <= rows
    assert len(rows) + sum(folded) == len(spec.valid_groups)
    boxes = dict(texts(root))
    assert said.count("▶") == 1
    marked = next(box for text, box in texts(root) if text == f"groups={spec.groups}")
    assert abs((marked[1] + marked[3]) - (boxes["▶"][1] + boxes["▶"][3])) < 8


@pytest.mark.parametrize("spec", EXTREMES, ids=str)
def test_extremes_are_legible(spec):
    for picture in (wiring_svg(spec), weight_svg(spec), cost_svg(spec)):
        check_legible(picture)


@st.composite
def specs(draw: st.DrawFn) -> ConvSpec:
    groups = draw(st.integers(1, 4096))
    n_in, n_out = (groups * draw(st.integers(1, 4096 // groups)) for _ in range(2))
    kernel = draw(st.lists(st.integers(1, 31), min_size=1, max_size=3))
    bias, transposed = draw(st.booleans()), draw(st.booleans())
    return ConvSpec(n_in, n_out, kernel, groups=groups, bias=bias, transposed=transposed)


@settings(max_examples=60, deadline=None)
@given(specs(), st.integers(31, 512), st.integers(0, 64), st.sampled_from(["float32", "int8", "complex128"]))
def test_any_spec_is_legible(spec, size, batch, dtype):
    check_groups_told(check_legible(wiring_svg(spec)), spec.groups)
    check_groups_told(check_legible(weight_svg(spec)), spec.groups)
    check_values_told(check_legible(cost_svg(spec)), spec)
    check_values_told(check_legible(cost_svg(spec, size, batch, dtype)), spec)


@pytest.mark.parametrize("transposed", [False, True])
def test_every_pair_is_drawn_up_to_24_channels(transposed):
    for n_in, n_out in itertools.product((1, 2, 3, 4, 8, 12, 24), repeat=2):
        for groups in ConvSpec(n_in, n_out, 1).valid_groups:
            spec = ConvSpec(n_in, n_out, 5, groups=groups, transposed=transposed)
            root = ET.fromstring(wiring_svg(spec))
            drawn = drawn_pairs(root)
            assert len(drawn) == len(set(drawn))
            assert set(drawn) == plain_pairs(spec)
            told = " ".join(words(root))
            everything = "the only channel pair" if n_in * n_out == 1 else f"all {n_in * n_out:,} channel pairs"
            some = f"{len(drawn):,} of {n_in * n_out:,} channel pairs (1/{groups})"
            assert (everything if groups == 1 else some) in told


def test_wide_wiring_draws_one_group_in_full():
    root = ET.fromstring(wiring_svg(ConvSpec(64, 128, 3, groups=16)))
    assert sorted(drawn_pairs(root)) == [(i, o) for i in range(4) for o in range(8)]
    assert {"group 0 in full", "in 4-7", "out 8-15", "4×8"} <= set(words(root))
    elided = ET.fromstring(wiring_svg(ConvSpec(64, 64, 3)))
    assert "group 0, first and last channels" in words(elided)
    assert words(elided).count("⋮") == 2


def test_each_group_has_a_colour_and_wires_of_its_own():
    root = ET.fromstring(wiring_svg(ConvSpec(8, 4, 5, groups=4)))
    groups = [group for group in root.iter(f"{NS}g") if group.find(f"{NS}title") is not None]
    assert [group.get("stroke") for group in groups] == list(svg.COLOURS[:4])
    assert groups[1].find(f"{NS}title").text == "group 1: in 2-3 → out 1 (2×1)"


def boxes_of(data: str) -> list[tuple[float, float, float, float]]:
    found = re.findall(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)h-[\d.]+z", data)
    return [tuple(map(float, box)) for box in found]


@pytest.mark.parametrize(
    ("spec", "rows", "columns"),
    [(ConvSpec(8, 4, 5, groups=4), 4, 8), (ConvSpec(8, 4, 5, groups=2, transposed=True), 8, 4)],
)
def test_weight_blocks_lie_on_the_diagonal_and_stack_in_the_stored_weight(spec, rows, columns):
    root = ET.fromstring(weight_svg(spec))
    (void,) = (r for r in root.iter(f"{NS}rect") if r.get("class") == "gw-void")
    x, y, width, height = (float(void.get(name)) for name in ("x", "y", "width", "height"))
    assert width / height == pytest.approx(columns / rows)
    blocks = [boxes_of(p.get("d")) for p in root.iter(f"{NS}path") if p.get("fill", "").startswith("#")]
    assert len(blocks) == spec.groups
    for group, (dense, stored) in enumerate(blocks):
        step = (width / spec.groups, height / spec.groups)
        assert dense == pytest.approx((x + group * step[0], y + group * step[1], *step))
        assert stored[1:] == pytest.approx(dense[1:])
        assert stored[0] > x + width


def test_weight_says_what_its_blocks_are():
    said = " ".join(words(ET.fromstring(weight_svg(ConvSpec(128, 1024, 3, groups=32)))))
    assert "32 groups, each block 32 × 4 kernels of 3×3 (out × in)" in said
    assert "dim 1: 128 / 32 = 4 in" in said
    said = " ".join(words(ET.fromstring(weight_svg(ConvSpec(128, 1024, 3, groups=32, transposed=True)))))
    assert "each block 4 × 32 kernels of 3×3 (in × out)" in said
    assert "dim 1: 1,024 / 32 = 32 out" in said
    assert "not to the same scale" in " ".join(words(ET.fromstring(weight_svg(ConvSpec(3, 2048, 3)))))


def test_cost_shows_that_early_layers_save_macs_but_hardly_bytes():
    spec = ConvSpec(128, 128, 3, padding=1, groups=32)
    root = ET.fromstring(cost_svg(spec, 56))
    here, dense = cost(spec, 56), cost(spec.dense(), 56)
    said = words(root)
    assert {"14.5 M", "3.1 %", "3.23 MB", "85.0 %", "3.80 MB"} <= set(said)
    assert numbers.percent(here.bytes, dense.bytes) == "85.0 %"
    assert "give a size" not in " ".join(said)
    assert "give a size" in " ".join(words(ET.fromstring(cost_svg(spec))))


def test_cost_bars_are_as_long_as_what_they_stand_for():
    spec = ConvSpec(64, 64, 3, padding=1, groups=4)
    full = max(bar_widths(spec, None))
    shares = [value / full for value in bar_widths(spec, None)]
    dense = spec.dense().parameters
    expected = [spec.with_groups(groups).parameters / dense for groups in spec.valid_groups]
    assert shares == pytest.approx(expected, abs=0.01)


def bar_widths(spec: ConvSpec, size: int | None) -> list[float]:
    root = ET.fromstring(cost_svg(spec, size))
    return [float(r.get("width")) for r in root.iter(f"{NS}rect") if r.get("height") == "11"]


def test_cost_refuses_what_costs_refuses():
    with pytest.raises(GroupwiseError, match="dtype"):
        cost_svg(ConvSpec(8, 4, 5), 12, dtype="float31")
    with pytest.raises(GroupwiseError, match="size"):
        cost_svg(ConvSpec(8, 4, 5), 3)


GOLDEN_CASES = {
    "wiring-8-4-g4": lambda: wiring_svg(ConvSpec(8, 4, 5, groups=4)),
    "wiring-4-8-g4": lambda: wiring_svg(ConvSpec(4, 8, 3, groups=4)),
    "wiring-1024-g32": lambda: wiring_svg(ConvSpec(1024, 1024, 3, groups=32)),
    "weight-8-4-g4": lambda: weight_svg(ConvSpec(8, 4, 5, groups=4)),
    "weight-8-4-g2-transposed": lambda: weight_svg(ConvSpec(8, 4, 3, groups=2, transposed=True)),
    "cost-128-g32": lambda: cost_svg(ConvSpec(128, 128, 3, padding=1, groups=32), 56),
}


@pytest.mark.parametrize("name", GOLDEN_CASES)
def test_golden(name):
    """Renew with GROUPWISE_UPDATE_GOLDEN=1, and look at what changed."""
    file, picture = GOLDEN / f"{name}.svg", GOLDEN_CASES[name]()
    if os.environ.get("GROUPWISE_UPDATE_GOLDEN") == "1":
        GOLDEN.mkdir(exist_ok=True)
        file.write_bytes(picture.encode())
    assert picture == file.read_bytes().decode()
