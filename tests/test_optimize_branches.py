"""Branches of one tensor that `optimize` makes one convolution of, and those that it must leave apart."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from optimized import check, kinds, layers, settle


class Sum(nn.Module):
    """The sum of branches of one tensor, in their order; a branch that is None is the tensor itself."""

    def __init__(self, *branches, start=None):
        super().__init__()
        self.branches = nn.ModuleList(nn.Identity() if branch is None else branch for branch in branches)
        self.start = start

    def forward(self, x):
        total = self.start
        for branch in self.branches:
            total = branch(x) if total is None else total + branch(x)
        return total


class Mixer(nn.Module):
    """The tensor, and the scaled difference of two branches, in either order."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second
        self.scale = nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x):
        return x + self.scale * (self.first(x) - self.second(x))


class Doubled(nn.Module):
    """A multiple of the tensor for each channel, or of all, beside a convolution."""

    def __init__(self, conv, factor, shift=0.0):
        super().__init__()
        self.conv, self.factor, self.shift = conv, factor, shift

    def forward(self, x):
        return (x * self.factor if self.shift == 0 else x + self.shift) + self.conv(x)


def conv(kernel=3, groups=8, stride=1, dilation=1, inputs=8, outputs=8, bias=False, norm=True, padding=None):
    whole = dilation * (kernel // 2) if padding is None else padding
    layer = nn.Conv2d(inputs, outputs, kernel, stride, whole, dilation, groups, bias)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs)) if norm else layer


def norm():
    return nn.BatchNorm2d(8)


JOINED = {
    "RepGhost": lambda: Sum(conv(), norm()),
    "RepVGG": lambda: Sum(conv(1, groups=1), conv(groups=1), norm()),
    "RepVGG, with a stride": lambda: Sum(conv(1, groups=1, stride=2, outputs=6), conv(groups=1, stride=2, outputs=6)),
    "RepVGG, with groups": lambda: Sum(conv(1, groups=2), norm(), conv(groups=2)),
    "MobileOne": lambda: Sum(conv(1), norm(), conv(bias=True), conv(), start=0),
    "MobileOne, pointwise": lambda: Sum(norm(), conv(1, groups=1), conv(1, groups=1), start=0),
    "RepViT": lambda: nn.Sequential(Sum(conv(), conv(1, norm=False, bias=True), None), norm()),
    "itself": lambda: Sum(None, conv()),
    "FastViT": lambda: Mixer(Sum(norm(), conv(), start=0), Sum(norm(), start=0)),
    "FastViT, the other way": lambda: Mixer(norm(), conv(5)),
    "dilated": lambda: Sum(conv(dilation=2), conv(dilation=2), norm()),
    "dilated in a larger kernel": lambda: Sum(conv(5), conv(dilation=2)),
    "other padding": lambda: Sum(conv(4, padding=1), conv(2, padding=0)),
    "a row in a square": lambda: Sum(conv(), nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8)),
    "a factor": lambda: Doubled(conv(), 0.5),
    "factors": lambda: Doubled(conv(groups=2), torch.rand(8, 1, 1)),
}


@pytest.mark.parametrize("kind", JOINED)
def test_branches_of_one_tensor_are_one_convolution(kind):
    # Another reader of the tensor, in front of which nothing can be folded.
    model = settle(nn.Sequential(nn.ReLU(), JOINED[kind](), nn.Tanh()))
    fast = check(model, torch.randn(2, 8, 9, 10))
    ((_, words),) = layers(fast)
    assert "branch" in words
    assert words[-1] == "tanh"
    assert set(kinds(fast)) <= {"to_channels_last", "relu", "convolution"}


APART = {
    "a row and a column": lambda: Sum(
        nn.Conv2d(8, 8, (1, 3), padding=(0, 1), groups=8), nn.Conv2d(8, 8, (3, 1), padding=(1, 0), groups=8)
    ),
    "other groups": lambda: Sum(conv(groups=4), conv(groups=8)),
    "an odd dilation": lambda: Sum(conv(5, dilation=2), conv(3, dilation=3)),
    "between two taps": lambda: Sum(nn.Conv2d(8, 8, 2, padding=1, dilation=2, groups=8), norm()),
    "itself, beside a dense layer": lambda: Sum(None, conv(groups=1)),
    "a shift": lambda: Doubled(conv(), 1.0, 1000.0),
    "activated": lambda: Sum(nn.Sequential(conv(), nn.ReLU()), norm()),
    "transposed": lambda: Sum(nn.ConvTranspose2d(8, 8, 3, padding=1, groups=8), norm()),
}


@pytest.mark.parametrize("kind", APART)
def test_branches_that_no_one_convolution_computes(kind):
    fast = check(settle(nn.Sequential(nn.ReLU(), APART[kind]())), torch.randn(2, 8, 9, 10))
    assert all("branch" not in step.fused for step in fast.plan.steps), fast.plan


def test_branches_of_two_tensors_stay_two():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(), conv()

        def forward(self, x, y):
            return self.first(x) + self.second(y)

    fast = check(settle(Two()), torch.randn(2, 8, 9, 10), torch.randn(2, 8, 9, 10))
    assert [words for _, words in layers(fast)] == [("batch norm",), ("batch norm", "sum")]


def test_a_convolution_that_is_read_elsewhere_stays():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x):
            made = self.conv(x)
            return made + self.norm(x), made

    fast = check(settle(Kept()), torch.randn(2, 8, 9, 10))
    assert "branch" not in str(layers(fast))


def test_a_batch_norm_that_is_read_elsewhere_is_computed_too():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = conv(), norm()

        def forward(self, x):
            made = self.norm(x)
            return made + self.conv(x), made

    fast = check(settle(Kept()), torch.randn(2, 8, 9, 10))
    assert layers(fast) == [("convolution", ("batch norm", "batch norm", "branch"))]
    assert "batch_norm" in kinds(fast)


def test_weights_that_change_are_joined_again():
    model = settle(Sum(conv(), norm()))
    fast = check(model, torch.randn(2, 8, 9, 10))
    with torch.no_grad():
        model.branches[1].running_mean.add_(2)
        model.branches[0][0].weight.mul_(3)
    check(model, torch.randn(2, 8, 9, 10), fast=fast)
