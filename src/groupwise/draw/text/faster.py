"""A model before and after `optimize`, as text: the main figures first, then each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import lines as text
from groupwise.draw.text.busy import is_busy
from groupwise.draw.text.report import error, milliseconds, times

LAYER = ("kind", "groups", "contiguous ms", "channels_last ms", "optimized ms", "speedup", "engine", "fused")
_BUSY = "the machine was busy, so no gain is claimed"
NOTE = "A row is a layer and all that follows it until the next one; the model's rows are timed operator by operator."


def table(made: dict[str, Any]) -> str:
    """The main figures, the three times with their errors, and a row for each layer if there are any."""
    rows = [("", "ms", "speedup", "error against float64")]
    for name, key in (("model, contiguous", "contiguous"), ("model, channels_last", "channels_last")):
        wrong = made["model_error" if key == "contiguous" else "channels_last_error"]
        rows.append((name, f"{made[f'{key}_ms']:.2f}", f"{_best(made) / made[f'{key}_ms']:.2f}", _error(wrong)))
    rows.append(("optimized", f"{made['optimized_ms']:.2f}", f"{made['speedup']:.2f}", _error(made["optimized_error"])))
    first = [line for sentence in first_lines(made) for line in text.wrap(sentence)]
    found = [*first, "", *text.rows(rows), measured(made)]
    if made["layers"]:
        head = ("layer", *LAYER)
        cells = [(text.shorten(name_of(layer)), *layer_cells(layer)) for layer in made["layers"]]
        found += ["", *text.rows([head, *cells], left=(0, 1, 7, 8)), NOTE]
    return "\n".join(found)


def first_lines(made: dict[str, Any]) -> list[str]:
    """What was gained, and whether the outputs agree. No gain is told of that was not measured."""
    step = "A training step of the optimized network" if made["train"] else "The optimized network"
    took = f"{milliseconds(made['optimized_ms'])} ms instead of {milliseconds(_best(made))} ms"
    rounds = f"faster in {made['faster_in']} of {phrases.plural(made['repeats'], 'round')}"
    if made["gains"]:
        fast = f"{times(made['speedup'])} as fast as the model in its better memory format"
        gain = f"{step} takes {took}: {fast} ({rounds})."
    elif is_busy(made["interference"]):
        gain = f"{step} takes {took}, but {_BUSY} ({rounds})."
    else:
        gain = f"{step} takes {took}: no gain was measured ({rounds})."
    return [gain, outputs(made)]


def outputs(made: dict[str, Any]) -> str:
    """Whether the outputs agree: the labels, the largest difference, the verdict."""
    if made["agrees"] is None:
        return "The outputs are not compared: the model draws random numbers."
    said = []
    if pairs := made["labels"]:
        same = sum(one == other for one, other in pairs)
        if len(pairs) == 1:
            said.append(f"top-1 label {pairs[0][0]}, {'the same' if same else f'and now {pairs[0][1]}'}")
        else:
            said.append(f"top-1 labels agree in {same} of {len(pairs)}")
    if made["difference"] is not None:
        said.append(f"largest difference {error(made['difference'])} of the largest output")
    verdict = "the outputs agree" if made["agrees"] else "THE OUTPUTS DIFFER by more than rounding"
    return f"Outputs: {'; '.join([*said, verdict])}."


def measured(made: dict[str, Any]) -> str:
    """How the times were taken."""
    runs = f"median of {phrases.plural(made['repeats'], 'run')} in turn"
    dtype = made["dtype"]
    if made["model_dtype"] != dtype:
        dtype = f"the model in {made['model_dtype']}, the optimized network in {dtype}"
    return f"{runs}, {phrases.plural(made['threads'], 'thread')}, {dtype}"


def layer_cells(layer: dict[str, Any]) -> tuple[str, ...]:
    """The cells of the columns `LAYER`."""
    return (
        layer["kind"],
        "" if layer["groups"] is None else str(layer["groups"]),
        *(milliseconds(layer[f"{name}_ms"]) for name in ("contiguous", "channels_last", "optimized")),
        times(layer["speedup"] or None),
        engine_of(layer),
        " + ".join(layer["fused"]),
    )


def engine_of(layer: dict[str, Any]) -> str:
    """The engine, with groupwise's kernel if one computes the layer."""
    return " ".join(filter(None, (layer["engine"], layer["kernel"]))) or ("" if not layer["kind"] else "-")


def name_of(layer: dict[str, Any]) -> str:
    """The layer's name, or what stands before the first."""
    return layer["name"] or ("the model" if layer["kind"] else "before the first layer")


def tiles(made: dict[str, Any]) -> list[tuple[str, str, str]]:
    """The main figures of a page, each as (label, figure, what it means)."""
    took = f"{milliseconds(_best(made))} → {milliseconds(made['optimized_ms'])} ms"
    rounds = f"faster in {made['faster_in']} of {phrases.plural(made['repeats'], 'round')}"
    none = _BUSY if is_busy(made["interference"]) else "no gain was measured"
    gain = times(made["speedup"]) if made["gains"] else none
    found = [("Optimized network", took, f"better memory format → optimized: {gain}, {rounds}")]
    agree = {True: "agree", False: "DIFFER", None: "not compared"}[made["agrees"]]
    errors = f"error {_error(made['model_error']) or '-'} → {_error(made['optimized_error']) or '-'} against float64"
    if pairs := made["labels"]:
        same = numbers.percent(sum(one == other for one, other in pairs) / len(pairs), 1)
        errors = f"top-1 agrees on {same}; {errors}"
    return [*found, ("Its outputs", agree, errors)]


def layer_values(layer: dict[str, Any]) -> Sequence[float | None]:
    """The numbers by which the columns `LAYER` sort."""
    ms = [layer[f"{name}_ms"] for name in ("contiguous", "channels_last", "optimized")]
    return (None, layer["groups"], *ms, layer["speedup"], None, None)


def _best(made: dict[str, Any]) -> float:
    return float(min(made["contiguous_ms"], made["channels_last_ms"]))


def _error(value: float | None) -> str:
    return "" if value is None else error(value)
