"""Layers that PyTorch 2.13 computes wrong, and groupwise does not."""

from __future__ import annotations

import pytest
import torch

import groupwise
from groupwise.kernels import native, tables
from groupwise.kernels.plan import KERNELS
from kernels import needs_kernels

pytestmark = needs_kernels


@pytest.mark.parametrize("groups", [2, 4])
def test_a_gradient_of_the_weight_that_is_wrong_in_pytorch_stays_here(groups):
    """Also where the timings are for PyTorch's kernel. The oracle is a loop over taps in float64."""
    width = 8 // groups
    weight = torch.randn(8, width, 3, 3).contiguous(memory_format=torch.channels_last).requires_grad_()
    source = torch.randn(1, 8, 6, 6).contiguous(memory_format=torch.channels_last)[0]
    grad = torch.randn(8, 4, 4)
    exact = torch.zeros(weight.shape, dtype=torch.float64)
    for o in range(8):
        for c in range(width):
            for h in range(3):
                for w in range(3):
                    read = source[o // width * width + c, h : h + 4, w : w + 4]
                    exact[o, c, h, w] = (grad[o].double() * read.double()).sum()
    library, isa = native.library(), native.status().isa
    slow = {"overhead": 1.0, "reached": [[[0.5] * 5] * 2] * 3}
    told = {"classes": ["a-1"], "rows": 1, "spread": 1.0, "kernels": dict.fromkeys(KERNELS, slow)}
    told["kernels"]["pytorch"] = {**slow, "overhead": 0.0}
    # The context manager of torch.backends warns of GPUs.
    torch._C._set_mkldnn_enabled(False)
    try:
        tables.give_model(library, told)
        with groupwise.enabled(), groupwise.record_plans() as plans:
            output = torch.nn.functional.conv2d(source, weight, groups=groups)
            (found,) = torch.autograd.grad(output, weight, grad)
    finally:
        torch._C._set_mkldnn_enabled(True)
        tables.clear(library, isa)
    torch.testing.assert_close(found.double(), exact, atol=1e-4, rtol=1e-4)
    assert [plan.direction for plan in plans if plan.kernel != "pytorch"] == ["grad_weight"]
    assert plans[-1].evidence == "PyTorch's kernel is wrong here"


def test_optimize_leaves_no_gradient_to_a_kernel_of_pytorch_that_reads_elsewhere():
    """Also the model's own step, to which the traced one is compared. Outputs at the border see padding alone."""
    model = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 1, padding=1, bias=False), torch.nn.Tanh())
    with groupwise.record_plans() as plans:
        groupwise.optimize(model, torch.randn(2, 4, 6, 6), train=True, tune=False)
    found = [plan for plan in plans if plan.direction == "grad_weight"]
    assert len(found) == 2
    for plan in found:
        assert plan.kernel != "pytorch"
        assert plan.evidence == "PyTorch's kernel may read outside its tensors here"
