"""The weight picture: the weight of a dense convolution, and the packed tensor that is stored."""

from __future__ import annotations

import math
from dataclasses import dataclass

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.svg import (
    CAPTION_SIZE,
    COLOURS,
    LABEL_SIZE,
    MARGIN,
    Picture,
    box_path,
    colour,
    path,
    text_width,
)
from groupwise.spec.convspec import ConvSpec

# The longer side of the dense weight, the longest side of a cell, and the shortest one at which lines part the cells.
LONG, CELL, PARTED = 312, 34, 12
# Weights of up to so many channels a side are always true to scale: their cells are large enough to count.
FEW = 24
# A side of far fewer channels than the other is this long, and not to scale.
SHORT = 56
# Groups have colours of their own while their blocks are at least BLOCK wide and high (thinner ones blend into a grey),
# and numbers of their own while their rows are at least NAME_ROW high.
BLOCK, NAME_ROW = 2.0, 12.9
# The diagonal and the stored tensor are at least so wide, to be visible.
THIN, THIN_STORED = 1.0, 5.0
SPACE = 64


@dataclass(frozen=True)
class _Grid:
    """The first two dimensions of a weight, `rows` × `columns` kernels, as a box."""

    x: float
    y: float
    width: float
    height: float
    rows: int
    columns: int


def weight_svg(spec: ConvSpec) -> str:
    """Returns the picture of the weight: the dense one with its blocks on the diagonal, and the stored one beside it.

    Rows are dim 0 of the stored weight: the outputs, or the inputs of a transposed convolution.
    """
    picture = Picture(phrases.title(spec), "Each cell is one kernel. Left: a dense weight; right: what is stored.")
    rows, columns = _dense_shape(spec)
    width, height = _extent(columns, rows), _extent(rows, columns)
    stored_width = max(width / spec.groups, THIN_STORED)
    side = f"{rows:,} {_axes(spec)[0]}"
    x = MARGIN + max(text_width(side, LABEL_SIZE), text_width("dim 0", LABEL_SIZE)) + 20
    top = picture.y + CAPTION_SIZE + LABEL_SIZE + 26
    dense = _Grid(x, top, width, height, rows, columns)
    heading = f"dense {spec.dense().weight_shape}"
    across = f"dim 1: {columns:,} {_axes(spec)[1]}"
    reach = max(width, text_width(heading, CAPTION_SIZE), text_width(across, LABEL_SIZE))
    stored = _Grid(x + reach + SPACE, top, stored_width, height, rows, columns // spec.groups)

    _draw_axes(picture, dense, heading, across)
    _draw_side(picture, dense, side)
    fraction = "" if spec.groups == 1 else f"{columns:,} / {spec.groups:,} = "
    _draw_axes(picture, stored, f"stored {spec.weight_shape}", f"dim 1: {fraction}{stored.columns:,} {_axes(spec)[1]}")
    _draw_weights(picture, dense, stored, spec.groups)
    _label_groups(picture, stored, spec.groups)
    picture.y = top + height
    picture.caption(_facts(spec, dense, stored))
    return picture.render(_description(spec))


def _dense_shape(spec: ConvSpec) -> tuple[int, int]:
    channels = (spec.out_channels, spec.in_channels)
    return channels[::-1] if spec.transposed else channels


def _axes(spec: ConvSpec) -> tuple[str, str]:
    return ("in", "out") if spec.transposed else ("out", "in")


def _extent(channels: int, other: int) -> float:
    """Returns the length of a side of `channels` beside one of `other`."""
    cell = min(CELL, LONG / max(channels, other))
    return channels * cell if max(channels, other) <= FEW else max(channels * cell, SHORT)


def _draw_axes(picture: Picture, grid: _Grid, heading: str, across: str) -> None:
    """Draws the heading and the dimension line above a box."""
    base = grid.y - LABEL_SIZE - 26
    picture.text(grid.x, base + 4, heading, size=CAPTION_SIZE)
    picture.text(grid.x, grid.y - 18, across, ink="soft")
    y = grid.y - 9
    line = path("M", grid.x, y - 3, "v", 6, "M", grid.x, y, "h", grid.width, "M", grid.x + grid.width, y - 3, "v", 6)
    picture.curve(line, 'class="gw-wire gw-line"')


def _draw_side(picture: Picture, grid: _Grid, text: str) -> None:
    """Draws the dimension line at the left of a box, and its label."""
    middle, x = grid.y + grid.height / 2, grid.x - 9
    picture.label(x - 8, middle - 8, "dim 0", "end", "soft")
    picture.label(x - 8, middle + 8, text, "end", "soft")
    ends = grid.y + grid.height
    line = path("M", x - 3, grid.y, "h", 6, "M", x, grid.y, "v", grid.height, "M", x - 3, ends, "h", 6)
    picture.curve(line, 'class="gw-wire gw-line"')


def _draw_weights(picture: Picture, dense: _Grid, stored: _Grid, groups: int) -> None:
    """Draws both boxes: grey where no weight exists, blocks in their colours, lines between cells if they are few."""
    picture.box(dense.x, dense.y, dense.width, dense.height, 'class="gw-void"')
    if min(dense.width, dense.height) / groups >= BLOCK:
        for hue in range(min(groups, len(COLOURS))):
            members = range(hue, groups, len(COLOURS))
            data = "".join(_block(dense, group, groups) + _stored_block(stored, group, groups) for group in members)
            picture.curve(data, f'fill="{colour(hue)}"')
    else:
        picture.curve(_band(dense, groups), f'fill="{colour(0)}"')
        picture.curve(box_path(stored.x, stored.y, stored.width, stored.height), f'fill="{colour(0)}"')
    for grid in (dense, stored):
        if lines := _lines(grid):
            picture.curve(lines, 'class="gw-wire gw-gap" stroke-width="1"')
        outline = box_path(grid.x, grid.y, grid.width, grid.height)
        picture.curve(outline, 'class="gw-wire gw-line" stroke-width="0.75"')


def _block(grid: _Grid, group: int, groups: int) -> str:
    width, height = grid.width / groups, grid.height / groups
    return box_path(grid.x + group * width, grid.y + group * height, width, height)


def _stored_block(grid: _Grid, group: int, groups: int) -> str:
    height = grid.height / groups
    return box_path(grid.x, grid.y + group * height, grid.width, height)


def _band(grid: _Grid, groups: int) -> str:
    """Returns the diagonal as one shape, for blocks too small to tell apart."""
    width, height = max(grid.width / groups, THIN), max(grid.height / groups, THIN)
    right, down = grid.width - width, grid.height - height
    return path("M", grid.x, grid.y, "h", width, "l", right, down, "v", height, "h", -width, "l", -right, -down, "z")


def _lines(grid: _Grid) -> str:
    """Returns the lines between cells, in the directions in which cells are large enough."""
    across, down = grid.width / grid.columns, grid.height / grid.rows
    data = []
    if across >= PARTED:
        data += [path("M", grid.x + i * across, grid.y, "v", grid.height) for i in range(1, grid.columns)]
    if down >= PARTED:
        data += [path("M", grid.x, grid.y + i * down, "h", grid.width) for i in range(1, grid.rows)]
    return "".join(data)


def _label_groups(picture: Picture, grid: _Grid, groups: int) -> None:
    """Draws the number of each group beside its rows, or those of the first and last one."""
    x, row = grid.x + grid.width + 12, grid.height / groups
    if row >= NAME_ROW:
        for group in range(groups):
            picture.label(x, grid.y + row * (group + 0.5), f"group {group}")
        return
    middle = LABEL_SIZE / 2
    picture.label(x, grid.y + middle, "group 0")
    picture.label(x, grid.y + grid.height / 2, f"… {phrases.plural(groups - 2, 'more group')} …", ink="soft")
    picture.label(x, grid.y + grid.height - middle, f"group {groups - 1}")


def _facts(spec: ConvSpec, dense: _Grid, stored: _Grid) -> list[tuple[str, str]]:
    facts = [("blocks", _blocks(spec))]
    if spec.groups > 1:
        missing = spec.dense().weights - spec.weights
        facts.append(("grey", f"{missing:,} of {spec.dense().weights:,} weights do not exist"))
    facts.append(("stored", f"{phrases.plural(spec.weights, 'weight')}, shape {spec.weight_shape} = {_formula(spec)}"))
    if note := _scale_note(spec, dense, stored):
        facts.append(("scale", note))
    return facts


def _blocks(spec: ConvSpec) -> str:
    rows, columns = (side // spec.groups for side in _dense_shape(spec))
    noun = "kernel" if rows == columns == 1 else "kernels"
    kernels = f"{rows:,} × {columns:,} {noun} of {numbers.product(spec.kernel_size)}"
    first, second = _axes(spec)
    if spec.groups == 1:
        return f"one block, {kernels} ({first} × {second})"
    return f"{spec.groups:,} groups, each block {kernels} ({first} × {second})"


def _formula(spec: ConvSpec) -> str:
    first, second = _axes(spec)
    return f"({first}, {second}/groups, {'kernel' if spec.dims == 1 else '*kernel'})"


def _scale_note(spec: ConvSpec, dense: _Grid, stored: _Grid) -> str:
    """Returns what in the drawing is not to scale."""
    notes = []
    if not math.isclose(dense.width * dense.rows, dense.height * dense.columns):
        notes.append("rows and columns are not to the same scale")
    if stored.width * spec.groups > dense.width * 1.001:
        notes.append("the stored weight is drawn wider than it is")
    if min(dense.width, dense.height) / spec.groups < THIN:
        notes.append("the diagonal is drawn thicker than it is")
    return "; ".join(notes)


def _description(spec: ConvSpec) -> list[str]:
    rows, columns = _dense_shape(spec)
    first, second = _axes(spec)
    dense = f"A dense weight drawn as a grid of {rows:,} rows ({first}) by {columns:,} columns ({second})"
    if spec.groups == 1:
        return [f"{dense}; every kernel exists.", f"Stored shape {spec.weight_shape}, the same."]
    return [
        f"{dense}; only the blocks on its diagonal exist: {_blocks(spec)}.",
        f"Beside it the stored weight of shape {spec.weight_shape}: the blocks on top of each other, "
        f"{columns // spec.groups:,} wide instead of {columns:,}.",
    ]
