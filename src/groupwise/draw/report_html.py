"""A report as one self-contained HTML page."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import Any

from groupwise.costs import Cost
from groupwise.draw import html, numbers
from groupwise.draw.cost import cost_svg
from groupwise.draw.folding import fold
from groupwise.draw.report_text import figures, kind, notes
from groupwise.draw.strip import strip_svg
from groupwise.draw.weight import weight_svg
from groupwise.draw.wiring import wiring_svg

_HEAD = ("layer", "#", "×", "kind", "groups", "weight", "parameters", "MACs", "bytes", "FLOP/B", "ms")


def page(report: dict[str, Any], costs: Sequence[Cost], photo: bytes | None = None) -> str:
    """The whole document. `costs` belong to the report's layers, in order; `photo` is a JPEG."""
    body = [html.element("h1", f"{report['title']}: its convolutions")]
    body += [html.element("p", line, "soft") for line in notes(report)]
    if photo:
        data = base64.b64encode(photo).decode()
        image = f'<img alt="the photograph given as input" src="data:image/jpeg;base64,{data}">'
        body.append(
            f"<figure>{image}<figcaption>The input; the middle of it is what the model gets.</figcaption></figure>"
        )
    if report["layers"]:
        body.append(html.figure(strip_svg(report)))
    body += [html.element("h2", "Layers"), _table(report)]
    body.append(html.element("h2", "The grouped layers, drawn"))
    body += _pictures(report, costs)
    return html.page(f"groupwise: {report['title']}", "\n".join(body), sortable=True)


def fragment(report: dict[str, Any], costs: Sequence[Cost]) -> str:
    """What a notebook shows: the bars and the table."""
    return html.figure(strip_svg(report)) + _table(report)


def _table(report: dict[str, Any]) -> str:
    body = []
    for number, row in enumerate(fold(report["layers"]), 1):
        values = (row["parameters"], row["macs"]["forward"], row["bytes"], row["intensity"], row["pytorch_ms"])
        cells: list[tuple[str, float | None]] = [
            (row["name"], None),
            (str(number), number),
            (str(row["count"]), row["count"]),
            (kind(row), None),
            (str(row["groups"]), row["groups"]),
            (numbers.product(row["weight_shape"]), math.prod(row["weight_shape"])),
            *zip(_shown(row), values, strict=True),
        ]
        body.append(("grouped" if row["groups"] > 1 else "dense", cells))
    total = report["total"]
    return html.table(_HEAD, body, ("all", "", str(total["convolutions"]), "", "", "", *_shown(total)))


def _shown(row: dict[str, Any]) -> tuple[str, ...]:
    parameters, macs, data, ms = figures(row)
    return parameters, macs, data, f"{row['intensity']:.3g}" if "intensity" in row else "", ms


def _pictures(report: dict[str, Any], costs: Sequence[Cost]) -> list[str]:
    names: dict[Cost, list[str]] = {}
    for layer, at in zip(report["layers"], costs, strict=True):
        if at.spec.groups > 1:
            names.setdefault(at, []).append(layer["name"])
    if not names:
        return [html.element("p", "No convolution of this model has groups above 1.")]
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
