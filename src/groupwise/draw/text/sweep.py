"""A sweep of groups values as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers
from groupwise.draw.text import busy
from groupwise.draw.text import lines as text
from groupwise.draw.text.report import measured_on, milliseconds
from groupwise.spec.legible import legible

_GATHERS = "gathers, ms"


def head(sweep: dict[str, Any]) -> tuple[str, ...]:
    """The names of the columns. A sweep of training has the time of the forward beside that of the step."""
    times = ("forward, ms", "training, ms") if sweep["train"] else ("ms",)
    return "layer", "groups", "parameters", "MACs", "bytes", *times, "kept", "at most", "error", sweep["risk"]


def table(sweep: dict[str, Any]) -> str:
    """A line for each layer and groups value, what cannot change, and what the choices are."""
    shown = [row for row in sweep["rows"] if not row["refused"]]
    refused = [row for row in sweep["rows"] if row["refused"]]
    gathers = any(row["gather_ms"] is not None for row in shown)
    lines: list[Sequence[str]] = [(*head(sweep), *[_GATHERS] * gathers)]
    for row in shown:
        ends = [_number(row[key]) for key in ("kept", "bound", "error", "risk")]
        amounts = (numbers.count(row["parameters"]), numbers.count(row["macs"]), numbers.data(row["bytes"]))
        groups = f"{row['groups']}{' (now)' if row['current'] else ''}"
        times = [milliseconds(row["forward_ms"])] * sweep["train"] + [milliseconds(row["ms"])]
        lines.append((legible(row["layer"]), groups, *amounts, *times, *ends, *_gathers(row) * gathers))
    found = [*busy.paragraph(sweep["interference"]), title(sweep), ""]
    if shown:
        rows = text.rows(lines)
        found += [rows[0], "─" * max(map(len, rows)), *rows[1:]]
    if refused:
        found += ["", "These layers stay as they are:"]
        found += [f"  {legible(row['layer'])}: {row['refused']}" for row in refused]
    found += ["", *(line for note in notes(sweep) for line in text.wrap(note))]
    return "\n".join(found)


def _gathers(row: dict[str, Any]) -> list[str]:
    return ["" if row["gather_ms"] is None else milliseconds(row["gather_ms"])]


def title(sweep: dict[str, Any]) -> str:
    """One line: the model, its time and its costs as it is."""
    what = "a training step" if sweep["train"] else "forward"
    loss = "" if sweep["loss"] is None else f", loss {sweep['loss']:.4g}"
    return (
        f"{sweep['title']}: {sweep['model_ms']:.3g} ms {what}, {numbers.count(sweep['macs'])} MACs and "
        f"{numbers.count(sweep['parameters'])} parameters in convolutions{loss}"
    )


def notes(sweep: dict[str, Any]) -> list[str]:
    """Sentences that say what the figures are, and whether choosing layer by layer pays."""
    time, step = "ms", ""
    if sweep["train"]:
        time, step = "forward and training, ms", "Training is the forward and all gradients. "
    return [
        f"{time}: median of {sweep['repeats']} runs of the layer inside the model, with groupwise's kernels. {step}"
        "kept: the part of the squared weight that the best partition of its channels keeps; at most: no partition "
        "keeps more.",
        *[_GATHERED] * any(row["gather_ms"] is not None for row in sweep["rows"]),
        *[_FIXED] * any(row["fixed"] for row in sweep["rows"]),
        _RISKS[sweep["risk"]],
        # What is faster is not told of times that other processes disturbed.
        *([] if busy.is_busy(sweep["interference"]) else against_uniform(sweep)),
        measured_on(sweep["machine"]),
    ]


_GATHERED = (
    "gathers: what it takes, within the layer's time, to move its channels at each call, because their order cannot be "
    "that of the layers around it."
)
_FIXED = (
    "Where the channels of a layer's input or output must stay in their order, kept is that of the other end's best."
)
_RISKS = {
    "loss rise": "error: the relative squared error of the model's outputs with this one layer converted and refitted; "
    "loss rise: by how much its loss on the data rises; where it is negative, the loss falls. Risks are those of "
    "converted layers that were not trained again.",
    "output error": "output error: the relative squared error of the model's outputs with this one layer converted and "
    "refitted.",
    "weight lost": "weight lost: the part that is not kept. Give data to have the error of the outputs: the weight "
    "that a layer loses does not tell what the model loses.",
}


def against_uniform(sweep: dict[str, Any]) -> list[str]:
    """Compares the front with the same groups in every layer, at no more time."""
    found = []
    for uniform in sweep["uniform"]:
        if not uniform["layers"]:
            continue
        value = max(uniform["layers"].values())
        least = uniform["front_risk"]
        if least is None:
            continue
        better = least < uniform["risk"]
        found.append(
            f"At the time of groups={value} in every layer that can have it ({uniform['ms']:.3g} ms expected) "
            f"the front's {sweep['risk']} is {least:.3g}, and that of uniform groups {uniform['risk']:.3g}"
            + ("." if better else ": choosing layer by layer gains nothing here.")
        )
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
