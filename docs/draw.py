"""Draws every picture of the docs into docs/pictures, and its pages of HTML into docs/rendered.

python docs/draw.py

The code that draws a picture stands below it in docs/gallery.md, where readers see it. This script runs that code,
benchmarks/chart.py and whole_chart.py for the pictures that show measurements, docs/draw_planner.py for how the
planner decides, and docs/draw_kernels.py for the kernels' tiles. Pages name the machine that made them, so they are
made with the site and not kept.
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
RENDERED = DOCS / "rendered"
# An image, and the block of code that follows it directly: the code leaves the picture in `svg`.
DRAWN = re.compile(r"!\[[^\]]*\]\(pictures/([\w-]+\.svg)\)\n\n```python\n(.*?)```", re.S)
# A page in a frame, and the block of code that follows: the code leaves the page in `html`.
FRAMED = re.compile(r"<iframe src=\"rendered/([\w-]+\.html)\"[^>]*></iframe>\n\n```python\n(.*?)```", re.S)


def pictures() -> dict[str, str]:
    """Returns the SVG of each picture of the gallery by its file name, drawn anew."""
    return computed() | measured() | _by("draw_planner.py") | _by("draw_kernels.py")


def _by(script: str) -> dict[str, str]:
    """Returns the pictures that a script of the docs draws."""
    drawn: dict[str, str] = runpy.run_path(str(DOCS / script))["drawn"]()
    return drawn


def computed() -> dict[str, str]:
    """Returns the pictures that the gallery's own code draws."""
    return _run(DRAWN, "svg")


def pages() -> dict[str, str]:
    """Returns the HTML of each page of the gallery by its file name."""
    return _run(FRAMED, "html")


def _run(pattern: re.Pattern[str], result: str) -> dict[str, str]:
    """Runs the blocks of the gallery that `pattern` finds, and returns what each leaves in the variable `result`."""
    made: dict[str, str] = {}
    for name, code in pattern.findall((DOCS / "gallery.md").read_text(encoding="utf-8")):
        names: dict[str, str] = {}
        exec(compile(code, f"gallery.md: {name}", "exec"), names)
        made[name] = names[result]
    return made


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
    RENDERED.mkdir(exist_ok=True)
    for name, page in pages().items():
        (RENDERED / name).write_text(page, encoding="utf-8")
