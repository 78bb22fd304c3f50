"""Grouped layers of bfloat16 images: each result is that of float64, rounded once."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from accuracy import poisoned, threads
from groupwise.kernels.dispatch import forced
from kernels import ISAS, needs_kernels
from remembered import Remembered, fingerprint

pytestmark = needs_kernels

# Half of the distance between neighbours, relative to the number, with room for the rounding of float32 sums.
ROUNDING = 2.0**-8 * 1.01
# None is steeper than 1.5.
ACTIVATIONS = {
    ("none", ()): lambda x: x,
    ("relu", ()): functional.relu,
    ("relu6", ()): functional.relu6,
    ("hardtanh", (-0.7, 1.25)): lambda x: functional.hardtanh(x, -0.7, 1.25),
    ("leaky_relu", (0.3,)): lambda x: functional.leaky_relu(x, 0.3),
    ("silu", ()): functional.silu,
    ("hardswish", ()): functional.hardswish,
    ("hardsigmoid", ()): functional.hardsigmoid,
    ("sigmoid", ()): torch.sigmoid,
    ("tanh", ()): torch.tanh,
    ("gelu", ()): functional.gelu,
    ("gelu_tanh", ()): lambda x: functional.gelu(x, approximate="tanh"),
}
NONE = ("none", ())


def low(tensor):
    """In bfloat16 and channels_last."""
    return tensor.bfloat16().contiguous(memory_format=torch.channels_last)


_sums = Remembered()


def hold(x, weight, bias, geometry, before=NONE, after=NONE, residual=None, inplace=False):
    """Runs a layer, whose results are as near as bfloat16 can be to those of float64. Returns them."""
    words = (before[0], list(before[1]), residual is not None, after[0], list(after[1]))
    layer = torch.classes.groupwise.LowLayer(weight, bias, *geometry, *words)

    def sums(x, weight, bias):
        return functional.conv2d(x, weight, bias, *geometry, groups=x.shape[1] // weight.shape[1])

    def step():
        tensors = [None if t is None else t.double() for t in (x, weight, bias)]
        return sums(*tensors), sums(*(None if t is None else t.abs() for t in tensors))

    key = (str(geometry), *map(fingerprint, (x, weight, bias)))
    exact, size = _sums.get(key, step, lambda made: sum(t.numel() * t.element_size() for t in made))
    exact = ACTIVATIONS[before](exact)
    if residual is not None:
        exact, size = ACTIVATIONS[after](exact + residual.double()), size + residual.double().abs()
    with poisoned():
        made = layer.run_out(x, residual, residual) if inplace else layer.run(x, residual)
    assert made.dtype == torch.bfloat16
    assert made.shape == exact.shape
    off = (made.double() - exact).abs()
    assert (off <= ROUNDING * exact.abs() + 2e-5 * (size + 1)).all(), off.max()
    return made


def draw(shape, kernel, bias=True):
    x, weight = low(torch.randn(shape)), torch.randn(shape[1], 1, *kernel)
    return x, weight, torch.randn(shape[1]) if bias else None


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda given: given[0])
def test_every_activation(activation, isa):
    x, weight, bias = draw((2, 40, 9, 11), (3, 3))
    geometry = [[1, 1], [1, 1], [1, 1]]
    with forced(isa=isa):
        hold(x, weight, bias, geometry, activation)
        hold(x, weight, bias, geometry, activation, ("relu", ()), low(torch.randn(x.shape)))
        hold(x, weight, bias, geometry, NONE, activation, low(torch.randn(x.shape)))


@settings(max_examples=150)
@given(st.data())
def test_any_shape(data):
    def pairs(most, *square):
        lists = st.lists(st.integers(1, most), min_size=2, max_size=2)
        return data.draw(st.one_of(*(st.just([n, n]) for n in square), lists))

    kernel, stride, dilation = pairs(6, 1, 2, 3, 5, 7), pairs(3, 1, 2), pairs(3, 1, 2)
    padding = [data.draw(st.integers(0, d * k)) for d, k in zip(dilation, kernel, strict=True)]
    reach = [d * (k - 1) + 1 - 2 * p for d, k, p in zip(dilation, kernel, padding, strict=True)]
    sizes = [data.draw(st.integers(max(1, least), max(1, least) + 30)) for least in reach]
    channels = data.draw(st.one_of(st.integers(1, 100), st.sampled_from([144, 200, 528])))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x, weight, bias = draw((data.draw(st.integers(1, 3)), channels, *sizes), kernel, data.draw(st.booleans()))
    geometry = [stride, padding, dilation]
    count, isa = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from(ISAS))
    with threads(count), forced(isa=isa):
        made = hold(x, weight, bias, geometry)
        residual = low(torch.randn(made.shape))
        hold(x, weight, bias, geometry, ("silu", ()), ("relu", ()), residual)
        kept = residual.clone()
        again = hold(x, weight, bias, geometry, NONE, ("relu6", ()), kept)
        assert torch.equal(hold(x, weight, bias, geometry, NONE, ("relu6", ()), residual, True), again)


def test_any_strides_and_special_numbers():
    x, weight, bias = draw((2, 33, 8, 9), (3, 3))
    geometry = [[1, 1], [1, 1], [1, 1]]
    wanted = hold(x, weight, bias, geometry)
    assert torch.equal(hold(x.contiguous(), weight, bias, geometry), wanted)
    layer = torch.classes.groupwise.LowLayer(weight, bias, *geometry, "none", [], False, "none", [])
    out = torch.zeros(2, 33, 8, 9, dtype=torch.bfloat16)
    assert torch.equal(layer.run_out(x, None, out), wanted)
    x[0, 3, 4, 5], x[1, 4, 4, 5] = torch.nan, torch.inf
    made, weights = layer.run(x, None), weight.double()
    exact = functional.conv2d(x.double(), weights, bias.double(), padding=1, groups=33)
    assert torch.equal(made.isnan(), exact.isnan())
    assert torch.equal(made.isinf(), exact.isinf())


@pytest.mark.parametrize("channels", [9, 42])
def test_rounding_is_to_even(channels):
    """A product with one is the number itself, halfway or not. AVX512-BF16 rounds subnormal numbers to zero."""
    few = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -1 - 2**-8, 0.0, 3e38, torch.inf, torch.nan, 1e-40]
    # Fewer channels than a block of AVX-512, and more.
    numbers = torch.tensor([*few, *(1 + i * 2**-9 for i in range(33))])[:channels]
    x = low(torch.ones(1, channels, 1, 1))
    for isa in ISAS:
        with forced(isa=isa):
            layer = torch.classes.groupwise.LowLayer(
                numbers.reshape(channels, 1, 1, 1), None, [1, 1], [0, 0], [1, 1], "none", [], False, "none", []
            )
            made = layer.run(x, None).flatten()
        wanted = numbers.bfloat16()
        assert made[8] in (wanted[8], 0)
        made[8] = wanted[8]
        assert torch.equal(made.nan_to_num(-1.0), wanted.nan_to_num(-1.0))


def test_wrong_arguments():
    weight = torch.randn(8, 1, 3, 3)
    words = ("none", [], False, "none", [])
    make = torch.classes.groupwise.LowLayer
    for arguments, message in (
        ((torch.randn(8, 2, 3, 3), None), "depthwise"),
        ((torch.randn(8, 2, 3, 3).bfloat16(), None), "divides 16 or exceeds it"),
        ((torch.randn(16, 3, 3, 3).bfloat16(), None), "divides 16 or exceeds it"),
        ((weight.double(), None), "float32 weight"),
        ((weight, torch.randn(7)), "one float32 an output channel"),
    ):
        with pytest.raises(RuntimeError, match=message):
            make(*arguments, [1, 1], [1, 1], [1, 1], *words)
    with pytest.raises(RuntimeError, match="positive"):
        make(weight, None, [0, 1], [1, 1], [1, 1], *words)
    layer = make(weight, None, [1, 1], [0, 0], [1, 1], *words)
    x = low(torch.randn(1, 8, 5, 5))
    for arguments, message in (
        ((x.float(), None), "bfloat16 images of 8 channels"),
        ((x[:, :7], None), "bfloat16 images of 8 channels"),
        ((x[:, :, :2], None), "larger than the padded image"),
        ((x, x), "with a residual if"),
    ):
        with pytest.raises(RuntimeError, match=message):
            layer.run(*arguments)
    with pytest.raises(RuntimeError, match="another shape or dtype"):
        layer.run_out(x, None, torch.empty(1, 8, 3, 3))
    with pytest.raises(RuntimeError, match="memory"):
        make(weight, None, [1, 1], [1, 1], [1, 1], *words).run_out(x, None, x)


@settings(max_examples=100)
@given(st.data())
def test_groups_of_several_channels(data):
    group = data.draw(st.sampled_from([2, 4, 8, 16, 18, 24, 32, 40, 48]))
    channels = group * data.draw(st.integers(-(-16 // group), -(-16 // group) + 9))
    kernel, stride = data.draw(st.sampled_from([[3, 3], [1, 1], [5, 3], [2, 4]])), data.draw(st.sampled_from([1, 2, 3]))
    dilation = data.draw(st.sampled_from([1, 1, 2]))
    padding = [data.draw(st.integers(0, dilation * k)) for k in kernel]
    least = [dilation * (k - 1) + 1 - 2 * p for k, p in zip(kernel, padding, strict=True)]
    sizes = [data.draw(st.integers(max(1, size), max(1, size) + 20)) for size in least]
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = low(torch.randn(data.draw(st.integers(1, 2)), channels, *sizes))
    weight = torch.randn(channels, group, *kernel).bfloat16()
    bias = torch.randn(channels) if data.draw(st.booleans()) else None
    geometry = [[stride] * 2, padding, [dilation] * 2]
    count, isa = data.draw(st.sampled_from([1, 2, 3])), data.draw(st.sampled_from(ISAS))
    with threads(count), forced(isa=isa):
        made = hold(x, weight, bias, geometry)
        residual = low(torch.randn(made.shape))
        again = hold(x, weight, bias, geometry, ("silu", ()), ("relu6", ()), residual.clone())
        assert torch.equal(hold(x, weight, bias, geometry, ("silu", ()), ("relu6", ()), residual, True), again)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [4, 16, 32])
def test_groups_with_many_weights(group, isa):
    x, weight = low(torch.randn(1, 256, 7, 9)), torch.randn(256, group, 3, 3).bfloat16()
    for count in (1, 2):
        with threads(count), forced(isa=isa):
            hold(x, weight, None, [[1, 1], [1, 1], [1, 1]])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("group", "channels", "sizes", "kernel", "geometry"),
    [
        (8, 24, (41, 61), (3, 3), [[1, 1], [1, 1], [1, 1]]),  # some bands of rows
        (16, 32, (37, 50), (5, 5), [[2, 2], [2, 2], [1, 1]]),
        (48, 96, (23, 40), (3, 3), [[1, 1], [2, 2], [2, 2]]),
        (32, 32, (19, 33), (2, 3), [[2, 3], [0, 5], [1, 1]]),  # a row of padding alone
        (8, 16, (3, 12000), (3, 3), [[1, 1], [1, 1], [1, 1]]),  # a row that is too long to be copied
    ],
)
def test_bands_of_groups(group, channels, sizes, kernel, geometry, isa):
    torch.manual_seed(0)
    x, weight = low(torch.randn(2, channels, *sizes)), torch.randn(channels, group, *kernel).bfloat16()
    bias = torch.randn(channels)
    with forced(isa=isa):
        made = [hold(x, weight, bias, geometry, ("relu", ()))]
        for count in (2, 3):
            with threads(count):
                made.append(hold(x, weight, bias, geometry, ("relu", ())))
    assert all(torch.equal(one, made[0]) for one in made), "bits depend on no number of threads"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("group", [8, 16, 24, 32])
def test_special_numbers_stay_in_their_group(group, isa):
    x, weight = low(torch.randn(1, 3 * group, 9, 10)), torch.randn(3 * group, group, 3, 3).bfloat16()
    x[0, group + 1, 4, 5], x[0, 2 * group + 3, 8, 0] = torch.nan, torch.inf
    with forced(isa=isa):
        layer = torch.classes.groupwise.LowLayer(weight, None, [1, 1], [1, 1], [1, 1], "none", [], False, "none", [])
        made = layer.run(x, None)
    exact = functional.conv2d(x.double(), weight.double(), padding=1, groups=3)
    assert torch.equal(made.isnan(), exact.isnan())
    assert torch.equal(made.isinf(), exact.isinf())
