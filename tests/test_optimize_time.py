"""How long `optimize` times engines: on fewer samples where layers take long, and not after its time is over."""

from __future__ import annotations

import math

import pytest
import torch

from groupwise.errors import GroupwiseError
from groupwise.rewrite import chain, choose, engines
from groupwise.rewrite.choose import Deadline, seconds_of
from groupwise.rewrite.steps import Activation, Epilogue, Geometry
from kernels import needs_kernels
from optimized import check, network, source
from test_optimize_chains import Net, seeded


def test_how_long_a_user_lets_it_take(monkeypatch):
    monkeypatch.delenv("GROUPWISE_TUNE")
    assert (seconds_of(None), seconds_of(True), seconds_of(False)) == (choose.SECONDS, math.inf, 0)
    for value, seconds in (("0", 0), ("1", math.inf)):
        monkeypatch.setenv("GROUPWISE_TUNE", value)
        assert (seconds_of(None), seconds_of(True), seconds_of(False)) == (seconds, math.inf, 0)
    with pytest.raises(GroupwiseError, match="tune='yes' is not known; choose one of: True, False, None"):
        seconds_of("yes")


def work_of(samples, residual=False):
    at = Geometry((1, 1), (1, 1), (1, 1), 2)
    epilogue = Epilogue(None, residual, Activation("relu", "relu"))
    shape = (samples, 8, 9, 7)
    return engines.Work(shape, shape, (8, 4, 3, 3), torch.float32, True, at, epilogue, residual, True)


def tensors(samples, residual=False):
    images = [torch.randn(samples, 8, 9, 7) for _ in range(1 + residual)]
    return torch.randn(8, 4, 3, 3), torch.randn(8), [it.contiguous(memory_format=torch.channels_last) for it in images]


@pytest.mark.parametrize("residual", [False, True])
def test_a_long_layer_is_timed_on_few_samples(monkeypatch, threads, residual):
    threads(2)
    monkeypatch.setattr(choose, "CALL", 1e-9)
    weight, bias, given = tensors(7, residual)
    kept = [tensor.clone() for tensor in given]
    found = choose.choose(work_of(7, residual), weight, bias, given, Deadline(100.0))
    assert found.samples == 2
    assert "ms of 2 samples" in found.reason
    # Each kernel has a row of its own: the planner may choose another for all samples.
    assert "groupwise" not in found.ms
    assert found.engine.refuse(work_of(7, residual)) is None
    assert all(torch.equal(now, before) for now, before in zip(given, kept, strict=True))
    whole = choose.choose(work_of(7, residual), weight, bias, given, Deadline(math.inf))
    assert whole.samples is None
    assert "samples" not in whole.reason


def test_a_short_layer_is_timed_on_all_samples(monkeypatch):
    monkeypatch.setattr(choose, "CALL", 100.0)
    assert choose.choose(work_of(7), *tensors(7), Deadline(100.0)).samples is None


def test_after_the_deadline_nothing_is_timed(monkeypatch):
    monkeypatch.setattr(choose, "time_calls", lambda *_: pytest.fail("timed"))
    found = choose.choose(work_of(7), *tensors(7), Deadline(0.0))
    assert found.ms == {}
    assert found.reason.endswith("optimize has no time left; tune=True times all layers")
    assert "no time left" not in choose.choose(work_of(7), *tensors(7), None).reason


def test_a_network_that_is_timed_on_few_samples_is_exact(monkeypatch):
    monkeypatch.delenv("GROUPWISE_TUNE")
    monkeypatch.setattr(choose, "CALL", 1e-9)
    fast = check(network(), source(5))
    timed = [step for step in fast.plan.steps if step.ms]
    assert timed
    assert all(" of " in step.reason for step in timed)


def test_a_network_without_time_is_exact(monkeypatch):
    monkeypatch.delenv("GROUPWISE_TUNE")
    monkeypatch.setattr(choose, "SECONDS", 1e-9)
    fast = check(network(), source(3))
    assert not any(step.ms for step in fast.plan.steps)
    # Another shape has a time of its own.
    planner = vars(fast)["_region"].planner
    planner.seconds = 100.0
    with torch.inference_mode():
        fast(source(2))
    assert any(step.ms for step in fast.plan.steps)


@needs_kernels
def test_chains_are_timed_on_the_samples_of_their_layers(monkeypatch, threads):
    threads(1)
    monkeypatch.delenv("GROUPWISE_TUNE")
    monkeypatch.setattr(choose, "CALL", 1e-9)
    monkeypatch.setattr(chain, "CALL", 1e-9)
    timed, real = [], chain.time_calls
    monkeypatch.setattr(chain, "time_calls", lambda calls, given: timed.append(len(given[0])) or real(calls, given))
    monkeypatch.setattr(chain, "fastest", lambda seconds: "chain")
    net = seeded(Net).eval()
    fast = check(net, torch.randn(4, 3, 32, 32))
    assert timed
    assert set(timed) == {1}
    chains = [step for step in fast.plan.steps if step.kind == "chain"]
    assert chains
    assert all("ms of 1 sample," in step.reason for step in chains)


def test_the_largest_finite_value():
    assert choose._largest(torch.tensor([[1.0, -3.0], [math.inf, math.nan]])) == 3.0
    assert choose._largest(torch.empty(0, 3)) == 0.0
    assert choose._largest(torch.tensor(-2.0)) == 2.0


def test_infinities_and_nan_are_compared():
    exact = torch.tensor([[1.0, math.inf], [math.nan, 2.0]])
    assert choose._is_close(exact.clone(), exact, 1e-3)
    assert not choose._is_close(torch.tensor([[1.0, -math.inf], [math.nan, 2.0]]), exact, 1e-3)
    assert not choose._is_close(torch.tensor([[1.0, math.inf], [0.0, 2.0]]), exact, 1e-3)
    assert not choose._is_close(torch.tensor([[math.nan, math.inf], [math.nan, 2.0]]), exact, 1e-3)
