"""The bound that kernels are held to: no run of luck breaks it, and small faults do."""

from __future__ import annotations

import pytest
import torch

import accuracy
from accuracy import check, check_values, oracle, step
from cases import layer_of
from groupwise import ConvSpec
from kernels import needs_kernels


@needs_kernels
@pytest.mark.parametrize("kernel", ["planar", "channels"])
def test_products_that_cancel_stay_within_the_bound(kernel):
    # One output of 38 products: relative to it, an error may be of any size.
    spec = ConvSpec(19, 1, 2, 2, 1, 2, 1, padding_mode="reflect", dims=1)
    for seed in range(200):
        torch.manual_seed(seed)
        layer, size = layer_of(spec, torch.float32), (3,)
        check(layer, torch.randn(1, 19, *size), torch.randn(1, 1, *spec.output_size(size)), kernel)


def made(transposed=False):
    spec = ConvSpec(32, 32, 3, padding=1, groups=2, transposed=transposed)
    layer = layer_of(spec, torch.float32)
    source, grad = torch.randn(2, 32, 12, 12), torch.randn(2, 32, 12, 12)
    return layer, source, grad, step(layer, source, grad)


@pytest.mark.parametrize("transposed", [False, True])
def test_pytorchs_own_step_is_within_the_bound(transposed):
    layer, source, grad, values = made(transposed)
    check_values(values, values, layer, source, grad)


@pytest.mark.parametrize("name", ["output", "grad_input", "grad_weight", "grad_bias"])
def test_a_product_that_is_missing_is_beyond_the_bound(name):
    layer, source, grad, values = made()
    good = dict(values)
    of, index = {
        "output": (source[0, 0, 5, 5] * layer.weight[0, 0, 1, 1], (0, 0, 5, 5)),
        "grad_input": (grad[0, 0, 5, 5] * layer.weight[0, 0, 1, 1], (0, 0, 5, 5)),
        "grad_weight": (source[0, 0, 5, 5] * grad[0, 0, 5, 5], (0, 0, 1, 1)),
        "grad_bias": (grad[0, 0, 5, 5], (0,)),
    }[name]
    values[name] = values[name].clone()
    values[name][index] -= of.detach()
    with pytest.raises(AssertionError, match=name):
        check_values(values, good, layer, source, grad)


@pytest.mark.parametrize("name", ["output", "grad_input", "grad_weight"])
def test_sums_that_round_several_times_as_much_are_too_inexact(name):
    layer, source, grad, values = made()
    exact = oracle(layer, source, grad)
    good = dict(values)
    values[name] = (exact[name] + 4 * (values[name] - exact[name])).float()
    with pytest.raises(AssertionError, match=name):
        check_values(values, good, layer, source, grad)


def test_the_oracle_is_right_where_pytorch_is_not():
    """PyTorch's gradient of this weight is wrong in float64: unbatched, input and weight in channels_last."""
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=2, dtype=torch.float64).to(memory_format=torch.channels_last)
    source = torch.randn(1, 8, 6, 7, dtype=torch.float64).contiguous(memory_format=torch.channels_last)[0]
    grad = torch.randn(8, 6, 7, dtype=torch.float64)
    expected = torch.zeros(8, 4, 3, 3, dtype=torch.float64)
    padded = torch.nn.functional.pad(source, (1, 1, 1, 1))
    for out in range(8):
        for kh in range(3):
            for kw in range(3):
                seen = padded[out // 4 * 4 : out // 4 * 4 + 4, kh : kh + 6, kw : kw + 7]
                expected[out, :, kh, kw] = (seen * grad[out]).sum((1, 2))
    torch.testing.assert_close(accuracy.oracle(layer, source, grad)["grad_weight"], expected)


@needs_kernels
@pytest.mark.parametrize("groups", [2, 8])
@pytest.mark.parametrize("kernel", ["", "planar", "channels"])
def test_unbatched_channels_last_layers(kernel, groups):
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups).to(memory_format=torch.channels_last)
    source = torch.randn(1, 8, 6, 7).contiguous(memory_format=torch.channels_last)[0]
    check(layer, source, torch.randn(8, 6, 7), kernel)
