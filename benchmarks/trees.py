"""Regression trees with random thresholds (extremely randomised trees), whose leaves keep what was measured in them.

Several such trees cut the space at different places, so that the mean of their leaves depends less on where one tree
happened to cut than a single tree with the best thresholds does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

LOW, MEDIAN = 0.1, 0.5
# How many features a node draws a threshold for, as a fraction of all.
TRIED = 0.7
Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Estimate(NamedTuple):
    """What was measured in a leaf, or the mean over the leaves of several trees."""

    count: float
    low: float
    """The 10 % quantile of the targets."""
    median: float


@dataclass
class Tree:
    """A tree as flat lists of numbers; `policy.py` says what they are."""

    nodes: list[tuple[int, float, int, int]] = field(default_factory=list)
    leaves: list[Estimate] = field(default_factory=list)

    def leaf(self, values: Sequence[float]) -> Estimate:
        """Returns the leaf that these values of the features reach."""
        at = 0 if self.nodes else -1
        while at >= 0:
            feature, threshold, left, right = self.nodes[at]
            at = left if values[feature] <= threshold else right
        return self.leaves[-1 - at]

    def to_dict(self) -> dict[str, list[float]]:
        """Returns the numbers one after the other, hundredths of targets as integers."""
        nodes: list[float] = []
        coming = [0 if self.nodes else -1]
        while coming:
            at = coming.pop()
            if at < 0:
                nodes.append(-1)
                continue
            feature, threshold, left, right = self.nodes[at]
            nodes += (feature, threshold)
            coming += (right, left)
        leaves = [(leaf.count, round(100 * leaf.low), round(100 * leaf.median)) for leaf in self.leaves]
        return {"nodes": nodes, "leaves": [n for leaf in leaves for n in leaf]}

    @classmethod
    def of(cls, told: dict[str, list[float]]) -> Tree:
        """Reads what `to_dict` returned."""
        nodes, leaves = iter(told["nodes"]), told["leaves"]
        tree = cls(
            [], [Estimate(leaves[i], leaves[i + 1] / 100, leaves[i + 2] / 100) for i in range(0, len(leaves), 3)]
        )
        ends = itertools.count(-1, -1)

        def read() -> int:
            if (feature := int(next(nodes))) < 0:
                return next(ends)
            at, threshold = len(tree.nodes), next(nodes)
            tree.nodes.append((feature, threshold, 0, 0))
            tree.nodes[at] = (feature, threshold, read(), read())
            return at

        read()
        return tree


def grow(values: Numbers, targets: Numbers, least: int, chance: np.random.Generator) -> Tree:
    """Grows a tree from rows of values, with at least `least` rows a leaf.

    Each node draws a threshold for each of some features, and keeps the one that leaves the least variance.
    """
    tree = Tree()

    def add(rows: Numbers) -> int:
        split = _split(values[rows], targets[rows], least, chance) if len(rows) >= 2 * least else None
        if split is None:
            low, median = (round(float(one), 2) for one in np.quantile(targets[rows], (LOW, MEDIAN)))
            tree.leaves.append(Estimate(len(rows), low, median))
            return -len(tree.leaves)
        feature, threshold = split
        at = len(tree.nodes)
        tree.nodes.append((feature, threshold, 0, 0))
        left = values[rows, feature] <= threshold
        tree.nodes[at] = (feature, threshold, add(rows[left]), add(rows[~left]))
        return at

    add(np.arange(len(targets)))
    return tree


def _split(values: Numbers, targets: Numbers, least: int, chance: np.random.Generator) -> tuple[int, float] | None:
    """Returns the best of the drawn splits, or None if none leaves enough rows on both sides."""
    lowest, highest = values.min(0), values.max(0)
    varied = np.flatnonzero(highest > lowest)
    chosen = chance.permutation(varied)[: math.ceil(TRIED * len(varied))]
    # The file keeps two digits, so the rows are split by the rounded threshold.
    thresholds = np.round(chance.uniform(lowest[chosen], highest[chosen]), 2)
    left = values[:, chosen] <= thresholds
    counts = left.sum(0)
    sums = targets @ left
    others = len(targets) - counts
    # The variance that is left is a constant less this.
    gain = np.where(
        np.minimum(counts, others) >= least,
        sums**2 / np.maximum(counts, 1) + (targets.sum() - sums) ** 2 / np.maximum(others, 1),
        -np.inf,
    )
    if not len(gain) or gain.max() == -np.inf:
        return None
    best = int(gain.argmax())
    return int(chosen[best]), float(thresholds[best])


def estimate(trees: Sequence[Tree], values: Sequence[float]) -> Estimate:
    """Returns the mean over the trees of each number of the leaf that the values reach."""
    leaves = [tree.leaf(values) for tree in trees]
    return Estimate(*(sum(numbers) / len(leaves) for numbers in zip(*leaves, strict=True)))
