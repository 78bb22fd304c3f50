"""Transposed layers fitted to calibration data, against numpy's least squares in float64."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.convert.gather import GatheredConv
from groupwise.choose.convert.refit import refit

KINDS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def least_squares(layer: nn.Module, runs, targets) -> tuple[torch.Tensor, torch.Tensor | None, float]:
    """The best weight and bias by numpy, and their relative squared error.

    A column of the matrix is what the layer computes with one parameter set to 1. `runs` call it.
    """
    own = copy.deepcopy(layer).requires_grad_(False)
    parameters = [own.weight] if own.bias is None else [own.weight, own.bias]
    best = [torch.zeros_like(one) for one in parameters]
    for one in parameters:
        one.zero_()
    inside = layer.out_channels // layer.groups
    error = 0.0
    for channel in range(layer.out_channels):
        t, place = divmod(channel, inside)
        rows = own.weight.chunk(layer.groups)[t].select(1, place)
        slots = [(rows, index) for index in np.ndindex(*rows.shape)]
        if own.bias is not None:
            slots.append((own.bias, (channel,)))
        columns = []
        for tensor, index in slots:
            tensor[index] = 1.0
            columns.append(np.concatenate([run(own)[:, channel].numpy().ravel() for run in runs]))
            tensor[index] = 0.0
        matrix = np.stack(columns, axis=1)
        wanted = np.concatenate([y[:, channel].numpy().ravel() for y in targets])
        solution = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
        error += float(np.square(matrix @ solution - wanted).sum())
        for value, (tensor, index) in zip(solution, slots, strict=True):
            if tensor is own.bias:
                best[1][index] = value
            else:
                best[0].chunk(layer.groups)[t].select(1, place)[index] = value
    bias = None if own.bias is None else best[1]
    return best[0], bias, error / sum(float(y.square().sum()) for y in targets)


@st.composite
def layers(draw):
    """A transposed layer of any kind, and the extents of its inputs."""
    dims = draw(st.integers(1, 3))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    reach = [step * (taps - 1) + 1 for step, taps in zip(dilation, kernel, strict=True)]
    groups = draw(st.integers(1, 3))
    layer = KINDS[dims](
        groups * draw(st.integers(1, 2)),
        groups * draw(st.integers(1, 2)),
        kernel,
        stride=stride,
        # Beyond the reach it crops the input.
        padding=tuple(draw(st.integers(0, min(extent, 2))) for extent in reach),
        output_padding=tuple(draw(st.integers(0, max(a, b) - 1)) for a, b in zip(stride, dilation, strict=True)),
        groups=groups,
        bias=draw(st.booleans()),
        dilation=dilation,
        dtype=torch.float64,
    )
    return layer, tuple(draw(st.integers(3, 6 if dims < 3 else 4)) for _ in range(dims)), draw(st.booleans())


@settings(deadline=None, max_examples=20)
@given(layers())
def test_a_transposed_layer_is_fitted_by_least_squares(drawn):
    layer, extents, last = drawn
    inputs = [random(2, layer.in_channels, *extents, seed=1), random(1, layer.in_channels, *extents, seed=2)]
    if last and len(extents) > 1:
        kind = {2: torch.channels_last, 3: torch.channels_last_3d}[len(extents)]
        inputs = [x.to(memory_format=kind) for x in inputs]
        layer = layer.to(memory_format=kind)
    targets = [random(*layer(x).shape, seed=3) for x in inputs]
    before = copy.deepcopy(layer.state_dict())
    found = refit(layer, inputs, targets, ridge=0)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    _, _, error = least_squares(layer, [lambda own, x=x: own(x) for x in inputs], targets)
    fitted = copy.deepcopy(layer)
    with torch.no_grad():
        fitted.weight.copy_(found.weight)
        if layer.bias is not None:
            fitted.bias.copy_(found.bias)
        made = [fitted(x) for x in inputs]
    told = sum(float((a - b).square().sum()) for a, b in zip(made, targets, strict=True))
    told /= sum(float(y.square().sum()) for y in targets)
    assert found.after == pytest.approx(told, rel=1e-9)
    assert found.after == pytest.approx(error, rel=1e-8, abs=1e-12)
    assert found.after <= found.before
    assert found.positions == found.of == sum(y[:, 0].numel() for y in targets)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_the_weight_and_the_bias_are_those_of_the_least_squares(dims):
    torch.manual_seed(0)
    layer = KINDS[dims](4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dtype=torch.float64)
    inputs = [random(4, 4, *[6] * dims, seed=1)]
    targets = [random(*layer(inputs[0]).shape, seed=3)]
    found = refit(layer, inputs, targets, ridge=0)
    weight, bias, _ = least_squares(layer, [lambda own: own(inputs[0])], targets)
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.bias, bias, rtol=0, atol=1e-9)


@pytest.mark.parametrize("extents", [(11, 12), (12, 11)])
def test_targets_may_have_an_output_size_of_their_own(extents):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, groups=2, dtype=torch.float64)
    x = random(2, 4, 6, 6)
    target = random(2, 6, *extents, seed=1)
    found = refit(layer, x, target, ridge=0)
    weight, bias, error = least_squares(layer, [lambda own: own(x, output_size=extents)], [target])
    torch.testing.assert_close(found.weight, weight, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.bias, bias, rtol=0, atol=1e-9)
    assert found.after == pytest.approx(error, rel=1e-9)
    for wrong in ((13, 12), (10, 11)):
        with pytest.raises(GroupwiseError, match=r"the layer's output for these inputs has \(2, 6, 11, 11\)"):
            refit(layer, x, random(2, 6, *wrong))


@pytest.mark.parametrize("seed", range(6))
def test_a_fit_of_few_positions_never_raises_the_error(seed):
    torch.manual_seed(seed)
    layer = nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, dtype=torch.float64)
    x = random(2, 4, 5, 5, seed=seed)
    target = layer(x).detach()
    target += 1e-3 * random(*target.shape, seed=seed + 100)
    found = refit(layer, x, target, positions=3, ridge=0, seed=seed)
    assert found.positions == 3
    assert found.after <= found.before
    if found.after == found.before:
        assert torch.equal(found.weight, layer.weight)


class Upscaled(nn.Module):
    """Two transposed layers between others; the second one is told how large its output is."""

    def __init__(self, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.stem, self.middle, self.last = conv(3, 8, 1), conv(8, 8, 1), conv(8, 2, 1)
        self.up = KINDS[dims](8, 8, 3, stride=2, padding=1, output_padding=1)
        self.sized = KINDS[dims](8, 8, 3, stride=2, padding=1)

    def forward(self, x):
        up = self.middle(F.relu(self.up(F.relu(self.stem(x)))))
        size = [2 * up.shape[2 + axis] for axis in range(len(self.sized.stride))]
        return self.last(F.relu(self.sized(up, output_size=size)))


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("gather", [False, True])
def test_transposed_layers_of_a_model_are_fitted_as_told(dims, gather):
    torch.manual_seed(0)
    net = Upscaled(dims).double().eval()
    x = random(12, 3, *[4] * dims)
    before = copy.deepcopy(net.state_dict())
    made = groupwise.regroup(net, {"up": 2, "sized": 4}, data=[x[:7], x[7:]], gather=gather)
    without = groupwise.regroup(net, {"up": 2, "sized": 4}, gather=gather)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    for row in made.rows:
        assert row.fitted < row.error < 1
    # Fitted, the whole network is closer too.
    wanted, errors = net(x), []
    for model in (without.model, made.model):
        errors.append(float(F.mse_loss(model(x), wanted).detach()))
    assert errors[1] < errors[0]


def test_a_transposed_layer_that_gathers_takes_an_output_size():
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(8, 8, 3, stride=2, groups=2)
    gathered = GatheredConv(layer, torch.randperm(8), torch.arange(8))
    x = torch.randn(1, 8, 4, 4)
    wanted = layer(x[:, gathered.inputs], output_size=(10, 9))
    torch.testing.assert_close(gathered(input=x, output_size=(10, 9)), wanted)


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("padding", "output_padding", "length"), [(2, 4, 1), (1, 3, 1), (3, 4, 2), (2, 4, 3)])
def test_what_is_cropped_before_and_padded_behind_is_fitted(dims, padding, output_padding, length):
    """The crop at the one end is larger than the stretched input, and PyTorch runs the layer."""
    torch.manual_seed(0)
    options = {"stride": 5, "padding": padding, "output_padding": output_padding, "dtype": torch.float64}
    layer = KINDS[dims](4, 4, 1, groups=2, **options)
    runs = [random(40, 4, *[length] * dims, seed=seed) for seed in range(2)]
    targets = [random(*layer(x).shape, seed=9) for x in runs]
    calls = [lambda own, x=x: own(x).detach() for x in runs]
    weight, bias, error = least_squares(layer, calls, targets)
    fitted = refit(layer, runs, targets, ridge=0.0, positions=10**6)
    # Where all of the input is cropped, any weight is right.
    if layer(runs[0]).std(0).max() > 0:
        torch.testing.assert_close(fitted.weight, weight, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(fitted.bias, bias, rtol=1e-8, atol=1e-10)
    assert fitted.after == pytest.approx(error, rel=1e-8)
