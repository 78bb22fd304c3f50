"""The style of grouped convolutions: whole groups to each rank."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard

from groupwise.errors import GroupwiseError, list_some
from groupwise.parallel.styles import compute
from groupwise.parallel.styles.base import LayerStyle, convolution, dimensions, partition_of
from groupwise.parallel.styles.layer import End, LayerShard
from groupwise.spec.arguments import valid_groups


class GroupParallel(LayerStyle):
    """Gives each rank whole groups of a grouped or depthwise convolution, plain or transposed, 1-D to 3-D.

    The layer takes (N, in_channels, ...) whole, or with `input_layouts=Shard(1)` the channels of each rank's groups. It
    returns each rank's shard of (N, out_channels, ...), or with `output_layouts=Replicate()` the whole. Between ends
    that are split no collective runs, neither forward nor backward: AlexNet used its two GPUs so (A. Krizhevsky et al.,
    NIPS 2012).

    - `input_layouts` (default `Replicate()`), `output_layouts` (default `Shard(1)`): the layouts of a local input and
      of the output; an input that is a DTensor carries its own layout
    - `use_local_output`: whether the output is a local tensor or a DTensor
    - `uneven`: whether some ranks may hold more groups than others where the ranks do not divide the groups
    - `units`: the number of units that are never cut, if that is less than `groups`

    Applied to a layer it raises `GroupwiseError` if the layer has no groups. With `uneven=False` it also raises one if
    the ranks do not divide the groups, with the numbers of ranks that do.
    """

    def __init__(self, *, units: int | None = None, **layouts: Any) -> None:
        super().__init__(**layouts)
        self.units = units

    def shard(self, module: torch.nn.Module, ranks: int, rank: int) -> LayerShard:
        """Returns what `rank` of `ranks` ranks holds of `module`."""
        layer = convolution(module, self)
        if layer.groups == 1:
            raise GroupwiseError(
                "GroupParallel splits groups, and this layer has groups=1; use ColwiseParallel() or RowwiseParallel(), "
                f"or give it groups: {list_some(list(valid_groups(layer.in_channels, layer.out_channels)))}"
            )
        partition = partition_of(self.units, layer.groups, "groups", ranks)
        held = partition.lengths(layer.groups)[rank]
        inputs, outputs = self._outside(Replicate(), Shard(1))
        return self._make(
            rank,
            partition,
            what="groups" if partition.units == layer.groups else f"sets of {layer.groups // partition.units} groups",
            dim=1,
            dims=dimensions(layer),
            input=End(layer.in_channels, partition, Shard(1), inputs),
            output=End(layer.out_channels, partition, Shard(1), outputs),
            compute=compute.call if held else compute.no_outputs,
            tensors={"weight": (0, partition), "bias": (0, partition)},
            numbers={
                "groups": held,
                "in_channels": partition.lengths(layer.in_channels)[rank],
                "out_channels": partition.lengths(layer.out_channels)[rank],
            },
        )
