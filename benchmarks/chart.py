"""Draw the records as charts: what groups save in PyTorch, and how much faster this package is, also in each dtype.

python benchmarks/chart.py [--records DIR] [--pictures DIR]
"""

from __future__ import annotations

import argparse
import math
import pathlib
from typing import Any

from layer_tables import read_dtype
from measuring import RECORDS, ROOT, name_of, newest, payoffs, read_record
from shapes import DTYPES, KINDS, read
from summary import Times, collect, geometric_mean

from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, colour, path

WIDTH, HEIGHT, GAP = 250, 170, 78
LINES = {"contiguous": (1, "contiguous (NCHW)"), "channels_last": (0, "channels_last (NHWC)")}
# The chart of speedups has rows of this height, and an axis of this start and length.
ROW, AXIS, LENGTH = 16, 200, 500
MOST_LINES = 9
PASSES = {"forward": (0, "forward"), "training": (1, "training step")}


def main() -> None:
    """Reads the records that are there, and writes the SVGs."""
    parser = argparse.ArgumentParser(description="Draw the records.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    parser.add_argument("--pictures", type=pathlib.Path, default=ROOT / "docs/pictures")
    options = parser.parse_args()
    if rows := payoffs(newest(read_record(options.records / "groups.jsonl"))):
        (options.pictures / "payoff.svg").write_text(chart(rows), encoding="utf-8")
    if layers := chosen(newest(read_record(options.records / "layers.jsonl"))):
        (options.pictures / "speedup.svg").write_text(speedup_chart(layers), encoding="utf-8")
    for dtype in DTYPES:
        if layers := chosen(read_dtype(options.records, dtype)):
            drawn = speedup_chart(layers, f", in {dtype}", by_kind=True)
            (options.pictures / f"layers-{dtype}.svg").write_text(drawn, encoding="utf-8")


def chart(rows: list[dict[str, Any]]) -> str:
    """Draws one panel a shape: time over groups, relative to dense, on logarithmic axes."""
    picture = Picture(
        "groups=g promises 1/g of the work; what PyTorch takes",
        "Forward of a 3×3 convolution, as many channels out as in; 100 % is groups=1 in the same memory format.",
    )
    shapes = sorted({(row["channels"], row["size"]) for row in rows})
    top = picture.y
    for number, shape in enumerate(shapes):
        x = MARGIN + 44 + (number % 2) * (WIDTH + GAP)
        y = top + 26 + (number // 2) * (HEIGHT + GAP)
        _panel(picture, x, y, shape, [row for row in rows if (row["channels"], row["size"]) == shape])
    picture.right = max(picture.right, MARGIN + 44 + 2 * WIDTH + GAP + 10)
    picture.y = top + 26 + math.ceil(len(shapes) / 2) * (HEIGHT + GAP) - 22
    _legend(picture)
    _caption(picture, rows, min(row["repeats"] for row in rows))
    return picture.render([_told(shape, rows) for shape in shapes])


def chosen(rows: list[dict[str, Any]]) -> list[Times]:
    """Returns the listed layers at batch 1 with the most threads."""
    rows = [row for row in rows if row.get("set") == "listed" and row["batch"] == 1]
    most = max((row["threads"] for row in rows), default=0)
    return collect([row for row in rows if row["threads"] == most], "layer", ("layer", "pass"))


def speedup_chart(layers: list[Times], where: str = "", by_kind: bool = False) -> str:
    """Draws one row a layer: how many times as long PyTorch takes, forward and training step, on a logarithmic axis.

    `by_kind` puts the layers of each dimension, and the transposed ones, below a line that says their means.
    """
    means = " Beside a dimension are its geometric means." if by_kind else ""
    picture = Picture(
        f"How many times as fast as PyTorch{where}",
        f"PyTorch's time over groupwise's, each in its better memory format, layer by layer.{means}",
    )
    speedups: dict[str, dict[str, float]] = {}
    for times in layers:
        speedups.setdefault(times.facts["layer"], {})[times.facts["pass"]] = times.speedup()
    names = [layer.name for layer in read("listed") if layer.name in speedups]
    sections = {"": names}
    if by_kind:
        kinds = {layer.name: layer.kind for layer in read("listed")}
        every_kind = {kind: [name for name in names if kinds[name] == kind] for kind in KINDS}
        sections = {_means(kind, speedups, some): some for kind, some in every_kind.items() if some}
    every = [value for found in speedups.values() for value in found.values()]
    low, high = (edge(math.log2(limit(1.0, *every))) for edge, limit in ((math.floor, min), (math.ceil, max)))
    high = max(high, low + 1)

    def at(speedup: float) -> float:
        return AXIS + LENGTH * (math.log2(speedup) - low) / (high - low)

    _passes_legend(picture)
    top = picture.y + 36
    lines = [(name, heading) for heading, some in sections.items() for name in ([""] * bool(heading) + some)]
    bottom = top + ROW * len(lines)
    every_so_many = -(-(high - low) // MOST_LINES)
    for power in (power for power in range(low, high + 1) if power % every_so_many == 0):
        width = 1.5 if power == 0 else 0.4
        picture.curve(path("M", at(2.0**power), top, "V", bottom), f'class="gw-line" stroke-width="{width}"')
        for height in (top - 8, bottom + 16):
            picture.text(at(2.0**power), height, f"{2.0**power:g}×", "middle", "soft")
    for number, (name, heading) in enumerate(lines):
        height = top + ROW * (number + 0.5)
        if not name:
            picture.label(AXIS - 10, height, heading, "end", "soft")
            continue
        picture.label(AXIS - 10, height, name, "end")
        ends = [at(1.0), *(at(value) for value in speedups[name].values())]
        picture.curve(path("M", min(ends), height, "H", max(ends)), 'class="gw-line" stroke-width="1"')
        for which, value in speedups[name].items():
            _mark(picture, (at(value), height), PASSES[which][0])
    picture.y = bottom + 16
    picture.right = max(picture.right, AXIS + LENGTH + 24)
    _caption(picture, [times.facts for times in layers], min(min(times.repeats) for times in layers))
    return picture.render([_told_speedup(which, speedups) for which in PASSES])


def _means(kind: str, speedups: dict[str, dict[str, float]], names: list[str]) -> str:
    """Returns the heading of a kind of layers, which must stay left of the axis."""
    found = [[speedups[name][which] for name in names if which in speedups[name]] for which in PASSES]
    means = ", ".join(f"{geometric_mean(some):.1f}×" if some else "none" for some in found)
    return f"{kind}: {means}"


def _caption(picture: Picture, rows: list[dict[str, Any]], repeats: int) -> None:
    facts = rows[0]
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    machine = f"{name_of(facts)}, {threads}, {facts['dtype']}, batch {facts['batch']}"
    commits, dates = ([*dict.fromkeys(row[name] for row in rows)] for name in ("commit", "date"))
    versions = f"torch {facts['torch']}, commit{'s' * (len(commits) > 1)} {', '.join(commits)}, {', '.join(dates)}"
    picture.caption([("machine", machine), ("measured", f"median of {repeats} or more, interleaved; {versions}")])


def _passes_legend(picture: Picture) -> None:
    x: float = AXIS
    for hue, label in PASSES.values():
        _mark(picture, (x, picture.y), hue)
        picture.label(x + 12, picture.y, label)
        x += 120


def _panel(picture: Picture, x: float, y: float, shape: tuple[int, int], rows: list[dict[str, Any]]) -> None:
    most = max(row["groups"] for row in rows)
    low = min(1 / most, *(row["of_dense"] for row in rows))
    high = max(1.0, *(row["of_dense"] for row in rows))
    decades = (math.floor(math.log10(low)), math.ceil(math.log10(high) - 1e-9))

    def at(groups: float, share: float) -> tuple[float, float]:
        across = math.log2(groups) / math.log2(most)
        up = (math.log10(share) - decades[0]) / (decades[1] - decades[0])
        return x + WIDTH * across, y + HEIGHT * (1 - up)

    picture.text(x, y - 12, f"{shape[0]} channels, {shape[1]}×{shape[1]}", size=12)
    for decade in range(decades[0], decades[1] + 1):
        height = at(1, 10**decade)[1]
        picture.curve(path("M", x, height, "h", WIDTH), 'class="gw-line" stroke-width="0.4"')
        picture.label(x - 6, height, f"{100 * 10**decade:g} %", "end", "soft")
    for power in range(0, int(math.log2(most)) + 1, 2):
        picture.text(at(2**power, 1)[0], y + HEIGHT + 16, str(2**power), "middle", "soft")
    picture.text(x + WIDTH, y + HEIGHT + 32, "groups", "end", "soft")
    promise = [at(2**power, 0.5**power) for power in range(int(math.log2(most)) + 1)]
    picture.curve(_line(promise), 'class="gw-line" fill="none" stroke-width="1.5" stroke-dasharray="4 3"')
    for name, (hue, _) in LINES.items():
        points = [at(row["groups"], row["of_dense"]) for row in rows if row["memory_format"] == name]
        picture.curve(_line(points), f'fill="none" stroke="{colour(hue)}" stroke-width="2"')
        for spot in points:
            _mark(picture, spot, hue)


def _mark(picture: Picture, spot: tuple[float, float], hue: int) -> None:
    """Draws a mark, round in the first colour and square in the second, which tells them apart without colour."""
    if hue:
        picture.box(spot[0] - 3, spot[1] - 3, 6, 6, f'fill="{colour(hue)}"')
    else:
        picture.add(f'<circle cx="{spot[0]:.2f}" cy="{spot[1]:.2f}" r="3.4" fill="{colour(hue)}"/>')


def _legend(picture: Picture) -> None:
    x: float = MARGIN + 44
    for hue, label in LINES.values():
        picture.curve(path("M", x, picture.y, "h", 26), f'stroke="{colour(hue)}" stroke-width="2"')
        _mark(picture, (x + 13, picture.y), hue)
        picture.text(x + 34, picture.y + 0.36 * LABEL_SIZE, label)
        x += 200
    picture.curve(path("M", x, picture.y, "h", 26), 'class="gw-line" stroke-width="1.5" stroke-dasharray="4 3"')
    picture.text(x + 34, picture.y + 0.36 * LABEL_SIZE, "the promise, 1/g")
    picture.y += 8


def _line(points: list[tuple[float, float]]) -> str:
    return path("M", *points[0], *(part for point in points[1:] for part in ("L", *point)))


def _told(shape: tuple[int, int], rows: list[dict[str, Any]]) -> str:
    here = [row for row in rows if (row["channels"], row["size"]) == shape and row["groups"] == 32]
    shares = ", ".join(f"{LINES[row['memory_format']][1]} {100 * row['of_dense']:.0f} %" for row in here)
    return f"{shape[0]} channels at {shape[1]}×{shape[1]}, groups=32 takes, of dense: {shares}; the promise is 3 %."


def _told_speedup(which: str, speedups: dict[str, dict[str, float]]) -> str:
    found = sorted((value[which], name) for name, value in speedups.items() if which in value)
    ends = " to ".join(f"{value:.2g} times ({name})" for value, name in (found[0], found[-1]))
    return f"{PASSES[which][1].capitalize()} of {len(found)} layers: groupwise is as fast as PyTorch, {ends}."


if __name__ == "__main__":
    main()
