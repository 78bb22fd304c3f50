"""Small networks of every kind that `optimize` rewrites, and how exact an optimized network must be."""

from __future__ import annotations

import copy

import torch
from torch import nn

import groupwise

EPS = torch.finfo(torch.float32).eps


def settle(model):
    """The model in eval, with statistics and affine parameters that are not those of a fresh BatchNorm."""
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._NormBase):
            with torch.no_grad():
                part.running_mean.normal_(0, 0.3)
                part.running_var.uniform_(0.5, 2)
                if part.affine:
                    part.weight.uniform_(0.5, 1.5)
                    part.bias.normal_(0, 0.3)
    return model.eval()


def exact(model, *inputs):
    """What the model computes in float64."""
    with torch.no_grad():
        return copy.deepcopy(model).double()(*(tensor.double() for tensor in inputs))


def check(model, *inputs, fast=None, **options):
    """An optimized network's error is at most twice that of the model itself. Returns the network.

    - `fast`: another module that stands in for the model
    """
    given = fast is not None
    fast = fast if given else groupwise.optimize(model, *inputs, **options)
    kept = [tensor.clone() for tensor in inputs]
    with torch.inference_mode():
        ours, theirs = fast(*inputs), model(*(tensor.clone() for tensor in inputs))
    truth = exact(model, *kept)
    for made, eager, true in zip(*map(torch.utils._pytree.tree_leaves, (ours, theirs, truth)), strict=True):
        assert made.shape == eager.shape
        assert made.dtype == eager.dtype
        strides = [
            [s for s, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1] for tensor in (made, eager)
        ]
        assert strides[0] == strides[1]
        if not true.numel():
            continue
        size = true.abs().max().item() + 1e-30
        error = (made.double() - true).abs().max().item()
        allowed = 2 * (eager.double() - true).abs().max().item() + 16 * EPS * size
        assert error <= allowed, (error, allowed, size)
    assert all(torch.equal(now, before) for now, before in zip(inputs, kept, strict=True)), "it wrote to its input"
    assert given or not any(left.reason.startswith("an operator fails") for left in fast.plan.left), fast.plan
    return fast


def layers(fast):
    """(kind, what was fused) of each layer."""
    return [(step.kind, step.fused) for step in fast.plan.steps if step.kind in ("convolution", "linear")]


def kinds(fast):
    """The kinds of the steps."""
    return [step.kind for step in fast.plan.steps]


class Excite(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels, gate):
        super().__init__()
        self.reduce, self.expand = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)
        self.gate = gate

    def forward(self, x):
        return x * self.gate(self.expand(torch.relu(self.reduce(x.mean((2, 3), keepdim=True)))))


class Shuffle(nn.Module):
    """Channel shuffle, as ShuffleNet writes it."""

    def __init__(self, groups):
        super().__init__()
        self.groups = groups

    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


class Residual(nn.Module):
    """A sum with what the block reads."""

    def __init__(self, block, inplace=False, after=None):
        super().__init__()
        self.block, self.inplace, self.after = block, inplace, after or nn.Identity()

    def forward(self, x):
        made = self.block(x)
        if self.inplace:
            made += x
        else:
            made = x + made
        return self.after(made)


class Both(nn.Module):
    """Two branches of one input, joined."""

    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return torch.cat([self.first(x), self.second(x)], 1)


class Refusing(nn.Module):
    """Control flow that depends on values: torch.export refuses it."""

    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
            if x.sum() > 1e30:
                x = x * 0
        return x


def source(batch=2):
    """An input of `network`."""
    return torch.randn(batch, 8, 10, 10)


def network():
    """A grouped layer, a residual one and squeeze and excitation."""
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return settle(nn.Sequential(block, Residual(nn.Conv2d(8, 8, 1)), Excite(8, nn.Hardsigmoid())))
