"""Wide groups, whose tiles share the inputs of taps: every width of a tile, odd rows, and part-filled vectors."""

import pytest
import torch

import groupwise
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels

FORMATS = (torch.contiguous_format, torch.channels_last)
# Channels of a group, groups, height, width, kernel, stride, padding.
LAYERS = [(16, 3, 14, 14, 3, 1, 1), (32, 2, 7, 7, 3, 1, 1), (24, 2, 9, 10, 3, 1, 1), (40, 1, 5, 8, 3, 1, 1)]
LAYERS += [(16, 2, height, width, 3, 1, 1) for height, width in ((7, 7), (3, 8), (5, 10), (1, 12), (13, 27), (8, 21))]
LAYERS += [(16, 2, 28, 28, 3, 2, 1), (48, 2, 15, 17, 3, 2, 1), (16, 2, 17, 15, 2, 2, 0), (20, 3, 16, 30, 5, 2, 2)]
LAYERS += [(16, 2, 12, 20, 5, 1, 2), (72, 1, 9, 16, 4, 1, 1), (100, 2, 8, 8, 3, 1, 1), (9, 4, 11, 14, 7, 1, 3)]


@needs_kernels
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_sums_are_those_of_doubles(isa, layer):
    channels, groups, height, width, kernel, stride, padding = layer
    torch.manual_seed(0)
    for memory_format in FORMATS:
        x = torch.randn(2, channels * groups, height, width).contiguous(memory_format=memory_format)
        weight = torch.randn(channels * groups, channels, kernel, kernel).contiguous(memory_format=memory_format)
        bias = torch.randn(channels * groups)
        settings = ([stride] * 2, [padding] * 2, [1, 1], False, [0, 0], groups)
        expected = torch.ops.aten.convolution(x.double(), weight.double(), bias.double(), *settings)
        grad = torch.randn(expected.shape).contiguous(memory_format=memory_format)
        mask = [True, False, False]
        (expected_grad, *_) = torch.ops.aten.convolution_backward(
            grad.double(), x.double(), weight.double(), None, *settings, mask
        )
        with torch.inference_mode(), forced(True, "groups", isa), groupwise.record_plans() as plans:
            got = torch.ops.aten.convolution(x, weight, bias, *settings)
            (got_grad, *_) = torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)
        assert [plan.kernel for plan in plans] == ["groups", "groups"]
        torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(got_grad.double(), expected_grad, rtol=1e-5, atol=2e-4)
