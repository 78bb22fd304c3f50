"""Rows of pairs, and references that are computed once: what the tests of kernels leave out, and what they do not."""

from __future__ import annotations

import itertools

import torch

from pairs import pairwise
from remembered import Remembered, fingerprint


def test_each_two_values_meet():
    axes = [1, 2, 5], "ab", "xyz", [True, False]
    for turn in range(6):
        rows = pairwise(*axes, turn=turn)
        assert len(rows) < 18
        for first, second in itertools.combinations(range(4), 2):
            met = {(row[first], row[second]) for row in rows}
            assert met == set(itertools.product(axes[first], axes[second]))


def test_fingerprints_tell_numbers_apart_and_no_strides():
    values = torch.randn(2, 3, 4, 5)
    other = values.clone()
    other[1, 2, 3, 4] += 1e-6
    kinds = [values, other, values.bfloat16(), values.view(3, 2, 4, 5), None, torch.zeros(()).expand(1, 1, 1)]
    assert len({fingerprint(kind) for kind in kinds}) == len(kinds)
    assert fingerprint(values.contiguous(memory_format=torch.channels_last)) == fingerprint(values)
    assert fingerprint(torch.ones(()).expand(2, 3)) == fingerprint(torch.ones(2, 3))


def test_the_results_used_last_are_kept():
    kept, made = Remembered(most_bytes=20), []
    for key in (1, 2, 1, 3, 2, 1):
        assert kept.get(key, lambda key=key: made.append(key) or key, lambda result: 10) == key
    assert made == [1, 2, 3, 2, 1]
