"""Sweeps with made-up times and risks, for tests of what follows from them."""

from __future__ import annotations

from groupwise.choose.measure.sweep import Sweep, SweepRow
from groupwise.profile.machine import machine


def made_up(*layers: list[tuple[int, float, float]], measured=None, refused=True) -> Sweep:
    """A sweep whose layers have (groups, ms, risk); the first is the model's own."""
    rows = []
    for number, options in enumerate(layers):
        for value, ms, risk in options:
            current = value == options[0][0]
            costs = (100 // value, 1000 // value, 10)
            rows.append(SweepRow(f"layer{number}", value, current, *costs, ms, ms, 1.0, 1.0, None, risk))
    if refused:
        rows.append(SweepRow("last", None, refused="it has hooks"))
    now = sum(options[0][1] for options in layers)
    facts = machine()

    def measure(choices):
        return [measured(choice) for choice in choices]

    return Sweep(
        "Net", tuple(rows), now + 1, 1000 * len(layers), 100 * len(layers), False, "loss rise", 0.5, 3, facts, measure
    )


LAYERS = ([(1, 10.0, 0.0), (2, 6.0, 0.1), (4, 3.0, 0.3)], [(1, 8.0, 0.0), (2, 5.0, 0.5), (4, 5.5, 0.7)])
