"""Products of bfloat16 pixels or rows and a weight: each result is that of float64, rounded once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels
from test_low_layer import ACTIVATIONS, NONE, ROUNDING, low

pytestmark = needs_kernels


def exact(x, weight, bias):
    return functional.conv2d(x, weight, bias) if weight.dim() == 4 else functional.linear(x, weight, bias)


def hold(x, weight, bias, before=NONE, after=NONE, residual=None, inplace=False):
    words = (before[0], list(before[1]), residual is not None, after[0], list(after[1]))
    layer = torch.classes.groupwise.LowProduct(weight, bias, *words)
    doubles = [None if given is None else given.double() for given in (x, weight, bias)]
    true = ACTIVATIONS[before](exact(*doubles))
    size = exact(*(None if given is None else given.abs() for given in doubles))
    if residual is not None:
        true, size = ACTIVATIONS[after](true + residual.double()), size + residual.double().abs()
    with poisoned():
        made = layer.run_out(x, residual, residual) if inplace else layer.run(x, residual)
    assert made.dtype == torch.bfloat16
    assert made.shape == true.shape
    off = (made.double() - true).abs()
    assert (off <= ROUNDING * true.abs() + 2e-5 * (size + 1)).all(), off.max()
    return made


def draw(shape, outputs, bias=True, images=True):
    inputs = shape[1] if images else shape[-1]
    x = low(torch.randn(shape)) if images else torch.randn(shape).bfloat16()
    weight = torch.randn(outputs, inputs, *([1, 1] if images else [])).bfloat16()
    return x, weight, torch.randn(outputs) if bias else None


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda given: given[0])
def test_every_activation(activation, isa):
    x, weight, bias = draw((2, 24, 5, 7), 40)
    residual = low(torch.randn(2, 40, 5, 7))
    with forced(isa=isa):
        hold(x, weight, bias, activation)
        hold(x, weight, bias, activation, ("relu", ()), residual)
        hold(x, weight, bias, NONE, activation, residual)


@settings(max_examples=150)
@given(st.data())
def test_any_shape(data):
    images = data.draw(st.booleans())
    inputs = 2 * data.draw(st.one_of(st.integers(1, 60), st.just(300)))
    outputs = data.draw(st.one_of(st.integers(1, 200), st.sampled_from([256, 1000])))
    sizes = [data.draw(st.integers(1, 20)) for _ in range(2 if images else data.draw(st.integers(0, 2)))]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    shape = (data.draw(st.integers(1, 3)), inputs, *sizes) if images else (*sizes, inputs)
    x, weight, bias = draw(shape, outputs, data.draw(st.booleans()), images)
    with threads(data.draw(st.sampled_from([1, 2, 3]))), forced(isa=data.draw(st.sampled_from(ISAS))):
        made = hold(x, weight, bias)
        residual = low(torch.randn(made.shape)) if images else torch.randn(made.shape).bfloat16()
        again = hold(x, weight, bias, ("silu", ()), ("relu6", ()), residual)
        assert torch.equal(hold(x, weight, bias, ("silu", ()), ("relu6", ()), residual.clone(), True), again)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("pixels", [1, 49, 196, 3136])
def test_threads_share_any_number_of_pixels(pixels, isa):
    for outputs in (24, 130, 960):
        x, weight, bias = draw((1, 64, pixels, 1), outputs)
        with forced(isa=isa):
            made = [hold(x, weight, bias)]
            for count in (2, 3, 4):
                with threads(count):
                    made.append(hold(x, weight, bias))
        assert all(torch.equal(one, made[0]) for one in made), "bits depend on no number of threads"


def test_any_strides_and_special_numbers():
    x, weight, bias = draw((2, 20, 5, 6), 34)
    wanted = hold(x[:, :10], weight[:, :10], bias)
    assert torch.equal(hold(x[:, :10].contiguous(), weight[:, :10], bias), wanted)
    hold(x[:, 10:], weight[:, 10:], bias)
    hold(x[:, ::2], weight[:, ::2], bias)
    hold(x[:, :, ::2, 1:], weight, bias)
    hold(x[:, :, :1, :1], weight, bias)
    hold(x[:1].expand(3, -1, -1, -1), weight, bias)
    layer = torch.classes.groupwise.LowProduct(weight, bias, "none", [], False, "none", [])
    out = torch.zeros(2, 34, 5, 6, dtype=torch.bfloat16)
    assert torch.equal(layer.run_out(x, None, out), layer.run(x, None))
    x[0, 3, 2, 1] = torch.nan
    assert torch.equal(layer.run(x, None).isnan(), exact(x.double(), weight.double(), bias.double()).isnan())


def test_wrong_arguments():
    make, words = torch.classes.groupwise.LowProduct, ("none", [], False, "none", [])
    weight = torch.randn(8, 4, 1, 1).bfloat16()
    for arguments, message in (
        ((weight.float(), None), "takes the bfloat16 weight"),
        ((torch.randn(8, 4, 3, 3).bfloat16(), None), "1x1 convolution"),
        ((weight[:, :3], None), "an even number of inputs"),
        ((weight, torch.randn(7)), "one float32 an output channel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            make(*arguments, *words)
    layer = make(weight, None, *words)
    x = low(torch.randn(1, 4, 5, 5))
    for arguments, message in (
        ((x.float(), None), "bfloat16 images of 4 numbers"),
        ((x[:, :2], None), "bfloat16 images of 4 numbers"),
        ((x, x), "with a residual if"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.run(*arguments)
    with pytest.raises(RuntimeError, match="another shape or dtype"):
        layer.run_out(x, None, torch.empty(1, 8, 3, 3))
