"""`pareto_front`: the choices of one option for each item that no other choice beats in both sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Option(NamedTuple):
    """What one option of an item adds to the two sums."""

    cost: float
    risk: float


def pareto_front(items: Sequence[Sequence[Option]], most: int = 4000) -> list[tuple[int, ...]]:
    """Returns the Pareto front of cost and risk of a multiple-choice knapsack, from the cheapest choice on.

    A choice has the place of one option for each item; every item has at least one option. The front is exact while it
    has at most `most` choices after each item. Beyond that, of choices of nearly the same cost the one of the lowest
    risk is kept.

    Source: dominance in dynamic programming, H. Kellerer, U. Pferschy, D. Pisinger, "Knapsack Problems", 2004, ch. 11.
    """
    costs, risks = np.zeros(1), np.zeros(1)
    steps = []
    for options in items:
        count = len(options)
        added = np.array([(option.cost, option.risk) for option in options])
        every_cost = (costs[:, None] + added[:, 0]).ravel()
        every_risk = (risks[:, None] + added[:, 1]).ravel()
        kept = _undominated(every_cost, every_risk)
        if len(kept) > most:
            kept = _thinned(every_cost, kept, most)
        costs, risks = every_cost[kept], every_risk[kept]
        steps.append((kept // count, kept % count))
    choices = []
    for end in range(len(costs)):
        place, chosen = end, []
        for before, option in reversed(steps):
            chosen.append(int(option[place]))
            place = int(before[place])
        choices.append(tuple(reversed(chosen)))
    return choices


def _undominated(costs: np.ndarray, risks: np.ndarray) -> np.ndarray:
    """Returns the places of what nothing beats in both numbers, by rising cost."""
    order = np.lexsort((risks, costs))
    least = np.minimum.accumulate(risks[order])
    better = np.concatenate(([True], least[1:] < least[:-1]))
    return order[better]


def _thinned(costs: np.ndarray, kept: np.ndarray, most: int) -> np.ndarray:
    """Returns at most `most` of the places on a front: the last of each of equal parts of its costs, and the first."""
    ordered = costs[kept]
    parts = np.floor((ordered - ordered[0]) / (ordered[-1] - ordered[0]) * (most - 2)).astype(int)
    last = np.concatenate((parts[1:] != parts[:-1], [True]))
    last[0] = True
    return kept[last]
