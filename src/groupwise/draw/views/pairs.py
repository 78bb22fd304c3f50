"""Draws channels as circles and squares, and a curve for each connected pair."""

from __future__ import annotations

from collections.abc import Sequence

from groupwise.draw.base.svg import Picture, path

# Pictures draw every channel and every pair up to this many channels a side.
MOST_CHANNELS = 24
RADIUS = 5


def spread(top: float, height: float, count: int) -> list[float]:
    """Returns the middles of `count` equal rows, rounded to a tenth: their curves are most of a picture's bytes."""
    return [round(top + height * (i + 0.5) / count, 1) for i in range(count)]


def draw_pairs(picture: Picture, left: float, right: float, inputs: Sequence[float], outputs: Sequence[float]) -> None:
    """Draws circles at the heights `inputs`, squares at `outputs`, and a curve from each circle to each square."""
    start, end = left + RADIUS, right - RADIUS
    half, whole = (end - start) / 2, end - start
    # All curves are one path, as 24 × 24 of them take 16 kB even so.
    curves = (path("M", start, a, "c", half, 0, half, b - a, whole, b - a) for a in inputs for b in outputs)
    pairs = len(inputs) * len(outputs)
    width = 1.6 if pairs <= 36 else 1.1 if pairs <= 144 else 0.7 if pairs <= 256 else 0.5
    picture.curve("".join(curves), f'class="gw-wire" stroke-width="{width}"')
    for y in inputs:
        picture.circle(left, y, RADIUS)
    for y in outputs:
        picture.box(right - RADIUS, y - RADIUS, 2 * RADIUS, 2 * RADIUS)
