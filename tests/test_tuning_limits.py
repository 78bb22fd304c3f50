"""Tuning ends: after its seconds, and after a few tries of what was left out or fails. No time here is real."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys

import pytest
import torch

import groupwise
from groupwise import record_plans
from groupwise.kernels import cache, native, tuning
from kernels import needs_kernels
from tuned import Clock, candidates, lines, requests

pytestmark = [needs_kernels, pytest.mark.usefixtures("own_cache")]
SHAPE = (2, 32, 12, 12)


def layer(out=32):
    return torch.nn.Conv2d(32, out, 3, padding=1, groups=2)


def run(model):
    with torch.no_grad(), record_plans() as plans:
        model(torch.ones(SHAPE))
    return plans[0]


def test_a_process_measures_for_so_many_seconds_and_says_once_that_they_are_spent(caplog):
    Clock(lambda call: 1.0)
    before = requests()
    with groupwise.enabled(tune=True, calls=1, seconds=4), caplog.at_level(logging.WARNING, "groupwise"):
        sources = [run(layer(out)).source for out in range(2, 22, 2)]
    measured = requests() - before
    assert 1 <= measured <= 2, "PyTorch's two calls and one of ours take 3 seconds"
    assert sources == ["measured"] * measured + ["order"] * (10 - measured)
    (record,) = caplog.records
    assert "enable(seconds=...) lets it measure for longer" in record.getMessage()
    groupwise.forget()
    with groupwise.enabled(tune=True, seconds=4):
        assert run(layer()).source == "measured", "forgetting begins anew"


def test_what_the_budget_left_out_is_measured_again_a_few_times():
    model, able = layer(), candidates(layer(), SHAPE)
    if len(able) < 2:
        pytest.skip("one kernel is never left out")
    # A first call of ours takes more than the whole budget, so that each try measures one kernel.
    Clock(lambda call: 1e-3 if call % 4 < 2 else 10.0)
    before, known = requests(), []
    with groupwise.enabled(tune=True, calls=1, seconds=1e9):
        for _ in range(6):
            run(model)
            known.append(set(lines()[-1]["seconds"]))
    tries = requests() - before
    assert 2 <= tries <= 3
    assert all(a <= b for a, b in itertools.pairwise(known)), "what was measured stays"
    assert len(known[-1]) > len(known[0])
    assert [line["tries"] for line in lines()] == list(range(1, tries + 1))
    groupwise.disable()
    with groupwise.enabled(tune=True, calls=1):
        run(model)
    assert requests() - before == tries


def test_a_kernel_of_pytorch_that_always_fails_is_tried_a_few_times():
    code = """
import torch, groupwise
from groupwise.kernels import tuning
torch.backends.mkldnn.set_flags(False)
layer, source, failed = torch.nn.Conv2d(8, 8, 3), torch.ones(1, 8, 9, 9), []
def fail(*_, **__):
    failed.append(1)
    raise RuntimeError("out of memory")
library = torch.library.Library("aten", "IMPL")
library.impl("_slow_conv2d_forward", fail, "CPU")
with groupwise.enabled(tune=True), torch.no_grad():
    counts = []
    for _ in range(8):
        with groupwise.record_plans() as plans:
            try:
                layer(source)
            except RuntimeError:
                pass
        counts.append(len(failed) - (plans[0].kernel == "pytorch") * (len(counts) + 1))
assert counts[-1] == counts[2] > 0, counts
assert tuning.measured()["requests"] == 0 < tuning.measured()["seconds"], "calls that fail take time too"
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=120)


def test_another_build_measures_anew(monkeypatch):
    with groupwise.enabled(tune=True):
        run(layer())
    first = tuning.cache_path()
    assert len(lines(first)) == 1
    assert cache.key("2.13.0", "a") != cache.key("2.13.0", "b")
    assert len(native.digest()) == 12
    monkeypatch.setattr(native, "digest", lambda: "another")
    assert tuning.cache_path() != first
