"""Who holds what of a split network, and what crosses where: a column a rank, a row a layer, towers that meet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from groupwise.draw import numbers
from groupwise.draw.split_text import crossed, spread
from groupwise.draw.svg import LABEL_SIZE, MARGIN, Picture, colour, path, text_width

# More ranks than these are drawn as the first ones and the last.
MOST_RANKS = 6
COLUMN, GAP, ROW, APART, BAND = 104, 26, 22, 12, 30
# A block of so many layers is looked for again right after itself.
LONGEST_BLOCK = 12


def split_svg(plan: dict[str, Any]) -> str:
    """The picture of a plan as `SplitPlan.to_dict` gives it.

    A box is what a rank holds of a layer, a wide one a layer that is whole on each rank; lines between columns are
    what crosses. Blocks of layers that repeat are drawn once.
    """
    ranks = plan["ranks"]
    drawn = list(range(ranks)) if ranks <= MOST_RANKS else [*range(MOST_RANKS - 1), ranks - 1]
    layers = [row for row in plan["layers"] if row["style"] != "ChannelwiseParallel" and row["parameters"]]
    layers = [row for row in layers if row["style"] != "KeepWhole" or "norm" not in row["layer"].lower()]
    picture = Picture(f"{plan['model']} over {ranks} rank{'s' * (ranks > 1)}", _subtitle(plan))
    _Drawing(picture, drawn, ranks, layers).draw()
    picture.caption(_facts(plan))
    return picture.render(_description(plan, layers))


class _Drawing:
    def __init__(self, picture: Picture, drawn: Sequence[int], ranks: int, layers: Sequence[dict[str, Any]]) -> None:
        self.picture, self.drawn, self.layers = picture, drawn, layers
        names = max((text_width(row["name"], LABEL_SIZE) for row in layers), default=0)
        start = MARGIN + names + 18
        # Between the last two columns there is room for what is left out.
        self.left = {
            rank: start + index * (COLUMN + GAP) + (GAP if rank - index > 0 else 0) for index, rank in enumerate(drawn)
        }
        self.right = self.left[drawn[-1]] + COLUMN
        self.folded = ranks > len(drawn)

    def draw(self) -> None:
        picture = self.picture
        for rank in self.drawn:
            picture.text(self._middle(rank), picture.y + 10, f"rank {rank}", anchor="middle")
        picture.y += 20
        before: dict[str, Any] | None = None
        for row, more in _folded(self.layers):
            self._before(row, before)
            self._row(row)
            self._after(row)
            before = row
            if more:
                self._say_more(more)
                before = None

    def _middle(self, rank: int) -> float:
        return self.left[rank] + COLUMN / 2

    def _row(self, row: dict[str, Any]) -> None:
        picture, y = self.picture, self.picture.y
        picture.label(MARGIN, y + ROW / 2, row["name"])
        if row["style"] == "KeepWhole":
            start = self.left[self.drawn[0]]
            picture.box(start, y, self.right - start, ROW, 'rx="4" class="gw-void"')
            text = f"{numbers.count(row['parameters'])} on each rank"
            picture.text((start + self.right) / 2, y + ROW / 2 + 4, text, "middle")
        else:
            for rank in self.drawn:
                more = f'rx="4" fill="{colour(rank)}" fill-opacity="0.16" stroke="{colour(rank)}"'
                picture.box(self.left[rank], y, COLUMN, ROW, more)
                held = numbers.count(row["held"][rank]) if row["held"][rank] else "nothing"
                picture.text(self._middle(rank), y + ROW / 2 + 4, held, "middle")
            if self.folded:
                picture.text(self.left[self.drawn[-1]] - GAP, y + ROW / 2 + 4, "…", "middle")
        picture.y += ROW

    def _before(self, row: dict[str, Any], before: dict[str, Any] | None) -> None:
        """What leads to a layer, from the one before where that is drawn."""
        if gathered := _met(row, "gathers inputs"):
            self._band(gathered, _backward(row))
        elif row["style"] != "KeepWhole" and (text := _backward(row)):
            self._say(text, APART)
        elif before and before["output"] is not None and row["input"] is not None:
            self._straight()
        elif before:
            self.picture.y += APART

    def _after(self, row: dict[str, Any]) -> None:
        for words in ("sums outputs", "gathers outputs"):
            if found := _met(row, words):
                self._band(found, "")

    def _straight(self) -> None:
        """Each rank's channels stay with it."""
        y = self.picture.y
        for rank in self.drawn:
            data = path("M", self._middle(rank), y, "v", APART)
            self.picture.curve(data, f'class="gw-wire" stroke="{colour(rank)}" stroke-width="2"')
        self.picture.y += APART

    def _band(self, text: str, backward: str) -> None:
        """Lines from each rank to all."""
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


def _met(row: dict[str, Any], words: str) -> str:
    """An exchange of the forward, with its bytes where they are known."""
    if words not in row["exchange"].split(", "):
        return ""
    forward, _ = crossed(row["crossings"])
    return f"{words} {forward}".strip()


def _backward(row: dict[str, Any]) -> str:
    _, found = crossed(row["crossings"])
    return f"backward {found}" if found else ""


def _folded(layers: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """The layers to draw; of a block that repeats the first, and with its last layer what is left out."""

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        sizes = [(one["operation"], one["payload"]) for one in row["crossings"]]
        return row["layer"], row["style"], row["input"], row["output"], row["parameters"], row["exchange"], sizes

    kinds = [kind(row) for row in layers]
    at = 0
    while at < len(layers):
        block, count = _repeats(kinds, at)
        for index in range(at, at + block):
            last = index == at + block - 1
            often = "again" if count == 2 else f"{count - 1} times more"
            more = f"the same {often}, to {layers[at + block * count - 1]['name']}" if last and count > 1 else ""
            yield layers[index], more
        at += block * count


def _repeats(kinds: Sequence[Any], at: int) -> tuple[int, int]:
    """How long the block at `at` is that repeats most, and how often it is there in a row; (1, 1) for none."""
    best = 1, 1
    for block in range(1, LONGEST_BLOCK + 1):
        count = 1
        while kinds[at : at + block] == kinds[at + block * count : at + block * (count + 1)]:
            count += 1
        if at + block * count <= len(kinds) and block * (count - 1) > best[0] * (best[1] - 1):
            best = block, count
    return best


def _subtitle(plan: dict[str, Any]) -> str:
    size = "" if plan["input_shape"] is None else f", for an input of {numbers.product(plan['input_shape'])}"
    return f"A column is a rank, with the parameters that it holds; lines between columns are what crosses{size}."


def _facts(plan: dict[str, Any]) -> list[tuple[str, str]]:
    total = sum(row["parameters"] for row in plan["layers"])
    facts = [("parameters", f"{numbers.count(total)}, of which a rank holds {spread(plan['held'])}")]
    if plan["input_shape"] is not None:
        forward, backward = crossed([one for row in plan["layers"] for one in row["crossings"]])
        facts.append(
            ("crosses", f"{forward or 'nothing'} forward, {backward or 'nothing'} backward in a training step")
        )
    return [*facts, ("not drawn", "activations, poolings, norms, and shortcuts, which go with the layers around them")]


def _description(plan: dict[str, Any], layers: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"The layers of {plan['model']} over {plan['ranks']} ranks."]
    for row in layers:
        held = "whole on each rank" if row["style"] == "KeepWhole" else f"{numbers.count(max(row['held']))} a rank"
        lines.append(f"{row['name']}: {held}{', ' + row['exchange'] if row['exchange'] else ''}.")
    return lines
