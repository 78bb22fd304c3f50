"""What torch.profiler shows of the kernels: a name, and the shapes of the tensors that they read."""

from __future__ import annotations

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

import groupwise
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

pytestmark = needs_kernels


def shown(run, record_shapes=True):
    """Name, shapes and caller of each kernel of groupwise, in order."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=record_shapes) as made:
        run()
    events = [event for event in made.events() if event.name.startswith("groupwise::")]
    return [(event.name, event.input_shapes, event.cpu_parent and event.cpu_parent.name) for event in events]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", ["planar", "narrow"])
def test_a_training_step_shows_each_pass(isa, kernel):
    conv = torch.nn.Conv2d(32, 32, 3, groups=8)
    formats = {"planar": torch.contiguous_format, "narrow": torch.channels_last}
    x = torch.randn(2, 32, 9, 9).contiguous(memory_format=formats[kernel])
    x.requires_grad_()
    with forced(True, kernel, isa):
        found = shown(lambda: conv(x).sum().backward())
    weight, y = [32, 4, 3, 3], [2, 32, 7, 7]
    assert found == [
        (f"groupwise::{kernel} {isa}", [[2, 32, 9, 9], weight, [32]], "aten::convolution"),
        (f"groupwise::{kernel} grad_input {isa}", [y, weight, []], "aten::convolution_backward"),
        (f"groupwise::{kernel} grad_weight {isa}", [[2, 32, 9, 9], y], "aten::convolution_backward"),
    ]


def test_a_transposed_forward_is_a_grad_input():
    conv = torch.nn.ConvTranspose1d(4, 4, 3, groups=4, bias=False)
    with forced(True, "planar", ISAS[0]), torch.no_grad():
        ((name, shapes, _),) = shown(lambda: conv(torch.randn(1, 4, 9)))
    assert (name, shapes) == (f"groupwise::planar grad_input {ISAS[0]}", [[1, 4, 9], [4, 1, 3], []])


def test_nothing_is_shown_that_pytorch_computes():
    conv = torch.nn.Conv2d(8, 8, 3, groups=4)
    with forced(False):
        assert shown(lambda: conv(torch.randn(1, 8, 9, 9))) == []


def test_shapes_are_only_there_if_they_are_asked_for():
    conv = torch.nn.Conv2d(8, 8, 3, groups=4)
    with forced(True, "planar"), torch.no_grad():
        ((_, shapes, _),) = shown(lambda: conv(torch.randn(1, 8, 9, 9)), record_shapes=False)
    assert not shapes


def test_an_optimized_network_shows_its_layers():
    """Its program calls no operator of PyTorch for them."""
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 16, 3, groups=4), torch.nn.BatchNorm2d(16), torch.nn.ReLU()).eval()
    x = torch.randn(1, 16, 9, 9)
    with forced(isa=ISAS[-1]):
        network = groupwise.optimize(model, x, tune=False)
    with forced(isa=ISAS[-1]), torch.inference_mode():
        network(x)
        names = {name: shapes for name, shapes, _ in shown(lambda: network(x))}
    (kernel,) = [step.kernel for step in network.plan.steps if step.kernel]
    assert names == {f"groupwise::{kernel} {ISAS[-1]}": [[1, 16, 9, 9], [16, 4, 3, 3], [16], []]}


def test_chains_and_bfloat16_layers_are_shown():
    geometry = [1, 1], [0, 0], [1, 1]
    layers = tuple(
        torch.classes.groupwise.Layer(
            torch.randn(16, 16, 1, 1), None, *geometry, False, [0, 0], 1, "relu", [], False, "none", [], ""
        )
        for _ in range(2)
    )
    last = torch.channels_last
    x = torch.randn(1, 16, 9, 9).contiguous(memory_format=last)
    chain = torch.classes.groupwise.Chain(layers, 0)
    with forced(isa=ISAS[0]):
        ((name, shapes, _),) = shown(lambda: chain.run(x, None))
    assert (name, shapes) == (f"groupwise::chain {ISAS[0]}", [[1, 16, 9, 9], []])
    low = torch.classes.groupwise.LowLayer(torch.randn(16, 1, 3, 3), None, *geometry, "none", [], False, "none", [])
    product = torch.classes.groupwise.LowProduct(
        torch.randn(16, 16, 1, 1).bfloat16(), None, "none", [], False, "none", []
    )
    for layer, begin in ((low, "groupwise::low "), (product, "groupwise::low_product ")):
        ((name, shapes, _),) = shown(lambda layer=layer: layer.run(x.bfloat16(), None))
        assert name.startswith(begin)
        assert shapes[0] == [1, 16, 9, 9]
