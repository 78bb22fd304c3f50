"""What a workload says of its model, without running code of it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from groupwise import report
from groupwise.profile.workload import Workload


class Own(nn.Module):
    """A layer around a convolution, which subclasses give a `weight` of their own."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 3)

    def forward(self, x):
        return self.inner(x)


class Property(Own):
    @property
    def weight(self):
        raise RuntimeError("call prepare() first")


class TakesMore(Own):
    def weight(self, index):
        return self.inner.weight[index]


class TakesNothing(Own):
    def weight(self):
        return self.inner.weight


X = torch.zeros(1, 8, 8, 8)


@pytest.mark.parametrize("kind", [Own, Property, TakesMore, TakesNothing])
def test_only_parameters_count(kind):
    held = sum(parameter.numel() for parameter in kind().parameters())
    assert Workload(kind(), (X,)).parameters == held
    assert report(kind(), X, repeats=1).to_dict()["total"]["model_parameters"] == held


def test_counting_parameters_runs_no_parametrization():
    layer = parametrizations.spectral_norm(nn.Conv2d(8, 8, 3, groups=4)).train()
    before = [buffer.clone() for buffer in layer.buffers()]
    assert Workload(nn.Sequential(layer), (X,)).parameters == sum(one.numel() for one in layer.parameters())
    report(nn.Sequential(layer), X, repeats=1)
    assert all(map(torch.equal, before, layer.buffers()))


def test_packed_weights_count():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import torch.ao.nn.quantized as quantized

        class Mine(quantized.Linear):
            """A quantized layer of a user's own."""

        model = nn.Sequential(quantized.Conv2d(8, 4, 3, groups=2), Mine(5, 7), quantized.Conv1d(4, 4, 1, bias=False))
        assert Workload(model).parameters == (4 * 4 * 9 + 4) + (5 * 7 + 7) + 4 * 4
