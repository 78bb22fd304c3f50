"""How much a step keeps for its backward, and which activations are computed again so that it keeps less."""

from __future__ import annotations

import copy
import math
from collections import Counter

import pytest
from torch import nn

import groupwise
from groupwise.rewrite.train_memory import MOST_KEPT, memory_of, sizes_to_try
from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from kernels import needs_kernels
from pairs import pairwise
from test_train_keep import image, mobile, residual
from training import assert_as_exact, kept_bytes

# Bytes of a storage, and how many of it there are: 2400 bytes can be computed again.
KEPT, AGAIN = Counter({1200: 1, 1600: 1, 400: 2}), Counter({1200: 1})


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (3600, [math.inf, 1600, 400, 0]),
        (3599, [1600, 400, 0]),
        (2000, [1600, 400, 0]),
        (1999, [400, 0]),
        (1200, [400, 0]),
        (1199, [0]),
        (0, [0]),
    ],
)
def test_the_largest_are_computed_again_until_enough_is_saved(most, sizes):
    assert sizes_to_try(KEPT, AGAIN, most) == sizes
    found = sum(size * count for size, count in (KEPT - AGAIN).items() if size < sizes[0]) + 1200
    assert found <= max(most, 1200)


def test_nothing_is_computed_again_where_nothing_can_be():
    assert sizes_to_try(KEPT, KEPT, 100) == []
    assert sizes_to_try(KEPT, KEPT, 4000) == [math.inf]


def test_the_user_decides():
    model, x = mobile(), image(2, 3, 32, 32)
    for asked, expected, words in ((True, 0, "computed again in the backward"), (False, None, "activations kept")):
        for tune in (False, True):
            net = groupwise.optimize(copy.deepcopy(model), x, train=True, tune=tune, recompute=asked)
            assert net.plan.recompute_from == expected
            assert words in str(net.plan)


@needs_kernels
@pytest.mark.parametrize("make", [mobile, residual])
def test_the_plan_says_what_a_step_keeps(make):
    model, x = make(), image(4, 3, 32, 32)
    found = []
    for asked in (True, None, False):
        net = groupwise.optimize(copy.deepcopy(model), x, train=True, tune=False, recompute=asked)
        here, pytorch = (mib * 2**20 for mib in net.plan.kept_mib)
        # The tests count what the backward reads of the image, too.
        assert kept_bytes(net, x) == pytest.approx(here + x.nbytes, rel=0.02)
        assert kept_bytes(model, x) == pytest.approx(pytorch + x.nbytes, rel=0.02)
        assert "a step keeps {:.1f} MiB, PyTorch's {:.1f}".format(*net.plan.kept_mib) in str(net.plan)
        found.append(here)
    assert found[0] <= found[1] <= max(found[0], MOST_KEPT * pytorch)
    assert found[1] <= found[2]
    assert found[0] < found[2]


SOME = (300, 900, 2000)


@pytest.mark.parametrize(("make", "channels_last", "least"), pairwise([mobile, residual], [False, True], SOME))
def test_gradients_with_some_activations_kept(make, channels_last, least):
    model, x = make(), image(3, 3, 20, 12)
    net = Trainable(copy.deepcopy(model), Settings(channels_last=channels_last, least=least), {})
    assert_as_exact(net, model, x, slack=2e-5)


@needs_kernels
@pytest.mark.parametrize("make", [mobile, residual])
def test_larger_activations_are_computed_again_and_smaller_ones_kept(make):
    x = image(3, 3, 20, 12)
    found = [kept_bytes(Trainable(make(), Settings(least=least), {}), x) for least in (0, *SOME, math.inf)]
    assert found == sorted(found)
    assert found[0] < max(found[1:-1])
    assert min(found[1:-1]) < found[-1]
    assert len(set(found)) >= 3


def test_a_network_without_batch_norms_keeps_its_activations():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    net = groupwise.optimize(model, image(4, 3, 16, 16), train=True, tune=False)
    assert net.plan.recompute_from is None
    here, pytorch = net.plan.kept_mib
    assert here == pytorch > 0


def test_memory_is_that_of_all_samples():
    two, ten = (memory_of(mobile(), (image(samples, 3, 16, 16),), {}, None) for samples in (2, 10))
    assert ten.least == two.least
    assert ten.mib == pytest.approx([5 * it for it in two.mib])


def test_what_fails_on_few_samples_is_computed_again():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = mobile()

        def forward(self, x):
            return self.inner(x).view(3, 5)

    x = image(3, 3, 16, 16)
    assert memory_of(Whole(), (x,), {}, None) is None
    assert memory_of(mobile(), (), {"x": "a word"}, None) is None
    plan = groupwise.optimize(Whole(), x, train=True, tune=False).plan
    assert (plan.recompute_from, plan.kept_mib) == (0, None)
