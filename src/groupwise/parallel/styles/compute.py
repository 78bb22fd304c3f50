"""What a rank computes for a layer, given the layer of its shard and the input of its shard."""

from __future__ import annotations

from typing import Any

import torch

from groupwise.spec.partition import Partition


def call(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Runs the layer's own forward."""
    output: torch.Tensor = layer(input, *args, **kwargs)
    return output


def no_outputs(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Returns an output of no channels, for a rank that holds no output channel of a convolution or a `Linear`."""
    shape = _shape(layer, input, *args, **kwargs)
    shape[_channels(layer)] = 0
    return _attached(input.new_zeros(shape, dtype=_dtype(input)), layer, input)


def no_inputs(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """Returns zeros to add to the sum, for a rank that holds no input channel of a convolution or a `Linear`."""
    shape = _shape(layer, input, *args, **kwargs)
    return _attached(input.new_zeros(shape, dtype=_dtype(input)), layer, input)


def no_channels(layer: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:
    """Returns the empty input, for a rank that holds no channel of a normalisation."""
    if layer.training and getattr(layer, "num_batches_tracked", None) is not None:
        layer.num_batches_tracked.add_(1)  # type: ignore[operator]
    return _attached(input, layer, input)


def dropout(
    layer: torch.nn.Module, input: torch.Tensor, *, channels: int, partition: Partition, rank: int
) -> torch.Tensor:
    """Draws the mask of all channels and applies this rank's shard of it, so that ranks drop what one process does.

    `channels` is the number of all channels, or 0 if that is unknown.
    """
    if not layer.training:
        return call(layer, input)
    channels = channels or input.shape[1] // len(partition.of(rank)) * partition.units
    held = partition.span(rank, channels)
    whole = [channels if d == 1 else size for d, size in enumerate(input.shape)]
    strides = input.stride()
    order = sorted(range(input.dim()), key=lambda d: (-strides[d], d))
    ones = input.new_ones([whole[d] for d in order]).permute([order.index(d) for d in range(input.dim())])
    return input * call(layer, ones).narrow(1, held.start, len(held))


def _dtype(input: torch.Tensor) -> torch.dtype:
    """Returns the dtype of the output: the input's, or autocast's where that is on."""
    kind = input.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype


def _channels(layer: torch.nn.Module) -> int:
    return -1 if isinstance(layer, torch.nn.Linear) else 1


def _shape(layer: torch.nn.Module, input: torch.Tensor, *args: Any, **kwargs: Any) -> list[int]:
    """Returns the output's shape, computed without values by the same layer with at least one channel."""
    weight = torch.empty([max(1, size) for size in layer.weight.shape], device="meta")  # type: ignore[union-attr]
    sizes = list(input.shape)
    sizes[_channels(layer)] = weight.shape[0 if getattr(layer, "transposed", False) else 1]
    layer.__dict__.update({"groups": 1} if hasattr(layer, "groups") else {})
    parameters, layer._parameters = layer._parameters, {"weight": weight, "bias": None}  # type: ignore[dict-item]
    shape = list(call(layer, torch.empty(sizes, device="meta"), *args, **kwargs).shape)
    layer._parameters = parameters
    return shape


def _attached(output: torch.Tensor, layer: torch.nn.Module, input: torch.Tensor) -> torch.Tensor:
    """Returns `output` with autograd's paths to what it does not depend on.

    Ranks run collectives in the backward, and each rank needs a path that leads to them.
    """
    nothing = input.flatten()[:0].sum()
    for parameter in layer._parameters.values():
        if parameter is not None:
            nothing = nothing + parameter.flatten()[:0].sum()
    return output + nothing.to(output.dtype)
