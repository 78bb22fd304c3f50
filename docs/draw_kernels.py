"""Draws the tile of each kernel: what it reads, which numbers share a vector, and which sums it keeps in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, box_path, colour, text_width

GAP = 44
# A rectangle of cells: the first row and column, and how many of each.
Block = tuple[int, int, int, int]


@dataclass(frozen=True)
class Grid:
    """A tensor, or a part of it, as cells. The cells of a group have its colour; those of no group are padding."""

    title: str
    size: tuple[int, int]
    axes: str
    """What the rows and the columns are."""
    vectors: list[Block]
    """What is loaded, broadcast or kept as one vector."""
    group: Callable[[int, int], int | None] = field(default=lambda row, column: 0)


@dataclass(frozen=True)
class Tile:
    """The picture of a kernel: two grids whose products are added to the third."""

    title: str
    subtitle: str
    cell: int
    grids: tuple[Grid, Grid, Grid]
    says: list[str]
    outline: str = "an outline is one vector, or one number that is broadcast to a vector's lanes"


def rows(count: int, width: int, first: int = 0) -> list[Block]:
    """Returns blocks of one row each."""
    return [(row, first, 1, width) for row in range(count)]


def cells(*places: tuple[int, int]) -> list[Block]:
    """Returns blocks of one cell each."""
    return [(row, column, 1, 1) for row, column in places]


TILES = {
    "planar": Tile(
        "A tile of planar",
        "Vectors of 8 columns (AVX2): one tap, four output channels, three vectors of columns",
        7,
        (
            Grid(
                "padded rows of a channel",
                (5, 26),
                "rows × columns; pale: padding",
                [(1, 1 + 8 * vector, 1, 8) for vector in range(3)],
                lambda row, column: None if row == 0 or column in (0, 25) else 0,
            ),
            Grid("weights", (4, 9), "output channels × taps", cells(*((row, 4) for row in range(4)))),
            Grid(
                "12 sums", (4, 24), "output channels × columns", [(r, 8 * v, 1, 8) for r in range(4) for v in range(3)]
            ),
        ),
        [
            "Three vectors of a row of the input are loaded.",
            "The weights of one tap and four output channels are broadcast.",
            "Twelve vectors of sums, of four output channels and 24 columns, stay in registers.",
        ],
    ),
    "narrow": Tile(
        "A tile of narrow",
        "Vectors of 16 channels (AVX-512): four groups of four channels side by side, one tap, eight pixels",
        10,
        (
            Grid("input", (10, 16), "pixels × channels", rows(8, 16, 0), lambda row, column: column // 4),
            Grid(
                "weights of a tap",
                (4, 16),
                "a group's input channels × output channels",
                rows(4, 16),
                lambda row, column: column // 4,
            ),
            Grid("8 sums", (8, 16), "pixels × output channels", rows(8, 16), lambda row, column: column // 4),
        ),
        [
            "A vector holds a pixel's channels of four groups.",
            "A shuffle gives each lane an input channel of its own group.",
            "Each vector of weights serves eight sums, of eight neighbouring pixels.",
        ],
    ),
    "groups": Tile(
        "A tile of groups",
        "Vectors of 16 output channels of one group (AVX-512): one input channel of one tap, twelve pixels",
        10,
        (
            Grid("input", (12, 16), "pixels × input channels", cells(*((row, 5) for row in range(12)))),
            Grid("weights of a tap", (16, 16), "input channels × output channels", [(5, 0, 1, 16)]),
            Grid("12 sums", (12, 16), "pixels × output channels", rows(12, 16)),
        ),
        [
            "One input channel of each of twelve pixels is broadcast.",
            "One vector of weights, of sixteen output channels, is loaded for all of them.",
            "Twelve vectors of sums, one a pixel, stay in registers.",
        ],
    ),
    "dots": Tile(
        "A tile of dots",
        "Vectors of 16 input channels (AVX-512): four output channels by four pixels; a sum is a vector",
        12,
        (
            Grid("input", (4, 16), "pixels × input channels", rows(4, 16)),
            Grid("weights of a tap", (4, 16), "output channels × input channels", rows(4, 16)),
            Grid(
                "16 sums",
                (4, 4),
                "pixels × output channels",
                cells(*((row, column) for row in range(4) for column in range(4))),
            ),
        ),
        [
            "A vector holds sixteen input channels of a pixel, or of an output channel's weights, read in place.",
            "Each pixel is multiplied by each of four output channels.",
            "Each of the sixteen sums is a vector, whose lanes are added at the end.",
        ],
    ),
    "pixels": Tile(
        "A tile of pixels",
        "Gradient of the weight, vectors of 16 input channels (AVX-512): one pixel, eight output channels, three taps",
        8,
        (
            Grid("grad_output", (8, 1), "output channels × a pixel", cells(*((row, 0) for row in range(8)))),
            Grid("input", (3, 16), "the pixels that three taps read × input channels", rows(3, 16)),
            Grid(
                "24 sums",
                (8, 48),
                "output channels × taps and input channels",
                [(r, 16 * v, 1, 16) for r in range(8) for v in range(3)],
            ),
        ),
        [
            "The gradients of eight output channels at one pixel are broadcast.",
            "The input channels of the pixels that three taps read are loaded as vectors.",
            "The sums of eight output channels and three taps stay in registers while the pixels pass.",
        ],
    ),
    "gemm": Tile(
        "A tile of gemm",
        "Vectors of 8 output channels (AVX2): one input channel, six pixels, two vectors of a panel of weights",
        8,
        (
            Grid("input", (6, 12), "pixels × input channels", cells(*((pixel, 4) for pixel in range(6)))),
            Grid("panel of weights", (12, 16), "input channels × output channels", [(4, 0, 1, 8), (4, 8, 1, 8)]),
            Grid(
                "12 sums", (6, 16), "pixels × output channels", [(r, 8 * v, 1, 8) for r in range(6) for v in range(2)]
            ),
        ),
        [
            "One input channel of each of six pixels, which stay where they are, is broadcast.",
            "Two vectors of the panel, of 16 output channels, are loaded for all of them.",
            "Twelve vectors of sums stay in registers while the input channels pass.",
        ],
    ),
    "brgemm": Tile(
        "A product of brgemm",
        "PyTorch's micro-kernel multiplies whole blocks: up to 128 pixels, and 64 output channels",
        10,
        (
            Grid("input", (16, 12), "pixels × taps of a row and their channels", [(0, 0, 16, 12)]),
            Grid("weights", (12, 16), "taps and channels × output channels", [(0, 0, 12, 16)]),
            Grid("sums", (16, 16), "pixels × output channels", [(0, 0, 16, 16)]),
        ),
        [
            "A block of pixels, with the taps of a row side by side, is multiplied by a block of packed weights.",
            "The products are added to a block of sums, of pixels by output channels.",
        ],
        "an outline is a block that one call of the micro-kernel takes",
    ),
    "stem": Tile(
        "A tile of stem",
        "Vectors of 16 output channels (AVX-512): one tap of one input channel, 14 pixels, two vectors",
        7,
        (
            Grid(
                "padded planes",
                (3, 16),
                "input channels × columns",
                [(0, 1 + pixel, 1, 1) for pixel in range(14)],
                lambda row, column: (10, 4, 9)[row],
            ),
            Grid(
                "weights",
                (9, 32),
                "taps of an input channel × output channels",
                [(1, 0, 1, 16), (1, 16, 1, 16)],
                lambda row, column: 10,
            ),
            Grid(
                "28 sums",
                (14, 32),
                "pixels × output channels",
                [(r, 16 * v, 1, 16) for r in range(14) for v in range(2)],
                lambda row, column: 10,
            ),
        ),
        [
            "One number of each of fourteen neighbouring columns of one plane is broadcast.",
            "Two vectors of weights, of 32 output channels, are loaded for all of them.",
            "28 vectors of sums stay in registers.",
        ],
    ),
    "pairs": Tile(
        "A tile of pairs",
        "bfloat16, vectors of 16 output channels (AVX512-BF16): one pair of input channels, seven pixels, two vectors",
        7,
        (
            Grid("input", (7, 16), "pixels × input channels", [(row, 4, 1, 2) for row in range(7)]),
            Grid(
                "weights of a tap",
                (8, 64),
                "pairs of input channels × output channels, two numbers each",
                [(2, 0, 1, 32), (2, 32, 1, 32)],
            ),
            Grid(
                "14 sums",
                (7, 32),
                "pixels × output channels",
                [(r, 16 * v, 1, 16) for r in range(7) for v in range(2)],
            ),
        ),
        [
            "Two neighbouring input channels of each of seven pixels are broadcast as one pair.",
            "Two vectors of pairs of weights, of 32 output channels, are loaded for all of them.",
            "One instruction adds both products of each pair; fourteen vectors of float32 sums stay in registers.",
        ],
        "an outline is one vector of pairs or of sums, or one pair that is broadcast to a vector's lanes",
    ),
    "fft": Tile(
        "The blocks of fft",
        "Overlap-save: a block's spectrum times the weight's is the spectrum of its outputs",
        6,
        (
            Grid(
                "input, four times",
                (4, 40),
                "blocks × positions",
                [(block, 8 * block, 1, 16) for block in range(4)],
                lambda row, column: row if 8 * row <= column < 8 * row + 16 else None,
            ),
            Grid("spectrum of the weight", (1, 16), "frequencies", [(0, 0, 1, 16)], lambda row, column: 4),
            Grid(
                "outputs",
                (4, 32),
                "blocks × positions",
                [(block, 8 * block, 1, 8) for block in range(4)],
                lambda row, column: row if 8 * row <= column < 8 * row + 8 else None,
            ),
        ),
        [
            "The input is cut into blocks that overlap by the reach of the kernel.",
            "Each block's spectrum is multiplied by that of the weight.",
            "A block gives the outputs whose inputs it holds whole, and the blocks' outputs follow each other.",
        ],
        "an outline is what one transform takes, or gives",
    ),
}


def drawn() -> dict[str, str]:
    """Returns the SVG of each kernel's tile by its file name."""
    return {f"kernel-{name}.svg": _picture(tile) for name, tile in TILES.items()}


def _picture(tile: Tile) -> str:
    picture = Picture(tile.title, tile.subtitle)
    x, top = float(MARGIN), picture.y
    bottom = top
    for grid, sign in zip(tile.grids, ("×", "→", ""), strict=True):
        width = _grid(picture, grid, x, top, tile.cell)
        bottom = max(bottom, picture.y)
        if sign:
            picture.label(x + width + GAP / 2, top + 28, sign, "middle", "soft")
        x += width + GAP
    picture.y = bottom + 14
    picture.label(MARGIN, picture.y, tile.outline, ink="soft")
    picture.y += LABEL_SIZE
    return picture.render(tile.says)


def _grid(picture: Picture, grid: Grid, x: float, top: float, cell: int) -> float:
    """Draws a grid with its title above and its axes below, and returns the width that they take."""
    height, width = grid.size
    picture.label(x, top, grid.title)
    y = top + 14
    by_group: dict[int | None, list[str]] = {}
    for row in range(height):
        for column in range(width):
            box = box_path(x + column * cell, y + row * cell, cell - 1, cell - 1)
            by_group.setdefault(grid.group(row, column), []).append(box)
    for group, boxes in by_group.items():
        if group is None:
            picture.curve("".join(boxes), 'class="gw-void"')
        else:
            picture.curve("".join(boxes), f'fill="{colour(group)}" opacity="0.45"')
    for row, column, tall, wide in grid.vectors:
        line = 'fill="none" stroke="currentColor" class="gw-line" stroke-width="1.5"'
        picture.box(x + column * cell - 0.5, y + row * cell - 0.5, wide * cell, tall * cell, line)
    picture.y = y + height * cell + 12
    words = grid.axes.split("; ")
    for word in words:
        picture.label(x, picture.y, word, ink="soft")
        picture.y += LABEL_SIZE + 4
    widest = max(text_width(word, LABEL_SIZE) for word in [grid.title, *words])
    return max(width * cell, widest)
