"""Draws how the planner decides, by the layer and the figures that docs/planner.md prints."""

from __future__ import annotations

from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, colour, path, text_width

WIDTH, GAP, NUMBER = 720, 14, 24
BLUE, GREEN = colour(11), colour(4)
REQUEST = ["forward", "128 → 128, 3×3, 32 groups", "1×128×56×56", "channels_last", "float32, avx512", "1 thread"]
# kernel -> how many times PyTorch's speed the table foresees, and by which factor that may be wrong.
SPEEDS = {"narrow": (5.14, 1.38), "planar": (2.80, 1.41), "PyTorch": (1.0, None)}


def drawn() -> dict[str, str]:
    """Returns the SVG by its file name."""
    return {"planner.svg": _picture()}


def _picture() -> str:
    picture = Picture("How the planner decides", "Conv2d(128, 128, 3, padding=1, groups=32) on one image of 56×56")
    _stage(picture, 1, "The call becomes a request")
    _boxes(
        picture, ["forward", "128 → 128, 3×3, 32 groups", "1×128×56×56", "channels_last", "float32, avx512", "1 thread"]
    )
    _arrow(picture)
    _stage(picture, 2, "The kernels that can run it are laid out")
    _boxes(picture, ["narrow", "planar", "PyTorch"], ["groups: needs 8 outputs a group"])
    _arrow(picture)
    _stage(picture, 3, "The first source that knows their speed decides")
    _sources(picture)
    _arrow(picture)
    _stage(picture, 4, "The plan runs, and is kept for the next call of this kind")
    _boxes(picture, [], chosen=["narrow: tile of 8 pixels × 16 channels, 18 KiB of scratch, source: table"])
    picture.y += 4
    picture.right = max(picture.right, MARGIN + WIDTH)
    return picture.render(
        [
            "A call becomes a request.",
            "The kernels narrow, planar and PyTorch's can run it, and groups cannot.",
            "Nothing was measured on this machine, so the table of the processor decides.",
            f"It foresees {SPEEDS['narrow'][0]:.2f} times PyTorch's speed for narrow, "
            f"and {SPEEDS['planar'][0]:.2f} times for planar.",
            "The plan is narrow.",
        ]
    )


def _stage(picture: Picture, number: int, title: str) -> None:
    picture.group(BLUE, title)
    picture.circle(MARGIN + 9, picture.y + 9, 9)
    picture.end_group()
    picture.add('<g class="gw-bg">')
    picture.label(MARGIN + 9, picture.y + 9, str(number), "middle", "bg")
    picture.add("</g>")
    picture.label(MARGIN + NUMBER, picture.y + 9, title)
    picture.y += 26


def _boxes(picture: Picture, able: list[str], unable: list[str] | None = None, chosen: list[str] | None = None) -> None:
    """Draws words in boxes, in a row."""
    x: float = MARGIN + NUMBER
    for words, kind in [(able, "able"), (unable or [], "unable"), (chosen or [], "chosen")]:
        for word in words:
            width = text_width(word, LABEL_SIZE) + 18
            line = f'stroke="{GREEN}" stroke-width="2"' if kind == "chosen" else 'class="gw-line"'
            dashes = ' stroke-dasharray="4 3"' if kind == "unable" else ""
            picture.box(x, picture.y, width, 26, f'rx="5" fill="none" {line}{dashes}')
            picture.label(x + 9, picture.y + 13, word, ink="soft" if kind == "unable" else "ink")
            x += width + 8
    picture.y += 26


def _arrow(picture: Picture) -> None:
    x, top = MARGIN + 9, picture.y - 18
    picture.curve(path("M", x, top, "V", picture.y + GAP - 2), 'class="gw-line gw-wire" stroke-width="1.5"')
    end = picture.y + GAP + 2
    picture.curve(
        path("M", x - 4, end - 6, "L", x, end, "L", x + 4, end - 6), 'class="gw-line gw-wire" stroke-width="1.5"'
    )
    picture.y += GAP + 8


def _sources(picture: Picture) -> None:
    left, top = MARGIN + NUMBER, picture.y
    widths, height = (170, 306, 170), 120
    titles = ("measured on this machine?", "a table for this processor?", "the cost model")
    answers = ("no: nothing yet", "", "not asked")
    for width, title, answer, asked in zip(widths, titles, answers, (False, True, False), strict=True):
        line = f'stroke="{GREEN}" stroke-width="2"' if asked else 'class="gw-line"'
        picture.box(left, top, width, height, f'rx="5" fill="none" {line}')
        picture.label(left + 10, top + 15, title)
        if answer:
            picture.label(left + 10, top + 34, answer, ink="soft")
        else:
            _bars(picture, left + 10, top + 28)
        left += width + 12
    picture.y = top + height


def _bars(picture: Picture, x: float, y: float) -> None:
    """Draws how many times PyTorch's speed each kernel has; a mark shows the speed less its spread."""
    unit, start = 36, x + 52
    for name, (speed, spread) in SPEEDS.items():
        picture.label(x, y + 9, name)
        picture.group(GREEN if name == "narrow" else BLUE, f"{name}: {speed:.2f} times PyTorch's speed")
        picture.box(start, y + 2, speed * unit, 14)
        picture.end_group()
        if spread is not None:
            picture.curve(path("M", start + speed / spread * unit, y, "V", y + 18), 'class="gw-gap" stroke-width="2"')
        picture.label(start + speed * unit + 6, y + 9, f"{speed:.2f}×")
        y += 21
    picture.label(x, y + 10, "speed by the table; gap: less its spread", ink="soft")
