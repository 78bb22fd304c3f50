"""How long `optimize` times engines: on fewer samples where layers take long, and not after its time is over."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import groupwise
from groupwise import record_plans
from groupwise.errors import GroupwiseError
from groupwise.kernels import dispatch
from groupwise.rewrite import chain, choose, engines, region
from groupwise.rewrite.choose import Deadline, seconds_of
from groupwise.rewrite.compiled import Compiled
from groupwise.rewrite.plan import NO_TIME
from groupwise.rewrite.precision import bfloat16_problem
from groupwise.rewrite.steps import Activation, Epilogue, Geometry
from kernels import OURS, needs_kernels
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
    assert found.reason.endswith(NO_TIME)
    assert "no time was left" not in choose.choose(work_of(7), *tensors(7), None).reason


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


def test_kernels_that_records_expect_to_be_slow_are_not_tried(monkeypatch):
    monkeypatch.setattr(choose, "expected_speeds", lambda work: {"narrow": 2.0, "groups": 1.9, "planar": 0.5})
    limited = choose.choose(work_of(3), *tensors(3), Deadline(100.0))
    assert not {"groupwise planar"} & set(limited.ms)
    assert choose._slow(work_of(3)) == ["planar"]
    monkeypatch.setattr(choose, "expected_speeds", lambda work: {"narrow": 0.9, "groups": 0.7})
    assert choose._slow(work_of(3)) == ["groups"]
    monkeypatch.setattr(choose, "expected_speeds", lambda work: {})
    assert choose._slow(work_of(3)) == []


@needs_kernels
def test_what_was_measured_is_expected(own_cache):
    weight, bias, (image,) = tensors(2)
    assert engines.expected_speeds(work_of(2)) == {}
    with dispatch.enabled(tune=True, calls=1000), torch.no_grad(), record_plans() as plans:
        torch.conv2d(image, weight, bias, padding=1, groups=2)
    found = engines.expected_speeds(work_of(2))
    assert found
    assert set(found) <= set(OURS)
    (plan,) = plans
    if plan.kernel != "pytorch":
        assert found[plan.kernel] == pytest.approx(plan.speedup, rel=1e-4)
    # What no kernel can run has none.
    assert engines.expected_speeds(replace(work_of(2), dtype=torch.float64)) == {}
    assert engines.expected_speeds(replace(work_of(2), source=(0, 8, 9, 7))) == {}


def test_a_long_call_that_is_clearly_slower_is_dropped_after_its_second(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(choose, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds):
        def call(x):
            now[0] += seconds
            return x

        return call

    def timed(first, **seconds):
        calls = {name: takes(each) for name, each in seconds.items()}
        return choose.time_calls(calls, [torch.zeros(1)], first)

    found = timed({"fast": 9e-3, "slow": 9e-3, "close": 9e-3}, fast=1e-3, slow=1.3e-3, close=1.1e-3)
    assert {name: len(each) > 1 for name, each in found.items()} == {"fast": True, "slow": False, "close": True}
    # Its first call was fast: one of the two was interrupted, perhaps.
    assert len(timed({"fast": 9e-3, "slow": 1e-3}, fast=1e-3, slow=1.3e-3)["slow"]) > 1
    # Short calls vary more, and without a first call nothing is known of it.
    assert len(timed({"fast": 9e-4, "slow": 9e-4}, fast=1e-4, slow=1.3e-4)["slow"]) > 1
    assert len(timed(None, fast=1e-3, slow=1.3e-3)["slow"]) > 1


def test_the_last_that_is_left_is_timed_no_more(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(choose, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds):
        def call(x):
            now[0] += seconds
            return x

        return call

    calls = {"fast": takes(0.001), "slow": takes(0.01)}
    found = choose.time_calls(calls, [torch.zeros(1)])
    assert {name: len(each) for name, each in found.items()} == {"fast": choose.SURE, "slow": choose.SURE}
    assert list(calls) == ["fast"]
    found = choose.time_calls({"fast": takes(0.001), "slow": takes(0.0015)}, [torch.zeros(1)], {"fast": 1, "slow": 1})
    assert {name: len(each) for name, each in found.items()} == {"fast": 1, "slow": 1}
    # By itself from the start, a call has all of its rounds.
    assert len(choose.time_calls({"alone": takes(0.001)}, [torch.zeros(1)])["alone"]) > choose.LEAST


def test_a_part_of_a_deadline_leaves_the_rest_to_others(monkeypatch):
    now = [10.0]
    monkeypatch.setattr(choose, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    whole = Deadline(6.0)
    now[0] = 12.0
    part = whole.part(0.5)
    assert part.is_limited
    for now[0], over in ((13.9, (False, False)), (14.1, (True, False)), (16.1, (True, True))):
        assert (part.is_over, whole.is_over) == over
    assert not Deadline(math.inf).part(0.5).is_limited
    assert whole.part(0.5).is_over


@pytest.mark.skipif(bfloat16_problem() is not None, reason="optimize refuses bfloat16 here")
def test_two_dtypes_share_the_time(monkeypatch):
    seen, made = [], region.Program
    monkeypatch.delenv("GROUPWISE_TUNE")
    monkeypatch.setattr(choose, "SECONDS", 100.0)

    def program(captured, deadline, dtype):
        seen.append((dtype, deadline._ends - time.perf_counter()))
        return made(captured, deadline, dtype)

    monkeypatch.setattr(region, "Program", program)
    groupwise.optimize(network(), source(), dtype=torch.bfloat16)
    (low, first), (wide, second) = seen
    assert (low, wide) == (torch.bfloat16, None)
    assert first < region.ASKED * 100.0
    assert 100.0 * region.ASKED < second < 100.0


@pytest.mark.parametrize(
    ("low", "wide", "rounds"), [([0.1, 0.1, 0.001], 0.002, "many"), ([0.2], 0.3, "one"), ([0.3], 0.2, "one")]
)
def test_whole_networks_in_two_dtypes(monkeypatch, low, wide, rounds):
    """Calls that are short get many rounds, so that one that is interrupted twice at first can still win."""
    now, calls = [0.0], {"low": 0, "wide": 0}
    clock = SimpleNamespace(perf_counter=lambda: now[0])
    monkeypatch.setattr(choose, "time", clock)
    monkeypatch.setattr(region, "time", clock)

    def ready(name, seconds):
        def run(leaves):
            now[0] += seconds[min(calls[name], len(seconds) - 1)]
            calls[name] += 1

        return region.Ready(*[None] * 4, SimpleNamespace(run=run), ())

    programs = ready("low", low), ready("wide", [wide])
    found = region._faster(*programs, [])
    if low[-1] < wide:
        assert found is programs[0]
    else:
        assert found.tape is programs[1].tape
        assert found.widened.startswith("200.000 ms, bfloat16 300.000")
    # Beside the first call of each.
    assert (calls["low"] > 10) == (rounds == "many")
    if rounds == "one":
        assert calls == {"low": 2, "wide": 2}


def test_optimize_plans_and_does_not_run(monkeypatch):
    ran, run = [], Compiled.run
    monkeypatch.setattr(Compiled, "run", lambda self, leaves: ran.append(1) or run(self, leaves))
    fast = groupwise.optimize(network(), source(), tune=False)
    assert fast.plan.steps
    assert ran == []
    with torch.inference_mode():
        fast(source())
        assert ran == [1]
        fast.prepare(source(4))
    assert ran == [1]


def test_what_cannot_be_planned_as_a_whole_runs():
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = network(), nn.Linear(10, 3)

        def forward(self, x):
            y = self.first(x).flatten(1)[:, :10]
            return self.second(y) if float(y.sum()) > 1e9 else self.second(-y)

    fast = groupwise.optimize(Parts().eval(), source(), tune=False)
    assert any(step.name.startswith("first") for step in fast.plan.steps)
    assert any(step.name.startswith("second") for step in fast.plan.steps)
