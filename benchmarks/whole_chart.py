"""Draw the largest record of `whole.py`: how fast each engine runs each network, beside eager PyTorch.

python benchmarks/whole_chart.py [--records DIR] [--pictures DIR]
"""

from __future__ import annotations

import argparse
import math
import pathlib

from measuring import RECORDS, ROOT, name_of
from whole_engines import ENGINES, RECOMPUTED, TUNED
from whole_tables import EAGER, PICTURE, Point, chosen, least, points, read, short

from groupwise.draw.base.svg import Picture, colour, path, text_width

ROW, AXIS, LENGTH = 26, 205, 505
# An engine has a colour and a letter, because colours alone do not tell seven apart.
SHOWN = {
    "eager": (3, "e"),
    "eager channels_last": (2, "l"),
    "torch.compile": (1, "c"),
    "freezing": (4, "f"),
    "onnxruntime": (5, "o"),
    "openvino": (6, "v"),
    "groupwise": (0, "g"),
    TUNED: (0, "t"),
    RECOMPUTED: (0, "r"),
}


def main() -> None:
    """Reads the record if it is there, and writes the SVG."""
    parser = argparse.ArgumentParser(description="Draw whole.jsonl.")
    parser.add_argument("--records", type=pathlib.Path, default=RECORDS)
    parser.add_argument("--pictures", type=pathlib.Path, default=ROOT / "docs/pictures")
    options = parser.parse_args()
    machines = read(options.records)
    if machines and (some := chosen(points(machines[0]))):
        (options.pictures / PICTURE).write_text(chart(some), encoding="utf-8")


def chart(some: list[Point]) -> str:
    """Draws one row a network: how many times as fast as the better eager format each engine is, on a logarithm."""
    picture = Picture(
        "Whole networks, inference of one image",
        "How many times as fast as eager PyTorch in its better memory format; further right is faster.",
    )
    speeds = [{name: min(p.ms[e] for e in EAGER if e in p.ms) / ms for name, ms in p.ms.items()} for p in some]
    every = [1.0, *(speed for found in speeds for speed in found.values())]
    low, high = math.floor(2 * math.log2(min(every))) / 2, math.ceil(2 * math.log2(max(every))) / 2
    high = max(high, low + 1)

    def at(speed: float) -> float:
        return AXIS + LENGTH * (math.log2(speed) - low) / (high - low)

    _legend(picture, [name for name in SHOWN if any(name in found for found in speeds)])
    top = picture.y + 34
    bottom = top + ROW * len(some)
    for half in range(round(2 * low), round(2 * high) + 1):
        width = 0.4 if half else 1.5
        picture.curve(path("M", at(2 ** (half / 2)), top, "V", bottom), f'class="gw-line" stroke-width="{width}"')
        picture.text(at(2 ** (half / 2)), top - 8, f"{2 ** (half / 2):.2g}×", "middle", "soft")
    for number, (point, found) in enumerate(zip(some, speeds, strict=True)):
        height = top + ROW * (number + 0.5)
        picture.label(AXIS - 14, height, short(point.facts["network"]), "end")
        picture.curve(path("M", AXIS, height, "h", LENGTH), 'class="gw-line" stroke-width="0.4"')
        for name, x in _apart({name: at(found[name]) for name in SHOWN if name in found}).items():
            _mark(picture, x, height, name)
    picture.y = bottom
    picture.right = max(picture.right, AXIS + LENGTH + 24)
    facts = some[0].facts
    threads = f"{facts['threads']} thread{'s' * (facts['threads'] > 1)}"
    commits = ", ".join(dict.fromkeys(point.facts["commit"] for point in some))
    measured = f"median of {least(some)} or more turns, interleaved; torch {facts['torch']}, commit {commits}"
    machine = f"{name_of(facts)}, {threads}, {facts['dtype']}"
    picture.caption([("machine", machine), ("measured", measured)])
    told = ["Speeds relative to eager PyTorch in its better memory format."]
    for point, found in zip(some, speeds, strict=True):
        told.append(f"{short(point.facts['network'])}: groupwise {found['groupwise']:.2f} times.")
    return picture.render(told)


def _apart(places: dict[str, float]) -> dict[str, float]:
    """Moves marks that would overlap to the right of each other, in their order."""
    made: dict[str, float] = {}
    for name in sorted(places, key=places.__getitem__):
        made[name] = max(places[name], max(made.values(), default=-math.inf) + 15)
    # Those that ran over the end go back together.
    over = max(made.values()) - (AXIS + LENGTH + 8)
    return {name: x - max(0.0, over) for name, x in made.items()}


def _mark(picture: Picture, x: float, y: float, name: str) -> None:
    hue, letter = SHOWN[name]
    edge = f'stroke="{colour(hue)}" stroke-width="{3 if name == "groupwise" else 1.4}"'
    picture.box(x - 7, y - 8, 14, 16, f'rx="3" class="gw-bg" {edge}')
    picture.label(x, y, letter, "middle")


def _legend(picture: Picture, names: list[str]) -> None:
    x: float = AXIS
    for name in names:
        if x + 20 + text_width(name, 12) > AXIS + LENGTH:
            x, picture.y = AXIS, picture.y + 22
        _mark(picture, x, picture.y, name)
        picture.label(x + 14, picture.y, name)
        x += 34 + text_width(name, 12)


assert set(SHOWN) == set(ENGINES)

if __name__ == "__main__":
    main()
