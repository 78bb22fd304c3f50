"""How the pictures look: colours that can be told apart, PNGs with all their text, widths that are the font's."""

from __future__ import annotations

import io
import itertools
import math
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from PIL import Image, ImageChops

from groupwise import ConvSpec, GroupwiseError
from groupwise.draw.base import svg
from groupwise.draw.base.png import png_bytes
from groupwise.draw.views.cost import cost_svg
from groupwise.draw.views.strip import strip_svg
from groupwise.draw.views.weight import weight_svg
from groupwise.draw.views.wiring import wiring_svg
from legible import NS, check_legible, font, texts, words
from test_draw import family, views


def linear(colour: str) -> list[float]:
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]


def luminance(colour: str) -> float:
    red, green, blue = linear(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def mixed(over: str, under: str, alpha: float) -> str:
    pairs = ((int(over[i : i + 2], 16), int(under[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(alpha * a + (1 - alpha) * b):02x}" for a, b in pairs)


def themes() -> list[dict[str, str]]:
    """Class colours in light and in dark, as the style sheet has them."""
    sheet = ET.fromstring(wiring_svg(ConvSpec(1, 1, 1))).find(f"{NS}style").text
    light, dark = sheet.split("@media(prefers-color-scheme:dark)")
    rule = r"\.gw-(\w+)\{(?:fill|stroke):(#\w{6})\}"
    assert dark.startswith("{")
    assert dark.endswith("}}")
    return [dict(re.findall(rule, light)), dict(re.findall(rule, dark))]


@pytest.mark.parametrize("theme", themes(), ids=["light", "dark"])
def test_contrast(theme):
    assert set(theme) == {"bg", "ink", "soft", "void", "line", "gap"}
    assert contrast(theme["ink"], theme["bg"]) >= 4.5
    assert contrast(theme["soft"], theme["bg"]) >= 4.5
    assert contrast(theme["line"], theme["bg"]) >= 3
    for colour in svg.COLOURS:
        assert contrast(colour, theme["bg"]) >= 3, colour
        assert contrast(colour, theme["void"]) >= 3, colour
        assert contrast(theme["ink"], mixed(colour, theme["bg"], 0.16)) >= 4.5, "text on a ribbon"


# What a viewer sees of linear red, green and blue, after Machado, Oliveira and Fernandes (2009), at full severity.
VISIONS = {
    "normal": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
# Linear red, green and blue of sRGB as the CIE's X, Y and Z.
XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))


def seen(colour, vision):
    """The colour as it is seen, in the CIE's L, a and b."""
    rgb = [min(1, max(0, sum(map(math.prod, zip(row, linear(colour), strict=True))))) for row in vision]
    # White has ones of all three, so a row's sum is its coordinate.
    x, y, z = (sum(map(math.prod, zip(row, rgb, strict=True))) / sum(row) for row in XYZ)
    x, y, z = (t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def test_the_simulation_knows_colours_of_known_places():
    assert seen("#ffffff", VISIONS["normal"]) == pytest.approx((100, 0, 0), abs=1e-3)
    assert seen("#ff0000", VISIONS["normal"]) == pytest.approx((53.24, 80.09, 67.20), abs=0.02)
    for vision in VISIONS.values():
        assert seen("#808080", vision)[1:] == pytest.approx((0, 0), abs=0.1), "greys stay grey"


@pytest.mark.parametrize("vision", VISIONS)
def test_every_viewer_tells_neighbouring_groups_apart(vision):
    """By the CIE's difference of 1976; the twelfth colour and the first are neighbours too."""
    places = [seen(colour, VISIONS[vision]) for colour in svg.COLOURS]
    assert min(math.dist(one, other) for one, other in zip(places, places[1:] + places[:1], strict=True)) >= 40
    assert min(math.dist(one, other) for one, other in itertools.combinations(places[:4], 2)) >= 25


def test_only_tested_colours_are_used():
    for spec in (ConvSpec(64, 64, 3, groups=32), ConvSpec(8, 4, 5, groups=4), ConvSpec(2048, 2048, 3, groups=2048)):
        for picture in views(spec).values():
            body = picture[picture.index("</style>") :]
            assert set(re.findall(r"#\w{6}", body)) <= set(svg.COLOURS)
            assert set(re.findall(r'opacity="([^"]*)"', body)) <= {"0.16"}
            used = {name for names in re.findall(r'class="([^"]*)"', picture) for name in names.split()}
            assert used <= {f"gw-{name}" for name in ("text", "wire", "bg", "ink", "soft", "void", "line", "gap")}


def render(picture: str) -> Image.Image:
    return Image.open(io.BytesIO(png_bytes(picture, 2))).convert("RGBA")


@pytest.mark.parametrize(
    "picture",
    [wiring_svg(ConvSpec(8, 4, 5, groups=4)), weight_svg(ConvSpec(64, 64, 3)), cost_svg(ConvSpec(64, 64, 3), 7)],
    ids=["wiring", "weight", "cost"],
)
def test_png_has_ink_where_each_text_is(picture):
    pytest.importorskip("resvg_py")
    root, full = ET.fromstring(picture), render(picture)
    assert full.size == (
        pytest.approx(2 * float(root.get("width")), abs=2),
        pytest.approx(2 * float(root.get("height")), abs=2),
    )
    changed = ImageChops.difference(full.convert("L"), render(re.sub("<text.*?</text>", "", picture)).convert("L"))
    for text, box in texts(root):
        crop = changed.crop([round(2 * value) for value in box])
        assert crop.getextrema()[1] > 100, f"{text!r} is not in the PNG"
        # Nothing of it outside the box either: the widths measured are those that resvg draws.
        changed.paste(0, [round(2 * value) + grow for value, grow in zip(box, (-2, -2, 2, 2), strict=True)])
    assert changed.getextrema()[1] < 100


def test_png_is_light():
    pytest.importorskip("resvg_py")
    picture = wiring_svg(ConvSpec(8, 4, 5, groups=4))
    without = re.sub(r"@media.*\}\}", "", picture)
    assert len(without) < len(picture)
    assert png_bytes(picture) == png_bytes(without)
    assert render(picture).getpixel((40, 8)) == (255, 255, 255, 255)


def test_png_without_resvg_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(
        GroupwiseError, match=re.escape('PNG needs resvg_py; install it with: pip install "groupwise[png]"')
    ):
        png_bytes(wiring_svg(ConvSpec(1, 1, 1)))


@pytest.mark.parametrize("scale", [0, -1, float("nan"), 1000.0, True, "2"])
def test_png_refuses_scales_out_of_range(scale):
    with pytest.raises(GroupwiseError, match="scale"):
        png_bytes(wiring_svg(ConvSpec(1, 1, 1)), scale)


def test_text_width_is_the_fonts():
    every = "".join(svg._WIDTHS)
    for character in every:
        assert svg.text_width(character, 1000) == pytest.approx(font().getlength(character), abs=2), character
    for spec in family():
        for picture in views(spec).values():
            assert set("".join(words(ET.fromstring(picture)))) <= set(every)
        if spec.in_channels > 8:
            break


def test_wrap_breaks_at_spaces_and_keeps_every_word():
    lines = svg.wrap("one two three four", 10, svg.text_width("one two", 10))
    assert lines == ["one two", "three", "four"]


def test_pictures_of_one_page_have_ids_of_their_own():
    pictures = [picture for spec in list(family())[::40] for picture in views(spec).values()]
    ids = [name for picture in pictures for name in re.findall(r'\bid="([^"]+)"', picture)]
    assert len(ids) == 2 * len(pictures)
    assert len(set(ids)) == 2 * len(set(pictures))


@pytest.mark.parametrize("after", [None, 0.5])
@pytest.mark.parametrize("kinds", [["dense"], ["grouped"], ["dense", "grouped", "depthwise"] * 60])
def test_the_bars_of_a_report_are_legible(kinds, after):
    layers = [
        {"kind": kind, "parameters": i, "macs": {"forward": i * i}, "bytes": 5, "pytorch_ms": i % 7 + 0.1}
        for i, kind in enumerate(kinds, 1)
    ]
    root = check_legible(strip_svg({"layers": [layer | {"groupwise_ms": after} for layer in layers]}))
    said = words(root)
    bars = {"parameters", "MACs", "bytes", *(["time before", "time after"] if after else ["time"])}
    assert {text for text in said if text in bars or text.startswith("time")} == bars
    for kind in set(kinds):
        assert sum(text.startswith(kind) for text in said) == len(bars)
