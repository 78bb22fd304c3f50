"""What each rank holds of a split network, and which collectives run when, as a plain text table."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import lines as text
from groupwise.spec.collectives import MOVES, VERBS
from groupwise.spec.legible import legible

# The columns of the table of a plan, with raw names.
HEAD = (
    *("name", "layer", "style", "reason", "input", "output", "parameters", "least_held", "most_held"),
    *("forward", "forward_bytes", "backward", "backward_bytes"),
)
# The longest block of layers whose repeats are folded.
_LONGEST_BLOCK = 12


def split_text(plan: dict[str, Any]) -> str:
    """Returns a line for each layer: its style, its parameters, how many a rank holds, and its collectives.

    With `plan["folded"]` a block of layers that repeats is printed once. The collectives of the backward are printed if
    the plan knows the shape of the model's input, and with it which gradients there are.
    """
    ranks = plan["ranks"]
    sized = plan["input_shape"] is not None
    shown = folded(plan["layers"]) if plan.get("folded") else ((row, "") for row in plan["layers"])
    head = ("layer", "", "style", "params", "a rank", "forward", *(("", "backward", "") if sized else ()))
    lines, notes = [head], [""]
    for row, note in shown:
        forward, back = payloads(row["collectives"])
        lines.append(
            (
                named(row),
                legible(row["layer"]),
                row["style"],
                numbers.count(row["parameters"]) if row["parameters"] else "",
                spread(row["held"]) if row["parameters"] else "",
                words(row),
                *((forward, words(row, backward=True), back) if sized else ()),
            )
        )
        notes.append(note)
    total = sum(row["parameters"] for row in plan["layers"])
    rows = text.rows(lines, left=(0, 1, 2, 5, 7))
    rule = "─" * max(map(len, rows))
    body = [line for row, note in zip(rows, notes, strict=True) for line in (row, note) if line]
    in_forward = [word for row in plan["layers"] for word in words(row).split(", ") if word]
    moving = in_forward.count(MOVES)
    count = len(in_forward) - moving
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
            f"{count} collective{'s' * (count != 1)} in a forward{rows_move}.{step}",
        ]
    )


def choice_text(row: dict[str, Any]) -> str:
    """Returns one layer in one line: its class, its style, its parameters, how many a rank holds, its collectives."""
    facts = [f"{named(row)}: {legible(row['layer'])}, {row['style']}"]
    if row["parameters"]:
        low, high = min(row["held"]), max(row["held"])
        held = f"{low:,}" if low == high else f"{low:,} to {high:,}"
        facts.append(f"{phrases.plural(row['parameters'], 'parameter')}, of which a rank holds {held}")
    return "; ".join([*facts, *([row["forward"]] if row["forward"] else [])])


def named(row: dict[str, Any]) -> str:
    """Returns a layer's name in its model; the model itself has none."""
    return legible(row["name"]) or "(itself)"


def records(plan: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yields the raw values of each layer, in the order of `HEAD`; bytes are None if the plan knows no input_shape."""
    for row in plan["layers"]:
        sums = [sum(one["payload"] for one in row["collectives"] if one["backward"] is back) for back in (False, True)]
        forward, backward = sums if plan["input_shape"] is not None else (None, None)
        held = min(row["held"]), max(row["held"])
        facts = [row[key] for key in HEAD[:7]]
        yield (*facts, *held, words(row), forward, words(row, backward=True), backward)


def words(row: dict[str, Any], backward: bool = False) -> str:
    """Returns the collectives of a layer's forward or backward in words."""
    found = [] if backward else row["forward"].split(", ")
    for one in row["collectives"]:
        if one["operation"] == "all_to_all" and one["backward"] is backward:
            found.append(MOVES)
        elif backward and one["backward"]:
            # Only the gradients of a layer's input need a collective.
            found.append(f"{VERBS[one['operation']]} input gradients")
    return ", ".join(dict.fromkeys(found))


def in_all(plan: dict[str, Any], joined: str) -> str:
    """Returns the bytes of the collectives of a training step, forward and backward, and how they are counted."""
    collectives = [collective for row in plan["layers"] for collective in row["collectives"]]
    forward, backward = payloads(collectives)
    rows = " and rows that move" if any(one["operation"] == "all_to_all" for one in collectives) else ""
    counted = f", as whole tensors{rows}" if collectives else ""
    return f"{forward or 'nothing'} forward{joined} {backward or 'nothing'} backward{counted}"


def payloads(collectives: list[dict[str, Any]]) -> tuple[str, str]:
    """Returns the bytes of the tensors of collectives, forward and backward, as text; empty for none."""
    sums = [sum(one["payload"] for one in collectives if one["backward"] is back) for back in (False, True)]
    return numbers.data(sums[0]) if sums[0] else "", numbers.data(sums[1]) if sums[1] else ""


def spread(counts: list[int]) -> str:
    """Returns how many each rank holds: one number, or the least and the most."""
    low, high = numbers.count(min(counts)), numbers.count(max(counts))
    return low if low == high else f"{low} to {high}"


def folded(layers: Sequence[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yields the layers to show, and after the last one of a block that repeats a note on what is left out."""

    def kind(row: dict[str, Any]) -> tuple[Any, ...]:
        name, sizes = (
            re.sub(r"\d+", "*", row["name"]),
            [(one["operation"], one["payload"]) for one in row["collectives"]],
        )
        same = ("layer", "style", "input", "output", "parameters", "forward")
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
    """Returns the length of the block at `at` that repeats most, and its repeats in a row; (1, 1) for none."""
    best = 1, 1
    for block in range(1, _LONGEST_BLOCK + 1):
        count = 1
        while kinds[at : at + block] == kinds[at + block * count : at + block * (count + 1)]:
            count += 1
        if at + block * count <= len(kinds) and block * (count - 1) > best[0] * (best[1] - 1):
            best = block, count
    return best
