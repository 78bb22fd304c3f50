"""What `optimize` tries is freed as soon as it is known to lose, and its pages go back to the system."""

from __future__ import annotations

import copy
import ctypes
import gc
import os
import pathlib
import subprocess
import sys
import textwrap
import time
import weakref
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

import groupwise
from groupwise.rewrite import choose, heap, network, train_choose
from groupwise.rewrite.train_network import Kernels
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
    monkeypatch.setattr(heap, "_function", lambda name: None)
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
    assert len(found["fast"]) == choose.SURE
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
        assert choose.problem_of(lambda _, made=made: made, [exact], exact)[0] == "its values are wrong"
    assert choose.problem_of(lambda _: exact + 1e-5, [exact], exact)[0] is None
    assert choose.problem_of(lambda _: exact[:4], [exact], exact)[0] == "its values are wrong"


# Nothing writes to these, so that they take no memory. No hole of a heap holds them all.
BLOCKS, SIZE = 16, 16 << 20


def mapped_blocks():
    """Returns how many large blocks the C library maps apart, of some that it is asked for."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]
    before = heap._maps()
    blocks = [library.malloc(SIZE) for _ in range(BLOCKS)]
    found = heap._maps() - before
    for block in blocks:
        library.free(block)
    return found


@pytest.mark.skipif(heap._maps() is None, reason="the C library is not glibc 2.33 or later")
def test_large_blocks_are_mapped_within_the_block_alone():
    said = python("""
        from test_optimize_memory import heap, mapped_blocks
        with heap.mapped():
            inside = mapped_blocks()
            # The inner block ends, and the outer goes on.
            with heap.mapped():
                pass
            again = mapped_blocks()
        print(inside > 0, again > 0, mapped_blocks())
        try:
            with heap.mapped():
                raise ValueError
        except ValueError:
            print(mapped_blocks())
    """)
    assert said.split() == ["True", "True", "0", "0"]


@pytest.mark.skipif(heap._maps() is None, reason="the C library is not glibc 2.33 or later")
@pytest.mark.parametrize("variable", ["MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_a_threshold_of_the_user_stays(variable):
    code = """
        from test_optimize_memory import heap, mapped_blocks
        before = mapped_blocks()
        with heap.mapped():
            inside = mapped_blocks()
        print(before > 0, inside > 0, mapped_blocks() > 0)
    """
    assert python(code, {variable: "262144"}).split() == ["True"] * 3


def test_nothing_is_mapped_by_another_c_library(monkeypatch):
    monkeypatch.setattr(heap, "_function", lambda name: None)
    with heap.mapped():
        pass
    before = dict(heap._keepers)
    owner = heap.Freed()
    heap.keep(owner, largest=True)
    assert heap._keepers == before


KEPT = """
    from test_optimize_memory import heap, mapped_blocks, resident_after
    SMALL, LARGE = 16 << 20, 64 << 20
    owner = heap.Freed()
    heap.keep(owner, largest={largest})
    held = resident_after(SMALL), resident_after(LARGE)
    heap.trim()
    with heap.mapped():
        inside = mapped_blocks()
    again = resident_after(SMALL)
    del owner
    given_back = resident_after(LARGE)
    print(*held, inside > 0, again, given_back)
"""


def resident_after(size):
    """Returns whether the process holds the memory of blocks of this size after they are freed."""
    library = ctypes.CDLL(None)
    library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    library.free.argtypes = [ctypes.c_void_p]

    def resident():
        return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    heap.trim()
    before = resident()
    blocks = [library.malloc(size) for _ in range((256 << 20) // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks:
        library.free(block)
    return resident() - before > 128 << 20


@pytest.mark.skipif(heap._maps() is None, reason="the C library is not glibc 2.33 or later")
@pytest.mark.parametrize("largest", [False, True])
def test_freed_memory_is_kept_while_its_owner_lives(largest):
    said = python(KEPT.format(largest=largest)).split()
    assert said == ["True", str(largest), "True", "True", "False"]


@pytest.mark.skipif(heap._maps() is None, reason="the C library is not glibc 2.33 or later")
@pytest.mark.parametrize("variable", ["MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_nothing_is_kept_where_the_user_decides(variable):
    code = """
        from test_optimize_memory import heap
        owner = heap.Freed()
        heap.keep(owner, largest=True)
        print(any(heap._keepers.values()))
    """
    assert python(code, {variable: "262144"}).split() == ["False"]


def python(code, environment=None):
    """Runs code in a process of its own, and returns what it prints."""
    folder = str(pathlib.Path(__file__).parent)
    paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
    given = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=given, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_copies_for_trials_are_freed(monkeypatch):
    # Copies that are part of cycles stay until the collector runs, which may be long.
    copies, given = [], model().train()
    copied = copy.deepcopy

    def remember(value, *others):
        made = copied(value, *others)
        if isinstance(value, torch.nn.Module):
            copies.append(weakref.ref(made))
        return made

    monkeypatch.setattr(train_choose.copy, "deepcopy", remember)
    gc.disable()
    try:
        network = groupwise.optimize(given, source(), train=True, tune=False)
        left = [made for made in copies if made() is not None]
    finally:
        gc.enable()
    assert network.model is given
    assert copies
    assert not left


def test_steps_that_are_timed_use_the_heap(monkeypatch):
    within, steps = [], []

    @contextmanager
    def mapped():
        within.append(1)
        yield
        within.pop()

    step = train_choose.step
    monkeypatch.setattr(train_choose, "mapped", mapped)
    monkeypatch.setattr(train_choose._Trial, "measured", lambda *_: Kernels())
    monkeypatch.setattr(train_choose, "step", lambda *args: steps.append(bool(within)) or step(*args))
    groupwise.optimize(model().train(), source(), train=True, tune=True, recompute=True)
    # The first of each memory format is not timed.
    assert steps == [True] * 2 + [False] * 2 * train_choose.ROUNDS
