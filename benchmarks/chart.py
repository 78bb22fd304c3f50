"""Draw the record of `run.py` as the README's chart.

python benchmarks/chart.py [RECORD.jsonl] [-o docs/pictures/payoff.svg]
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
from typing import Any

from groupwise.draw.svg import LABEL_SIZE, MARGIN, Picture, colour, path

ROOT = pathlib.Path(__file__).parent.parent
WIDTH, HEIGHT, GAP = 250, 170, 78
LINES = {"contiguous": (1, "contiguous (NCHW)"), "channels_last": (0, "channels_last (NHWC)")}


def main() -> None:
    """Read the record, write the SVG."""
    parser = argparse.ArgumentParser(description="Draw what groups give back.")
    parser.add_argument("record", type=pathlib.Path, nargs="?", default=ROOT / "benchmarks/records/groups.jsonl")
    parser.add_argument("-o", "--output", type=pathlib.Path, default=ROOT / "docs/pictures/payoff.svg")
    options = parser.parse_args()
    rows = [json.loads(line) for line in options.record.read_text(encoding="utf-8").splitlines()]
    options.output.write_text(chart([row for row in rows if row["benchmark"] == "groups"]), encoding="utf-8")


def chart(rows: list[dict[str, Any]]) -> str:
    """One panel a shape: time against groups, both relative to dense, on logarithmic axes."""
    first = rows[0]
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
    threads = f"{first['threads']} thread{'s' * (first['threads'] > 1)}"
    machine = f"{first['processor']}, {threads}, {first['dtype']}, batch {first['batch']}"
    versions = f"torch {first['torch']}, commit {first['commit']}, {first['date']}"
    picture.caption([("machine", machine), ("measured", f"median of {first['repeats']}, interleaved; {versions}")])
    return picture.render([_told(shape, rows) for shape in shapes])


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
            _mark(picture, spot, name)


def _mark(picture: Picture, spot: tuple[float, float], name: str) -> None:
    """Round for one memory format, square for the other: colour is not the only difference."""
    hue = colour(LINES[name][0])
    if name == "contiguous":
        picture.box(spot[0] - 3, spot[1] - 3, 6, 6, f'fill="{hue}"')
    else:
        picture.add(f'<circle cx="{spot[0]:.2f}" cy="{spot[1]:.2f}" r="3.4" fill="{hue}"/>')


def _legend(picture: Picture) -> None:
    x: float = MARGIN + 44
    for name, (hue, label) in LINES.items():
        picture.curve(path("M", x, picture.y, "h", 26), f'stroke="{colour(hue)}" stroke-width="2"')
        _mark(picture, (x + 13, picture.y), name)
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


if __name__ == "__main__":
    main()
