"""Who holds what of a split network, and what is exchanged when, as a plain text table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from groupwise.draw.base import numbers
from groupwise.draw.base.legible import legible
from groupwise.draw.text import lines as text

# What a collective does to a tensor.
VERBS = {"all_gather": "gathers", "all_reduce": "sums", "reduce_scatter": "scatters"}
# What an all_to_all does to tensors whose parts are not DTensor's equal chunks.
MOVES = "moves rows"
# A block of so many layers is looked for again right after itself.
_LONGEST_BLOCK = 12


def split_text(plan: dict[str, Any]) -> str:
    """A line a layer: its style, its parameters, each rank's part of them, and what it exchanges.

    With `plan["folded"]` blocks of layers that repeat are told once. What is exchanged backward is told where the
    plan knows the shape of the model's input, and so which gradients there are.
    """
    ranks = plan["ranks"]
    sized = plan["input_shape"] is not None
    told = folded(plan["layers"]) if plan.get("folded") else ((row, "") for row in plan["layers"])
    head = ("layer", "", "style", "params", "a rank", "forward", *(("", "backward", "") if sized else ()))
    lines, notes = [head], [""]
    for row, note in told:
        forward, back = crossed(row["crossings"])
        lines.append(
            (
                named(row),
                legible(row["layer"]),
                row["style"],
                numbers.count(row["parameters"]) if row["parameters"] else "",
                spread(row["held"]) if row["parameters"] else "",
                met(row),
                *((forward, met(row, backward=True), back) if sized else ()),
            )
        )
        notes.append(note)
    total = sum(row["parameters"] for row in plan["layers"])
    rows = text.rows(lines, left=(0, 1, 2, 5, 7))
    rule = "─" * max(map(len, rows))
    body = [line for row, note in zip(rows, notes, strict=True) for line in (row, note) if line]
    met_forward = [word for row in plan["layers"] for word in met(row).split(", ") if word]
    moving = met_forward.count(MOVES)
    exchanges = len(met_forward) - moving
    rows_move = f", and rows move in {moving} layer{'s' * (moving > 1)}" if moving else ""
    step = f"\nFor an input of {tuple(plan['input_shape'])} {in_all(plan, ' and')}." if sized else ""
    return "\n".join(
        [
            f"{legible(plan['model'])} over {ranks:,} rank{'s' * (ranks > 1)}",
            body[0],
            rule,
            *body[1:],
            rule,
            f"{numbers.count(total)} parameters, of which a rank holds {spread(plan['held'])}; "
            f"{exchanges} exchange{'s' * (exchanges != 1)} in a forward{rows_move}.{step}",
        ]
    )


def named(row: dict[str, Any]) -> str:
    """A layer's name in its model, which itself has none."""
    return legible(row["name"]) or "(itself)"


def met(row: dict[str, Any], backward: bool = False) -> str:
    """What is exchanged in a layer's forward or backward, in words."""
    words = [] if backward else row["exchange"].split(", ")
    for one in row["crossings"]:
        if one["operation"] == "all_to_all" and one["backward"] is backward:
            words.append(MOVES)
        elif backward and one["backward"]:
            # Of a layer's ends only the input has gradients that are exchanged.
            words.append(f"{VERBS[one['operation']]} input gradients")
    return ", ".join(dict.fromkeys(words))


def in_all(plan: dict[str, Any], joined: str) -> str:
    """The bytes of a training step, forward and backward, and what they are counted of."""
    crossings = [crossing for row in plan["layers"] for crossing in row["crossings"]]
    forward, backward = crossed(crossings)
    rows = " and rows that move" if any(one["operation"] == "all_to_all" for one in crossings) else ""
    counted = f", as whole tensors{rows}" if crossings else ""
    return f"{forward or 'nothing'} forward{joined} {backward or 'nothing'} backward{counted}"


def crossed(crossings: list[dict[str, Any]]) -> tuple[str, str]:
    """Bytes of the tensors that are exchanged forward and backward; empty for none."""
    sums = [sum(one["payload"] for one in crossings if one["backward"] is back) for back in (False, True)]
    return numbers.data(sums[0]) if sums[0] else "", numbers.data(sums[1]) if sums[1] else ""


def spread(counts: list[int]) -> str:
    """What each rank holds: as many, or the least and the most."""
    low, high = numbers.count(min(counts)), numbers.count(max(counts))
    return low if low == high else f"{low} to {high}"


def folded(layers: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """The layers to tell of; of a block that repeats the first, and with its last layer what is left out."""

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        name, sizes = re.sub(r"\d+", "*", row["name"]), [(one["operation"], one["payload"]) for one in row["crossings"]]
        same = ("layer", "style", "input", "output", "parameters", "exchange")
        return name, sizes, *(row[key] for key in same)

    kinds = [kind(row) for row in layers]
    at = 0
    while at < len(layers):
        block, count = _repeats(kinds, at)
        for index in range(at, at + block):
            last = index == at + block - 1
            often = "again" if count == 2 else f"{count - 1} times more"
            more = f"the same {often}, to {named(layers[at + block * count - 1])}" if last and count > 1 else ""
            yield layers[index], more
        at += block * count


def _repeats(kinds: Sequence[Any], at: int) -> tuple[int, int]:
    """How long the block at `at` is that repeats most, and how often it is there in a row; (1, 1) for none."""
    best = 1, 1
    for block in range(1, _LONGEST_BLOCK + 1):
        count = 1
        while kinds[at : at + block] == kinds[at + block * count : at + block * (count + 1)]:
            count += 1
        if at + block * count <= len(kinds) and block * (count - 1) > best[0] * (best[1] - 1):
            best = block, count
    return best
