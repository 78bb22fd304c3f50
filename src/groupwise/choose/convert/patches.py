"""A convolution as a product: the patch of the input that each output reads, and the weight as columns for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from groupwise.spec.convspec import ConvSpec

Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_TRANSPOSED = {1: functional.conv_transpose1d, 2: functional.conv_transpose2d, 3: functional.conv_transpose3d}


def columns(layer: Convolution) -> Tensor:
    """Returns the weight as a matrix for each group: (groups, channels and taps of a patch, outputs of the group)."""
    weight, groups = layer.weight, layer.groups
    if not layer.transposed:
        return weight.reshape(groups, layer.out_channels // groups, -1).mT
    apart = weight.reshape(groups, layer.in_channels // groups, *weight.shape[1:])
    # A patch meets the taps in reverse.
    return apart.flip(_taps(apart)).movedim(2, -1).flatten(1, -2)


def from_columns(layer: Convolution, matrices: Tensor) -> Tensor:
    """Returns the weight whose matrices, by group, are these: the inverse of `columns`."""
    shape = layer.weight.shape
    if not layer.transposed:
        return matrices.mT.reshape(shape)
    apart = matrices.reshape(layer.groups, layer.in_channels // layer.groups, *shape[2:], -1).movedim(-1, 2)
    return apart.flip(_taps(apart)).reshape(shape)


def patches(layer: Convolution, given: Tensor, size: Sequence[int]) -> Tensor:
    """Returns a view (batch, output positions..., channels, kernel...): what each output of so many positions reads.

    A transposed layer reads its input with `stride - 1` zeros between neighbours, one position after another.
    Source: V. Dumoulin, F. Visin, "A guide to convolution arithmetic for deep learning", 2016, chapter 4.
    """
    steps: Sequence[int] = layer.stride
    if layer.transposed:
        given, steps = _stretched(layer, given, size), [1] * len(size)
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        given = functional.pad(given, layer._reversed_padding_repeated_twice, mode=mode)
    for axis in range(len(size)):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        given = given.unfold(axis + 2, reach, steps[axis])[..., :: layer.dilation[axis]]
    return given.movedim(1, len(size) + 1)


def output(layer: Convolution, given: Tensor, weight: Tensor, bias: Tensor | None, size: Sequence[int]) -> Tensor:
    """Returns the outputs of a layer with another weight and bias, at so many positions along each dimension."""
    if not layer.transposed:
        return layer._conv_forward(given, weight, bias)
    more = _beyond(layer, given.shape[2:], size)
    convolve = _TRANSPOSED[len(size)]
    return convolve(given, weight, bias, layer.stride, _padding(layer), more, layer.groups, layer.dilation)


def extents(layer: Convolution, given: Sequence[int]) -> tuple[int, ...]:
    """Returns at how many positions a layer has outputs, along each dimension, for inputs at `given`."""
    return ConvSpec.from_module(layer).output_size(given)


def can_have(layer: Convolution, given: Sequence[int], size: Sequence[int]) -> bool:
    """Says whether a layer can have outputs at so many positions for inputs at `given`.

    A transposed layer that is called with an `output_size` may have others than its `output_padding` makes.
    """
    if not layer.transposed:
        return tuple(size) == extents(layer, given)
    limits = map(max, layer.stride, layer.dilation)
    return all(0 <= more < limit for more, limit in zip(_beyond(layer, given, size), limits, strict=True))


def _beyond(layer: Convolution, given: Sequence[int], size: Sequence[int]) -> list[int]:
    """Returns the output padding with which a transposed layer has outputs at so many positions."""
    numbers = zip(size, extents(layer, given), layer.output_padding, strict=True)
    return [wanted - own + padding for wanted, own, padding in numbers]


def _stretched(layer: Convolution, given: Tensor, size: Sequence[int]) -> Tensor:
    """Returns the input with zeros between neighbours and around them, of which each output reads a dense patch."""
    long = [(extent - 1) * step + 1 for extent, step in zip(given.shape[2:], layer.stride, strict=True)]
    pads = []
    for axis, more in enumerate(_beyond(layer, given.shape[2:], size)):
        # Below zero it crops.
        around = layer.dilation[axis] * (layer.kernel_size[axis] - 1) - _padding(layer)[axis]
        pads.append((around, around + more))
    # What is cropped at one end may be padded at the other, so that the zeros are there before anything is cropped.
    extents = [extent + max(before, 0) + max(after, 0) for extent, (before, after) in zip(long, pads, strict=True)]
    made = given.new_zeros(*given.shape[:2], *extents)
    axes = zip(long, layer.stride, pads, strict=True)
    inside = [slice(max(before, 0), max(before, 0) + extent, step) for extent, step, (before, _) in axes]
    places: tuple[Any, ...] = (..., *inside)
    made[places] = given
    ends = zip(extents, pads, strict=True)
    kept = [slice(max(-before, 0), extent - max(-after, 0)) for extent, (before, after) in ends]
    places = (..., *kept)
    return made[places]


def _padding(layer: Convolution) -> list[int]:
    """Returns the padding of a transposed layer, which has no name."""
    return [int(pad) for pad in layer.padding]


def _taps(weight: Tensor) -> list[int]:
    """Returns the dimensions of the kernel of a weight (groups, inputs, outputs, kernel...)."""
    return list(range(3, weight.dim()))
