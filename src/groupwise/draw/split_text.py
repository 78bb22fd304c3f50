"""Who holds what of a split network, and what is exchanged when, as a plain text table."""

from __future__ import annotations

from typing import Any

from groupwise.draw import numbers, text


def split_text(plan: dict[str, Any]) -> str:
    """A line a layer: its style, its parameters, each rank's part of them, and what its forward exchanges."""
    ranks = plan["ranks"]
    sized = plan["input_shape"] is not None
    lines = [("layer", "", "style", "params", "a rank", "exchange", *(("forward", "backward") if sized else ()))]
    for row in plan["layers"]:
        lines.append(
            (
                row["name"],
                row["layer"],
                row["style"],
                numbers.count(row["parameters"]) if row["parameters"] else "",
                spread(row["held"]) if row["parameters"] else "",
                row["exchange"],
                *(crossed(row["crossings"]) if sized else ()),
            )
        )
    total = sum(row["parameters"] for row in plan["layers"])
    rows = text.rows(lines, left=(0, 1, 2, 5))
    rule = "─" * max(map(len, rows))
    exchanges = sum(bool(row["exchange"]) for row in plan["layers"])
    forward, backward = crossed([crossing for row in plan["layers"] for crossing in row["crossings"]])
    step = ""
    if sized:
        given = tuple(plan["input_shape"])
        step = f"\nFor an input of {given} {forward or 'nothing'} forward and {backward or 'nothing'} backward."
    return "\n".join(
        [
            f"{plan['model']} over {ranks} rank{'s' * (ranks > 1)}",
            rows[0],
            rule,
            *rows[1:],
            rule,
            f"{numbers.count(total)} parameters, of which a rank holds {spread(plan['held'])}; "
            f"{exchanges} exchange{'s' * (exchanges != 1)} in a forward.{step}",
        ]
    )


def crossed(crossings: list[dict[str, Any]]) -> tuple[str, str]:
    """Bytes of the tensors that are exchanged forward and backward; empty for none."""
    sums = [sum(one["payload"] for one in crossings if one["backward"] is back) for back in (False, True)]
    return numbers.data(sums[0]) if sums[0] else "", numbers.data(sums[1]) if sums[1] else ""


def spread(counts: list[int]) -> str:
    """What each rank holds: as many, or the least and the most."""
    low, high = numbers.count(min(counts)), numbers.count(max(counts))
    return low if low == high else f"{low} to {high}"
