"""Regression trees with random thresholds (extremely randomised trees), whose leaves keep the mean of their targets.

Several such trees cut the space at different places, so that the mean of their leaves depends less on where one tree
happened to cut than a single tree with the best thresholds does. How far the leaves are from each other says how sure
their mean is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

# How many features a node draws a threshold for, as a fraction of all.
TRIED = 0.7
Numbers = np.ndarray[Any, np.dtype[np.float64]]


class Estimate(NamedTuple):
    """What several trees say of a target: the mean of their leaves, and the standard deviation."""

    mean: float
    spread: float


@dataclass
class Tree:
    """A tree: nodes of a feature, a threshold and two children, of which a negative one is the leaf -1 - child."""

    nodes: list[tuple[int, float, int, int]] = field(default_factory=list)
    leaves: list[float] = field(default_factory=list)

    def leaf(self, values: Sequence[float]) -> float:
        """Returns the leaf that these values of the features reach."""
        at = 0 if self.nodes else -1
        while at >= 0:
            feature, threshold, left, right = self.nodes[at]
            at = left if values[feature] <= threshold else right
        return self.leaves[-1 - at]

    def to_list(self) -> list[float]:
        """Returns the tree as `policy.py` describes it, in hundredths of the targets."""
        told: list[float] = []
        coming = [0 if self.nodes else -1]
        while coming:
            at = coming.pop()
            if at < 0:
                told += (-1, round(100 * self.leaves[-1 - at]))
                continue
            feature, threshold, left, right = self.nodes[at]
            told += (feature, threshold)
            coming += (right, left)
        return told

    @classmethod
    def of(cls, told: Sequence[float]) -> Tree:
        """Reads what `to_list` returned."""
        tree, numbers = cls(), iter(told)

        def read() -> int:
            feature, number = int(next(numbers)), next(numbers)
            if feature < 0:
                tree.leaves.append(number / 100)
                return -len(tree.leaves)
            at = len(tree.nodes)
            tree.nodes.append((feature, number, 0, 0))
            tree.nodes[at] = (feature, number, read(), read())
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
            tree.leaves.append(round(float(targets[rows].mean()), 2))
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
    """Returns what the trees say of a request with these values of the features."""
    leaves = [tree.leaf(values) for tree in trees]
    mean = sum(leaves) / len(leaves)
    return Estimate(mean, math.sqrt(sum((leaf - mean) ** 2 for leaf in leaves) / len(leaves)))
