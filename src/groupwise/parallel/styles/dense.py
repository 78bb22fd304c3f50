"""The styles of dense convolutions and `Linear`: column-wise and row-wise parallel."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard

from groupwise.errors import GroupwiseError
from groupwise.parallel.styles import compute
from groupwise.parallel.styles.base import (
    LayerStyle,
    check_plain,
    convolution,
    dimensions,
    partition_of,
    size_names,
    sizes_of,
)
from groupwise.parallel.styles.layer import End, LayerShard
from groupwise.spec.partition import Partition


class _Dense(LayerStyle):
    """The base of the styles for a dense convolution or a `Linear`."""

    def __init__(self, *, input_units: int | None = None, output_units: int | None = None, **layouts: Any) -> None:
        super().__init__(**layouts)
        self.input_units = input_units
        self.output_units = output_units

    def _partitions(self, module: torch.nn.Module, ranks: int) -> tuple[Partition, Partition]:
        """Returns the partitions of the input channels and of the output channels."""
        if isinstance(module, torch.nn.Linear):
            check_plain(module, self)
        groups = 1 if isinstance(module, torch.nn.Linear) else convolution(module, self).groups
        if groups != 1:
            raise GroupwiseError(
                f"{type(self).__name__} is for dense layers, not for groups={groups}; use GroupParallel()"
            )
        inputs, outputs = sizes_of(module)
        return (
            partition_of(self.input_units, inputs, "input channels", ranks),
            partition_of(self.output_units, outputs, "output channels", ranks),
        )


class ColwiseParallel(_Dense):
    """Splits a dense convolution or a `Linear` by its output channels: column-wise parallel.

    PyTorch's `ColwiseParallel` is the same split of a `Linear`; this one also takes convolutions, uneven ranks and
    units. The layer takes (N, in_channels, ...) whole; with `input_layouts=Shard(1)` the ranks all-gather it first. It
    returns each rank's shard of (N, out_channels, ...), or with `output_layouts=Replicate()` the whole. Backward,
    the ranks all-reduce the input's gradient, or reduce-scatter it if the input is split. The channels of a `Linear`
    are the last dimension.

    - `input_units`, `output_units`: the numbers of units that are never cut, if these are less than the channels: the
      groups of the split layers before and after
    - the other parameters are those of `GroupParallel`
    """

    def shard(self, module: torch.nn.Module, ranks: int, rank: int) -> LayerShard:
        """Returns what `rank` of `ranks` ranks holds of `module`."""
        before, partition = self._partitions(module, ranks)
        (in_channels, out_channels), (_, rows), dim = sizes_of(module), *_dims(module)
        held = partition.lengths(out_channels)[rank]
        inputs, outputs = self._outside(Replicate(), Shard(dim))
        return self._make(
            rank,
            partition,
            what="output channels" if self.output_units is None else "units of the output channels",
            dim=dim,
            dims=dimensions(module),
            input=End(in_channels, before, Replicate(), inputs),
            output=End(out_channels, partition, Shard(dim), outputs),
            compute=compute.call if held else compute.no_outputs,
            tensors={"weight": (rows, partition), "bias": (0, partition)},
            numbers={size_names(module)[1]: held},
            grad_input=Partial(),
        )


class RowwiseParallel(_Dense):
    """Splits a dense convolution or a `Linear` by its input channels: row-wise parallel.

    PyTorch's `RowwiseParallel` is the same split of a `Linear`; this one also takes convolutions, uneven ranks and
    units. The layer takes each rank's shard of (N, in_channels, ...), or with `input_layouts=Replicate()` the whole.
    The ranks add what they compute: one all-reduce gives (N, out_channels, ...) whole, and with
    `output_layouts=Shard(1)` one reduce-scatter gives it split. The backward needs no collective if the input is split
    and the output whole. The channels of a `Linear` are the last dimension.

    - `input_units`, `output_units`: the numbers of units that are never cut, if these are less than the channels: the
      groups of the split layers before and after
    - the other parameters are those of `GroupParallel`
    """

    def shard(self, module: torch.nn.Module, ranks: int, rank: int) -> LayerShard:
        """Returns what `rank` of `ranks` ranks holds of `module`."""
        partition, after = self._partitions(module, ranks)
        (in_channels, out_channels), (columns, _), dim = sizes_of(module), *_dims(module)
        held = partition.lengths(in_channels)[rank]
        inputs, outputs = self._outside(Shard(dim), Replicate())
        tensors = {"weight": (columns, partition)}
        if isinstance(outputs, Shard):
            tensors["bias"] = (0, after)
        return self._make(
            rank,
            partition,
            what="input channels" if self.input_units is None else "units of the input channels",
            dim=dim,
            dims=dimensions(module),
            input=End(in_channels, partition, Shard(dim), inputs),
            output=End(out_channels, after, Partial(), outputs),
            compute=compute.call if held else compute.no_inputs,
            tensors=tensors,
            numbers={size_names(module)[0]: held},
            late="bias",
        )


def _dims(module: torch.nn.Module) -> tuple[tuple[int, int], int]:
    """Returns the dimensions of the channels in and out in a dense layer's weight, and of channels in its tensors."""
    if isinstance(module, torch.nn.Linear):
        return (1, 0), -1
    return (0, 1) if getattr(module, "transposed", False) else (1, 0), 1
