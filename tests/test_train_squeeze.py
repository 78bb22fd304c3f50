"""Squeeze and excitation in networks for training: what becomes one operator, what does not, and its gradients."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from kernels import needs_kernels
from training import assert_as_exact, kept_bytes, randomize

pytestmark = needs_kernels


def layers(channels=8, hidden=4):
    return nn.Conv2d(channels, hidden, 1), nn.Conv2d(hidden, channels, 1)


class Pooled(nn.Module):
    """As torchvision writes it."""

    def __init__(self, act=nn.ReLU, gate=nn.Sigmoid):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1, self.fc2 = layers()
        self.activation, self.scale_activation = act(), gate()

    def forward(self, x):
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x))))) * x


class Mean(nn.Module):
    """As timm writes it."""

    def __init__(self):
        super().__init__()
        self.conv_reduce, self.conv_expand = layers()
        self.act1 = nn.SiLU(inplace=True)

    def forward(self, x):
        return x * self.conv_expand(self.act1(self.conv_reduce(x.mean((2, 3), keepdim=True)))).sigmoid()


class Functions(Pooled):
    def forward(self, x):
        return torch.mul(x, F.hardsigmoid(self.fc2(F.relu(self.fc1(F.adaptive_avg_pool2d(x, 1))))))


class ReadTwice(Pooled):
    def forward(self, x):
        mean = self.avgpool(x)
        return self.scale_activation(self.fc2(self.activation(self.fc1(mean)))) * x + mean


class Rows(Pooled):
    def forward(self, x):
        return self.scale_activation(self.fc2(self.activation(self.fc1(x.mean(2, keepdim=True))))) * x


class OfAnother(Pooled):
    def forward(self, x):
        return self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x + 1))))) * x


class Written(Pooled):
    def forward(self, x):
        x = x + 0
        scale = self.scale_activation(self.fc2(self.activation(self.fc1(self.avgpool(x)))))
        x += 1
        return scale * x


class ThreeLayers(Pooled):
    def __init__(self):
        super().__init__()
        self.fc3 = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        return self.scale_activation(self.fc3(self.fc2(self.activation(self.fc1(self.avgpool(x)))))) * x


def network(part):
    first = nn.Conv2d(3, 8, 3, bias=False)  # a bias before a normalisation has no gradient but roundings
    return randomize(nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), part, nn.Conv2d(8, 8, 1)))


def trainable(model, **settings):
    return Trainable(copy.deepcopy(model), Settings(**settings), {})


def image():
    return torch.randn(3, 3, 9, 8, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    "part", [Pooled, lambda: Pooled(nn.SiLU), lambda: Pooled(nn.ReLU, nn.Hardsigmoid), Mean, Functions]
)
def test_it_is_one_operator_with_the_gradients_of_the_model(part, channels_last):
    model = network(part())
    net = trainable(model, channels_last=channels_last)
    assert_as_exact(net, model, image())
    assert len(net.plan.squeezed) == 1
    assert net.plan.squeezed[0].startswith("3.")
    assert net.plan.squeezed[0] in str(net.plan)
    found = trainable(model.eval(), channels_last=channels_last)(image())
    torch.testing.assert_close(found, model(image()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("part", [ReadTwice, Rows, OfAnother, Written, ThreeLayers, lambda: Pooled(nn.LeakyReLU)])
def test_what_looks_like_it_stays(part):
    model = network(part())
    net = trainable(model)
    assert_as_exact(net, model, image())
    assert net.plan.squeezed == ()


def test_a_layer_with_a_hook_stays_and_its_hook_runs():
    model = network(Pooled())
    seen = []
    model[3].fc1.register_forward_hook(lambda *_: seen.append(1))
    net = Trainable(model, Settings(), {})
    net(image())
    assert net.plan.squeezed == ()
    assert seen == [1]


def test_other_dtypes_and_autocast_run_the_layers():
    model = network(Pooled())
    net = trainable(model)
    double = trainable(model.double())
    assert double(image().double()).dtype == torch.float64
    assert double.plan.squeezed
    with torch.autocast("cpu", torch.bfloat16):
        assert net(image()).dtype == torch.bfloat16


def test_a_replaced_layer_is_used():
    model = network(Pooled())
    net = Trainable(model, Settings(), {})
    net(image())
    model[3].fc1 = nn.Conv2d(8, 5, 1)
    model[3].fc2 = nn.Conv2d(5, 8, 1)
    torch.testing.assert_close(net(image()), copy.deepcopy(model)(image()), rtol=1e-4, atol=1e-4)


def test_it_keeps_its_input_alone():
    model = network(Pooled())
    x = image()
    assert kept_bytes(trainable(model), x) < kept_bytes(copy.deepcopy(model), x)
