"""`Grouping`: groups for the layers of a model, with what they are expected to cost, as JSON."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import busy
from groupwise.draw.text import lines as text
from groupwise.draw.text.table import Tabular
from groupwise.errors import GroupwiseError
from groupwise.spec.legible import Printed, legible

VERSION = 1


@dataclass(frozen=True)
class Grouping(Printed, Tabular):
    """Groups for the layers of a model. `groupwise.regroup(model, choice)` makes the network; `print()` it for a table.

    - `groups`: the groups of each layer that changes
    - `ms`: the expected time of the whole model; with gradients, if the sweep timed training
    - `macs`, `parameters`: of the whole model's convolutions, forward
    - `risk`: what the layers are expected to cost in quality, in the sweep's measure
    - `gather`: the layers among them that move their channels at each call
    - `measured_ms`, `measured_risk`: the same of the whole network, measured; None if it was not
    """

    groups: Mapping[str, int]
    ms: float
    macs: int
    parameters: int
    risk: float
    measured_ms: float | None = None
    measured_risk: float | None = None
    gather: tuple[str, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """Where it was measured, and what `risk` is."""

    def summary(self) -> str:
        """Returns a sentence: how many layers change, and what the network is expected to take and lose."""
        measured = "" if self.measured_ms is None else f", measured {self.measured_ms:.3g} ms"
        layers = f"{phrases.plural(len(self.groups), 'layer')} change{'s' if len(self.groups) == 1 else ''}"
        return (
            f"{layers}: {self.ms:.3g} ms expected{measured}, "
            f"{numbers.count(self.macs)} MACs, {numbers.count(self.parameters)} parameters of convolutions, "
            f"{self.facts.get('risk', 'risk')} {self.risk:.3g} (the sum of the layers')"
        )

    def __str__(self) -> str:
        rows = [("layer", "groups")]
        for name, value in self.groups.items():
            rows.append((legible(name), f"{value}, gathered" if name in self.gather else str(value)))
        first = busy.paragraph(self.facts.get("interference"))
        return "\n".join([*first, *text.wrap(self.summary()), *(["", *text.rows(rows)] if self.groups else [])])

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and a row for each layer that changes: its groups, and whether it gathers."""
        rows = [[name, value, name in self.gather] for name, value in self.groups.items()]
        return ["layer", "groups", "gather"], rows

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types; `layers` has the groups."""
        return {
            "version": VERSION,
            "layers": dict(self.groups),
            "gather": list(self.gather),
            **{name: getattr(self, name) for name in _NUMBERS},
            "facts": dict(self.facts),
        }

    def save(self, path: str | pathlib.Path) -> pathlib.Path:
        """Writes the choice as JSON, and returns the path."""
        path = pathlib.Path(path)
        path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")
        return path


_NUMBERS = ("ms", "macs", "parameters", "risk", "measured_ms", "measured_risk")


class Chosen(NamedTuple):
    """What a file says of a choice: the groups of each layer, and the layers that gather; `regroup` takes it."""

    groups: dict[str, int]
    gather: tuple[str, ...] = ()


def read_choice(path: str | pathlib.Path) -> Chosen:
    """Reads a choice that `Grouping.save` wrote, or `{"layers": {name: groups}}` written by hand.

    Raises `GroupwiseError` for a file that cannot be read or has something else.
    """
    path = pathlib.Path(path)
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        missing = "there is no such file; groupwise choose MODEL -o FILE writes one"
        reason = missing if isinstance(error, FileNotFoundError) else error
        raise GroupwiseError(f"{path} cannot be read as a choice of groups: {reason}") from None
    layers = found.get("layers") if isinstance(found, dict) and found.get("version", VERSION) == VERSION else None
    if not isinstance(layers, dict):
        needed = f'{{"version": {VERSION}, "layers": {{NAME: GROUPS}}}}'
        raise GroupwiseError(f"{path} is not a choice of groups; it needs {needed}")
    for name, value in layers.items():
        if type(value) is not int or value < 1:
            raise GroupwiseError(f"{path}: groups={value!r} of {legible(name)} must be a whole number from 1 up")
    gather = found.get("gather", [])
    if not isinstance(gather, list) or not all(isinstance(name, str) and name in layers for name in gather):
        raise GroupwiseError(f'{path}: "gather" must be a list of names of its layers')
    return Chosen(layers, tuple(gather))
