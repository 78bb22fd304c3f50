"""The best assignment of few channels: every balanced partition of one side, with the best one of the other."""

from __future__ import annotations

import functools
import math

import numpy as np
import numpy.typing as npt

from groupwise.choose.assign.transport import Floats, Labels, transport

# 8 channels in 2 groups have 35 partitions, 16 in 2 have 6,435, 12 in 3 have 5,775 and 12 in 4 have 15,400.
_MOST_PARTITIONS = 20_000
_MOST_TRANSPORTS = 1_000
_BATCH = 1_024


def partitions(channels: int, groups: int) -> int:
    """Returns how many balanced partitions there are; the names of the groups do not count."""
    size = channels // groups
    names = math.factorial(size) ** groups * math.factorial(groups)
    return math.factorial(channels) // int(names)


def best_of_all(energy: Floats, groups: int, at_least: float = 0.0) -> tuple[Labels, Labels] | None:
    """Returns the best labels of outputs and inputs; None where they are too many to try.

    `at_least` is what some assignment is known to hold: a partition whose bound is below it is skipped. Where none
    holds more, the labels of the last that holds as much are returned.
    """
    outputs, inputs = energy.shape
    # The smaller side has fewer partitions, and factorials of many channels are long.
    if min(outputs, inputs) > 64 or partitions(min(outputs, inputs), groups) > _MOST_PARTITIONS:
        return None
    if inputs < outputs:
        found = best_of_all(energy.T, groups, at_least)
        return found and found[::-1]
    every = _every_partition(outputs, groups)
    highest = np.empty(len(every))
    for first in range(0, len(every), _BATCH):
        scores = _scores(energy, every[first : first + _BATCH], groups)
        highest[first : first + _BATCH] = scores.max(axis=1).sum(axis=1)
        if groups == 2:
            # Half of the inputs, those with the largest differences, go to the first group.
            gain = np.sort(scores[:, 0] - scores[:, 1], axis=1)[:, inputs // 2 :].sum(axis=1)
            highest[first : first + _BATCH] = scores[:, 1].sum(axis=1) + gain
    best, held = None, at_least * (1 - 1e-12)
    for tries, index in enumerate(np.argsort(-highest, kind="stable")):
        if highest[index] <= held and best is not None:
            break
        if tries == _MOST_TRANSPORTS:
            return None
        scores = _scores(energy, every[index : index + 1], groups)[0]
        labels = transport(scores)
        kept = float(scores[labels, np.arange(inputs)].sum())
        if kept > held or best is None:
            best, held = (every[index].astype(np.int64), labels), max(kept, held)
    return best


def _scores(energy: Floats, labels: npt.NDArray[np.int8], groups: int) -> Floats:
    """Returns (partitions, groups, inputs): what each group of outputs holds of each input."""
    inside = labels[:, None, :] == np.arange(groups)[None, :, None]
    scores: Floats = inside.astype(np.float64) @ energy
    return scores


@functools.lru_cache(maxsize=4)
def _every_partition(channels: int, groups: int) -> npt.NDArray[np.int8]:
    """Returns all balanced partitions as labels; a group's number is the order of its first channel."""
    size = channels // groups
    rows: list[list[int]] = [[]]
    for _ in range(channels):
        grown: list[list[int]] = []
        for row in rows:
            used = max(row, default=-1) + 1
            grown += [[*row, t] for t in range(min(used + 1, groups)) if row.count(t) < size]
        rows = grown
    return np.array(rows, np.int8)
