"""A report as one self-contained HTML page."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.base.folding import fold
from groupwise.draw.html import page as html
from groupwise.draw.text import busy, faster
from groupwise.draw.text.count import not_counted
from groupwise.draw.text.report import SPEED, figures, is_measured, kind, milliseconds, notes, speed, tiles
from groupwise.draw.text.split import split_text
from groupwise.draw.views.cost import cost_svg
from groupwise.draw.views.split import split_svg
from groupwise.draw.views.strip import strip_svg
from groupwise.draw.views.weight import weight_svg
from groupwise.draw.views.wiring import wiring_svg
from groupwise.spec.cost import Cost
from groupwise.spec.legible import pre

_ROW = ("layer", "#", "×")
_HEAD = (*_ROW, "kind", "groups", "weight", "parameters", "MACs", "bytes", "FLOP/B")

# A cell is the text that it shows and the number that it sorts by.
_Cell = tuple[str, float | None]


# The explorer's page opens at what its script calls START. It is kept as text, and shown in a frame: so the links work
# in a file that is on a disk alone, and in a page that shows this one in a frame of its own.
_EXPLORE = """
const links = [...document.querySelectorAll("td.name a")], dialog = document.querySelector("dialog");
const kept = JSON.parse(document.querySelector("script[type='application/json']").textContent);
const explore = address => {
  const start = `const START = ${JSON.stringify(address)};`;
  dialog.querySelector("iframe").srcdoc = kept.replace('const START = "";', start);
  dialog.showModal();
};
for (const link of links) link.onclick = event => {
  event.preventDefault();
  explore(link.getAttribute("href"));
};
dialog.onclose = () => dialog.querySelector("iframe").srcdoc = "";
if (links.some(link => link.getAttribute("href") === location.hash)) explore(location.hash);
"""


def page(report: dict[str, Any], costs: Sequence[Cost], photo: bytes | None = None, explorer: str = "") -> str:
    """The whole document: the main figures as tiles, the strip, the tables, the pictures, and how it was measured.

    `costs` belong to the report's layers, in order; `photo` is a JPEG. The names of layers with an `explorer`, an
    address of the page `explorer`, open that page there.
    """
    optimized = report.get("optimized")
    figures_first = [*(faster.tiles(optimized) if optimized else []), *tiles(report)]
    body = [html.element("h1", f"{report['title']}: its convolutions"), *_warning(report), html.tiles(figures_first)]
    if photo:
        data = base64.b64encode(photo).decode()
        image = f'<img alt="the photograph given as input" src="data:image/jpeg;base64,{data}">'
        body.append(
            f"<figure>{image}<figcaption>The input. The model gets it resized and center-cropped.</figcaption></figure>"
        )
    if report["layers"]:
        body.append(html.figure(strip_svg(report)))
    if optimized:
        body += _optimized(optimized)
    body.append(_tables(report))
    if "split" in report:
        body.append(html.element("h2", f"Split over {phrases.plural(report['split']['ranks'], 'rank')}"))
        body += [html.figure(split_svg(report["split"])), pre(split_text(report["split"]))]
    body.append(html.element("h2", "The grouped layers, drawn"))
    body += _pictures(report, costs)
    body.append(html.element("h2", "How this was measured"))
    body += [html.element("p", line, "soft") for line in notes(report)]
    if any(layer.get("explorer") for layer in report["layers"]):
        body.append(_explorer(explorer))
    return html.page(f"groupwise: {report['title']}", "\n".join(body), sortable=True)


def fragment(report: dict[str, Any], costs: Sequence[Cost]) -> str:
    """The part of the page that a notebook shows: the strip and the tables, and what could not be counted."""
    missing = not_counted(report["not_counted"], bool(report["layers"]))
    strip = [html.figure(strip_svg(report))] if report["layers"] else []
    shown = [*_warning(report), *strip, _tables(report)]
    return "".join([*shown, *(html.element("p", line) for line in missing)])


def _warning(report: dict[str, Any]) -> list[str]:
    return [html.element("p", line, "warning") for line in busy.warning(report["interference"])]


def _explorer(page: str) -> str:
    # A tag inside of the text would end the script.
    kept = json.dumps(page).replace("<", "\\u003c")
    return (
        '<dialog aria-label="the layer in the explorer"><form method="dialog"><button>Close</button></form>'
        '<iframe title="the explorer"></iframe></dialog>\n'
        f'<script type="application/json">{kept}</script>\n<script>{_EXPLORE}</script>'
    )


def _tables(report: dict[str, Any]) -> str:
    if not report["layers"]:
        return ""
    rows, total = fold(report["layers"]), report["total"]
    facts, sums = [_facts(row) for row in rows], ("", "", "", *figures(total), "")
    shown = [html.element("h2", "Layers")]
    if any(row.get("explorer") for row in rows):
        shown.append(html.element("p", "The name of a layer opens it in the explorer, inside this page.", "soft"))
    if is_measured(report):
        shown.append(_table(report, _HEAD, facts, sums))
        shown.append(html.element("h2", "Before and after: PyTorch's kernels and groupwise's"))
        shown.append(_table(report, (*_ROW, *SPEED), [_speed(row) for row in rows], speed(total)))
    else:
        times = [(milliseconds(row["pytorch_ms"]), row["pytorch_ms"]) for row in (*rows, total)]
        timed = [[*fact, time] for fact, time in zip(facts, times[:-1], strict=True)]
        shown.append(_table(report, (*_HEAD, "ms"), timed, (*sums, times[-1][0])))
    return "\n".join(shown)


def _optimized(made: dict[str, Any]) -> list[str]:
    """The network of `groupwise.optimize` beside the model: the main figures in words, and a table of layers."""
    body = []
    for layer in made["layers"]:
        values = faster.layer_values(layer)
        cells = [(faster.name_of(layer), None), *zip(faster.layer_cells(layer), values, strict=True)]
        body.append(("grouped" if (layer["groups"] or 1) > 1 else "dense", cells))
    sentences = [*faster.first_lines(made), f"Times are the {faster.measured(made)}."]
    shown = [html.element("h2", "Before and after: the model and its optimized network")]
    shown += [html.element("p", line) for line in sentences]
    if body:
        shown += [html.table(("layer", *faster.LAYER), body), html.element("p", faster.NOTE, "soft")]
    return shown


def _table(report: dict[str, Any], head: Sequence[str], facts: Sequence[Sequence[_Cell]], sums: Sequence[str]) -> str:
    body = []
    for number, (row, fact) in enumerate(zip(fold(report["layers"]), facts, strict=True), 1):
        cells = [(row["name"], None), (str(number), number), (str(row["count"]), row["count"]), *fact]
        body.append(("grouped" if row["groups"] > 1 else "dense", cells))
    links = [row.get("explorer") for row in fold(report["layers"])]
    return html.table(head, body, ("all", "", str(report["total"]["convolutions"]), *sums), links)


def _facts(row: dict[str, Any]) -> list[_Cell]:
    counted = (row["parameters"], row["macs"]["forward"], row["bytes"])
    return [
        (kind(row), None),
        (str(row["groups"]), row["groups"]),
        (numbers.product(row["weight_shape"]), math.prod(row["weight_shape"])),
        *zip(figures(row), counted, strict=True),
        (f"{row['intensity']:.3g}", row["intensity"]),
    ]


def _speed(row: dict[str, Any]) -> list[_Cell]:
    values = (None, row["pytorch_ms"], row["groupwise_ms"], row["speedup"], row["roofline"], row["max_error"])
    return list(zip(speed(row), values, strict=True))


def _pictures(report: dict[str, Any], costs: Sequence[Cost]) -> list[str]:
    names: dict[Cost, list[str]] = {}
    for layer, at in zip(report["layers"], costs, strict=True):
        if at.spec.groups > 1:
            names.setdefault(at, []).append(layer["name"])
    if not names:
        counted = "counted " * bool(report["not_counted"])
        none = f"No {counted}convolution of this model has groups above 1."
        return [html.element("p", line) for line in ([none] if costs else not_counted(report["not_counted"], False))]
    drawn = []
    for number, (at, layers) in enumerate(names.items()):
        spec = at.spec
        more = f" and {len(layers) - 1} more" if len(layers) > 1 else ""
        where = f"{spec.in_channels} → {spec.out_channels}, groups={spec.groups}, {numbers.product(at.input_size)}"
        pictures = (wiring_svg(spec), weight_svg(spec), cost_svg(spec, at.input_size, at.batch, at.dtype))
        summary = html.element("summary", f"{layers[0]}{more}: {where}")
        shown = "".join(html.figure(picture, number) for picture in pictures)
        drawn.append(f"<details{'' if number else ' open'}>{summary}{shown}</details>")
    return drawn
