"""How `optimize(train=True)` chooses a form and its kernels in the time that it has: on made-up times of steps."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import nn

import groupwise
from groupwise.kernels import dispatch
from groupwise.rewrite import train_check, train_choose
from groupwise.rewrite.samples import first_samples, samples_of
from kernels import needs_kernels
from test_train_network import image, small
from training import OneBatch


def test_samples_are_what_all_tensors_have():
    pair = image(5, 3), image(5, 2, 2)
    assert samples_of(pair, {}) == samples_of((), {"x": pair}) == samples_of((*pair, 7, "word"), {}) == 5
    assert samples_of((), {}) == samples_of((image(5), image(4)), {}) == samples_of((torch.tensor(1.0),), {}) == 0
    args, kwargs = first_samples((pair[0], 7), {"given": [pair[1]]}, 2)
    assert torch.equal(args[0], pair[0][:2])
    assert args[1] == 7
    assert torch.equal(kwargs["given"][0], pair[1][:2])
    assert first_samples(pair, {}, 5)[0] is pair
    assert first_samples((image(5), image(4)), {}, 2)[0][0].shape == (5,)


class Steps:
    """Stands in for `step`: what a step takes is told by its network's settings and its number of samples."""

    def __init__(self, monkeypatch, seconds):
        self.ran, self._seconds = [], seconds
        self._now = 0.0
        monkeypatch.setattr(train_choose, "step", self)
        monkeypatch.setattr(train_choose.time, "perf_counter", lambda: self._now)

    def __call__(self, network, args, kwargs):
        settings, samples = vars(network)["_settings"], samples_of(args, kwargs)
        name = ("channels_last" if settings.channels_last else "as given", samples)
        self.ran.append(name)
        took = self._seconds(*name)
        self._now += took
        return took


def chosen(monkeypatch, seconds, takes, samples=8):
    steps = Steps(monkeypatch, takes)
    monkeypatch.setattr(train_choose._Trial, "measured", lambda *_: train_choose.Kernels())
    net = train_choose.for_training(small(), (image(samples, 3, 8, 8),), {}, seconds, None)
    return net.plan, steps.ran


def test_a_long_step_is_timed_on_few_samples(monkeypatch, threads):
    threads(2)
    plan, ran = chosen(monkeypatch, 4.0, lambda form, n: n * (0.3 if form == "as given" else 0.2))
    assert {n for *_, n in ran} == {2}
    assert (plan.memory_format, plan.samples) == ("channels_last", 2)
    assert f"a step of 2 samples: as given {plan.ms['as given']:.1f} ms" in str(plan)


def test_a_short_step_is_timed_on_all_samples(monkeypatch, threads):
    threads(1)
    plan, ran = chosen(monkeypatch, 4.0, lambda form, n: n * (1e-3 if form == "as given" else 2e-3), samples=40)
    # The first step, of as few samples as there may be, tells that all of them take no long time.
    assert [n for *_, n in ran] == [2] + [40] * (len(ran) - 1)
    assert (plan.memory_format, plan.samples) == ("as given", None)


def test_as_many_samples_as_take_so_long(monkeypatch, threads):
    threads(1)
    plan, _ = chosen(monkeypatch, 4.0, lambda form, n: n * 0.03, samples=40)
    assert plan.samples == 2 * math.ceil(train_choose.STEP / 0.06)


def test_all_is_timed_where_time_has_no_end(monkeypatch):
    _, ran = chosen(monkeypatch, math.inf, lambda form, n: 9.0)
    assert {n for *_, n in ran} == {8}
    # Two formats, each once more than it is timed.
    assert len(ran) == 2 + train_choose.ROUNDS * 2


def test_a_clear_difference_is_timed_once(monkeypatch):
    _, ran = chosen(monkeypatch, 4.0, lambda form, n: 0.1 if form == "as given" else 0.2, 2)
    assert len(ran) == 4
    # A short step is timed again, as it may have been interrupted.
    _, ran = chosen(monkeypatch, 4.0, lambda form, n: 0.01 if form == "as given" else 0.02, 2)
    assert len(ran) == 2 + 2 * train_choose.ROUNDS
    _, ran = chosen(monkeypatch, 4.0, lambda form, n: 0.01 if form == "as given" else 0.0105, 2)
    assert len(ran) == 2 + 2 * train_choose.ROUNDS


def test_the_example_is_not_cut_for_a_model_of_one_batch_size():
    net = train_choose.for_training(OneBatch(small(), 8, 4), (image(8, 3, 8, 8),), {}, 0.0, None)
    assert not net.plan.left
    assert net(image(8, 3, 8, 8)).shape == (8, 4)


def test_a_model_that_fails_is_refused_with_its_error():
    with pytest.raises(groupwise.GroupwiseError, match=r"float32 tensor of 8×4×8×8\) fails"):
        train_choose.for_training(small(), (image(8, 4, 8, 8),), {}, 0.0, None)


def test_a_difference_on_few_samples_is_looked_at_on_all(monkeypatch):
    looked = []

    def difference(model, twin, args, kwargs):
        looked.append(samples_of(args, kwargs))
        return "it differs" if len(looked) == 1 else "", None

    monkeypatch.setattr(train_check, "_difference", difference)
    assert train_check.disagreement(small(), (image(8, 3, 8, 8),), {}, 2)[0] == ""
    assert looked == [2, 8]


def test_gradients_of_the_example_are_the_users():
    x = image(4, 3, 8, 8).requires_grad_()
    train_choose.for_training(small(), (x,), {}, math.inf, None)
    assert x.grad is None


@needs_kernels
def test_kernels_that_there_was_no_time_to_measure_are_told(monkeypatch, own_cache):
    # As if a table knew the layers.
    monkeypatch.setattr(train_choose, "KNOWN", (*train_choose.KNOWN, "order", "model"))
    net = train_choose.for_training(small(), (image(4, 3, 8, 8),), {}, 1e-9, None)
    assert net.plan.kernels == {}
    assert net.plan.unmeasured > 0
    assert "tune=True, or --tune, measures all" in str(net.plan)
    assert groupwise.kernels.tuning.saved().seconds == {}


@needs_kernels
def test_kernels_that_no_table_knows_are_measured_all_the_same(own_cache):
    net = train_choose.for_training(small(), (image(4, 3, 8, 8),), {}, 1e-9, None)
    assert net.plan.unmeasured == 0
    assert {direction: sum(of.values()) for direction, of in net.plan.kernels.items()} == {
        "forward": 4,
        "grad_input": 3,
        "grad_weight": 4,
    }


@needs_kernels
def test_measuring_ends_in_silence_and_begins_anew(own_cache, caplog):
    layer = nn.Conv2d(8, 8, 3, groups=2)

    def known():
        return len(groupwise.kernels.tuning.saved().seconds)

    with caplog.at_level(logging.INFO, "groupwise"), torch.no_grad():
        for count in (1, 2):
            with dispatch.measuring(10, 1e-5):
                layer(image(1, 8, 8 + count, 8))
                # The seconds are over.
                layer(image(1, 8, 18 + count, 8))
            assert known() == count
    assert "as long as it may" not in caplog.text
