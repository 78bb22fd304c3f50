"""Models with code of their own, hooks, buffers and odd heads: split as far as can be, and equal to one process."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from groupwise.parallel import ColwiseParallel, GroupParallel, RowwiseParallel, plan_split, split
from ranks import ranks
from test_parallel_split import whole


def grouped(**options):
    return nn.Conv2d(8, 8, 3, padding=1, groups=4, **options)


def hooked(**hooks):
    layer = grouped()
    for name, hook in hooks.items():
        getattr(layer, f"register_{name}")(hook)
    return nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.Conv2d(8, 4, 1))


def hooked_activation():
    act = nn.ReLU()
    act.register_forward_hook(lambda _, __, y: y / (1 + y.sum(1, keepdim=True)))
    return nn.Sequential(grouped(), act, nn.Conv2d(8, 4, 1))


class Standardised(nn.Conv2d):
    def _conv_forward(self, input, weight, bias):
        return super()._conv_forward(input, weight - weight.mean((1, 2, 3), keepdim=True), bias)


class Counted(nn.Module):
    """Reassigns a buffer, and adds to another in place."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))
        self.register_buffer("average", torch.zeros(8, 1, 1))

    def forward(self, x):
        self.calls = self.calls + 1
        self.total += 1
        self.average = 0.9 * self.average + 0.1 * x.detach().mean((0, 2, 3)).view(8, 1, 1)
        return x * self.scale + self.average * self.calls


class Named(nn.Module):
    """A layer whose name is that of a function."""

    def __init__(self):
        super().__init__()
        self.conv, self.mul, self.last = grouped(), nn.Bilinear(6, 6, 6), nn.Conv2d(8, 8, 1)

    def forward(self, x):
        y = self.conv(x)
        return self.last(self.mul(y, torch.relu(y)))


class Constant(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = grouped(), nn.Conv2d(8, 3, 1)

    def forward(self, x):
        y = self.conv(x) + torch.arange(8.0, dtype=x.dtype).view(1, 8, 1, 1)
        return self.last(y[:, torch.arange(7, -1, -1)])


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = grouped(), nn.Conv2d(8, 8, 1, bias=False)

    def forward(self, x):
        y = self.last(self.conv(x))
        y += x
        return F.relu(y, inplace=True)


class Cached(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = grouped(), nn.Conv2d(8, 8, 1)
        self.seen = None

    def forward(self, x):
        self.seen = self.conv(x)
        return self.last(self.seen)


def cached():
    model = Cached()
    model(torch.randn(1, 8, 4, 4))
    return model


def head(groups, channels):
    return lambda: nn.Sequential(
        nn.Conv2d(3, channels, 1),
        nn.Conv2d(channels, channels, 3, padding=1, groups=groups),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * channels, 6),
        nn.ReLU(inplace=True),
        nn.Linear(6, 4),
    )


def normed():
    layer = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 4, 1))
    return nn.Sequential(grouped(), nn.LayerNorm(6), layer)


# Of each model its making, the shape of an input, and the layers that are split.
MODELS = {
    "hook": (lambda: hooked(forward_hook=lambda _, __, y: F.normalize(y, dim=1)), (3, 6, 6), set()),
    "pre-hook": (lambda: hooked(forward_pre_hook=lambda _, x: (x[0] - x[0].mean(1, True),)), (3, 6, 6), set()),
    "hooked activation": (hooked_activation, (8, 6, 6), {"0"}),
    "own convolution": (lambda: nn.Sequential(grouped(), nn.ReLU(), Standardised(8, 4, 3)), (8, 6, 6), {"0"}),
    "buffers": (lambda: nn.Sequential(grouped(), Counted(), nn.Conv2d(8, 4, 1)), (8, 6, 6), {"0"}),
    "a name of a function": (Named, (8, 6, 6), {"conv"}),
    "constants": (Constant, (8, 6, 6), {"conv"}),
    "in place": (Residual, (8, 6, 6), {"conv", "last"}),
    "kept activation": (cached, (8, 6, 6), {"conv", "last"}),
    "pooling of maps on lines": (
        lambda: nn.Sequential(nn.Conv1d(8, 8, 3, groups=4), nn.MaxPool2d(3, 1, 1), nn.Conv1d(8, 4, 1)),
        (8, 9),
        {"0"},
    ),
    "pooling of volumes on maps": (
        lambda: nn.Sequential(grouped(), nn.MaxPool3d((3, 1, 1), 1, (1, 0, 0)), nn.Conv2d(8, 4, 1)),
        (8, 6, 6),
        {"0"},
    ),
    "norm of samples": (
        lambda: nn.Sequential(grouped(), nn.Flatten(), nn.InstanceNorm1d(2), nn.Linear(288, 4)),
        (8, 6, 6),
        {"0"},
    ),
    "flattened dropout": (head(4, 8), (3, 6, 6), {"0", "1", "5", "7"}),
    "uneven flattened dropout": (head(5, 10), (3, 6, 6), {"0", "1", "5", "7"}),
    "computed weight": (normed, (8, 6, 6), {"0"}),
}


def make(name):
    torch.manual_seed(0)
    return MODELS[name][0]().double()


def steps(model, shape):
    """Outputs of three steps, in evaluation too; what the model holds thereafter."""
    torch.manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    made = []
    for _ in range(3):
        x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
        y = model(x)
        optimizer.zero_grad()
        y.square().mean().backward()
        optimizer.step()
        made += [y.detach(), x.grad]
    model.eval()
    made.append(model(torch.randn(2, *shape, dtype=torch.float64)).detach())
    return made, {name: whole(tensor).detach() for name, tensor in model.state_dict().items()}


def on_rank(mesh, name):
    model = split(make(name), mesh)
    return steps(model, MODELS[name][1])


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", MODELS)
def test_equal_to_one_process(name, count):
    expected = steps(make(name), MODELS[name][1])
    for made in ranks.run(count, on_rank, name):
        torch.testing.assert_close(made, expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_what_is_split(name):
    plan = plan_split(make(name), 2, input_shape=(2, *MODELS[name][1]))
    styles = (ColwiseParallel, GroupParallel, RowwiseParallel)
    assert {choice.name for choice in plan.choices if type(choice.style) in styles} == MODELS[name][2]


def test_names_that_are_no_identifiers():
    model = nn.Sequential()
    model.add_module('a "b"', grouped())
    assert [choice.name for choice in plan_split(model, 2, input_shape=(1, 8, 5, 5)).choices] == ['a "b"']
