"""Refit, factored forms and new BatchNorm statistics, against numpy's least squares and singular values."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from groupwise import GroupwiseError
from groupwise.choose.convert.batch_norm import recalibrate
from groupwise.choose.convert.factored import factored, monarch
from groupwise.choose.convert.refit import refit
from groupwise.nn import BatchNormAct2d

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
FUNCTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(dims: int = 2, **options) -> nn.Module:
    torch.manual_seed(0)
    return CONVS[dims](4, 6, **{"kernel_size": 3, "groups": 2, "dtype": torch.float64, **options})


def loss(layer: nn.Module, weight, bias, inputs, targets) -> float:
    """The relative squared error of the layer with other parameters."""
    other = copy.deepcopy(layer)
    with torch.no_grad():
        other.weight.copy_(weight)
        if bias is not None:
            other.bias.copy_(bias)
        error = sum((other(x) - y).square().sum() for x, y in zip(inputs, targets, strict=True))
    return float(error / sum(y.square().sum() for y in targets))


def least_squares(layer: nn.Module, inputs, targets) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias by numpy: the columns of the matrix are the layer's outputs for one parameter set to 1."""
    weight, bias = torch.zeros_like(layer.weight), torch.zeros_like(layer.bias)
    fitted = (weight.numpy().copy(), bias.numpy().copy())
    for channel in range(layer.out_channels):
        columns = []
        for values in (weight[channel].view(-1), bias[channel : channel + 1]):
            for place in range(len(values)):
                values[place] = 1.0
                columns.append(forward(layer, weight, bias, inputs, channel))
                values[place] = 0.0
        wanted = np.concatenate([y[:, channel].numpy().ravel() for y in targets])
        solution = np.linalg.lstsq(np.stack(columns, axis=1), wanted, rcond=None)[0]
        fitted[0][channel] = solution[:-1].reshape(weight.shape[1:])
        fitted[1][channel] = solution[-1]
    return fitted


def forward(layer, weight, bias, inputs, channel: int) -> np.ndarray:
    other = copy.deepcopy(layer)
    other.weight.data, other.bias.data = weight.clone(), bias.clone()
    with torch.no_grad():
        return np.concatenate([other(x)[:, channel].numpy().ravel() for x in inputs])


@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (1, {"stride": 2, "padding": 2}),
        (1, {"padding": "same", "dilation": 2, "kernel_size": 4}),
        (2, {}),
        (2, {"stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "kernel_size": (3, 2)}),
        (2, {"padding": 1, "padding_mode": "reflect"}),
        (2, {"padding": (2, 1), "padding_mode": "circular", "groups": 1}),
        (3, {"kernel_size": (2, 1, 3), "padding": 1, "stride": 2}),
    ],
)
def test_refit_is_the_least_squares_solution(dims, options):
    layer = made(dims, **options)
    extent = {1: (60,), 2: (9, 10), 3: (6, 5, 9)}[dims]
    inputs = [random(3, 4, *extent, seed=1), random(2, 4, *extent, seed=2)]
    targets = [random(*layer(x).shape, seed=3) for x in inputs]
    found = refit(layer, inputs, targets, ridge=0)
    weight, bias = least_squares(layer, inputs, targets)
    assert np.allclose(found.weight.numpy(), weight, rtol=0, atol=1e-9)
    assert np.allclose(found.bias.numpy(), bias, rtol=0, atol=1e-9)
    present = layer.weight.detach(), layer.bias.detach()
    assert found.before == pytest.approx(loss(layer, *present, inputs, targets), rel=1e-9)
    assert found.after == pytest.approx(loss(layer, found.weight, found.bias, inputs, targets), rel=1e-9)
    assert found.after < found.before
    assert found.positions == found.of == sum(y[:, 0].numel() for y in targets)


def test_refit_without_bias_recovers_the_weight():
    layer, other = made(bias=False), made(bias=False)
    other.weight.data = random(*layer.weight.shape, seed=9)
    inputs = random(4, 4, 9, 9)
    found = refit(layer, inputs, other(inputs).detach(), ridge=0)
    assert found.bias is None
    assert torch.allclose(found.weight, other.weight, rtol=0, atol=1e-10)
    assert found.after < 1e-20


def test_refit_of_inputs_that_repeat_keeps_what_they_do_not_show():
    # All channels are equal, so only the sum of the weights over the channels shows.
    layer, inputs = made(kernel_size=1), random(4, 1, 9, 9).expand(-1, 4, -1, -1)
    targets = [3 * inputs[:, :1].expand(-1, 6, -1, -1)]
    for ridge in (0, 1e-9):
        found = refit(layer, [inputs], targets, ridge=ridge)
        assert found.after < 1e-12
        moved = (found.weight - layer.weight).detach().flatten(1)
        assert torch.allclose(moved[:, 0], moved[:, 1], atol=1e-6)


@pytest.mark.parametrize("seed", range(6))
def test_refit_never_raises_the_error(seed):
    layer = made()
    inputs = [random(2, 4, 7, 7, seed=seed)]
    targets = [layer(inputs[0]).detach() + 1e-3 * random(2, 6, 5, 5, seed=seed + 100)]
    few = refit(layer, inputs, targets, positions=3, ridge=0, seed=seed)
    assert few.positions == 3
    assert few.after <= few.before
    if few.after == few.before:
        assert torch.equal(few.weight, layer.weight)
        assert torch.equal(few.bias, layer.bias)


def test_a_fit_that_harms_is_dropped():
    layer = made()
    inputs = random(2, 4, 7, 7)
    targets = layer(inputs).detach()
    targets[0, :, 0, 0] += 5.0
    dropped = 0
    for seed in range(40):
        found = refit(layer, inputs, targets, positions=2, ridge=0, seed=seed)
        assert found.after <= found.before
        dropped += torch.equal(found.weight, layer.weight)
    assert dropped > 0


def test_samples_are_shared_by_all_batches():
    layer, inputs = made(), [random(1, 4, 12, 12, seed=1), random(3, 4, 12, 12, seed=2)]
    targets = [random(*layer(x).shape, seed=3) for x in inputs]
    found = refit(layer, inputs, targets, positions=200)
    assert (found.positions, found.of) == (200, 400)
    again = refit(layer, inputs, targets, positions=200)
    assert torch.equal(found.weight, again.weight)
    assert found.after < found.before


def test_float32_keeps_its_dtype_and_the_layer():
    layer = made(dtype=torch.float32)
    before = copy.deepcopy(layer.state_dict())
    inputs = random(2, 4, 9, 9).float()
    found = refit(layer, inputs, random(2, 6, 7, 7, seed=1).float())
    assert found.weight.dtype == found.bias.dtype == torch.float32
    assert not found.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert str(found).startswith("the relative squared error falls from ")


X, Y = torch.zeros(1, 4, 5, 5), torch.zeros(1, 6, 3, 3)


@pytest.mark.parametrize(
    ("layer", "inputs", "targets", "options", "message"),
    [
        (nn.Linear(4, 6), X, Y, {}, "plain or transposed, not Linear"),
        (nn.LazyConv2d(6, 3), X, Y, {}, "lazy"),
        (nn.Conv2d(4, 6, 3), [X, X], [Y], {}, "inputs has 2 batches and targets 1"),
        (nn.Conv2d(4, 6, 3), [], [], {}, "at least one"),
        (nn.Conv2d(4, 6, 3), X[0], Y, {}, "the layer takes 4 dimensions"),
        (nn.Conv2d(4, 6, 3), X, Y[:, :3], {}, r"the layer's output for these inputs has \(1, 6, 3, 3\)"),
        (nn.Conv2d(4, 6, 3), X * float("nan"), Y, {}, "batch 0 of inputs has NaN"),
        (nn.Conv2d(4, 6, 3), X, Y, {"ridge": -1}, "ridge=-1"),
        (nn.Conv2d(4, 6, 3), X, Y, {"positions": 0}, "positions=0"),
    ],
)
def test_refusals_of_refit(layer, inputs, targets, options, message):
    with pytest.raises(GroupwiseError, match=message):
        refit(layer, inputs, targets, **options)


@pytest.mark.parametrize("dims", [0, 1, 2, 3])
def test_factored_loses_the_discarded_singular_values(dims):
    weight, groups, rank = random(10, 12, *(3, 2, 2)[:dims]), 3, 2
    found = factored(weight, groups, rank)
    lost = 0.0
    for block in weight.chunk(groups, dim=1):
        lost += np.square(np.linalg.svd(block.reshape(10, -1).numpy(), compute_uv=False)[rank:]).sum()
    assert found.error == pytest.approx(lost / float(weight.square().sum()), rel=1e-10)
    # The dense weight of the product, by plain loops over the groups.
    product = torch.zeros_like(weight)
    for t in range(groups):
        own = slice(t * rank, t * rank + rank)
        second = found.second.flatten(1)[:, own]
        product[:, t * 4 : t * 4 + 4] = torch.einsum("or,r...->o...", second, found.first[own])
    assert float((product - weight).square().sum()) == pytest.approx(lost, rel=1e-9)
    macs = found.first.numel() + found.second.numel()
    assert found.macs_ratio == pytest.approx(macs / weight.numel(), rel=1e-12)
    if dims:
        inputs = random(2, 12, *(6, 5, 4)[:dims], seed=1)
        middle = FUNCTIONS[dims](inputs, found.first, groups=found.groups[0])
        outputs = FUNCTIONS[dims](middle, found.second, groups=found.groups[1])
        assert torch.allclose(outputs, FUNCTIONS[dims](inputs, product), atol=1e-10)


def test_monarch_is_the_closest_and_computes_its_product():
    weight, groups, rank = random(6, 9, 1), 3, 1
    found = monarch(weight, groups, rank)
    product, lost = torch.zeros(6, 9, dtype=torch.float64), 0.0
    for s in range(3):
        for t in range(3):
            block = weight[s * 2 : s * 2 + 2, t * 3 : t * 3 + 3, 0].numpy()
            left, values, right = np.linalg.svd(block)
            product[s * 2 : s * 2 + 2, t * 3 : t * 3 + 3] = torch.from_numpy(values[0] * np.outer(left[:, 0], right[0]))
            lost += float(np.square(values[1:]).sum())
    assert found.error == pytest.approx(lost / float(weight.square().sum()), rel=1e-10)
    inputs = random(2, 9, 5, seed=1)
    middle = functional.conv1d(inputs, found.first, groups=found.groups[0])[:, list(found.shuffle)]
    outputs = functional.conv1d(middle, found.second, groups=found.groups[1])
    assert torch.allclose(outputs, functional.conv1d(inputs, product[..., None]), atol=1e-12)
    macs = found.first.numel() + found.second.numel()
    assert found.macs_ratio == pytest.approx(macs / weight.numel(), rel=1e-12)


def test_the_default_rank_costs_what_blocks_cost():
    for groups in (2, 4, 8):
        found = factored(random(64, 64, 3, 3).float(), groups)
        more = factored(random(64, 64, 3, 3), groups, found.rank + 1)
        assert found.macs_ratio <= 1 / groups < more.macs_ratio
        assert found.first.dtype == torch.float32
        found = monarch(random(64, 64), 2)
        assert found.macs_ratio <= 1 / 2 < monarch(random(64, 64), 2, found.rank + 1).macs_ratio
    assert factored(random(2, 64), 32).rank == 1
    assert "keeps 100.0 % of the squared weight" in str(factored(torch.zeros(2, 2), 1, 1))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: factored(torch.ones(4, 6, 3), 4), "groups=4 must divide in_channels=6; valid groups: 1, 2, 3, 6"),
        (lambda: factored(torch.ones(4, 6, 3), 2, 5), "rank=5 is too large"),
        (lambda: factored(torch.ones(4), 2), "weight must be a tensor"),
        (lambda: factored(torch.full((4, 4), float("inf")), 2), "NaN or infinite"),
        (lambda: monarch(torch.ones(4, 6, 3), 2), "use factored"),
        (lambda: monarch(torch.ones(4, 6), 3), "groups=3 must divide"),
    ],
)
def test_refusals_of_factored(call, message):
    with pytest.raises(GroupwiseError, match=message):
        call()


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.ReLU(), nn.Dropout(), BatchNormAct2d(4), nn.Flatten()
    )
    for _ in range(2):
        model(torch.randn(3, 2, 5, 5))
    model[0].eval()
    return model


def test_recalibrated_statistics_are_averages():
    model = network()
    state = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    batches = [random(3, 2, 5, 5, seed=seed).float() for seed in range(3)]
    assert recalibrate(model, [*batches[:2], (batches[2],)]) == ("1", "4")
    means, variances = [], []
    for batch in batches:
        outputs = model[0](batch).detach().double()
        means.append(outputs.mean(dim=(0, 2, 3)))
        variances.append(outputs.var(dim=(0, 2, 3)))
    assert torch.allclose(model[1].running_mean.double(), sum(means) / 3, atol=1e-5)
    assert torch.allclose(model[1].running_var.double(), sum(variances) / 3, atol=1e-5)
    assert not torch.equal(model[4].running_mean, state["4.running_mean"])
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[4].momentum) == (0.3, 0.1)
    for name, value in model.state_dict().items():
        if not name.endswith(("running_mean", "running_var")):
            assert torch.equal(value, state[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("batches", [[], [torch.zeros(3, 2, 5, 5), torch.zeros(1)]])
def test_a_failed_recalibration_changes_nothing(batches):
    model = network()
    state = copy.deepcopy(model.state_dict())
    with pytest.raises((GroupwiseError, RuntimeError)):
        recalibrate(model, batches)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model[1].momentum == 0.3
    assert model.training
    assert not model[0].training


def test_a_norm_that_no_batch_reaches_keeps_its_statistics():
    model = network()
    model.unused = nn.BatchNorm1d(3)
    model.unused.running_mean += 7
    model.forward = lambda batch: model[1](model[0](batch))
    assert recalibrate(model, [torch.ones(3, 2, 5, 5)]) == ("1",)
    assert model.unused.running_mean.tolist() == [7, 7, 7]


@pytest.mark.parametrize("positions", [1, 2])
def test_batches_may_have_no_share_of_the_positions(positions):
    layer, xs = made(kernel_size=1), [random(1, 4, 1, 1, seed=seed) for seed in range(3)]
    fitted = refit(layer, [*xs, random(0, 4, 1, 1)], [*map(layer, xs), random(0, 6, 1, 1)], positions=positions)
    assert (fitted.positions, fitted.of) == (positions, 3)
    assert torch.allclose(fitted.weight, layer.weight)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_layer_that_is_not_finite_is_not_fitted(name, value):
    layer, x = made(), random(2, 4, 5, 5)
    with torch.no_grad():
        getattr(layer, name).view(-1)[1] = value
    with pytest.raises(GroupwiseError, match=f"the layer's {name} has NaN or infinite values"):
        refit(layer, x, random(2, 6, 3, 3))
