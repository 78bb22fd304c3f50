"""How per-sample convolutions are computed: as one grouped convolution, or as matrix products of unfolded images.

The grouped convolution has the batch as groups: N * groups of them. groupwise's kernels compute it where the planner
chooses them, with or without `enable()`, and PyTorch's otherwise. PyTorch rearranges all weights for that, which is
most of the work where an output has few pixels and many channels. `multiplies` says where products are faster, by
`per_sample.json`, which `benchmarks/per_sample.py` fits to the layers that were measured on a processor class.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import pathlib
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from groupwise.kernels import native
from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.kernels.processor import processor_class

Ints = Sequence[int]

RULE = pathlib.Path(__file__).with_name("per_sample.json")


Rule = dict[str, dict[str, float]]
# The rule of processors of which nothing was measured: that of all measured layers.
OTHERS = "others"


@functools.cache
def rules() -> dict[str, Rule]:
    """Returns the rule of each processor class and instruction set, as `key` names them, and that of all others."""
    told: dict[str, Rule] = json.loads(RULE.read_text(encoding="utf-8"))
    return told


def key(processor: str, isa: str) -> str:
    """Returns the name of the rule of a processor class and an instruction set."""
    return f"{processor}, {isa}"


@functools.cache
def rule(isa: str) -> Rule:
    """Returns the most uses of a weight's row with which products are faster here, by kind of layer and direction."""
    return {**rules()[OTHERS], **rules().get(key(processor_class(), isa), {})}


def kind(batch: int, kernel: Ints, stride: Ints, padding: Ints) -> str:
    """Returns the kind of layer, by what has to be rearranged for a product.

    - `unfolded`: each input is written once for every tap that reads it
    - `transposed`: one tap reads each pixel, but the images of a batch are not side by side
    - `in place`: nothing is rearranged
    """
    if not _is_pointwise(kernel, stride, padding):
        return "unfolded"
    return "in place" if batch == 1 else "transposed"


def uses(batch: int, size: Ints, outputs: int, groups: int) -> float:
    """Returns how many pixels of the output use a weight, over the output channels of a group."""
    return batch * math.prod(size) * groups / max(1, outputs)


def multiplies(
    direction: str,
    batch: int,
    size: Ints,
    weights: tuple[int, ...],
    stride: Ints,
    padding: Ints,
    groups: int,
    device: str = "cpu",
) -> bool:
    """Tells whether matrix products compute this faster than a grouped convolution.

    - `size`: the spatial size of the output
    - `weights`: the shape of the weights
    """
    if device != "cpu" or len(size) > 2:
        return False
    bounds = rule(native.status().isa)[kind(batch, weights[3:], stride, padding)]
    return uses(batch, size, weights[1], groups) <= bounds[direction]


def output_size(size: Ints, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints) -> list[int]:
    """Returns the spatial size of the output."""
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]


def forward(
    input: Tensor, weights: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Returns (B, N, O, *spatial) of input (B, N, C, *spatial), weights (N, O, C/groups, *kernel), bias (N, O)."""
    batch, samples, _, *size = input.shape
    outputs, kernel = weights.shape[1], weights.shape[3:]
    out = output_size(size, kernel, stride, padding, dilation)
    if input.numel() == 0 or weights.numel() == 0:
        made = input.new_zeros(batch, samples, outputs, *out)
        return made if bias is None else made + bias.reshape(samples, outputs, *[1] * len(out))
    if multiplies("forward", batch, out, tuple(weights.shape), stride, padding, groups, input.device.type):
        columns = _columns(input, kernel, stride, padding, dilation, groups)
        rows = _rows(weights, groups)
        if bias is None:
            made = torch.bmm(rows, columns)
        else:
            made = torch.baddbmm(bias.reshape(samples * groups, -1, 1), rows, columns)
        return _images(made, batch, samples).reshape(batch, samples, outputs, *out).contiguous()
    with _kernels():
        made = torch.convolution(
            input.contiguous().flatten(1, 2),
            weights.contiguous().flatten(0, 1),
            None if bias is None else bias.flatten(),
            stride,
            padding,
            dilation,
            False,
            [0] * len(size),
            samples * groups,
        )
    return made.contiguous().view(batch, samples, outputs, *out)


def grad_input(
    grad: Tensor, weights: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Returns the gradient (B, N, C, *size) of the input, from that of the output (B, N, O, *spatial)."""
    batch, samples, _, *out = grad.shape
    channels, kernel = weights.shape[2] * groups, weights.shape[3:]
    if grad.numel() == 0 or weights.numel() == 0:
        return grad.new_zeros(batch, samples, channels, *size)
    if multiplies("grad_input", batch, out, tuple(weights.shape), stride, padding, groups, grad.device.type):
        columns = torch.bmm(_rows(weights, groups).transpose(1, 2), _pixels(grad, groups))
        images = _images(columns, batch, samples).reshape(batch, samples, -1, math.prod(out))
        if not _is_pointwise(kernel, stride, padding):
            # One dimension is an image of height 1.
            size2, *rest = (_two(v, n) for v, n in ((size, 1), (kernel, 1), (dilation, 1), (padding, 0), (stride, 1)))
            images = F.fold(images.flatten(0, 1), size2, *rest)
        return images.reshape(batch, samples, channels, *size).contiguous()
    given = grad.new_empty(batch, samples * channels, *size)
    return _backward(grad, given, weights.contiguous().flatten(0, 1), stride, padding, dilation, groups, 0).view(
        batch, samples, channels, *size
    )


def grad_weights(
    grad: Tensor, input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    """Returns the gradient (N, O, C/groups, *kernel) of the weights, from that of the output (B, N, O, *spatial)."""
    batch, samples, outputs, *out = grad.shape
    shape = (samples, outputs, input.shape[2] // groups, *kernel)
    if grad.numel() == 0 or input.numel() == 0:
        return grad.new_zeros(shape)
    if multiplies("grad_weight", batch, out, shape, stride, padding, groups, grad.device.type):
        columns = _columns(input, kernel, stride, padding, dilation, groups)
        return torch.bmm(_pixels(grad, groups), columns.transpose(1, 2)).reshape(shape)
    empty = grad.new_empty(samples * outputs, *shape[2:])
    given = input.contiguous().flatten(1, 2)
    return _backward(grad, given, empty, stride, padding, dilation, groups, 1).view(shape)


def _backward(
    grad: Tensor, input: Tensor, weight: Tensor, stride: Ints, padding: Ints, dilation: Ints, groups: int, which: int
) -> Tensor:
    """Returns one gradient of the grouped convolution, of its input (0) or its weight (1)."""
    wanted = [which == 0, which == 1, False]
    groups *= grad.shape[1]
    grad = grad.contiguous().flatten(1, 2)
    with _kernels():
        found = torch.ops.aten.convolution_backward(
            grad, input, weight, None, stride, padding, dilation, False, [0] * len(stride), groups, wanted
        )
    gradient: Tensor = found[which]
    return gradient.contiguous()


def _is_pointwise(kernel: Ints, stride: Ints, padding: Ints) -> bool:
    """Tells whether each pixel of the output reads the same one of the input, so that nothing is unfolded."""
    return all(k == 1 for k in kernel) and all(s == 1 for s in stride) and all(p == 0 for p in padding)


def _rows(weights: Tensor, groups: int) -> Tensor:
    """Returns the weights as matrices (N * groups, O/groups, C/groups * kernel)."""
    samples, outputs = weights.shape[:2]
    return weights.reshape(samples * groups, outputs // groups, -1)


def _columns(input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    """Returns what each pixel of the output reads: (N * groups, C/groups * kernel, B * pixels)."""
    batch, samples, channels, *size = input.shape
    if _is_pointwise(kernel, stride, padding):
        return _pixels(input, groups)
    images = input.reshape(batch * samples, channels, *_two(size, 1))
    rest = (_two(values, number) for values, number in ((dilation, 1), (padding, 0), (stride, 1)))
    columns = F.unfold(images, _two(kernel, 1), *rest)
    return _pixels(columns.view(batch, samples, *columns.shape[1:]), groups)


def _pixels(images: Tensor, groups: int) -> Tensor:
    """Returns images (B, N, channels, *spatial) as matrices (N * groups, channels/groups, B * pixels)."""
    batch, samples, channels = images.shape[:3]
    if batch == 1:
        return images.reshape(samples * groups, channels // groups, -1)
    parts = images.reshape(batch, samples * groups, channels // groups, -1)
    return parts.permute(1, 2, 0, 3).flatten(2)


def _images(matrices: Tensor, batch: int, samples: int) -> Tensor:
    """Returns matrices (N * groups, rows, B * pixels) as (B, N * groups, rows, pixels)."""
    if batch == 1:
        return matrices.unsqueeze(0)
    return matrices.reshape(*matrices.shape[:2], batch, -1).permute(2, 0, 1, 3)


def _two(values: Ints, missing: int) -> tuple[int, ...]:
    return (*[missing] * (2 - len(values)), *values)


@contextlib.contextmanager
def _kernels() -> Iterator[None]:
    """Within the block the convolutions of this thread are dispatched, where the kernels can run."""
    if native.status().problem is not None:
        yield
        return
    before = switched_on()
    try:
        yield
    finally:
        switch_back(before)
