"""Random networks for training, and how two networks are compared."""

from __future__ import annotations

import copy
import random

import torch
from torch import nn

ACTS = [nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.LeakyReLU]


class Squeeze(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        scale = x.mean((2, 3), keepdim=True)
        return x * torch.sigmoid(self.up(torch.relu(self.down(scale))))


class Network(nn.Module):
    """Layers that are drawn by a seed: each reads one or two of the tensors before it."""

    def __init__(self, seed, channels=8, layers=14):
        super().__init__()
        draw = random.Random(seed)
        self.parts, self.wiring = nn.ModuleList(), []
        for number in range(layers):
            kind = draw.choice(
                ["conv", "norm", "norm", "norm_act", "norm_act", "act", "add", "add_act", "cat", "squeeze"]
            )
            if kind == "conv":
                part = nn.Conv2d(channels, channels, draw.choice([1, 3]), padding="same", groups=draw.choice([1, 2, 8]))
            elif kind in ("norm", "norm_act"):
                part = self._norm(draw, channels)
            elif kind == "act":
                part = draw.choice([*ACTS, nn.GELU])()
            elif kind == "cat":
                part = nn.Conv2d(2 * channels, channels, 1)
            else:
                part = Squeeze(channels) if kind == "squeeze" else nn.Identity()
            if kind == "norm_act":
                act = draw.choice([*ACTS, nn.GELU])()
                # Only an activation whose backward needs its output may write over its input.
                if isinstance(act, nn.ReLU | nn.ReLU6 | nn.SiLU | nn.Hardswish):
                    act.inplace = draw.random() < 0.5
                part = nn.Sequential(part, act)
            shared = [p for p in self.parts if type(p) is type(part)]
            if shared and draw.random() < 0.15 and kind in ("norm", "norm_act"):
                part = draw.choice(shared)
            self.parts.append(part)
            # The last tensor mostly, so that chains arise; now and then an older one, which then has two readers.
            first = number if draw.random() < 0.7 else draw.randrange(number + 1)
            self.wiring.append((kind, first, draw.randrange(number + 1), draw.random() < 0.3))

    @staticmethod
    def _norm(draw, channels):
        affine, tracks = draw.random() < 0.8, draw.random() < 0.8
        momentum = draw.choice([0.1, None, 0.3])
        return nn.BatchNorm2d(channels, momentum=momentum, affine=affine, track_running_stats=tracks)

    def forward(self, x):
        values = [x]
        for part, (kind, first, second, swapped) in zip(self.parts, self.wiring, strict=True):
            one, other = values[first], values[second]
            if kind in ("add", "add_act"):
                made = other + one if swapped else one + other
                made = torch.relu(made) if kind == "add_act" else made
            elif kind == "cat":
                made = part(torch.cat([one, other], 1))
            else:
                made = part(one)
            values.append(made)
        return values[-1] + values[-2]


def randomize(model, seed=0):
    """Gives the normalisations weights that are not one, and statistics that are not zero."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for tensor in (module.weight, module.bias, module.running_mean):
                if tensor is not None:
                    tensor.data.normal_(0.5, 0.5)
    return model


def step(model, x, grad=None):
    """The outputs, gradients and buffers after one step, in float64."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.backward(torch.ones_like(y) if grad is None else grad.to(y.dtype))
    found = {"y": y, "x": x.grad}
    found |= {f"grad {name}": p.grad for name, p in model.named_parameters() if p.grad is not None}
    found |= {f"buffer {name}": b for name, b in model.named_buffers()}
    return {name: value.detach().double().clone() for name, value in found.items()}


def assert_as_exact(ours, model, x, slack=4e-6):
    """A network errs at most twice as much as the model does, against the model in float64.

    How much the model errs is the most of several runs: on the image in either memory format, and on neighbours of it.
    `slack` is for what their roundings have in common, relative to the size of a result.
    """
    grad = torch.randn(
        copy.deepcopy(model)(x.clone().requires_grad_()).shape, generator=torch.Generator().manual_seed(1)
    )
    exact = step(copy.deepcopy(model).double(), x.double(), grad)
    nearby = [torch.nextafter(x, torch.full_like(x, side)) for side in (-9.0, 9.0)]
    images = [x, x.contiguous(memory_format=torch.channels_last), *nearby] if x.dim() == 4 else [x, *nearby]
    theirs = [step(copy.deepcopy(model), image, grad) for image in images]
    found = step(ours, x, grad)
    assert found.keys() <= exact.keys() == theirs[0].keys()
    for name in found:
        truth = exact[name]
        size = truth.square().mean().sqrt()
        error, *known = ((one[name] - truth).square().mean().sqrt() for one in (found, *theirs))
        assert error <= 2 * max(known) + slack * size + 2e-6, name


class OneBatch(nn.Module):
    """Takes batches of one size alone, and returns as many outputs."""

    def __init__(self, inner, samples, outputs):
        super().__init__()
        self.inner, self.shape = inner, (samples, outputs)

    def forward(self, x):
        return self.inner(x).view(self.shape)


def kept_bytes(model, x):
    """What a forward keeps for its backward beside parameters: each memory once."""
    found = {}

    def pack(tensor):
        if not isinstance(tensor, nn.Parameter):
            memory = tensor.untyped_storage()
            found[memory.data_ptr()] = memory.nbytes()
        # A node that keeps its own output would never be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model(x)
    # Until here no other memory takes its place.
    del kept
    return sum(found.values())
