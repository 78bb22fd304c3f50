"""A forked child convolves, whatever the threads of its parent were doing."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import warm
from kernels import needs_kernels

pytestmark = [needs_kernels, pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")]


def test_a_forked_child_convolves():
    code = """
import os, torch, groupwise
torch.set_num_threads(1)
groupwise.enable()
layer, x = torch.nn.Conv2d(16, 16, 3, groups=4), torch.randn(2, 16, 20, 20)
expected = layer(x)
child = os.fork()
if child == 0:
    with groupwise.record_plans() as plans:
        same = torch.equal(layer(x), expected)
    os._exit(0 if same and len(plans) == 1 else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    warm.run("-c", code, timeout=60)


def test_a_child_forked_while_another_thread_switches():
    """Neither the lock nor a block of a thread that the child does not have stays with it."""
    code = """
import os, threading, torch, groupwise
torch.set_num_threads(1)
layer, x = torch.nn.Conv2d(16, 16, 3, groups=4), torch.randn(2, 16, 20, 20)
# Loads groupwise's modules: Python itself has no import end in a child that was forked in its midst.
groupwise.enable()
with groupwise.record_plans():
    pass
stop = threading.Event()
def switch():
    while not stop.is_set():
        groupwise.enable()
        with groupwise.enabled():
            groupwise.disable()
thread = threading.Thread(target=switch)
thread.start()
codes = []
for _ in range(60):
    child = os.fork()
    if child == 0:
        groupwise.disable()
        with groupwise.record_plans() as off:
            layer(x)
        with groupwise.enabled(), groupwise.record_plans() as on:
            layer(x)
        os._exit(0 if not off and len(on) == 1 else 3)
    codes.append(os.waitpid(child, 0)[1])
stop.set()
thread.join()
assert not any(codes), codes
"""
    warm.run("-c", code, timeout=120)


def test_a_forked_child_drops_the_recordings_of_threads_it_does_not_have():
    """They would grow for as long as the child lives, and nothing would read them."""
    code = """
import os, threading, torch, groupwise
from groupwise.kernels import native
torch.set_num_threads(1)
groupwise.enable()
layer, x = torch.nn.Conv2d(4, 4, 3, groups=4), torch.randn(1, 4, 9, 9)
library, numbers = native.library(), []
thread = threading.Thread(target=lambda: numbers.append(library.groupwise_record_start()))
thread.start(), thread.join()
numbers.append(library.groupwise_record_start())
layer(x)
child = os.fork()
layer(x)
counts = [native.read_text(library.groupwise_record_stop, number).count('"direction"') for number in numbers]
if child == 0:
    os._exit(0 if counts == [0, 2] else 3)
assert os.waitpid(child, 0)[1] == 0
assert counts == [2, 2], counts
"""
    warm.run("-c", code, timeout=60)


def test_a_fork_while_another_thread_loads_the_kernels():
    """Loading imports torch, which may need a lock that the forking thread holds: neither waits for the other."""
    code = """
import os, threading
from groupwise.kernels import native
import logging
import groupwise
thread = threading.Thread(target=groupwise.enable)
thread.start()
while thread.is_alive():
    child = os.fork()
    if child == 0:
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
thread.join()
assert native.available()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_a_block_that_another_thread_ends_does_not_follow_a_child():
    code = """
import os, threading, torch, groupwise
torch.set_num_threads(1)
layer, x = torch.nn.Conv2d(16, 16, 3, groups=4), torch.randn(2, 16, 20, 20)
block = groupwise.enabled()
thread = threading.Thread(target=block.__enter__)
thread.start(), thread.join()
block.__exit__(None, None, None)
def runs():
    with groupwise.record_plans() as plans:
        layer(x)
    return bool(plans)
assert not runs()
child = os.fork()
if child == 0:
    with groupwise.enabled():
        inside = runs()
    os._exit(0 if inside and not runs() else 3)
assert os.waitpid(child, 0)[1] == 0
"""
    warm.run("-c", code, timeout=60)
