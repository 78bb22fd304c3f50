"""Exact balanced transport: items go to bins of equal size so that the sum of their scores is largest.

Bins have prices. Whatever the prices, sending each item to the bin of its highest score minus price is optimal for
the counts that result. So prices are found first that nearly balance the bins, and then single items move along
shortest paths between bins, from full bins to those with room. The paths run over the bins, not over the items, and
each keeps the counts' optimum: this is the successive shortest path method for minimum-cost flow.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Whole = npt.NDArray[np.int64]

_FAR = 2**60
_SWEEPS = 4


def transport(scores: Floats) -> Labels:
    """Returns the bin of each item, equally many items in each bin, with the largest sum of `scores[bin, item]`.

    `scores` is (bins, items) and finite, and the bins divide the items. Scores are rounded to 2**-52 of the widest
    difference between two scores of an item (a little more for over 16 bins): the sum is exact up to that.
    """
    return transport_from(scores, None)[0]


def transport_from(scores: Floats, prices: Floats | None) -> tuple[Labels, Floats]:
    """Returns what `transport` returns, and the bins' prices; those of similar scores make a good start."""
    bins, items = scores.shape
    if bins == 1:
        return np.zeros(items, np.int64), np.zeros(1)
    if bins == 2:
        labels = np.ones(items, np.int64)
        labels[np.argsort(scores[1] - scores[0], kind="stable")[: items // 2]] = 0
        return labels, np.zeros(2)
    values, unit = _whole(scores)
    whole = np.zeros(bins, np.int64)
    if prices is not None:
        whole = np.clip((prices - prices.min()) / unit, 0, 2.0**52).astype(np.int64)
    whole = _prices(values, whole)
    return _balanced(values - whole[:, None]), np.multiply(whole, unit, dtype=np.float64)


def _whole(scores: Floats) -> tuple[Whole, float]:
    """Returns the scores in whole units, each item's best at 0, and the unit: sums of integers have no rounding."""
    bins = len(scores)
    below = scores - scores.max(axis=0)
    widest = float(-below.min()) or 1.0
    # A path of `bins` differences of scores and prices stays below _FAR.
    unit = widest / 2.0 ** min(52, 56 - bins.bit_length())
    return np.rint(below / unit).astype(np.int64), unit


def _prices(values: Whole, prices: Whole) -> Whole:
    """Returns prices that nearly balance the bins: each in turn is set so that its own bin is exactly full."""
    bins, items = values.shape
    size = items // bins
    best: Whole = prices.copy()
    fewest = _excess(values, prices)
    for _ in range(_SWEEPS):
        if not fewest:
            break
        net = values - prices[:, None]
        # The best of all other bins is that of those before, which have their new prices, or of those behind.
        before = np.full(items, -_FAR)
        behind = np.vstack([np.maximum.accumulate(net[:0:-1], axis=0)[::-1], before])
        for t in range(bins):
            margin = np.partition(values[t] - np.maximum(before, behind[t]), (items - size - 1, items - size))
            prices[t] = (margin[items - size - 1] + margin[items - size]) // 2
            np.maximum(before, values[t] - prices[t], out=before)
        prices = np.clip(prices - prices.min(), 0, 2**52)
        excess = _excess(values, prices)
        if excess >= fewest:
            break
        best, fewest = prices.copy(), excess
    return best


def _excess(values: Whole, prices: Whole) -> int:
    """Returns how many items lie over the size of their bins."""
    bins, items = values.shape
    counts = np.bincount(np.argmax(values - prices[:, None], axis=0), minlength=bins)
    return int(np.maximum(counts - items // bins, 0).sum())


def _balanced(net: Whole) -> Labels:
    """Returns the optimal balanced bins of items whose scores, less the prices, are `net`."""
    bins, items = net.shape
    size = items // bins
    labels: Labels = np.argmax(net, axis=0)
    _spread_ties(net, labels, size)
    counts = np.bincount(labels, minlength=bins)
    if counts.max() == size:
        return labels
    cost = np.empty((bins, bins), np.int64)
    mover = np.empty((bins, bins), np.int64)
    changed: Any = range(bins)
    while counts.max() > size:
        for t in changed:
            _moves_from(net, labels, t, cost, mover)
        path = _shortest(cost, counts, size)
        for t, u in itertools.pairwise(path):
            labels[mover[t, u]] = u
        counts[path[0]] -= 1
        counts[path[-1]] += 1
        changed = path
    return labels


def _spread_ties(net: Whole, labels: Labels, size: int) -> None:
    """Moves items that are as well off in a bin with room, many at a time: equal items would each need a path."""
    counts = np.bincount(labels, minlength=len(net))
    for t in np.flatnonzero(counts > size):
        for u in np.flatnonzero(counts < size):
            count = min(counts[t] - size, size - counts[u])
            if count > 0:
                tied = np.flatnonzero((labels == t) & (net[t] == net[u]))[:count]
                labels[tied] = u
                counts[t] -= len(tied)
                counts[u] += len(tied)


def _moves_from(net: Whole, labels: Labels, t: int, cost: Any, mover: Any) -> None:
    """Sets what the cheapest move from bin t to each other bin costs, and which item it moves."""
    members = np.flatnonzero(labels == t)
    if not len(members):
        cost[t] = _FAR
        return
    loss = net[t, members] - net[:, members]
    least = loss.argmin(axis=1)
    cost[t] = loss[np.arange(len(net)), least]
    cost[t, t] = _FAR
    mover[t] = members[least]


def _shortest(cost: Whole, counts: Whole, size: int) -> list[int]:
    """Returns the bins of the cheapest path from an overfull bin to one with room, by Bellman and Ford's method."""
    far = np.where(counts > size, 0, _FAR)
    before = np.full(len(counts), -1)
    while True:
        through = far[:, None] + cost
        last = through.argmin(axis=0)
        nearest = through[last, np.arange(len(counts))]
        better = nearest < far
        if not better.any():
            break
        far[better], before[better] = nearest[better], last[better]
    path = [int(np.argmin(np.where(counts < size, far, 2 * _FAR)))]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1]
