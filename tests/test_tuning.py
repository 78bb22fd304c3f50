"""Tuning: what is measured and when, within which budget, and what the planner makes of it. No time here is real."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import groupwise
from groupwise import GroupwiseError, plan, record_plans
from groupwise.kernels import native, tuning
from kernels import needs_kernels, planar_is_fast
from tuned import SHAPE, Clock, candidates, layer, lines, requests, run

pytestmark = [needs_kernels, pytest.mark.usefixtures("own_cache")]


def request_of(model):
    """The instruction set and the text of a layer's forward, as the core keeps them."""
    with groupwise.enabled(tune=True):
        run(model)
    (line,) = lines()
    groupwise.forget()
    return line["isa"], line["request"]


def remember(isa, request, seconds):
    tuning.remember(native.library(), isa, request, seconds)
    native.library().groupwise_policy_changed()


def test_a_request_is_measured_once_and_kept():
    Clock(lambda call: 1e-3)
    before = requests()
    with groupwise.enabled(tune=True):
        (first,) = run()
        (again,) = run()
    assert requests() == before + 1
    assert first.source == again.source == "measured"
    (line,) = lines()
    assert (line["isa"], set(line["seconds"])) == (first.isa, {"pytorch", *candidates(layer(), SHAPE)})
    assert set(line["seconds"].values()) == {1e-3}


def test_the_planner_takes_the_fastest_that_was_measured():
    model = layer()
    isa, request = request_of(model)
    able = candidates(model, SHAPE)
    slow = dict.fromkeys(["pytorch", *able], 2e-3)
    for kernel in able:
        remember(isa, request, {**slow, kernel: 1e-3})
        made = plan(model, SHAPE)
        assert (made.kernel, made.source, made.speedup) == (kernel, "measured", pytest.approx(2))
    for pytorch in (1e-3, 2e-3, 2.02e-3):
        remember(isa, request, {**slow, "pytorch": pytorch})
        assert plan(model, SHAPE).kernel == "pytorch", "a tie leaves PyTorch's kernel"
    remember(isa, request, {"pytorch": 2e-3})
    made = plan(model, SHAPE)
    assert (made.kernel, made.source) == ("pytorch", "measured")
    assert made.others[able[0]] == "not measured here within the budget"


@pytest.mark.parametrize("calls", [1, 3, 20, 200])
def test_the_budget_is_kept(calls):
    clock = Clock(lambda call: 1e-3)
    before = tuning.measured()["seconds"]
    with groupwise.enabled(tune=True, calls=calls):
        assert run()[0].source == "measured"
    assert len(clock.taken) <= 2 + max(calls, 1)
    assert tuning.measured()["seconds"] - before == pytest.approx(sum(clock.taken), abs=1e-5)


def test_only_one_kernel_takes_forever():
    """The first call of a kernel cannot be cut short, but those of the next kernels need not follow."""
    clock = Clock(lambda call: 1e-3 if call < 2 else 100.0)
    with groupwise.enabled(tune=True):
        (made,) = run()
    assert sum(seconds == 100 for seconds in clock.taken) <= 2, (
        "ours once, and PyTorch's, which is as slow from then on"
    )
    (line,) = lines()
    assert len(line["seconds"]) == 2
    assert made.kernel == "pytorch"


def test_a_kernel_that_was_twice_slower_does_not_run_again():
    able = len(candidates(layer(), SHAPE))
    ours = {*range(2, 2 + able), *range(3 + able, 3 + 2 * able)}
    clock = Clock(lambda call: 3e-3 if call in ours else 1e-3)
    with groupwise.enabled(tune=True, calls=100):
        run()
    assert len(clock.taken) == 2 + len(ours) + 10, "ten rounds, of which ours runs in the first"
    (line,) = lines()
    assert line["seconds"] == {"pytorch": 1e-3, **dict.fromkeys(candidates(layer(), SHAPE), 3e-3)}


def test_slow_kernels_run_twice():
    able = len(candidates(layer(), SHAPE))
    clock = Clock(lambda call: 0.06)
    with groupwise.enabled(tune=True, calls=100):
        run()
    assert len(clock.taken) == 2 + able + 2 * (1 + able), "first calls, and two rounds of each"


def test_a_first_call_of_a_tiny_convolution_tells_little():
    """PyTorch's compiles its kernel and others fill caches: what counts is the calls after it."""
    able = candidates(layer(), SHAPE)

    def seconds(call):
        if call < 2:
            return [50e-3, 10e-6][call]
        if call < 2 + len(able):
            return 60e-6
        return 8e-6 if (call - 2 - len(able)) % (1 + len(able)) else 10e-6

    Clock(seconds)
    with groupwise.enabled(tune=True, calls=2000):
        (made,) = run()
    (line,) = lines()
    assert line["seconds"] == {"pytorch": 1e-5, **dict.fromkeys(able, 8e-6)}
    assert (made.kernel in able, made.speedup) == (True, pytest.approx(10 / 8))


def test_a_kernel_of_pytorch_that_fails_while_it_is_measured():
    """What the planner chose before may still run, and does."""
    code = """
import torch, groupwise
from groupwise.kernels import tuning
torch.backends.mkldnn.set_flags(False)
layer, source = torch.nn.Conv2d(8, 8, 3), torch.ones(1, 8, 9, 9)
expected = layer.double()(source.double())
layer.float()
def fail(*_, **__):
    raise RuntimeError("out of memory")
library = torch.library.Library("aten", "IMPL")
library.impl("_slow_conv2d_forward", fail, "CPU")
with groupwise.enabled(tune=True), groupwise.record_plans() as plans, torch.no_grad():
    try:
        output = layer(source)
        assert plans == [] and torch.allclose(output.double(), expected, atol=1e-5)
    except RuntimeError as error:
        assert "out of memory" in str(error)
assert plans[0].source != "measured" and tuning.measured()["requests"] == 0
print(plans[0].kernel)
"""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout


def test_deterministic_algorithms_are_not_chosen_by_time():
    before = requests()
    torch.use_deterministic_algorithms(True)
    try:
        with groupwise.enabled(tune=True):
            assert run()[0].source != "measured"
        with pytest.raises(GroupwiseError, match="use_deterministic_algorithms"):
            groupwise.tune(layer(), torch.ones(SHAPE))
    finally:
        torch.use_deterministic_algorithms(False)
    assert requests() == before


def test_pytorch_s_kernel_is_not_measured_where_it_may_read_outside_its_tensors():
    model = torch.nn.Conv2d(32, 32, 1, padding=3, groups=4)
    before = requests()
    with groupwise.enabled(tune=True):
        assert run(model)[0].source != "measured"
    assert requests() == before


def test_false_neither_measures_nor_uses_what_was_measured():
    # A real clock may end the budget before the last kernel, which would be measured later.
    Clock(lambda call: 1e-3)
    with groupwise.enabled(tune=True, calls=200):
        run()
    before = requests()
    with groupwise.enabled():
        assert run()[0].source == "measured"
    with groupwise.enabled(tune=False):
        assert run()[0].source != "measured"
        assert plan(layer(), SHAPE).source != "measured"
    assert plan(layer(), SHAPE).source == "measured"
    assert requests() == before


def test_an_unknown_value_of_the_environment(monkeypatch):
    monkeypatch.setenv("GROUPWISE_TUNE", "always")
    with pytest.warns(RuntimeWarning, match="GROUPWISE_TUNE=always is not known; use 1 or 0"):
        groupwise.enable()
    with planar_is_fast(""):
        assert run()[0].source == "table", "as without a value"


def test_the_inner_block_decides_and_none_keeps():
    groupwise.enable(tune=False)
    before = requests()
    with groupwise.enabled(tune=True), groupwise.enabled():
        run()
    assert requests() == before + 1
    with groupwise.enabled(tune=True):
        with groupwise.enabled(tune=False):
            run(torch.nn.Conv2d(32, 8, 3, groups=4))
        assert requests() == before + 1
        run(torch.nn.Conv2d(32, 8, 3, groups=4))
    assert requests() == before + 2
    run(torch.nn.Conv2d(32, 64, 3, groups=4))
    groupwise.enable(tune=True)
    run(torch.nn.Conv2d(32, 64, 3, groups=4))
    assert requests() == before + 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tune": 1}, "tune=1 is a int; give True, False or None"),
        ({"calls": 0}, "calls=0 is too small"),
        ({"calls": 2.5}, "calls=2.5 is a float"),
        ({"seconds": 0}, "seconds=0 is no time; give a number above 0, or math.inf"),
        ({"seconds": "9"}, "seconds='9' is no time"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(GroupwiseError, match=message):
        groupwise.enable(**options)
    with pytest.raises(GroupwiseError, match=message), groupwise.enabled(**options):
        pass
    assert not run()


@pytest.mark.parametrize("mode", ["grad", "no_grad", "inference_mode", "compile"])
def test_results_while_measuring_are_right(mode):
    model, source = layer(), torch.randn(SHAPE, requires_grad=mode == "grad")
    exact = layer().double()
    wanted = source.detach().double().requires_grad_()
    called = torch.compile(model, backend="aot_eager") if mode == "compile" else model
    context = {"no_grad": torch.no_grad, "inference_mode": torch.inference_mode}.get(mode, torch.enable_grad)
    before = requests()
    with groupwise.enabled(tune=True), context(), record_plans() as plans:
        output = called(source)
        if mode == "grad":
            output.square().sum().backward()
    expected = exact(wanted)
    torch.testing.assert_close(output.double(), expected, atol=1e-5, rtol=1e-5)
    assert requests() - before == len(plans) == (3 if mode == "grad" else 1)
    if mode == "grad":
        expected.square().sum().backward()
        pairs = [(source, wanted), (model.weight, exact.weight), (model.bias, exact.bias)]
        for ours, theirs in pairs:
            torch.testing.assert_close(ours.grad.double(), theirs.grad, atol=1e-3, rtol=1e-4)


def test_threads_that_meet_a_request_at_once(threads):
    # By a real clock the budget might end before the last kernel, and the rest be measured in another line.
    Clock(lambda call: 1e-3)
    threads(1)
    model, source = layer(), torch.randn(SHAPE)
    expected = layer().double()(source.double())
    wrong, gate = [], threading.Barrier(6)

    def convolve():
        gate.wait(20)
        groupwise.enable(tune=True)
        with torch.no_grad():
            for _ in range(20):
                if not torch.allclose(model(source).double(), expected, atol=1e-5):
                    wrong.append(threading.get_ident())

    started = [threading.Thread(target=convolve) for _ in range(6)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    assert not wrong
    # A thread that found another measuring ran what was planned before, and measured nothing.
    assert len(lines()) == 1
    assert run(model, source)[0].source == "measured"


CODE = """
import torch, groupwise
from groupwise.kernels import tuning
torch.set_num_threads(1)
groupwise.enable(tune=True)
with groupwise.record_plans() as plans:
    torch.nn.Conv2d(16, 16, 3, groups=4)(torch.ones(2, 16, 12, 12))
print(tuning.measured()["requests"], plans[0].source)
"""


def test_a_second_process_uses_what_the_first_measured():
    command = [sys.executable, "-c", CODE]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "1 measured\n"
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "0 measured\n"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_forked_while_another_thread_measures():
    # Locks of oneDNN and of the random numbers stay held in a child, with or without groupwise: neither is used here.
    code = """
import itertools, os, threading, torch, groupwise
from groupwise.kernels import tuning
torch.set_num_threads(1)
torch.backends.mkldnn.set_flags(False)
groupwise.enable(tune=True)
with groupwise.record_plans():
    pass
weight, stop = torch.ones(8, 2, 3, 3), threading.Event()
def measure():
    for width in itertools.cycle(range(4, 1000)):
        torch.conv2d(torch.ones(1, 8, 9, width), weight, groups=4)
        if stop.is_set():
            break
        if width == 999:
            groupwise.forget()
thread = threading.Thread(target=measure)
thread.start()
codes = []
for number in range(20):
    child = os.fork()
    if child == 0:
        before = tuning.measured()["requests"]
        with groupwise.record_plans() as plans:
            torch.conv2d(torch.ones(3, 8, 9, 9 + number), weight, groups=4)
        os._exit(0 if tuning.measured()["requests"] == before + 1 and plans[0].source == "measured" else 3)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
thread.join()
assert not any(codes), codes
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_forgetting():
    with groupwise.enabled(tune=True):
        run()
        path = tuning.cache_path()
        groupwise.forget()
        assert not lines()
        run()
        assert len(lines()) == 1
    groupwise.forget()
    assert not path.exists()
    assert plan(layer(), SHAPE).source != "measured"
