"""Hooks, own forwards and changed weights of the layers behind a BatchNorm work in a network for training."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import groupwise
from groupwise.rewrite import train_layer
from training import randomize


def image():
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(6))


def with_convolution():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 8, 3, padding=1)]
    return randomize(nn.Sequential(*layers))


def with_pooling():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2), nn.Conv2d(16, 8, 1)]
    return randomize(nn.Sequential(*layers))


def with_mean():
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return randomize(nn.Sequential(*layers))


def own_forward(module):
    module.forward = lambda x: type(module).forward(module, x) * 3


CHANGES = {
    "hook": lambda m: m.register_forward_hook(lambda m, args, y: y * 3),
    "hook with keywords": lambda m: m.register_forward_hook(lambda m, args, kwargs, y: y * 3, with_kwargs=True),
    "pre-hook": lambda m: m.register_forward_pre_hook(lambda m, args: (args[0] * 3,)),
    "backward hook": lambda m: m.register_full_backward_hook(lambda m, given, out: tuple(g * 3 for g in given)),
    "backward pre-hook": lambda m: m.register_full_backward_pre_hook(lambda m, out: tuple(g * 3 for g in out)),
    "own forward": own_forward,
}


def assert_steps_agree(net, model, steps=3):
    x = image()
    for network in (net, model):
        network.zero_grad()
    optimizers = [torch.optim.SGD(network.parameters(), lr=0.01) for network in (net, model)]
    for _ in range(steps):
        results = []
        for network, optimizer in zip((net, model), optimizers, strict=True):
            optimizer.zero_grad()
            y = network(x)
            y.square().mean().backward()
            optimizer.step()
            results.append((y.detach(), [p.grad.clone() for p in network.parameters()]))
        torch.testing.assert_close(*results, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", [with_convolution, with_pooling, with_mean])
def test_what_is_set_on_a_layer_runs(make, change, later):
    model = make()
    ours, theirs = copy.deepcopy(model), copy.deepcopy(model)
    if not later:
        CHANGES[change](ours[3])
    net = groupwise.optimize(ours, image(), train=True, tune=False)
    if later:
        net(image()).sum().backward()
        theirs(image())  # Both have updated their statistics once.
        CHANGES[change](ours[3])
    CHANGES[change](theirs[3])
    assert_steps_agree(net, theirs)
    assert any(it.name == "3" for it in net.plan.left)


WEIGHTS = {
    "spectral_norm": nn.utils.spectral_norm,
    "weight_norm": nn.utils.weight_norm,
    "prune": lambda conv: prune.l1_unstructured(conv, "weight", 0.5),
    "parametrized spectral_norm": nn.utils.parametrizations.spectral_norm,
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("change", WEIGHTS)
def test_a_weight_that_is_computed_is_computed_anew(change):
    ours = with_convolution()
    theirs = copy.deepcopy(ours)
    for model in (ours, theirs):
        torch.manual_seed(1)
        WEIGHTS[change](model[3])
    net = groupwise.optimize(ours, image(), train=True, tune=False)
    assert_steps_agree(net, theirs)


def test_a_layer_without_hooks_computes_its_input_again():
    model = with_convolution()
    assert groupwise.optimize(model, image(), train=True, tune=False).plan.left == ()


@pytest.mark.parametrize("measured", [False, True])
def test_gradients_that_differ_from_the_models_are_not_used(monkeypatch, measured):
    def doubled(ctx, grad):
        return tuple(it if it is None else 2 * it for it in gradients(ctx, grad))

    gradients = train_layer._gradients
    model = with_convolution()
    theirs = copy.deepcopy(model)
    monkeypatch.setattr(train_layer, "_gradients", doubled)
    net = groupwise.optimize(model, image(), train=True, tune=measured)
    assert [it.reason for it in net.plan.left] == ["its traced form gives other gradients"]
    assert_steps_agree(net, theirs)


def test_the_comparison_leaves_gradients_and_statistics():
    model, x = with_convolution(), image().requires_grad_()
    before = copy.deepcopy(model.state_dict())
    y = 2 * x
    groupwise.optimize(model, y, train=True, tune=False)
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    y.sum().backward()


def test_gradients_that_hang_on_the_last_digit_are_used():
    # A normalisation of two numbers gives signs, whose gradients are roundings.
    model = nn.Sequential(nn.Conv2d(3, 16, 8), nn.BatchNorm2d(16, eps=1e-30), nn.SiLU(), nn.Conv2d(16, 4, 1))
    assert groupwise.optimize(model, image(), train=True, tune=False).plan.left == ()


def test_a_module_that_is_kept_does_not_end_the_measurements():
    model = with_convolution()
    model[2].register_forward_hook(lambda module, args, y: None)
    net = groupwise.optimize(model, image(), train=True, tune=True)
    assert net.plan.ms.keys() == {"as given"}
    assert net.plan.memory_format == "as given"
    assert sum(net.plan.kernels["forward"].values()) == 2
