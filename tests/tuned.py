"""Tests that measure kernels: by a clock that makes times up. Their fixture `own_cache` is in conftest.py."""

from __future__ import annotations

import json

import torch

from groupwise import plan, record_plans
from groupwise.kernels import dispatch, native, tuning
from kernels import OURS

SHAPE = (2, 32, 12, 12)


def layer(**options):
    torch.manual_seed(0)
    return torch.nn.Conv2d(32, 32, 3, padding=1, groups=2, **options)


def run(model=None, source=None):
    """The plans of one forward."""
    with torch.no_grad(), record_plans() as plans:
        (model or layer())(torch.ones(SHAPE) if source is None else source)
    return plans


class Clock:
    """Lets each timed call take what a function says of its number. The core reads a clock before and after a call."""

    def __init__(self, seconds):
        self._seconds = seconds
        self._now, self._reads = 0.0, 0
        self.taken = []
        self._callback = native.CLOCK(self._read)
        # The core calls it until another clock is set, whether the test holds this one or not.
        Clock.in_use = self
        native.library().groupwise_clock(self._callback)

    def _read(self):
        self._reads += 1
        if self._reads % 2 == 0:
            self.taken.append(self._seconds(len(self.taken)))
            self._now += self.taken[-1]
        return self._now


def candidates(layer, shape, **options):
    """The kernels of groupwise that can run a layer here, in the order in which they are measured."""
    able = []
    for kernel in OURS:
        with dispatch.forced(kernel=kernel):
            if plan(layer, shape, **options).kernel == kernel:
                able.append(kernel)
    return able


def lines(path=None):
    """The measurements in the file of the cache."""
    path = path or tuning.cache_path()
    kept = [json.loads(line) for line in path.read_text().splitlines() if line]
    return [line for line in kept if "processor" not in line]


def requests():
    """How many requests this process measured so far."""
    return tuning.measured()["requests"]
