"""The rows that move where the shards of a layer are not DTensor's equal chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from groupwise.parallel.styles.collectives import is_shard
from groupwise.parallel.styles.layer import LayerShard
from groupwise.spec.collectives import Collective
from groupwise.spec.partition import chunks, received


class Move(NamedTuple):
    """A move of rows of dimension `dim` of a tensor: ranks `have` these lengths and `want` those, one for each rank."""

    tensor: torch.Tensor
    dim: int
    have: list[int]
    want: list[int]
    backward: bool = False

    def back(self) -> Move:
        """Returns the move of the gradient."""
        return self._replace(have=self.want, want=self.have, backward=True)

    def collective(self, layer: str) -> Collective:
        """Returns the all-to-all that moves the rows, with the bytes of the rank that receives most."""
        row = self.tensor.numel() // self.tensor.shape[self.dim] * self.tensor.element_size()
        return Collective(layer, self.backward, "all_to_all", max(received(self.have, self.want)) * row)


def tensor_moves(shard: LayerShard, layer: torch.nn.Module, ranks: int) -> Iterator[Move]:
    """Yields the moves of a layer's parameters and of the statistics that it updates in training: there and back."""
    for name, (dim, partition) in shard.tensors.items():
        tensor = getattr(layer, name, None)
        if tensor is None:
            continue
        even, own = chunks(tensor.shape[dim], ranks), partition.lengths(tensor.shape[dim])
        if even == own:
            continue
        move = Move(tensor, dim, even, own)
        yield move
        if isinstance(tensor, torch.nn.Parameter):
            yield from [move.back()] * tensor.requires_grad
        elif layer.training:
            yield move.back()._replace(backward=False)


def end_moves(shard: LayerShard, given: torch.Tensor, made: torch.Tensor, ranks: int) -> Iterator[Move]:
    """Yields the moves of a layer's whole input and whole output, if they are split on one side of a collective."""
    entry, exit = shard.input, shard.output
    for tensor, end, source, target in (
        (given, entry, entry.outside, entry.inside),
        (made, exit, exit.inside, exit.outside),
    ):
        dim = shard.dim % tensor.dim()
        leaves, arrives = (is_shard(placement, dim, tensor.dim()) for placement in (source, target))
        even, own = chunks(end.channels, ranks), end.partition.lengths(end.channels)
        if leaves != arrives and even != own:
            move = Move(tensor, dim, *((own, even) if leaves else (even, own)))
            yield move
            yield from [move.back()] * tensor.requires_grad
