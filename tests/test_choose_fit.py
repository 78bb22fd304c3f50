"""Layers fitted to all of their runs in one call of the model, and dtypes that nothing converts."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.measure import run


class Twice(nn.Module):
    """Runs one layer on two scales of the input; `deep` runs it on its own outputs too."""

    def __init__(self, deep: bool = False) -> None:
        super().__init__()
        self.shared, self.last = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 2, 1)
        self.deep = deep

    def forward(self, x):
        small = torch.tanh(nn.functional.avg_pool2d(x, 2) * 3 - 1)
        one, other = self.shared(x), self.shared(small)
        if self.deep:
            one = self.shared(one)
        return self.last(one).mean((2, 3)) + self.last(other).mean((2, 3))


X = torch.randn(12, 4, 6, 6, dtype=torch.double, generator=torch.Generator().manual_seed(0))


def calls(net: nn.Module, name: str, x: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    seen = []
    handle = net.get_submodule(name).register_forward_hook(lambda _, given, made: seen.append((given[0], made)))
    with torch.no_grad():
        net(x)
    handle.remove()
    return [(given.clone(), made.clone()) for given, made in seen]


def error(pairs) -> float:
    """The relative squared error of (made, wanted) over all pairs."""
    return float(sum((a - b).square().sum() for a, b in pairs) / sum(b.square().sum() for _, b in pairs))


@pytest.mark.parametrize("options", [{"form": "factored"}, {"gather": True}])
def test_a_layer_that_runs_twice_is_fitted_to_both_runs(options):
    torch.manual_seed(0)
    net = Twice().double().eval()
    made = groupwise.regroup(net, {"shared": 2}, data=[X[:8], X[8:]], **options)
    (row,) = made.rows
    inner = made.model.shared
    conv = inner[1] if "form" in options else inner.conv
    order = None if "form" in options else torch.argsort(inner.places)
    wanted = [[y if order is None else y[:, order] for _, y in calls(net, "shared", x)] for x in (X[:8], X[8:])]
    place = "shared.1" if "form" in options else "shared.conv"
    given = [calls(made.model, place, x) for x in (X[:8], X[8:])]
    pairs = [(y, t) for ys, ts in zip(given, wanted, strict=True) for (_, y), t in zip(ys, ts, strict=True)]
    assert len(pairs) == 4
    assert row.fitted == pytest.approx(error(pairs), rel=1e-6)
    assert row.fitted < row.error
    # No other weight of the same groups is closer to both runs, up to the ridge of the fit.
    rows = conv.out_channels // conv.groups
    columns, best = conv.in_channels // conv.groups, 0.0
    for t in range(conv.groups):
        parts = []
        for calls_of_batch in given:
            for x, _ in calls_of_batch:
                windows = nn.functional.unfold(
                    x[:, t * columns : (t + 1) * columns], conv.kernel_size, padding=conv.padding
                )
                parts.append(windows.transpose(1, 2).reshape(-1, windows.shape[1]).numpy())
        matrix = np.concatenate(parts)
        matrix = np.concatenate([matrix, np.ones((len(matrix), 1))], 1)
        targets = np.concatenate(
            [y[:, t * rows : (t + 1) * rows].movedim(1, -1).reshape(-1, rows).numpy() for ys in wanted for y in ys]
        )
        solution = np.linalg.lstsq(matrix, targets, rcond=None)[0]
        best += float(np.square(matrix @ solution - targets).sum())
    best /= sum(float(y.square().sum()) for ys in wanted for y in ys)
    assert best <= row.fitted <= best * 1.001


def test_a_layer_that_reads_its_own_outputs_has_the_error_that_it_has_afterwards():
    torch.manual_seed(0)
    net = Twice(deep=True).double().eval()
    made = groupwise.regroup(net, {"shared": 2}, form="factored", data=X)
    pairs = [(y, t) for (_, y), (_, t) in zip(calls(made.model, "shared", X), calls(net, "shared", X), strict=True)]
    assert len(pairs) == 3
    assert made.rows[0].fitted == pytest.approx(error(pairs), rel=1e-6)
    assert made.rows[0].fitted <= made.rows[0].error


def test_a_layer_whose_runs_depend_on_values_is_refused_by_name():
    class Until(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Conv1d(4, 4, 1, bias=False)
            with torch.no_grad():
                self.step.weight.copy_(
                    torch.tensor([[1, 0, 0, 3], [0, 3, 1, 0], [0, 1, 3, 0], [3, 0, 0, 1.0]])[..., None]
                )

        def forward(self, x):
            while x.abs().max() < 50:
                x = self.step(x)
            return x

    net = Until()
    with pytest.raises(GroupwiseError, match=r"step: on the same data it runs \d+ times in the model and \d+ times"):
        groupwise.regroup(net, {"step": 2}, form="factored", data=torch.ones(1, 4, 3))


def test_what_runs_behind_a_layer_in_place_does_not_change_what_it_is_fitted_to():
    torch.manual_seed(0)
    layers = nn.Conv2d(4, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)
    plain = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).double()
    inplace = nn.Sequential(layers[0], nn.ReLU(True), layers[1], nn.ReLU(True), layers[2]).double()
    one, other = (groupwise.regroup(net, {"2": 2}, data=X).rows[0] for net in (plain, inplace))
    assert (one.error, one.fitted) == (other.error, other.fitted)


def quantized() -> nn.Module:
    from torch.ao.nn import quantized

    return nn.Sequential(nn.Conv2d(4, 4, 1), quantized.Conv2d(4, 4, 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1).half()), r"1: its weight is float16; .*\.float\(\)"),
        (
            lambda: nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1, dtype=torch.cfloat)),
            "1: its weight is complex64; only real floating-point",
        ),
        (quantized, "1: it is quantized; convert the model to other groups before you quantize it"),
    ],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning", "ignore:TypedStorage:UserWarning")
def test_numbers_that_nothing_converts_are_refused_by_name(make, said, monkeypatch):
    net = make()
    monkeypatch.setattr(run.record, "run", lambda _: pytest.fail("it ran"))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(GroupwiseError, match=said):
        groupwise.regroup(net, {"1": 2})
    with pytest.raises(GroupwiseError, match=said):
        run.sweep(net, torch.randn(1, 4, 2, 2))
    assert str(net.state_dict()) == str(before)


def test_other_real_dtypes_convert():
    for dtype in (torch.float64, torch.bfloat16):
        net = nn.Sequential(nn.Conv2d(4, 4, 1, groups=4)).to(dtype)
        assert groupwise.regroup(net, {"0": 1}).model[0].weight.dtype == dtype
