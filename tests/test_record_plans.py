"""`record_plans`: every plan that is made while a block is open is in its list, and none is lost in silence."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import groupwise
from groupwise import record_plans
from groupwise.kernels import dispatch, native
from groupwise.kernels.plan import Plan
from kernels import needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def on():
    with dispatch.forced(True):
        yield


def convolve(size):
    """One convolution, whose plan tells its size."""
    torch.nn.functional.conv2d(torch.randn(1, 4, size, size), torch.randn(4, 1, 3, 3), groups=4)


def sizes(plans):
    assert all(isinstance(plan, Plan) for plan in plans)
    return [plan.shape["input_size"][0] for plan in plans]


def test_a_block_has_its_plans_in_their_order():
    convolve(3)
    with record_plans() as plans:
        for size in (4, 5, 6, 4):
            convolve(size)
    convolve(7)
    assert sizes(plans) == [4, 5, 6, 4]
    assert type(plans) is list


def test_a_step_has_three_plans():
    x, weight = torch.randn(1, 4, 9, 9, requires_grad=True), torch.randn(4, 1, 3, 3, requires_grad=True)
    with record_plans() as plans:
        torch.nn.functional.conv2d(x, weight, groups=4).sum().backward()
    assert [plan.direction for plan in plans] == ["forward", "grad_input", "grad_weight"]


def test_blocks_nest_and_overlap():
    with record_plans() as outer:
        convolve(4)
        with record_plans() as inner:
            convolve(5)
        convolve(6)
    first, second = record_plans(), record_plans()
    with first as a:
        convolve(4)
        b = second.__enter__()
        convolve(5)
    convolve(6)
    second.__exit__(None, None, None)
    assert [sizes(plans) for plans in (outer, inner, a, b)] == [[4, 5, 6], [5], [4, 5], [5, 6]]


def test_an_exception_keeps_what_ran():
    def fail():
        convolve(4)
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), record_plans() as plans:
        fail()
    assert sizes(plans) == [4]
    with record_plans() as plans:
        pass
    assert plans == []


def test_plans_of_all_threads_reach_all_blocks():
    count, barrier, found = 200, threading.Barrier(4), {}

    def work(number):
        with dispatch.forced(True):
            barrier.wait(10)
            # Half of the threads record too, while all convolve.
            with record_plans() as plans:
                for _ in range(count):
                    convolve(number)
            found[number] = sizes(plans)
            barrier.wait(10)

    workers = [threading.Thread(target=work, args=(number,)) for number in (4, 5, 6)]
    with record_plans() as plans:
        for worker in workers:
            worker.start()
        barrier.wait(10)
        barrier.wait(30)
    for worker in workers:
        worker.join()
    assert {number: sizes(plans).count(number) for number in (4, 5, 6)} == dict.fromkeys((4, 5, 6), count)
    for number, own in found.items():
        assert own.count(number) == count


def test_more_plans_than_a_block_keeps_are_counted(monkeypatch):
    text = native.read_text
    monkeypatch.setattr(native, "read_text", lambda *given: text(*given).replace('"dropped": 0', '"dropped": 7'))
    message = "kept the first 1 plans and dropped 7; open the block around"
    with pytest.warns(RuntimeWarning, match=message) as caught, record_plans() as plans:
        convolve(4)
    assert caught[0].filename == __file__
    assert sizes(plans) == [4]


def test_the_limit_of_a_block():
    """The native limit itself, by convolutions that are planned and left to PyTorch, as they are the fastest."""
    x, weight = torch.randn(1, 64, 1, 1), torch.randn(64, 64, 1, 1)
    limit, beyond = 100_000, 5
    recording = native.library().groupwise_record_start()
    with torch.inference_mode():
        for _ in range(limit + beyond):
            torch.conv2d(x, weight)
    recorded = native.read_text(native.library().groupwise_record_stop, recording)
    assert recorded.count('"kernel":') == limit
    assert recorded.endswith(f'"dropped": {beyond}}}')


def test_a_recording_is_freed_and_closed_once():
    library = native.library()
    recording = library.groupwise_record_start()
    convolve(4)
    # The first call asks for the size only, and what runs before the second is not in the text.
    needed = library.groupwise_record_stop(recording, None, 0)
    convolve(5)
    text = native.read_text(library.groupwise_record_stop, recording)
    assert len(text) + 1 == needed
    assert text.count('"direction"') == 1
    assert native.read_text(library.groupwise_record_stop, recording) == '{"plans": [], "dropped": 0}'


def test_without_kernels_the_list_stays_empty(monkeypatch):
    monkeypatch.setattr(native, "available", lambda: False)
    with record_plans() as plans:
        convolve(4)
    assert plans == []


def test_report_and_bench_leave_a_users_block_alone():
    layer, x = torch.nn.Conv2d(8, 8, 3, groups=8), torch.randn(1, 8, 9, 9)
    with record_plans() as plans:
        convolve(5)
        with dispatch.forced(None):
            groupwise.report(layer, x, repeats=1)
            groupwise.bench(layer, x, repeats=1)
        convolve(6)
    found = sizes(plans)
    assert (found[0], found[-1]) == (5, 6)
    assert 9 in found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_its_own_block_and_no_other_threads():
    code = """
import os, threading, torch, groupwise
from groupwise import record_plans
torch.set_num_threads(1)
groupwise.enable()
layer = torch.nn.Conv2d(4, 4, 3, groups=4)
def convolve(size):
    with torch.no_grad():
        layer(torch.randn(1, 4, size, size))
def sizes(plans):
    return [plan.shape["input_size"][0] for plan in plans]
stop, running = threading.Event(), threading.Event()
def work():
    while not stop.is_set():
        with record_plans():
            convolve(4)
            running.set()
thread = threading.Thread(target=work)
thread.start()
running.wait(10)
codes = []
for _ in range(40):
    with record_plans() as plans:
        convolve(5)
        child = os.fork()
        convolve(6 if child else 7)
    if child == 0:
        own = [size for size in sizes(plans) if size != 4]
        with record_plans() as more:
            convolve(8)
        os._exit(0 if own == [5, 7] and sizes(more) == [8] else 3)
    assert [size for size in sizes(plans) if size != 4] == [5, 6]
    codes.append(os.waitpid(child, 0)[1])
stop.set()
thread.join()
assert not any(codes), codes
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)
