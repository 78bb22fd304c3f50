"""What each rank holds of a split network, and its collectives: a column for each rank, a row for each layer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers
from groupwise.draw.base.svg import LABEL_SIZE, MARGIN, Picture, colour, path, text_width
from groupwise.draw.text.split import folded, in_all, named, payloads, spread, words
from groupwise.draw.views.ranks import drawn
from groupwise.spec.collectives import MOVES, VERBS

COLUMN, GAP, ROW, APART, BAND = 104, 26, 22, 12, 30
_SHORTCUT = re.compile(r"(.*)\.(?:downsample|shortcut)\b")


def split_svg(plan: dict[str, Any]) -> str:
    """Returns the picture of a plan, given as `SplitPlan.to_dict` returns it.

    A box is what a rank holds of a layer, and a wide box is a layer that is whole on each rank. Lines between columns
    are collectives. A block of layers that repeats is drawn once.
    """
    ranks = plan["ranks"]
    layers = [row for row in plan["layers"] if row["style"] != "ChannelwiseParallel" and row["parameters"]]
    layers = [row for row in layers if row["style"] != "KeepWhole" or "norm" not in row["layer"].lower()]
    picture = Picture(f"{plan['model']} over {ranks:,} rank{'s' * (ranks > 1)}", _subtitle(plan))
    drawing = _Drawing(picture, [rank for rank in drawn(ranks) if rank is not None], ranks, layers)
    drawing.draw()
    picture.caption(_facts(plan, layers, drawing.beside))
    return picture.render(_description(plan, layers))


class _Drawing:
    def __init__(self, picture: Picture, drawn: Sequence[int], ranks: int, layers: Sequence[dict[str, Any]]) -> None:
        self.picture, self.drawn, self.layers = picture, drawn, layers
        names = max((text_width(named(row), LABEL_SIZE) for row in layers), default=0)
        start = MARGIN + names + 18
        # A gap before the last column has room for an ellipsis.
        self.left = {
            rank: start + index * (COLUMN + GAP) + (GAP if rank - index > 0 else 0) for index, rank in enumerate(drawn)
        }
        self.right = self.left[drawn[-1]] + COLUMN
        self.folded = ranks > len(drawn)
        # `_row` notes here that it has drawn a shortcut.
        self.beside = False

    def draw(self) -> None:
        picture = self.picture
        for rank in self.drawn:
            picture.text(self._middle(rank), picture.y + 10, f"rank {rank:,}", anchor="middle")
        picture.y += 20
        before: dict[str, Any] | None = None
        for row, more in folded(self.layers):
            self._before(row, before)
            self._row(row, _is_shortcut(row, before))
            self._after(row)
            before = row
            if more:
                self._say_more(more)
                before = None

    def _middle(self, rank: int) -> float:
        return self.left[rank] + COLUMN / 2

    def _row(self, row: dict[str, Any], shortcut: bool) -> None:
        picture, y = self.picture, self.picture.y
        self.beside |= shortcut
        picture.label(MARGIN, y + ROW / 2, named(row))
        if row["style"] == "KeepWhole":
            start = self.left[self.drawn[0]]
            picture.box(start, y, self.right - start, ROW, 'rx="4" class="gw-void"')
            text = f"{'shortcut: ' * shortcut}{numbers.count(row['parameters'])} on each rank"
            picture.text((start + self.right) / 2, y + ROW / 2 + 4, text, "middle")
        else:
            for rank in self.drawn:
                more = f'rx="4" fill="{colour(rank)}" fill-opacity="0.16" stroke="{colour(rank)}"'
                picture.box(self.left[rank], y, COLUMN, ROW, more)
                held = numbers.count(row["held"][rank]) if row["held"][rank] else "nothing"
                picture.text(self._middle(rank), y + ROW / 2 + 4, held, "middle")
            if moved := _moved(row):
                picture.label(self.right + 16, y + ROW / 2, moved, ink="soft")
            if self.folded:
                picture.text(self.left[self.drawn[-1]] - GAP, y + ROW / 2 + 4, "…", "middle")
        picture.y += ROW

    def _before(self, row: dict[str, Any], before: dict[str, Any] | None) -> None:
        """Draws what leads to a layer, from the one before if that is drawn."""
        if gathered := _forward(row, f"{VERBS['all_gather']} inputs"):
            self._band(gathered, _backward(row))
        elif row["style"] != "KeepWhole" and (text := _backward(row)):
            self._say(text, APART)
        elif before and before["output"] is not None and row["input"] is not None:
            self._straight()
        elif before:
            self.picture.y += APART

    def _after(self, row: dict[str, Any]) -> None:
        for operation in ("all_reduce", "all_gather"):
            if found := _forward(row, f"{VERBS[operation]} outputs"):
                self._band(found, "")

    def _straight(self) -> None:
        """Draws a line for each rank, whose channels stay with it."""
        y = self.picture.y
        for rank in self.drawn:
            data = path("M", self._middle(rank), y, "v", APART)
            self.picture.curve(data, f'class="gw-wire" stroke="{colour(rank)}" stroke-width="2"')
        self.picture.y += APART

    def _band(self, text: str, backward: str) -> None:
        """Draws lines from each rank to all ranks."""
        y = self.picture.y
        for rank in self.drawn:
            lines = []
            for other in self.drawn:
                a, b = self._middle(rank), self._middle(other)
                lines.append(path("M", a, y, "C", a, y + BAND * 0.6, b, y + BAND * 0.4, b, y + BAND))
            more = f'class="gw-wire" stroke="{colour(rank)}" stroke-width="1.5"'
            self.picture.curve("".join(lines), more)
        self._labels(y + BAND / 2, [text, backward])
        self.picture.y += BAND

    def _say(self, text: str, room: float) -> None:
        room = max(room, 16)
        self._labels(self.picture.y + room / 2, ["", text])
        self.picture.y += room

    def _labels(self, middle: float, texts: Sequence[str]) -> None:
        said = [(text, "ink" if index == 0 else "soft") for index, text in enumerate(texts) if text]
        for index, (text, ink) in enumerate(said):
            self.picture.label(self.right + 16, middle + 14 * (index - (len(said) - 1) / 2), text, ink=ink)

    def _say_more(self, text: str) -> None:
        self.picture.y += 4
        self.picture.label(MARGIN, self.picture.y + 8, text, ink="soft")
        self.picture.y += 22


def _forward(row: dict[str, Any], text: str) -> str:
    """Returns a collective of the forward with its bytes, if they are known; empty if the layer does not need it."""
    if text not in row["forward"].split(", "):
        return ""
    forward, _ = payloads([one for one in row["collectives"] if one["operation"] != "all_to_all"])
    return f"{text} {forward}".strip()


def _backward(row: dict[str, Any]) -> str:
    found = [one for one in row["collectives"] if one["backward"] and one["operation"] != "all_to_all"]
    return f"{words(dict(row, collectives=found), backward=True)} {payloads(found)[1]} backward" if found else ""


def _moved(row: dict[str, Any]) -> str:
    """Returns the rows that uneven shards of a layer and of its ends move."""
    forward, backward = payloads([one for one in row["collectives"] if one["operation"] == "all_to_all"])
    if not forward and not backward:
        return MOVES if MOVES in words(row) else ""
    return f"{MOVES} {', '.join(filter(None, (forward, backward and f'{backward} backward')))}"


def _is_shortcut(row: dict[str, Any], before: dict[str, Any] | None) -> bool:
    """Says whether the name of a whole layer makes it a shortcut of the block above it: the plan has no graph."""
    found = _SHORTCUT.match(row["name"]) if row["style"] == "KeepWhole" else None
    return bool(found and before and before["name"].startswith(f"{found[1]}."))


def _subtitle(plan: dict[str, Any]) -> str:
    size = "" if plan["input_shape"] is None else f", for an input of {numbers.product(plan['input_shape'])}"
    return f"A column is a rank, with the parameters that it holds; lines between columns are collectives{size}."


def _facts(plan: dict[str, Any], layers: Sequence[dict[str, Any]], beside: bool) -> list[tuple[str, str]]:
    total = sum(row["parameters"] for row in plan["layers"])
    facts = [("parameters", f"{numbers.count(total)}, of which a rank holds {spread(plan['held'])}")]
    if plan["input_shape"] is not None:
        facts.append(("collectives", f"in a training step {in_all(plan, ',')}"))
    if beside:
        facts.append(("order", "as the model calls its layers; a shortcut runs beside the block above it"))
    rest = total - sum(row["parameters"] for row in layers)
    norms = f", and norms and slopes, which have {numbers.count(rest)}" if rest else ""
    return [*facts, ("not drawn", f"layers without parameters{norms}")]


def _description(plan: dict[str, Any], layers: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"The layers of {plan['model']} over {plan['ranks']:,} rank{'s' * (plan['ranks'] > 1)}."]
    for row in layers:
        held = "whole on each rank" if row["style"] == "KeepWhole" else f"{numbers.count(max(row['held']))} a rank"
        lines.append(f"{named(row)}: {held}{', ' + row['forward'] if row['forward'] else ''}.")
    return lines
