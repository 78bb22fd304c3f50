"""Draw every picture of the docs that is computed, not measured, into docs/pictures.

python docs/draw.py
"""

from __future__ import annotations

import pathlib

import torch

import groupwise
from groupwise import explain
from groupwise.draw.views.strip import strip_svg
from groupwise.parallel import plan_split

PICTURES = pathlib.Path(__file__).parent / "pictures"
SCENARIOS = [(3, 3, 1), (8, 4, 4), (8, 4, 2), (4, 8, 4), (4, 8, 2), (4, 4, 4), (4, 4, 2)]


def pictures() -> dict[str, str]:
    """File name and SVG of each."""
    drawn = {f"scenario-{i}-{o}-g{g}": explain(i, o, 5, groups=g).to_svg("wiring") for i, o, g in SCENARIOS}
    stage_1 = explain(128, 128, 3, groups=32, padding=1, bias=False, size=56)
    stage_4 = explain(1024, 1024, 3, groups=32, padding=1, bias=False, size=7)
    drawn |= {
        "wiring-128-g32": stage_1.to_svg("wiring"),
        "weight-8-4-g4": explain(8, 4, 5, groups=4).to_svg("weight"),
        "weight-128-g32": stage_1.to_svg("weight"),
        "weight-4-8-g4-transposed": explain(4, 8, 5, groups=4, transposed=True).to_svg("weight"),
        "cost-128-56": stage_1.to_svg("cost"),
        "cost-1024-7": stage_4.to_svg("cost"),
    }
    with torch.device("meta"):
        report = groupwise.report(groupwise.models.resnext50_32x4d(), torch.empty(1, 3, 224, 224))
        towers = plan_split(groupwise.models.alexnet(), 2, input_shape=(128, 3, 224, 224))
    drawn["alexnet-towers"] = towers.to_svg()
    drawn["report-strip"] = strip_svg(report.to_dict())
    return {f"{name}.svg": svg for name, svg in drawn.items()}


if __name__ == "__main__":
    for name, svg in pictures().items():
        (PICTURES / name).write_text(svg, encoding="utf-8")
