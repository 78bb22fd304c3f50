"""Rows that move where the parts of a layer are other than DTensor's equal chunks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from groupwise.parallel.crossing import Crossing
from groupwise.parallel.exchange import is_shard
from groupwise.parallel.layer import Part
from groupwise.spec.partition import chunks, received


class Move(NamedTuple):
    """Rows of dimension `dim` of a tensor, of which ranks `have` such lengths and `want` others, one for each rank."""

    tensor: torch.Tensor
    dim: int
    have: list[int]
    want: list[int]
    backward: bool = False

    def back(self) -> Move:
        """That of the gradient."""
        return self._replace(have=self.want, want=self.have, backward=True)

    def crossing(self, layer: str) -> Crossing:
        """The exchange that it is, for the rank that receives most."""
        row = self.tensor.numel() // self.tensor.shape[self.dim] * self.tensor.element_size()
        return Crossing(layer, self.backward, "all_to_all", max(received(self.have, self.want)) * row)


def tensor_moves(part: Part, layer: torch.nn.Module, ranks: int) -> Iterator[Move]:
    """Of a layer's parameters, and of the statistics that it notes in training: there and back."""
    for name, (dim, share) in part.tensors.items():
        tensor = getattr(layer, name, None)
        if tensor is None or (even := chunks(tensor.shape[dim], ranks)) == (own := share.lengths(tensor.shape[dim])):
            continue
        move = Move(tensor, dim, even, own)
        yield move
        if isinstance(tensor, torch.nn.Parameter):
            yield from [move.back()] * tensor.requires_grad
        elif layer.training:
            yield move.back()._replace(backward=False)


def end_moves(part: Part, given: torch.Tensor, made: torch.Tensor, ranks: int) -> Iterator[Move]:
    """Of the whole input of a layer and its whole output, where they are split on one side of an exchange only."""
    entry, exit = part.input, part.output
    for tensor, end, source, target in (
        (given, entry, entry.outside, entry.inside),
        (made, exit, exit.inside, exit.outside),
    ):
        dim = part.dim % tensor.dim()
        leaves, arrives = (is_shard(placement, dim, tensor.dim()) for placement in (source, target))
        even, own = chunks(end.channels, ranks), end.share.lengths(end.channels)
        if leaves != arrives and even != own:
            move = Move(tensor, dim, *((own, even) if leaves else (even, own)))
            yield move
            yield from [move.back()] * tensor.requires_grad
