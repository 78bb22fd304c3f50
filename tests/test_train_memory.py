"""How much a step keeps for its backward, and which activations are computed again so that it keeps less."""

from __future__ import annotations

import copy
import gc
import math
import weakref

import pytest
import torch
from torch import nn

import groupwise
from groupwise.rewrite.train_memory import MOST_KEPT, least_of, memory_of
from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from kernels import needs_kernels
from pairs import pairwise
from test_train_keep import image, mobile, residual
from training import OneBatch, assert_as_exact, kept_bytes


@pytest.mark.parametrize(
    ("most", "least"), [(99, 0), (100, 3), (109, 3), (110, 7), (149, 7), (150, 8), (299, 8), (300, 20), (899, 20)]
)
def test_the_largest_are_computed_again_until_enough_is_saved(most, least):
    # What is kept if activations of a size and all larger ones are computed again.
    kept = {3: 100, 7: 110, 8: 150, 20: 300, math.inf: 900}
    assert least_of([3, 7, 8, 20], kept.__getitem__, most) == least


def test_few_sizes_are_tried():
    tried = []
    assert least_of(range(1000), lambda size: tried.append(size) or size, 600) == 600
    assert len(tried) <= 11


def test_nothing_is_computed_again_where_nothing_can_be():
    assert least_of([], {}.__getitem__, 0) == math.inf


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


class Folded(nn.Module):
    """Makes a sample of each of four parts of an image."""

    def __init__(self):
        super().__init__()
        self.inner = mobile()

    def forward(self, x):
        return self.inner(x.unflatten(2, (2, -1)).unflatten(4, (2, -1)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2))


@needs_kernels
def test_a_model_of_one_batch_size_is_measured_on_that():
    x = image(3, 3, 16, 16)
    alone, other = (memory_of(model, (x,), {}, None) for model in (OneBatch(mobile(), 3, 5), mobile()))
    assert alone.least == other.least > 0
    assert alone.mib == pytest.approx(other.mib, rel=0.02)


@needs_kernels
def test_what_are_samples_inside_the_model_decides():
    whole, folded = (memory_of(model, (image(2, 3, 32, 32),), {}, None) for model in (mobile(), Folded()))
    assert 0 < folded.least < whole.least
    assert folded.mib[0] <= MOST_KEPT * folded.mib[1]


def test_what_cannot_be_measured_is_computed_again():
    assert memory_of(mobile(), (), {"x": "a word"}, None) is None
    model, x = OneBatch(mobile(), 3, 5), image(2, 3, 16, 16)
    assert memory_of(model, (x,), {}, None) is None


def activations():
    """Returns how many tensors of images with a gradient there are in the process."""
    gc.collect()
    return sum(type(it) is torch.Tensor and it.requires_grad and it.dim() == 4 for it in gc.get_objects())


@needs_kernels
def test_nothing_of_a_measurement_lives_on():
    before, model = activations(), residual()
    weights = [weakref.ref(p) for p in model.parameters()]
    assert memory_of(model, (image(4, 3, 16, 16),), {}, None) is not None
    del model
    # An activation that its own node keeps would live on.
    assert activations() <= before
    assert not any(weight() is not None for weight in weights)
