"""A network for training computes activations again in the backward, and keeps what their BatchNorms keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import groupwise
from groupwise.rewrite import train_origin
from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from pairs import pairwise
from training import ACTS, Squeeze, assert_as_exact, kept_bytes, randomize, step


def image(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


def normed(*layers, act=nn.ReLU):
    return nn.Sequential(*layers, nn.BatchNorm2d(layers[-1].out_channels), act())


class Inverted(nn.Module):
    """What mobile networks are made of: a wide layer, a depthwise one, a squeeze and a narrow one, and a sum."""

    def __init__(self, act=nn.SiLU, channels=8, wide=16):
        super().__init__()
        self.expand = normed(nn.Conv2d(channels, wide, 1, bias=False), act=act)
        self.depthwise = normed(nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False), act=act)
        self.squeeze = Squeeze(wide)
        self.project = normed(nn.Conv2d(wide, channels, 1), act=nn.Identity)

    def forward(self, x):
        return x + self.project(self.squeeze(self.depthwise(self.expand(x))))


class Bottleneck(nn.Module):
    """What residual networks are made of."""

    def __init__(self, channels=16, narrow=8):
        super().__init__()
        self.parts = nn.Sequential(
            normed(nn.Conv2d(channels, narrow, 1, bias=False)),
            normed(nn.Conv2d(narrow, narrow, 3, padding=1, groups=4, bias=False)),
            normed(nn.Conv2d(narrow, channels, 1, bias=False), act=nn.Identity),
        )

    def forward(self, x):
        return torch.relu(self.parts(x) + x)


def mobile(act=nn.SiLU):
    stem = normed(nn.Conv2d(3, 8, 3, stride=2, padding=1), act=act)
    project = normed(nn.Conv2d(8, 8, 1), act=nn.Identity)
    last = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 5))
    return randomize(
        nn.Sequential(stem, project, Inverted(act), Inverted(act), normed(nn.Conv2d(8, 12, 1), act=act), *last)
    )


def residual():
    stem = normed(nn.Conv2d(3, 16, 3, padding=1))
    return randomize(nn.Sequential(stem, nn.MaxPool2d(3, 2, 1), Bottleneck(), Bottleneck(), nn.Conv2d(16, 3, 1)))


# The most bytes whose activations are computed again at once: sample by sample, one and then two, and all samples.
BLOCKS = [1, 4000, 1 << 30]
MODELS = [residual, *(lambda act=act: mobile(act) for act in ACTS)]


# What an activation computes does not know of blocks.
@pytest.mark.parametrize(("make", "channels_last", "block"), pairwise(MODELS, [False, True], BLOCKS))
def test_gradients_are_as_exact_as_the_models(make, channels_last, block, monkeypatch):
    monkeypatch.setattr(train_origin, "BLOCK", block)
    model = make()
    net = Trainable(copy.deepcopy(model), Settings(channels_last=channels_last), {})
    assert_as_exact(net, model, image(3, 3, 10, 12), slack=2e-5)


def conv_outputs(model, x):
    """The bytes of what the convolutions of whole images return."""
    sizes = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, args, y: sizes.append(y.numel() * 4 if y.shape[2] > 1 else 0))
    model(x)
    return sum(sizes)


def test_a_mobile_network_keeps_what_its_convolutions_return():
    model, x = mobile(), image(4, 3, 64, 64)
    net = groupwise.optimize(copy.deepcopy(model), x, train=True, tune=False, recompute=True)
    expected = conv_outputs(copy.deepcopy(model), x) + x.numel() * 4
    assert expected <= kept_bytes(net, x) < 1.02 * expected
    assert kept_bytes(model, x) > 2.5 * expected


def test_a_residual_network_keeps_its_sums_too():
    model, x = residual(), image(4, 3, 64, 64)
    net = groupwise.optimize(copy.deepcopy(model), x, train=True, tune=False, recompute=True)
    image_bytes = 4 * 32 * 32 * 4
    # The pooling keeps two bytes a place. What it returns is kept as well, as the sums of the blocks are.
    expected = 4 * 64 * 64 * 4 * (3 + 16) + image_bytes * 16 // 2 + image_bytes * (16 + 2 * (8 + 8 + 16 + 16))
    assert expected <= kept_bytes(net, x) < 1.02 * expected


class Calls(nn.Module):
    def __init__(self, run):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 3, padding=1, stride=2, bias=False)
        self.run = run

    def forward(self, x):
        return self.run(self, torch.nn.functional.silu(self.norm(self.first(x))))


def in_place(m, z):
    y = m.conv(z * 2)
    z.add_(1)
    return y + m.conv(z)


def through_a_view(m, z):
    z[:, 0].mul_(2)
    return m.conv(z)


def gated(m, z):
    return m.conv(z * torch.sigmoid(m.conv(z.mean((2, 3), keepdim=True)))) + z


CALLS = [
    lambda m, z: (m.conv(z), m.other(z))[0],
    lambda m, z: m.other(z).mean((2, 3), keepdim=True).repeat(1, 2, 1, 1) + m.conv(z),
    lambda m, z: m.conv(m.conv(z)) + torch.tanh(z),
    lambda m, z: m.conv(z) * z,
    lambda m, z: m.conv(z * z),
    lambda m, z: m.conv(z * m.norm.weight[:, None, None]),
    lambda m, z: m.conv(torch.relu(m.norm(m.conv(z)) + z)),
    lambda m, z: m.conv(torch.nn.functional.silu(m.norm(m.conv(z)) + z)),
    lambda m, z: m.conv(m.norm(m.conv(z)) + z) + z,
    lambda m, z: torch.cat([z, m.conv(z)], 1),
    in_place,
    through_a_view,
    gated,
]


@pytest.mark.parametrize("run", CALLS)
@pytest.mark.parametrize("frozen", [(), ("conv.weight", "conv.bias"), ("first.weight", "first.bias"), ("norm",)])
def test_whatever_reads_the_activation(run, frozen):
    model = randomize(Calls(run))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen or "-"))
    net = Trainable(copy.deepcopy(model), Settings(), {})
    assert_as_exact(net, model, image(2, 3, 6, 6), slack=2e-5)


@pytest.mark.parametrize("frozen", [False, True])
def test_nothing_wants_a_gradient_below(frozen):
    model, x = mobile(), image(2, 3, 8, 8)
    for parameter in model[:3].parameters():
        parameter.requires_grad_(False)
    if frozen:
        model[:3].eval()
    net = Trainable(copy.deepcopy(model), Settings(), {})
    for network in (net, model):
        network(x).square().sum().backward()
    for (name, one), other in zip(net.named_parameters(), model.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3, msg=name)


def test_statistics_are_updated_once_a_step():
    model, x = mobile(), image(4, 3, 12, 12)
    net = groupwise.optimize(copy.deepcopy(model), x, train=True, tune=False, recompute=True)
    for _ in range(3):
        step(net, x)
        expected = step(model, x)
    for name, value in net.named_buffers():
        torch.testing.assert_close(value.double(), expected[f"buffer {name}"], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("make", [mobile, residual])
def test_several_steps_of_an_optimizer(make):
    model, x = make(), image(4, 3, 12, 12)
    net = groupwise.optimize(copy.deepcopy(model), x, train=True, tune=False, recompute=True)
    for network in (net, model):
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], value, rtol=2e-3, atol=5e-4, msg=name)


@pytest.mark.parametrize("make", [mobile, residual])
def test_gradients_of_gradients(make):
    def penalty(model, x):
        x = x.clone().requires_grad_()
        grad = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
        grad.square().mean().backward()
        return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}

    model, x = make(), image(2, 3, 8, 8)
    net = Trainable(copy.deepcopy(model), Settings(), {})
    exact = penalty(copy.deepcopy(model).double(), x.double())
    theirs, found = penalty(copy.deepcopy(model), x), penalty(net, x)
    assert found.keys() == exact.keys()
    for name, truth in exact.items():
        error, known = ((one[name] - truth).norm() for one in (found, theirs))
        assert error <= 2 * known + 1e-4 * truth.norm() + 1e-5, name


def test_a_graph_is_kept_for_a_second_backward():
    model, x = mobile(), image(2, 3, 8, 8)
    loss = Trainable(model, Settings(), {})(x).square().sum()
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in model.parameters()]
    loss.backward()
    for once, p in zip(first, model.parameters(), strict=True):
        torch.testing.assert_close(p.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("changed", ["0.0.weight", "0.1.weight", "1.0.weight"])
def test_a_change_between_forward_and_backward_is_refused(changed):
    model = nn.Sequential(normed(nn.Conv2d(3, 8, 1)), normed(nn.Conv2d(8, 8, 1)), nn.Conv2d(8, 2, 1))
    loss = Trainable(model, Settings(), {})(image(2, 3, 8, 8).requires_grad_()).sum()
    with torch.no_grad():
        model.get_parameter(changed).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_memory_is_freed_as_the_backward_goes():
    model, x = mobile(), image(2, 3, 8, 8)
    loss = Trainable(model, Settings(), {})(x).square().sum()
    nodes, found = [loss.grad_fn], []
    while nodes:
        node = nodes.pop()
        nodes += [it for it, _ in node.next_functions if it is not None]
        if any(name in type(node).__name__ for name in ("_ConvolutionBackward", "_SqueezeBackward")):
            found.append(node)
    assert any("_SqueezeBackward" in type(node).__name__ for node in found)
    loss.backward()
    for node in found:
        with pytest.raises(RuntimeError, match="already been freed"):
            _ = node.saved_tensors


@pytest.mark.parametrize(
    ("act", "channels", "channels_last", "block"), pairwise(ACTS, [6, 16, 20], [False, True], BLOCKS)
)
def test_a_norm_and_its_convolution_are_one_step(channels, act, channels_last, block, monkeypatch):
    monkeypatch.setattr(train_origin, "BLOCK", block)
    first = normed(nn.Conv2d(3, channels, 3), act=act)
    model = randomize(nn.Sequential(first, nn.Conv2d(channels, 4, 3, stride=2, dilation=1, padding=1)))
    net = Trainable(copy.deepcopy(model), Settings(channels_last=channels_last), {})
    assert_as_exact(net, model, image(3, 3, 9, 8), slack=2e-5)


@pytest.mark.parametrize("unwanted", ["1.weight", "0.1.weight", "0.1.bias", "0.0.weight"])
def test_one_gradient_may_be_unwanted(unwanted):
    model, x = randomize(nn.Sequential(normed(nn.Conv2d(3, 16, 3)), nn.Conv2d(16, 4, 1))), image(3, 3, 9, 8)
    net = Trainable(copy.deepcopy(model), Settings(), {})
    expected, found = (
        torch.autograd.grad(
            network(x).square().sum(), [p for name, p in network.named_parameters() if name != unwanted]
        )
        for network in (model, net)
    )
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("samples", [2, 3, 5])
@pytest.mark.parametrize("act", [nn.SiLU, nn.ReLU])
@pytest.mark.parametrize("frozen", ["", "1.weight", "0.1.weight"])
def test_blocks_of_unequal_size(samples, act, frozen, monkeypatch):
    monkeypatch.setattr(train_origin, "BLOCK", 2 * 16 * 7 * 6 * 4)  # two samples of what is computed again
    model = randomize(nn.Sequential(normed(nn.Conv2d(3, 16, 3), act=act), nn.Conv2d(16, 4, 3, bias=False)))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name != frozen)
    net = Trainable(copy.deepcopy(model), Settings(channels_last=True), {})
    assert_as_exact(net, model, image(samples, 3, 9, 8), slack=2e-5)


def test_a_mode_sees_the_gradient_of_a_convolution():
    model, x = residual(), image(2, 3, 16, 16)
    counts = []
    for network in (model, Trainable(copy.deepcopy(model), Settings(), {})):
        with FlopCounterMode(display=False) as counter:
            network(x).sum().backward()
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.convolution_backward])
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", [mobile, residual])
def test_a_batch_of_gradients(make, training):
    model, x = make().train(training), image(2, 3, 16, 16)
    net = Trainable(copy.deepcopy(model), Settings(), {})
    expected, found = (y_gradients(network, x) for network in (model, net))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def y_gradients(network, x):
    y = network(x)
    grads = torch.randn(3, *y.shape, generator=torch.Generator().manual_seed(2))
    return torch.autograd.grad(y, list(network.parameters()), grads, is_grads_batched=True)


def test_recompute_is_for_training():
    with pytest.raises(groupwise.GroupwiseError, match="recompute=True is for training"):
        groupwise.optimize(mobile().eval(), image(2, 3, 32, 32), recompute=True)
    with pytest.raises(groupwise.GroupwiseError, match="recompute=1 is not known"):
        groupwise.optimize(mobile(), image(2, 3, 32, 32), train=True, recompute=1)
    with pytest.raises(groupwise.GroupwiseError, match="recompute='x' is not known"):
        groupwise.optimize(mobile(), image(2, 3, 32, 32), train=True, recompute="x")
