"""The bound that kernels are held to: no run of luck breaks it, and small faults do."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import accuracy
from accuracy import check, check_values, oracle, step
from cases import layer_of
from groupwise import ConvSpec
from kernels import OURS, needs_kernels


@needs_kernels
@pytest.mark.parametrize("kernel", OURS)
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
    check_values(values, layer, source, grad)


@pytest.mark.parametrize("name", ["output", "grad_input", "grad_weight", "grad_bias"])
def test_a_product_that_is_missing_is_beyond_the_bound(name):
    layer, source, grad, values = made()
    of, index = {
        "output": (source[0, 0, 5, 5] * layer.weight[0, 0, 1, 1], (0, 0, 5, 5)),
        "grad_input": (grad[0, 0, 5, 5] * layer.weight[0, 0, 1, 1], (0, 0, 5, 5)),
        "grad_weight": (source[0, 0, 5, 5] * grad[0, 0, 5, 5], (0, 0, 1, 1)),
        "grad_bias": (grad[0, 0, 5, 5], (0,)),
    }[name]
    values[name] = values[name].clone()
    values[name][index] -= of.detach()
    with pytest.raises(AssertionError, match=name):
        check_values(values, layer, source, grad)


def summed(products, run):
    """Sums over the last dimension by float32 additions, in runs, which depend on no kernel and no processor."""
    total = np.zeros(products.shape[:-1], np.float32)
    for first in range(0, products.shape[-1], run):
        part = np.zeros_like(total)
        for n in range(first, min(first + run, products.shape[-1])):
            part += products[..., n]
        total += part
    return torch.from_numpy(total)


def products_of(name, source, weight, grad):
    """The products of a 1x1 layer of one group, rounded to float32."""
    x, w, g = source.flatten(2).numpy(), weight.flatten(1).numpy(), grad.flatten(2).numpy()
    if name == "output":
        return np.einsum("nip,oi->nopi", x, w)
    if name == "grad_input":
        return np.einsum("nop,oi->nipo", g, w)
    return np.einsum("nip,nop->oinp", x, g).reshape(w.shape[0], w.shape[1], -1)


@pytest.mark.parametrize("sign", ["both signs", "one sign"])
@pytest.mark.parametrize("name", ["output", "grad_input", "grad_weight"])
def test_the_error_of_sums_in_runs_is_as_expected(name, sign):
    """Sums in runs of 192 pass; errors three times as large do not."""
    torch.manual_seed(0)
    in_channels, out_channels, height = {
        "output": (600, 30, 1),
        "grad_input": (30, 600, 1),
        "grad_weight": (30, 30, 20),
    }[name]
    layer = torch.nn.Conv2d(in_channels, out_channels, 1, bias=False)
    source, grad = torch.randn(1, in_channels, height, 30), torch.randn(1, out_channels, height, 30)
    if sign == "one sign":
        layer.weight.data.abs_()
        source, grad = source.abs(), grad.abs()
    exact, runs = oracle(layer, source, grad), {name: accuracy.RUN}
    value = summed(products_of(name, source, layer.weight.detach(), grad), accuracy.RUN).view(exact[name].shape)
    check_values({name: value}, layer, source, grad, runs)
    ratio = accuracy.mean_error(value, exact[name]) / accuracy.expected_errors(layer, source, grad, runs)[name]
    assert 0.5 < ratio < 0.9
    with pytest.raises(AssertionError, match=name):
        check_values({name: exact[name] + 3 * (value - exact[name])}, layer, source, grad, runs)


@pytest.mark.parametrize("sign", ["both signs", "one sign"])
def test_sums_in_one_go_are_too_inexact(sign):
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(6000, 25, 1, bias=False)
    source, grad = torch.randn(1, 6000, 5, 5), torch.randn(1, 25, 5, 5)
    if sign == "one sign":
        layer.weight.data.abs_()
        source = source.abs()
    products = products_of("output", source, layer.weight.detach(), grad)
    for run in (accuracy.RUN, products.shape[-1]):
        values = {"output": summed(products, run).view(1, 25, 5, 5)}
        if run == accuracy.RUN:
            check_values(values, layer, source, grad, {"output": accuracy.RUN})
            continue
        with pytest.raises(AssertionError, match="output"):
            check_values(values, layer, source, grad, {"output": accuracy.RUN})


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
@pytest.mark.parametrize("kernel", ["", *OURS])
def test_unbatched_channels_last_layers(kernel, groups):
    layer = torch.nn.Conv2d(8, 8, 3, padding=1, groups=groups).to(memory_format=torch.channels_last)
    source = torch.randn(1, 8, 6, 7).contiguous(memory_format=torch.channels_last)[0]
    check(layer, source, torch.randn(8, 6, 7), kernel)
