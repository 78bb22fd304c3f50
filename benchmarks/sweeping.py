"""Random convolution layers for `sweep.py`: mostly layers that people use, and a tail of odd ones.

Draw `number` of a seed is the same layer in every run and on every machine, whatever was drawn before.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
from families import FAMILIES, VOLUMES
from shapes import EVERY_FORMAT
from torch import Tensor

from groupwise import ConvSpec, GroupwiseError, cost
from groupwise.kernels.plan import DIRECTIONS, formats_of

BATCHES = (1, 1, 1, 1, 1, 2, 4, 8, 8, 16, 32, 64)
# Families of layers as they are trained, and their batches.
STEPS, BATCHES_OF_STEPS = ("steps", "products"), (4, 8, 8, 8, 16, 32)
# The most multiply-accumulates and numbers of a tensor: more take PyTorch more than 50 ms, or more memory than a row is
# worth. A big layer takes as much time as ten others, so that only some are drawn.
LIMITS, LIMITS_OF_BIG = (600_000_000, 5_000_000), (2_500_000_000, 12_000_000)
# PyTorch's 3-D kernels take many times as long for as much work.
LIMITS_OF_VOLUMES = 80_000_000, 5_000_000
MOST_NUMBERS = max(LIMITS[1], LIMITS_OF_BIG[1])


@dataclass(frozen=True)
class Draw:
    """One layer, its input's size, and how it is timed."""

    family: str
    spec: ConvSpec
    size: tuple[int, ...]
    batch: int
    direction: str
    memory_format: str
    threads: int
    biased: bool = False
    """Whether it has a bias: a transposed convolution's forward, which is where a bias changes what PyTorch runs."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the layer's input."""
        return (self.batch, self.spec.in_channels, *self.size)

    def operator(self, pool: Tensor) -> Callable[[], object]:
        """Returns the timed pass, by the operator in which PyTorch's convolutions end.

        `pool` provides its values, and its dtype.
        """
        spec = self.spec
        output_shape = (self.batch, spec.out_channels, *spec.output_size(self.size))
        x, weight, grad = (self._values(pool, shape) for shape in (self.input_shape, spec.weight_shape, output_shape))
        padding = [before for before, _ in spec.pads]
        settings = (spec.stride, padding, spec.dilation, spec.transposed, spec.output_padding, spec.groups)
        if self.direction == "forward":
            bias = self._values(pool, (spec.out_channels,)) if self.biased else None
            return lambda: torch.ops.aten.convolution(x, weight, bias, *settings)
        mask = [self.direction == "grad_input", self.direction == "grad_weight", False]
        return lambda: torch.ops.aten.convolution_backward(grad, x, weight, None, *settings, mask)

    def _values(self, pool: Tensor, shape: tuple[int, ...]) -> Tensor:
        values = pool[: math.prod(shape)].reshape(shape).clone()
        return values.contiguous(memory_format=EVERY_FORMAT[self.memory_format]) if values.dim() >= 4 else values


def draw(seed: int, number: int, threads: tuple[int, ...], volumes: bool = False, only: tuple[str, ...] = ()) -> Draw:
    """Draws a layer that PyTorch computes soundly, within the work that a row is worth: 1-D or 2-D, or 3-D.

    `only`: the families to draw from, each as often as the others. By default they are drawn by their weights.
    """
    chance = random.Random(f"{seed} {number}")
    families = VOLUMES if volumes else FAMILIES
    weights = dict.fromkeys(only, 1.0) or {name: weight for name, (weight, _) in families.items()}
    while True:
        (family,) = chance.choices(list(weights), list(weights.values()))
        try:
            spec, size = families[family][1](chance)
            batch = chance.choice(BATCHES_OF_STEPS if family in STEPS else BATCHES)
            limits = LIMITS_OF_BIG if family in ("big", "speech", *STEPS) else LIMITS_OF_VOLUMES if volumes else LIMITS
            while batch > 1 and not affordable(spec, size, batch, limits):
                batch //= 2
            if not affordable(spec, size, batch, limits) or not sound(spec, size):
                continue
        except GroupwiseError:
            # The numbers make no layer: a kernel larger than its padded image, say.
            continue
        formats = formats_of(spec.dims)
        direction, memory_format, number_of_threads = map(chance.choice, (DIRECTIONS, formats, threads))
        biased = spec.transposed and direction == "forward" and chance.random() < 0.6
        return Draw(family, spec, size, batch, direction, memory_format, number_of_threads, biased)


def affordable(spec: ConvSpec, size: tuple[int, ...], batch: int, limits: tuple[int, int]) -> bool:
    """Returns whether a pass fits the limits of work and memory."""
    images = spec.in_channels * math.prod(size), spec.out_channels * math.prod(spec.output_size(size))
    numbers = max(batch * images[0], batch * images[1], math.prod(spec.weight_shape))
    most_macs, most_numbers = limits
    return numbers <= most_numbers and cost(spec, size, batch=batch).macs.forward <= most_macs


def sound(spec: ConvSpec, size: tuple[int, ...]) -> bool:
    """Returns whether every output sees a part of the image.

    Where one sees only padding, oneDNN in PyTorch 2.13 sometimes reads outside its tensors, so nothing times it there.
    """
    given, out = (spec.output_size(size), size) if spec.transposed else (size, spec.output_size(size))
    for axis in range(spec.dims):
        kernel, stride, dilation = spec.kernel_size[axis], spec.stride[axis], spec.dilation[axis]
        pad, reach = spec.pads[axis][0], dilation * (kernel - 1)
        if pad > reach or (out[axis] - 1) * stride - pad >= given[axis]:
            return False
        if kernel > 1 and pad > 0 and dilation > given[axis]:
            return False
    return True
