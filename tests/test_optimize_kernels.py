"""The kernels of groupwise as engines of an optimized network: packed once, with their epilogues, named in the plan."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import groupwise
from accuracy import threads
from groupwise.rewrite import choose, engines, low_engines, program
from kernels import DIRECT, needs_kernels, without_kernels
from optimized import check, kinds, settle

FORWARD = [name for name in DIRECT if name != "pixels"]


class Block(nn.Module):
    """Layers of each kind, and a sum whose first term nothing else reads."""

    def __init__(self, groups):
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(16, 32, 1), nn.BatchNorm2d(32), nn.SiLU())
        self.deep = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=groups), nn.BatchNorm2d(32), nn.GELU())
        self.back = nn.Sequential(nn.Conv2d(32, 16, 1, bias=False), nn.BatchNorm2d(16))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 24), nn.Hardtanh(-1, 2))

    def forward(self, image):
        start = torch.relu(image)
        return self.head(torch.relu(start + self.back(self.deep(self.wide(start)))))


def source():
    return torch.randn(2, 16, 9, 11).contiguous(memory_format=torch.channels_last)


def test_a_choice_says_why_a_shorter_time_does_not_count():
    seconds = {
        "onednn": [1.0, 3.0, 3.0],
        "matmul": [0.8, 9.0, 9.0],
        "groupwise": [0.99, 2.0, 2.0],
        "pytorch": [2, 2, 5],
    }
    assert choose.fastest(seconds) == "onednn"
    assert choose.reason_of(seconds, "onednn") == (
        "1000.000 ms, matmul 800.000 (slower at its median), groupwise 990.000 (too close to tell), pytorch 2000.000"
    )


def prefer(monkeypatch, kernel):
    """Let one kernel be the fastest where it runs, layer by layer."""
    monkeypatch.setattr(program, "runs_of", lambda *_: [])
    rows = tuple(row for row in engines.CONVOLUTION if row.name != "groupwise" or row.kernel == kernel)
    monkeypatch.setattr(low_engines, "CONVOLUTION", rows)
    name = f"groupwise {kernel}"
    monkeypatch.setattr(choose, "fastest", lambda seconds: name if name in seconds else "pytorch")


@needs_kernels
@pytest.mark.parametrize("kernel", FORWARD)
@pytest.mark.parametrize("groups", [4, 32])
def test_every_kernel_computes_what_the_model_does(groups, kernel, monkeypatch):
    prefer(monkeypatch, kernel)
    model = settle(Block(groups))
    fast = check(model, source(), tune=True)
    ran = [step for step in fast.plan.steps if step.kind == "convolution" and step.engine == "groupwise"]
    assert all(step.kernel == kernel for step in ran)
    if kernel == "planar":
        assert len(ran) == 3
        assert "groupwise planar" in str(fast.plan)
    with torch.no_grad():
        model.wide[0].weight.mul_(-2)
    check(model, source(), fast=fast)


@needs_kernels
@pytest.mark.parametrize("kernel", ["stem", "groups", "planar", "pytorch"])
@pytest.mark.parametrize("threads_", [1, 2])
def test_a_layer_reads_the_contiguous_image_that_enters_the_network(kernel, threads_, monkeypatch):
    prefer(monkeypatch, kernel)
    first = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.Hardswish())
    model = settle(nn.Sequential(first, nn.Conv2d(24, 24, 3, groups=24)))
    image = torch.randn(2, 3, 21, 30)
    with threads(threads_):
        fast = check(model, image, tune=True)
        assert kinds(fast)[0] == "convolution"
        assert fast.plan.steps[0].kernel == ("" if kernel == "pytorch" else kernel)
        with torch.inference_mode():
            once = fast(image)
            assert torch.equal(fast(image.clone()), once)
        with torch.no_grad():
            model[0][0].weight.mul_(-2)
        check(model, image, fast=fast)
        check(model, image.contiguous(memory_format=torch.channels_last), fast=fast)
        check(model, image.expand(2, 3, 21, 30)[..., ::2], fast=fast)


@needs_kernels
def test_the_planners_choice_is_measured_once():
    conv = nn.Conv2d(64, 64, 3, padding=1, groups=64)
    fast = groupwise.optimize(nn.Sequential(conv).eval(), torch.randn(1, 64, 28, 28), tune=True)
    (step,) = [step for step in fast.plan.steps if step.kind == "convolution"]
    measured = [name for name in step.ms if name.startswith("groupwise")]
    chosen = groupwise.plan(conv, (1, 64, 28, 28), memory_format="channels_last").kernel
    assert ("groupwise" in measured) == (chosen != "pytorch")
    assert f"groupwise {chosen}" not in measured


def test_without_kernels_there_is_a_reason(monkeypatch):
    without_kernels(monkeypatch)
    fast = check(settle(Block(4)), source())
    assert "not groupwise: there is none" in str(fast.plan)
    assert "groupwise" not in fast.plan.engines
