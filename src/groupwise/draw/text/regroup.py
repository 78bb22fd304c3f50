"""What became of the layers of a converted model, as plain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import phrases
from groupwise.draw.text import lines as text
from groupwise.draw.text.report import milliseconds
from groupwise.errors import name_some
from groupwise.spec.legible import legible

_HEAD = ("layer", "groups", "how", "kept", "at most", "error", "fitted", "folded into", "gather ms")
# More names than these are counted.
_NAMES = 3
_LOST = (
    "Layers that are not exact lost a part of their weight, and the network a part of its accuracy: train it before "
    "you use it, for example by groupwise.choose.tune.distill.distill."
)


def table(rows: Sequence[dict[str, Any]]) -> str:
    """A line for each layer, and sentences that say what the figures are."""
    if not rows:
        return "no layer has other groups: the model is a copy"
    exact = sum(row["how"] == "exact" for row in rows)
    found = [f"{phrases.plural(len(rows), 'layer')}, {exact} converted exactly"]
    lines: list[Sequence[str]] = [_HEAD]
    for row in rows:
        numbers = ["" if row[key] is None else f"{row[key]:.3g}" for key in ("kept", "bound", "error", "fitted")]
        gather = "" if row["gather_ms"] is None else milliseconds(row["gather_ms"])
        groups = f"{row['before']} → {row['groups']}"
        lines.append((legible(row["layer"]), groups, _how(row), *numbers, _folded(row["folded"]), gather))
    table = text.rows(lines, left=(0, 2, 7))
    found += ["", table[0], "─" * max(map(len, table)), *table[1:]]
    if exact < len(rows):
        note = (
            "kept: the part of the squared weight that stays; at most: no possible order keeps more. error: the "
            "relative squared error of the layer's outputs on the data; fitted: the same after the weights were fitted."
        )
        found += ["", *text.wrap(note), *text.wrap(_LOST)]
    return "\n".join(found)


def _how(row: dict[str, Any]) -> str:
    """Returns how a layer was converted, and which end of it kept its order of channels."""
    return f"{row['how']}, {row['fixed']} as stored" if row["fixed"] else str(row["how"])


def _folded(names: Sequence[str]) -> str:
    """Returns the layers of the tensors, the first few by name."""
    layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
    return name_some(list(map(legible, layers)), _NAMES)
