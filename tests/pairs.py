"""Rows of values of parameters that have every pair of values, for cases that need no more than pairs."""

from __future__ import annotations

import itertools


def pairwise(*axes, turn=0):
    """Rows, one value of each axis, such that each two values of two axes meet in one of them.

    Layer by layer, another `turn` gives other rows, so that over the layers triples meet too.
    """
    axes = [[*axis[turn % len(axis) :], *axis[: turn % len(axis)]] for axis in map(list, axes)]
    open_pairs = {pair for row in itertools.product(*axes) for pair in pairs_in(row)}
    rows = []
    while open_pairs:
        # The first of those with the most pairs that no row before has.
        row = max(itertools.product(*axes), key=lambda row: len(open_pairs.intersection(pairs_in(row))))
        open_pairs -= set(pairs_in(row))
        rows.append(row)
    return rows


def pairs_in(row):
    return [(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)]


def by_layer(layers, *axes):
    """Each layer with rows of its own: what to hand to `pytest.mark.parametrize`."""
    return [(layer, *row) for turn, layer in enumerate(layers) for row in pairwise(*axes, turn=turn)]
