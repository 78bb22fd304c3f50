"""The strip: where a model's convolutions have their parameters, MACs, bytes and times, in order of execution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers
from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, box_path, colour

# Dense work is drawn hollow and grouped work solid, so that they differ without colour.
_KINDS = {"dense": None, "grouped": 0, "depthwise": 1}
_BAR, _LEFT, _WIDTH = 26, 84, 620


def strip_svg(report: dict[str, Any]) -> str:
    """Draws bars of parameters, MACs, bytes and (where measured) times, a segment for each convolution executed."""
    layers = report["layers"]
    picture = Picture("Where the work is", "Each segment is one convolution, in order of execution.")
    picture.right = MARGIN + _LEFT + _WIDTH
    told = []
    for label, values in _bars(layers).items():
        told.append(_bar(picture, label, values, [layer["kind"] for layer in layers]))
    picture.y -= 12
    return picture.render(told)


def _bars(layers: Sequence[dict[str, Any]]) -> dict[str, list[float]]:
    bars = {
        "parameters": [layer["parameters"] for layer in layers],
        "MACs": [layer["macs"]["forward"] for layer in layers],
        "bytes": [layer["bytes"] for layer in layers],
    }
    times = {key: [layer[key] for layer in layers] for key in ("pytorch_ms", "groupwise_ms")}
    if None not in times["groupwise_ms"]:
        # groupwise's kernels compute on both sides where PyTorch's may harm the process.
        before = [after if one is None else one for one, after in zip(*times.values(), strict=True)]
        bars |= {"time before": before, "time after": times["groupwise_ms"]}
    elif None not in times["pytorch_ms"]:
        bars["time"] = times["pytorch_ms"]
    return bars


def _bar(picture: Picture, label: str, values: Sequence[float], kinds: Sequence[str]) -> str:
    total = sum(values) or 1
    picture.label(MARGIN, picture.y + _BAR / 2, label)
    start: float = MARGIN + _LEFT
    paths: dict[str, list[str]] = {kind: [] for kind in _KINDS}
    for value, kind in zip(values, kinds, strict=True):
        width = _WIDTH * value / total
        # Neighbours have a gap between them, unless the segment is too narrow for one.
        paths[kind].append(box_path(start, picture.y, max(width - 0.6, width * 0.7), _BAR))
        start += width
    facts = []
    for kind, hue in _KINDS.items():
        if paths[kind]:
            picture.curve("".join(paths[kind]), _paint(hue))
            part = sum(v for v, k in zip(values, kinds, strict=True) if k == kind)
            facts.append((kind, hue, numbers.percent(part, total)))
    x: float = MARGIN + _LEFT
    for kind, hue, share in facts:
        picture.box(x, picture.y + _BAR + 6, 10, 10, _paint(hue))
        picture.text(x + 15, picture.y + _BAR + 6 + LABEL_SIZE - 2, f"{kind} {share}", ink="soft")
        x += 150
    picture.y += _BAR + 32
    return f"{label}: {', '.join(f'{kind} {share}' for kind, _, share in facts)}."


def _paint(hue: int | None) -> str:
    return 'class="gw-bg gw-line" stroke-width="0.8"' if hue is None else f'fill="{colour(hue)}"'
