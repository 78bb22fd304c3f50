"""`Picture`: text, boxes and curves as an SVG string, on a card that reads well in light and dark."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence

from groupwise.spec.legible import escape, legible

MARGIN = 24
TITLE_SIZE, CAPTION_SIZE, LABEL_SIZE = 16, 12, 11
# Captions wrap at this width, or at the picture's if that is larger.
MIN_WIDTH = 560

# Each colour of a group has a contrast of at least 3:1 with both backgrounds and both voids. The order keeps neighbours
# apart for every kind of colour vision: by 40 (CIE76) at least. The colours repeat after twelve, so pictures number the
# groups as well. The explorer's page has the same ones.
COLOURS = (
    "#cd690a", "#12939a", "#96633a", "#7d5bd0", "#2a9548", "#c2409b",
    "#6f8f1f", "#da4f83", "#a08200", "#2588c9", "#d43d3d", "#2f6fde",
)  # fmt: skip

# ink is for text, soft for quieter text, line for rules and outlines, void for what does not exist, and gap for lines
# in the colour of the background. The style sheet has class selectors and no variables, as resvg supports no more (it
# skips @media).
_LIGHT = {"bg": "#ffffff", "ink": "#1f2328", "soft": "#59636e", "line": "#7d8590", "void": "#e9ecf0"}
_DARK = {"bg": "#0d1117", "ink": "#e6edf3", "soft": "#9198a1", "line": "#7d8590", "void": "#1f252d"}


def _theme(colours: dict[str, str]) -> str:
    fills = "".join(f".gw-{name}{{fill:{colours[name]}}}" for name in ("bg", "ink", "soft", "void"))
    return fills + f".gw-line{{stroke:{colours['line']}}}.gw-gap{{stroke:{colours['bg']}}}"


_STYLE = (
    ".gw-text{font-family:'DejaVu Sans',Verdana,Tahoma,'Segoe UI',Arial,sans-serif}.gw-wire{fill:none}"
    f"{_theme(_LIGHT)}@media(prefers-color-scheme:dark){{{_theme(_DARK)}}}"
)

# These are the advance widths of the bundled DejaVu Sans from U+0020 on, in 1/2048 of the font size. Verdana's differ
# by a few percent, and those of the other families named above are smaller.
_ASCII_WIDTHS = (
    651, 821, 942, 1716, 1303, 1946, 1597, 563, 799, 799, 1024, 1716, 651, 739, 651, 690, 1303, 1303, 1303, 1303,
    1303, 1303, 1303, 1303, 1303, 1303, 690, 690, 1716, 1716, 1716, 1087, 2048, 1401, 1405, 1430, 1577, 1294,
    1178, 1587, 1540, 604, 604, 1343, 1141, 1767, 1532, 1612, 1235, 1612, 1423, 1300, 1251, 1499, 1401, 2025,
    1403, 1251, 1403, 799, 690, 799, 1716, 1024, 1024, 1255, 1300, 1126, 1300, 1260, 721, 1300, 1298, 569, 569,
    1186, 569, 1995, 1298, 1253, 1300, 1300, 842, 1067, 803, 1298, 1212, 1675, 1212, 1212, 1075, 1303, 690, 1303,
    1716,
)  # fmt: skip
_WIDTHS = {chr(0x20 + index): width for index, width in enumerate(_ASCII_WIDTHS)}
_WIDTHS |= {"·": 651, "×": 1716, "…": 2048, "→": 1716, "⋮": 2048, "▶": 1575}


def text_width(text: str, size: float) -> float:
    """Returns the width of `text` in the bundled font at `size`; a character without a known width counts as 1 em."""
    return sum(_WIDTHS.get(character, 2048) for character in text) * size / 2048


def wrap(text: str, size: float, width: float) -> list[str]:
    """Returns `text` as lines of at most `width`, broken at spaces; a longer word keeps a line to itself."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def colour(group: int) -> str:
    """Returns the colour of a group."""
    return COLOURS[group % len(COLOURS)]


def coordinate(value: float) -> str:
    """Returns a coordinate to a hundredth, in as few characters as possible."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if value else "0"


def path(*parts: str | float) -> str:
    """Returns path data from commands and coordinates: `path("M", 0, 1.5, "h", -4)` is `M0 1.5h-4`."""
    words = (part if isinstance(part, str) else coordinate(part) for part in parts)
    return re.sub(r" ?([A-Za-z]) ?| (?=-)", r"\1", " ".join(words))


def box_path(x: float, y: float, width: float, height: float) -> str:
    """Returns the path data of a box; boxes of one colour concatenate to one path."""
    return path("M", x, y, "h", width, "v", height, "h", -width, "z")


class Picture:
    """Elements on one card, which grows to hold them.

    `right` is where the rightmost text or box ends. `y` is where the next row may start; drawing code moves it.
    """

    def __init__(self, title: str, subtitle: str) -> None:
        self.title = title
        self.right: float = MARGIN + MIN_WIDTH
        self.y: float = MARGIN
        self._elements: list[str] = []
        for line in wrap(title, TITLE_SIZE, MIN_WIDTH):
            self.text(MARGIN, self.y + TITLE_SIZE - 2, line, size=TITLE_SIZE)
            self.y += TITLE_SIZE + 6
        for line in wrap(subtitle, CAPTION_SIZE, MIN_WIDTH):
            self.text(MARGIN, self.y + CAPTION_SIZE - 1, line, size=CAPTION_SIZE, ink="soft")
            self.y += CAPTION_SIZE + 5
        self.y += 18

    def add(self, *elements: str) -> None:
        """Appends elements as they are."""
        self._elements += elements

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", ink: str = "ink", size: float = LABEL_SIZE
    ) -> None:
        """Draws one line of text: `x` is its start, middle or end (`anchor`), `y` its baseline."""
        text = legible(text)
        width = text_width(text, size)
        self.right = max(self.right, x + {"start": width, "middle": width / 2, "end": 0}[anchor])
        where = f'x="{coordinate(x)}" y="{coordinate(y)}"'
        side = "" if anchor == "start" else f' text-anchor="{anchor}"'
        scale = "" if size == LABEL_SIZE else f' font-size="{size}"'
        tone = "" if ink == "ink" else f' class="gw-{ink}"'
        self.add(f"<text {where}{side}{scale}{tone}>{escape(text, quote=False)}</text>")

    def label(self, x: float, middle: float, text: str, anchor: str = "start", ink: str = "ink") -> None:
        """Draws a label whose digits are centred on the height `middle`."""
        self.text(x, middle + 0.36 * LABEL_SIZE, text, anchor, ink)

    def box(self, x: float, y: float, width: float, height: float, more: str = "") -> None:
        """Draws a rectangle; `more` is its remaining attributes."""
        self.right = max(self.right, x + width)
        size = f'width="{coordinate(width)}" height="{coordinate(height)}"'
        self.add(f'<rect x="{coordinate(x)}" y="{coordinate(y)}" {size} {more}/>')

    def circle(self, x: float, y: float, radius: float) -> None:
        """Draws a circle in the colour of the open group."""
        self.add(f'<circle cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(radius)}"/>')

    def curve(self, data: str, more: str) -> None:
        """Draws a path; `more` is its remaining attributes."""
        self.add(f'<path d="{data}" {more}/>')

    def group(self, colour: str, tooltip: str) -> None:
        """Opens a group of elements with one colour and a tooltip; `end_group` closes it."""
        self.add(f'<g fill="{colour}" stroke="{colour}" stroke-width="0"><title>{escape(legible(tooltip))}</title>')

    def end_group(self) -> None:
        """Closes what `group` opened."""
        self.add("</g>")

    def caption(self, rows: Iterable[tuple[str, str]]) -> None:
        """Draws a rule and below it facts, each a (name, value)."""
        rows = list(rows)
        self.y += 20
        rule = path("M", MARGIN, self.y, "H", self.right)
        self.curve(rule, 'class="gw-line" stroke-width="0.5"')
        self.y += 10
        start = MARGIN + 18 + max(text_width(name, CAPTION_SIZE) for name, _ in rows)
        for name, value in rows:
            self.text(MARGIN, self.y + CAPTION_SIZE, name, size=CAPTION_SIZE, ink="soft")
            for line in wrap(value, CAPTION_SIZE, self.right - start):
                self.text(start, self.y + CAPTION_SIZE, line, size=CAPTION_SIZE)
                self.y += CAPTION_SIZE + 6
        self.y -= 6

    def render(self, description: Sequence[str]) -> str:
        """Returns the whole SVG; `description` is sentences that say what the picture shows."""
        width, height = coordinate(self.right + MARGIN), coordinate(self.y + MARGIN)
        body = "\n".join(self._elements)
        # The ids must differ between the pictures of a page, and stay the same from run to run.
        key = f"gw-{zlib.crc32(f'{legible(self.title)}{body}'.encode()):08x}"
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-labelledby="{key}-t {key}-d">\n'
            f'<title id="{key}-t">{escape(legible(self.title), quote=False)}</title>\n'
            f'<desc id="{key}-d">{escape(legible(" ".join(description)), quote=False)}</desc>\n'
            f"<style>{_STYLE}</style>\n"
            f'<rect class="gw-bg" width="{width}" height="{height}" rx="8"/>\n'
            f'<g class="gw-text gw-ink" font-size="{LABEL_SIZE}">\n{body}\n</g>\n</svg>\n'
        )
