"""What a rank computes of a layer, from the layer of its part and the input of its part."""

from __future__ import annotations

from typing import Any

import torch

from groupwise.spec.partition import Share


def call(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """The layer's own forward."""
    output: torch.Tensor = layer(input, *args, **kwargs)
    return output


def no_outputs(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Of a convolution or a `Linear` of which this rank has no output channel: an output of none."""
    shape = _shape(layer, input, *args, **kwargs)
    shape[_channels(layer)] = 0
    return _joined(input.new_zeros(shape, dtype=_dtype(input)), layer, input)


def no_inputs(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Of a convolution or a `Linear` of which this rank has no input channel: zeros, its part of the sum."""
    shape = _shape(layer, input, *args, **kwargs)
    return _joined(input.new_zeros(shape, dtype=_dtype(input)), layer, input)


def no_channels(layer: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:
    """Of a normalisation of which this rank has no channel."""
    if layer.training and getattr(layer, "num_batches_tracked", None) is not None:
        layer.num_batches_tracked.add_(1)  # type: ignore[operator]
    return _joined(input, layer, input)


def dropout(layer: torch.nn.Module, input: torch.Tensor, *, channels: int, share: Share, rank: int) -> torch.Tensor:
    """Of a dropout: the mask of all channels is drawn, so that ranks drop what one process does. 0 channels: unknown"""
    if not layer.training:
        return call(layer, input)
    channels = channels or input.shape[1] // len(share.of(rank)) * share.parts
    held = share.span(rank, channels)
    whole = [channels if dim == 1 else size for dim, size in enumerate(input.shape)]
    strides = input.stride()
    order = sorted(range(input.dim()), key=lambda dim: (-strides[dim], dim))
    ones = input.new_ones([whole[dim] for dim in order]).permute([order.index(dim) for dim in range(input.dim())])
    return input * call(layer, ones).narrow(1, held.start, len(held))


def _dtype(input: torch.Tensor) -> torch.dtype:
    """Of the output: the input's, or where autocast is on autocast's."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype


def _channels(layer: torch.nn.Module) -> int:
    return -1 if isinstance(layer, torch.nn.Linear) else 1


def _shape(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> list[int]:
    """The output's, computed without values by the same layer of at least one channel."""
    weight = torch.empty([max(1, size) for size in layer.weight.shape], device="meta")  # type: ignore[union-attr]
    sizes = list(input.shape)
    sizes[_channels(layer)] = weight.shape[0 if getattr(layer, "transposed", False) else 1]
    layer.__dict__.update({"groups": 1} if hasattr(layer, "groups") else {})
    parameters, layer._parameters = layer._parameters, {"weight": weight, "bias": None}  # type: ignore[dict-item]
    shape = list(call(layer, torch.empty(sizes, device="meta"), *args, **kwargs).shape)
    layer._parameters = parameters
    return shape


def _joined(output: torch.Tensor, layer: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:
    """`output`, and autograd's paths to what it does not depend on: ranks that meet in backward need one each."""
    nothing = input.flatten()[:0].sum()
    for parameter in layer._parameters.values():
        if parameter is not None:
            nothing = nothing + parameter.flatten()[:0].sum()
    return output + nothing.to(output.dtype)
