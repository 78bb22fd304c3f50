"""Local search: the best inputs for these outputs, the best outputs for those inputs, and so on; then pairs of both."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from groupwise.choose.assign.transport import Floats, Labels, transport_from

# A rise below this, relative to what is held, is rounding.
_RISE = 1e-12
# The pairs of a swap come from these many channels of a group, those that lose least by leaving it.
_MOST_CANDIDATES = 48
# Pairs of groups that all swaps together look at, or one look at each: hundreds of groups have many pairs.
_MOST_PAIRS = 8_000


@dataclass
class Climb:
    """Labels of outputs and inputs, and the energy inside the blocks."""

    outputs: Labels
    inputs: Labels
    held: float


def climb(energy: Floats, groups: int, outputs: Labels) -> Climb:
    """Returns where alternating exact transports end: each half step holds as much as the one before, or more."""
    across = np.ascontiguousarray(energy.T)
    prices: list[Floats | None] = [None, None]
    best: Climb | None = None
    while True:
        inputs, prices[0] = transport_from(by_group(energy, outputs, groups), prices[0])
        scores = by_group(across, inputs, groups)
        outputs, prices[1] = transport_from(scores, prices[1])
        held = float(scores[outputs, np.arange(len(outputs))].sum())
        if best is not None and held <= best.held * (1 + _RISE):
            return best
        best = Climb(outputs, inputs, held)


def improve(energy: Floats, groups: int, found: Climb) -> Climb:
    """Returns `found`, or what swaps of two outputs together with two inputs, and more climbing, make of it."""
    for _ in range(max(1, _MOST_PAIRS // (groups * (groups - 1) // 2))):
        outputs = _swapped(energy, groups, found)
        if outputs is None:
            break
        risen = climb(energy, groups, outputs)
        if risen.held <= found.held * (1 + _RISE):
            break
        found = risen
    return found


def by_group(energy: Floats, labels: Labels, groups: int) -> Floats:
    """Returns (groups, columns): the sum of each column over the rows of each group."""
    order = np.argsort(labels, kind="stable")
    sums: Floats = energy[order].reshape(groups, len(labels) // groups, -1).sum(axis=1)
    return sums


def _swapped(energy: Floats, groups: int, found: Climb) -> Labels | None:
    """Returns the outputs' labels after the best swap that raises what is held, or None.

    Outputs o in group t and p in u swap, and inputs i in t and j in u. What changes is a sum of a term of (o, p), one
    of (o, p, i) and one of (o, p, j), so the best i and j for a pair of outputs are found one by one.
    """
    rows = by_group(energy.T, found.inputs, groups)
    columns = by_group(energy, found.outputs, groups)
    best, pair = found.held * _RISE, None
    for t, u in itertools.combinations(range(groups), 2):
        change_t, change_u = rows[u] - rows[t], rows[t] - rows[u]
        first = _candidates(found.outputs, t, change_t)
        second = _candidates(found.outputs, u, change_u)
        i = _candidates(found.inputs, t, columns[u] - columns[t])
        j = _candidates(found.inputs, u, columns[t] - columns[u])
        gain = change_t[first][:, None] + change_u[second]
        for inputs, change, sign in ((i, columns[u] - columns[t], 2), (j, columns[t] - columns[u], -2)):
            differ = energy[np.ix_(first, inputs)][:, None] - energy[np.ix_(second, inputs)]
            gain = gain + (change[inputs] + sign * differ).max(axis=2)
        most = int(gain.argmax())
        if gain.flat[most] > best:
            best, pair = float(gain.flat[most]), (first[most // len(second)], second[most % len(second)])
    if pair is None:
        return None
    outputs: Labels = found.outputs.copy()
    outputs[list(pair)] = outputs[list(pair[::-1])]
    return outputs


def _candidates(labels: Labels, t: int, change: Floats) -> Labels:
    members: Labels = np.flatnonzero(labels == t)
    return members[np.argsort(-change[members], kind="stable")[:_MOST_CANDIDATES]]
