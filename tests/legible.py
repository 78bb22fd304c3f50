"""Is a picture legible? Its texts and shapes measured with the font itself, not with the code's own table."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from functools import cache
from importlib import resources

from PIL import ImageFont

from groupwise.draw.base.png import FONT

NS = "{http://www.w3.org/2000/svg}"
MOST_BYTES = 30_000


@cache
def font() -> ImageFont.FreeTypeFont:
    with resources.as_file(resources.files("groupwise.draw.base") / FONT) as file:
        return ImageFont.truetype(str(file), 1000, layout_engine=ImageFont.Layout.BASIC)


@cache
def extent(text: str) -> tuple[float, float, float, float]:
    """Ink (and advance, where that is wider) of `text` at size 1: left, top, right, bottom from its start."""
    left, top, right, bottom = font().getbbox(text, anchor="ls")
    return min(left, 0) / 1000, top / 1000, max(right, font().getlength(text)) / 1000, bottom / 1000


def texts(root: ET.Element) -> list[tuple[str, tuple[float, float, float, float]]]:
    """Every text with its box."""
    assert not any("transform" in element.attrib for element in root.iter())
    (outer,) = (group for group in root.findall(f"{NS}g") if "font-size" in group.attrib)
    found = []
    for element in outer.iter(f"{NS}text"):
        text, size = element.text or "", float(element.get("font-size", outer.get("font-size")))
        left, top, right, bottom = (size * value for value in extent(text))
        shift = {"start": 0, "middle": right / 2, "end": right}[element.get("text-anchor", "start")]
        x, y = float(element.get("x")) - shift, float(element.get("y"))
        found.append((text, (x + left, y + top, x + right, y + bottom)))
    assert len(found) == len(list(root.iter(f"{NS}text")))
    return found


def check_legible(picture: str) -> ET.Element:
    assert len(picture.encode()) < MOST_BYTES
    root = ET.fromstring(picture)
    title, desc = root.find(f"{NS}title"), root.find(f"{NS}desc")
    assert root.get("role") == "img"
    assert root.get("aria-labelledby") == f"{title.get('id')} {desc.get('id')}"
    assert title.text
    assert len(desc.text) > 40
    width, height = float(root.get("width")), float(root.get("height"))
    assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
    assert width < 1800
    assert height < 1100

    placed = texts(root)
    for text, (left, top, right, bottom) in placed:
        assert left >= 8, text
        assert top >= 8, text
        assert right <= width - 8, text
        assert bottom <= height - 8, text
    placed.sort(key=lambda item: item[1][0])
    for index, (text, (_, top, right, bottom)) in enumerate(placed):
        for other, box in itertools.takewhile(lambda item: item[1][0] < right + 2, placed[index + 1 :]):  # noqa: B023
            assert box[1] >= bottom or box[3] <= top, f"{text!r} and {other!r} overlap"
    for shape in shapes(root):
        assert shape[0] >= 8
        assert shape[1] >= 8
        assert shape[2] <= width - 8
        assert shape[3] <= height - 8
        for text, box in placed:
            apart = shape[2] + 2 <= box[0] or box[2] + 2 <= shape[0] or shape[3] <= box[1] or box[3] <= shape[1]
            assert apart, f"{text!r} lies on a shape"
    return root


def shapes(root: ET.Element) -> list[tuple[float, float, float, float]]:
    """Boxes of what is filled: bars, cells, nodes. Frames and the card are not."""
    found = []
    for rect in root.iter(f"{NS}rect"):
        if rect.get("fill") != "none" and rect.get("class") != "gw-bg":
            x, y, width, height = (float(rect.get(name)) for name in ("x", "y", "width", "height"))
            found.append((x, y, x + width, y + height))
    for circle in root.iter(f"{NS}circle"):
        x, y, r = (float(circle.get(name)) for name in ("cx", "cy", "r"))
        found.append((x - r, y - r, x + r, y + r))
    return found


def words(root: ET.Element) -> list[str]:
    return [text for text, _ in texts(root)]
