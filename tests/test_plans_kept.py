"""Plans are kept by request: one for tensors that are alike, and anew where something was learned."""

from __future__ import annotations

import threading

import pytest
import torch

import groupwise
from groupwise import ConvSpec, plan, record_plans
from groupwise.kernels.dispatch import forced
from kernels import needs_kernels
from tuned import requests

pytestmark = needs_kernels


ALIKE = {
    "channels of a wider tensor": lambda: torch.randn(1, 64, 12, 12)[:, :32],
    "one row": lambda: torch.randn(1, 32, 3, 12)[:, :, 1:2],
    "channels_last": lambda: torch.randn(1, 64, 12, 12).contiguous(memory_format=torch.channels_last)[:, :32],
}


@pytest.mark.parametrize("name", ALIKE)
def test_strides_of_single_elements_make_no_plan_of_their_own(own_cache, name):
    x = ALIKE[name]()
    layer = torch.nn.Conv2d(32, 32, (1, 3), groups=8)
    dense = x.clone(memory_format=torch.preserve_format)
    with torch.inference_mode(), groupwise.enabled(tune=True), record_plans() as plans:
        layer(dense)
        before = requests()
        layer(x)
        if name == "channels of a wider tensor":
            assert requests() == before
    assert plans[0].source == "measured"


@pytest.mark.parametrize("shape", [(1, 32, 64), (3, 32, 64), (1, 32, 9, 9), (2, 32, 1, 9)])
def test_what_was_measured_is_what_plan_says(own_cache, shape):
    layer = (torch.nn.Conv1d if len(shape) == 3 else torch.nn.Conv2d)(32, 32, 3, padding=1, groups=8)
    with torch.inference_mode(), groupwise.enabled(tune=True), record_plans() as plans:
        layer(torch.randn(shape))
    assert plan(layer, shape) == plans[0]
    assert plans[0].source == "measured"


def test_other_threads_plan_anew_after_tuning(own_cache):
    layer, x = torch.nn.Conv2d(32, 32, 3, groups=8), torch.randn(1, 32, 9, 9)
    sources, turns = [], [threading.Event(), threading.Event()]

    def work():
        for turn in turns:
            turn.wait(30)
            with torch.inference_mode(), forced(True), record_plans() as plans:
                layer(x)
            sources.append(plans[0].source)
            ran.set()

    ran = threading.Event()
    worker = threading.Thread(target=work)
    worker.start()
    turns[0].set()
    assert ran.wait(30)
    groupwise.tune(layer, x)
    turns[1].set()
    worker.join(30)
    assert sources == ["order", "measured"]


def test_sizes_whose_products_cannot_be_counted_are_refused():
    told = plan(ConvSpec(4096, 4096, 3, padding=1, groups=64), (1, 4096, 2**24, 2**24))
    assert told.kernel == "pytorch"
    assert told.refused["planar"] == "supports up to 2**52 products"
    assert plan(ConvSpec(8, 8, 3, padding=1), (1, 8, 2**20, 2**20), memory_format="channels_last").products > 0
