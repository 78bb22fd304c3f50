"""What `optimize` tries is freed as soon as it is known to lose, and its pages go back to the system."""

from __future__ import annotations

import gc
import time
import weakref
from types import SimpleNamespace

import torch

import groupwise
from groupwise.rewrite import choose, heap, network
from optimized import network as model
from optimized import source


def test_pages_go_back_once_a_plan(monkeypatch):
    trims = []
    monkeypatch.setattr(network, "trim", lambda: trims.append(1))
    fast = groupwise.optimize(model(), source())
    assert len(trims) == 1
    with torch.inference_mode():
        fast(source())
        assert len(trims) == 1
        fast(source(3))
        assert len(trims) == 2


def test_pages_go_back_while_much_is_tried(monkeypatch):
    trims = []
    monkeypatch.setattr(heap, "trim", lambda: trims.append(1))
    freed = heap.Freed()
    for _ in range(4):
        freed.add(heap.MOST_FREED // 2)
    assert len(trims) == 1
    freed.add(heap.MOST_FREED)
    assert len(trims) == 2


def test_trim_is_for_any_c_library(monkeypatch):
    heap.trim()
    monkeypatch.setattr(heap, "_malloc_trim", lambda: None)
    heap.trim()


def test_a_hopeless_engine_is_dropped():
    class Packed:
        def __call__(self, x):
            time.sleep(0.05)
            return x

    slow = Packed()
    calls, alive = {"slow": slow, "fast": lambda x: x}, weakref.ref(slow)
    del slow
    found = choose.time_calls(calls, [torch.zeros(1)])
    assert list(calls) == ["fast"]
    assert len(found["slow"]) == choose.SURE
    assert len(found["fast"]) > 1
    gc.collect()
    assert alive() is None


def test_an_engine_that_is_interrupted_once_stays(monkeypatch):
    now, pauses = [0.0], [0.5]
    monkeypatch.setattr(choose, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds, pauses=()):
        def call(x):
            now[0] += seconds + (pauses.pop() if pauses else 0)
            return x

        return call

    calls = {"interrupted": takes(0.001, pauses), "other": takes(0.002), "slow": takes(0.02)}
    found = choose.time_calls(calls, [torch.zeros(1)])
    assert list(calls) == ["interrupted", "other"]
    assert len(found["slow"]) == choose.SURE
    # The pause ends the rounds early, but not before the fewest that there are.
    assert len(found["interrupted"]) == len(found["other"]) == choose.LEAST
    assert choose.fastest({name: found[name] for name in calls}) == "interrupted"

    calls = {"interrupted": takes(0.001, [0.1]), "other": takes(0.002)}
    rounds = len(choose.time_calls(calls, [torch.zeros(1)])["other"])
    assert rounds > choose.BUDGET / 0.003, "a pause is not counted as work"


def test_values_are_compared_everywhere(monkeypatch):
    """Also where they are compared a few samples at a time, and an engine is wrong in the last one alone."""
    monkeypatch.setattr(choose, "COMPARED", 8)
    exact = torch.randn(5, 3, 2)
    for number in range(len(exact)):
        made = exact.clone()
        made[number, -1, -1] += 1
        assert choose.problem_of(lambda _, made=made: made, [exact], exact) == "its values are wrong"
    assert choose.problem_of(lambda _: exact + 1e-5, [exact], exact) is None
    assert choose.problem_of(lambda _: exact[:4], [exact], exact) == "its values are wrong"
