"""The front: what choices of groups take and what they risk, a point for each."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, colour, path

_LEFT, _WIDTH, _HEIGHT, _RADIUS = 64, 520, 300, 4
# About so many lines across.
_LINES = 5
Point = tuple[float, float]


def front_svg(sweep: dict[str, Any]) -> str:
    """Draws time against risk: the expected front as a line, measured networks filled, uniform groups hollow.

    Each point has its choice as a tooltip.
    """
    unit = "ms of a training step" if sweep["train"] else "ms forward"
    picture = Picture(
        f"{sweep['title']}: time against {sweep['risk']}",
        "Each point is a choice of groups for its layers. To the left is faster, below is better.",
    )
    picture.y += LABEL_SIZE
    expected = [((one["ms"], one["risk"]), one) for one in sweep["front"]]
    uniform = [((one["ms"], one["risk"]), one) for one in sweep["uniform"]]
    measured = [
        ((one["measured_ms"], one["risk"] if one["measured_risk"] is None else one["measured_risk"]), one)
        for one in sweep["measured"]
    ]
    points = [point for point, _ in (*expected, *uniform, *measured)] or [(sweep["model_ms"], 0.0)]
    across, up = (_scale([point[axis] for point in points]) for axis in (0, 1))
    top = picture.y
    bottom = top + _HEIGHT
    left = MARGIN + _LEFT

    def place(point: Point) -> Point:
        return left + across.part(point[0]) * _WIDTH, bottom - up.part(point[1]) * _HEIGHT

    for value in across.lines:
        x = place((value, up.least))[0]
        picture.curve(path("M", x, top, "V", bottom), 'class="gw-line" stroke-width="0.3"')
        picture.text(x, bottom + LABEL_SIZE + 6, f"{value:g}", "middle", "soft")
    for value in up.lines:
        y = place((across.least, value))[1]
        picture.curve(path("M", left, y, "H", left + _WIDTH), 'class="gw-line" stroke-width="0.3"')
        picture.label(left - 8, y, f"{value:g}", "end", "soft")
    picture.text(left + _WIDTH, bottom + 2 * LABEL_SIZE + 12, unit, "end")
    picture.text(MARGIN, top - 8, sweep["risk"])
    if len(expected) > 1:
        line = path(*[part for i, (point, _) in enumerate(expected) for part in ("L" if i else "M", *place(point))])
        picture.curve(line, f'class="gw-wire" stroke="{colour(0)}" stroke-width="1.5"')
    _points(picture, expected, place, colour(0), _RADIUS - 1.5)
    _points(picture, measured, place, colour(1), _RADIUS + 1)
    for point, choice in uniform:
        x, y = place(point)
        picture.group(colour(3), _tooltip(choice))
        outline = f'class="gw-bg" stroke="{colour(3)}" stroke-width="1.5"'
        picture.box(x - _RADIUS, y - _RADIUS, 2 * _RADIUS, 2 * _RADIUS, outline)
        picture.end_group()
        picture.text(x + _RADIUS + 4, y - 4, _uniform(choice), ink="soft")
    picture.right = max(picture.right, left + _WIDTH + 10)
    picture.y = bottom + 2 * LABEL_SIZE + 16
    told = [
        ("line", f"the best expected choices, {phrases.plural(len(expected), 'point')}"),
        ("squares", "the same groups in every layer, as expected"),
    ]
    if measured:
        told.insert(1, ("large points", f"{phrases.plural(len(measured), 'choice')}, measured as whole networks"))
    told.append(("as it is", f"{sweep['model_ms']:.3g} ms, {numbers.count(sweep['macs'])} MACs"))
    picture.caption(told)
    return picture.render([f"{name}: {text}." for name, text in told])


class _Scale:
    """A linear scale that begins and ends at lines of round numbers."""

    def __init__(self, least: float, most: float) -> None:
        span = (most - least) or abs(most) or 1.0
        step = 10.0 ** math.floor(math.log10(span / _LINES))
        step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= _LINES)
        first, last = math.floor(least / step), math.ceil(most / step)
        last = max(last, first + 1)
        self.lines = [round(number * step, 12) for number in range(first, last + 1)]
        self.least = self.lines[0]
        self._span = self.lines[-1] - self.lines[0]

    def part(self, value: float) -> float:
        """Returns where on the scale a value lies, from 0 to 1."""
        return (value - self.least) / self._span


def _scale(values: Sequence[float]) -> _Scale:
    return _Scale(min(values), max(values))


def _points(
    picture: Picture,
    points: Sequence[tuple[Point, dict[str, Any]]],
    place: Callable[[Point], Point],
    ink: str,
    radius: float,
) -> None:
    for point, choice in points:
        picture.group(ink, _tooltip(choice))
        picture.circle(*place(point), radius)
        picture.end_group()


def _tooltip(choice: dict[str, Any]) -> str:
    """Returns what a point says: its numbers, and the groups of each layer."""
    groups = ", ".join(f"{name}: {value}" for name, value in choice["layers"].items()) or "the model as it is"
    measured = "" if choice["measured_ms"] is None else f", measured {choice['measured_ms']:.4g} ms"
    return f"{choice['ms']:.4g} ms expected{measured}, {choice['facts']['risk']} {choice['risk']:.4g}; {groups}"


def _uniform(choice: dict[str, Any]) -> str:
    values = sorted(set(choice["layers"].values()))
    return f"groups={values[-1]}" if values else "as it is"
