"""Labels of the outputs from which the alternating search climbs."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from groupwise.choose.assign.transport import Floats, Labels, transport

_ROUNDS = 12


def starts(energy: Floats, groups: int, randoms: int, seed: int) -> Iterator[Labels]:
    """Yields the stored order, a greedy and a spectral start, then `randoms` random ones."""
    generator = np.random.default_rng(seed)
    stored = np.repeat(np.arange(groups), len(energy) // groups)
    yield stored
    yield _greedy(energy, groups)
    yield _spectral(energy, groups, generator)
    for _ in range(randoms):
        yield generator.permutation(stored)


def _greedy(energy: Floats, groups: int) -> Labels:
    """Fills one group after another: the heaviest output left, its best inputs, and the outputs that these serve."""
    outputs, inputs = energy.shape
    labels = np.full(outputs, groups - 1)
    rows, columns = np.arange(outputs), np.arange(inputs)
    for t in range(groups - 1):
        left = energy[np.ix_(rows, columns)]
        chosen = np.array([left.sum(axis=1).argmax()])
        for _ in range(2):
            served = np.argsort(-left[chosen].sum(axis=0), kind="stable")[: inputs // groups]
            chosen = np.argsort(-left[:, served].sum(axis=1), kind="stable")[: outputs // groups]
        labels[rows[chosen]] = t
        rows, columns = np.delete(rows, chosen), np.delete(columns, served)
    return labels


def _spectral(energy: Floats, groups: int, generator: np.random.Generator) -> Labels:
    """Clusters the outputs, equally many in each, by the singular vectors of the normalised energy."""
    count = math.ceil(math.log2(groups)) + 1
    scaled = energy / np.sqrt(np.maximum(energy.sum(axis=1, keepdims=True), 1e-300))
    scaled /= np.sqrt(np.maximum(energy.sum(axis=0), 1e-300))
    vectors = np.linalg.qr(generator.standard_normal((len(energy), min(count + 4, len(energy)))))[0]
    for _ in range(_ROUNDS):
        vectors = np.linalg.qr(scaled @ (scaled.T @ vectors))[0]
    places = vectors[:, 1:count]
    centers = places[_spread(places, groups)]
    labels = np.zeros(len(energy), np.int64)
    for _ in range(_ROUNDS):
        # The squared length of a place is the same for all centers.
        moved = transport(2 * centers @ places.T - (centers**2).sum(axis=1, keepdims=True))
        if (moved == labels).all():
            break
        labels = moved
        centers = places[np.argsort(labels, kind="stable")].reshape(groups, -1, places.shape[1]).mean(axis=1)
    return labels


def _spread(places: Floats, count: int) -> list[int]:
    """Returns `count` places, each the farthest from those before."""
    chosen = [int((places**2).sum(axis=1).argmax())]
    nearest = np.full(len(places), np.inf)
    while len(chosen) < count:
        nearest = np.minimum(nearest, ((places - places[chosen[-1]]) ** 2).sum(axis=1))
        nearest[chosen] = -1.0
        chosen.append(int(nearest.argmax()))
    return chosen
