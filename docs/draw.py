"""Draws every picture of the docs into docs/pictures.

python docs/draw.py

The code that draws a picture stands below it in docs/gallery.md, where readers see it. This script runs that code,
benchmarks/chart.py and whole_chart.py for the pictures that show measurements, and docs/draw_planner.py for how the
planner decides.
"""

from __future__ import annotations

import pathlib
import re
import runpy
import subprocess
import sys
import tempfile

DOCS = pathlib.Path(__file__).parent
PICTURES = DOCS / "pictures"
# An image, and the block of code that follows it directly: the code leaves the picture in `svg`.
DRAWN = re.compile(r"!\[[^\]]*\]\(pictures/([\w-]+\.svg)\)\n\n```python\n(.*?)```", re.S)


def pictures() -> dict[str, str]:
    """Returns the SVG of each picture of the gallery by its file name, drawn anew."""
    return computed() | measured() | {"planner.svg": runpy.run_path(str(DOCS / "draw_planner.py"))["drawn"]()}


def computed() -> dict[str, str]:
    """Returns the pictures that the gallery's own code draws."""
    drawn: dict[str, str] = {}
    for name, code in DRAWN.findall((DOCS / "gallery.md").read_text(encoding="utf-8")):
        names: dict[str, str] = {}
        exec(compile(code, f"gallery.md: {name}", "exec"), names)
        drawn[name] = names["svg"]
    return drawn


def measured() -> dict[str, str]:
    """Returns the charts of the records in benchmarks/records."""
    benchmarks = DOCS.parent / "benchmarks"
    with tempfile.TemporaryDirectory() as folder:
        for chart in ("chart.py", "whole_chart.py"):
            subprocess.run([sys.executable, benchmarks / chart, "--pictures", folder], check=True)
        return {path.name: path.read_text(encoding="utf-8") for path in pathlib.Path(folder).glob("*.svg")}


if __name__ == "__main__":
    for name, svg in pictures().items():
        (PICTURES / name).write_text(svg, encoding="utf-8")
