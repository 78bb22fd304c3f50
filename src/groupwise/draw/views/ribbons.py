"""Draws the wiring of wide convolutions: one ribbon a group, and one group in full beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.svg import CAPTION_SIZE, LABEL_SIZE, MARGIN, Picture, colour, path, text_width
from groupwise.draw.views.pairs import RADIUS, draw_pairs, spread
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.wiring import Path, Wiring

# Above this many groups the picture has the first and the last ones, and a line of text for the others.
MOST_GROUPS, FIRST, LAST = 24, 6, 3
# The same holds for the channels of the group in full: a wider mesh says no more, and takes many bytes.
MOST_CHANNELS = 16
RIBBON, GAP = 190, 10
ROW = 30
# In the group in full, these are the space between channels, the length of the lines, and the space in the frame.
PITCH, REACH, INSET = 15, 150, 20


def draw_ribbons(picture: Picture, spec: ConvSpec) -> None:
    """Draws the ribbons on the left and the channels of the first group on the right."""
    wires = Wiring(spec)
    shown = [
        None if group is None else wires.path(group)
        for group in phrases.elide(range(len(wires)), MOST_GROUPS, FIRST, LAST)
    ]
    top = picture.y
    ribbons_right, name_width = _measure(shown)
    height = _draw_group(picture, wires.path(0), ribbons_right + 40, top)
    row = max(height / len(shown), ROW)
    x = MARGIN + name_width
    for index, group in enumerate(shown):
        middle = top + row * (index + 0.5)
        if group is None:
            hidden = phrases.plural(len(wires) - len(shown) + 1, "more group")
            picture.label(x + RIBBON / 2, middle, f"… {hidden} of the same shape …", "middle", "soft")
        else:
            _draw_ribbon(picture, group, x, middle, row - 8)
    picture.y = top + max(height, row * len(shown))


def _measure(shown: Sequence[Path | None]) -> tuple[float, float]:
    """Returns where the ribbons' labels end on the right, and the room that they take on the left."""
    groups = [group for group in shown if group]
    names = max(text_width(_name(group) + _ends(group)[0], LABEL_SIZE) for group in groups)
    outs = max(text_width(_ends(group)[1], LABEL_SIZE) for group in groups)
    room = math.ceil(names + 14 + GAP)
    return MARGIN + room + RIBBON + GAP + outs, room


def _name(group: Path) -> str:
    return f"group {group.group}"


def _ends(group: Path) -> tuple[str, str]:
    return f"in {numbers.channels(group.inputs)}", f"out {numbers.channels(group.outputs)}"


def _draw_ribbon(picture: Picture, group: Path, x: float, middle: float, height: float) -> None:
    """Draws a ribbon from the group's inputs to its outputs; each end is as high as it has channels."""
    n_in, n_out = len(group.inputs), len(group.outputs)
    left, right = (max(height * n / max(n_in, n_out), 3) / 2 for n in (n_in, n_out))
    picture.group(colour(group.group), f"{_name(group)}: {phrases.joins(group)}")
    bend, end = RIBBON / 2, x + RIBBON
    upper = path("M", x, middle - left, "c", bend, 0, bend, left - right, RIBBON, left - right, "v", 2 * right)
    lower = path("c", -bend, 0, -bend, left - right, -RIBBON, left - right, "z")
    picture.curve(upper + lower, 'fill-opacity="0.16" stroke-width="1"')
    for edge, half in ((x, left), (end - 5, right)):
        picture.box(edge, middle - half, 5, 2 * half)
    picture.end_group()
    from_inputs, to_outputs = _ends(group)
    picture.label(MARGIN, middle, _name(group))
    picture.label(x - GAP, middle, from_inputs, "end")
    picture.label(end + GAP, middle, to_outputs)
    picture.label(x + RIBBON / 2, middle, f"{n_in:,}×{n_out:,}", "middle")


def _draw_group(picture: Picture, group: Path, x: float, top: float) -> float:
    """Draws the channels and pairs of `group`, or the first and last of many, in a frame; returns its height."""
    columns = [phrases.elide(channels, MOST_CHANNELS, FIRST, LAST) for channels in (group.inputs, group.outputs)]
    elided = any(None in column for column in columns)
    title = f"{_name(group)}, first and last channels" if elided else f"{_name(group)} in full"
    note = f"{phrases.plural(len(group.inputs), 'input')} × {phrases.plural(len(group.outputs), 'output')}"
    names = [["⋮" if channel is None else str(channel) for channel in column] for column in columns]
    before, after = (max(text_width(name, LABEL_SIZE) for name in column) + GAP + RADIUS for column in names)
    least = max(text_width(title, CAPTION_SIZE), text_width(note, LABEL_SIZE))
    left = round(x + INSET + before)
    right = round(left + max(REACH, least - before - after))
    height = PITCH * max(3, *map(len, columns))
    rows = [spread(top + 66, height, len(column)) for column in columns]

    frame = 'rx="6" fill="none" class="gw-line" stroke-width="0.75"'
    picture.box(x, top, right + after + INSET - x, height + 80, frame)
    picture.text(x + INSET, top + 16 + CAPTION_SIZE, title, size=CAPTION_SIZE)
    picture.text(x + INSET, top + 38 + LABEL_SIZE, note, ink="soft")
    picture.group(colour(group.group), f"{_name(group)}: {phrases.joins(group)}")
    inputs, outputs = (
        [y for y, name in zip(ys, column, strict=True) if name != "⋮"] for ys, column in zip(rows, names, strict=True)
    )
    draw_pairs(picture, left, right, inputs, outputs)
    picture.end_group()
    for y, name in zip(rows[0], names[0], strict=True):
        picture.label(left - GAP - RADIUS, y, name, "end")
    for y, name in zip(rows[1], names[1], strict=True):
        picture.label(right + GAP + RADIUS, y, name)
    return height + 80
