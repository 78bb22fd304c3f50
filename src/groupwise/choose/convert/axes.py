"""`ChannelAxis`: channels that layers write and read in one order, and every tensor that has an entry for each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Use:
    """A dimension of a tensor that has `block` neighbouring entries for each channel of an axis, from `offset` on."""

    module: str
    tensor: str
    dim: int
    block: int = 1
    offset: int = 0


@dataclass
class ChannelAxis:
    """The channels that layers write and read in one order.

    - `pinned`: why no other order computes the same; empty if any order does
    - `grouped`: the layers that read or write it in groups, and what is said of each
    """

    size: int = 0
    uses: list[Use] = field(default_factory=list)
    pinned: str = ""
    grouped: dict[str, str] = field(default_factory=dict)
    _parent: ChannelAxis | None = None

    def root(self) -> ChannelAxis:
        """Returns the axis that this one was joined with."""
        return self if self._parent is None else self._parent.root()

    def pin(self, reason: str) -> None:
        """Keeps the order of the channels; the first reason is kept."""
        self.pinned = self.pinned or reason

    def join(self, other: ChannelAxis) -> None:
        """Makes one axis of two."""
        one, two = self.root(), other.root()
        if one is two:
            return
        if one.size and two.size and one.size != two.size:
            reason = f"{one.size} and {two.size} channels are combined"
            one.pin(reason)
            two.pin(reason)
            return
        one.size = one.size or two.size
        one.uses += two.uses
        one.grouped |= two.grouped
        one.pin(two.pinned)
        two._parent = one


# The axes whose channels a value has one after another; several behind a concatenation.
Parts = tuple[ChannelAxis, ...]


def roots(parts: Parts) -> Parts:
    """Returns the axes that the parts were joined with."""
    return tuple(part.root() for part in parts)


def pin(parts: Parts, reason: str) -> None:
    """Keeps the order of the channels of all parts."""
    for part in roots(parts):
        part.pin(reason)


def add(parts: Parts, module: str, tensor: str, dim: int, entries: int) -> None:
    """Notes a tensor that has so many entries along `dim`, as many for each channel of the parts in turn."""
    parts = roots(parts)
    if len(parts) == 1:
        parts[0].size = parts[0].size or entries
    total = sum(part.size for part in parts)
    block, rest = divmod(entries, total or 1)
    if rest or not block or not all(part.size for part in parts):
        pin(parts, f"{module} has {entries} entries for {total or 'an unknown number of'} channels")
        return
    offset = 0
    for part in parts:
        part.uses.append(Use(module, tensor, dim, block, offset))
        offset += part.size * block


def join(one: Parts, other: Parts) -> None:
    """Joins the parts of two values that are combined channel by channel; parts that do not match are pinned."""
    one, other = roots(one), roots(other)
    if len(one) == len(other) and (len(one) == 1 or [a.size for a in one] == [b.size for b in other]):
        for a, b in zip(one, other, strict=True):
            a.join(b)
    else:
        pin((*one, *other), "concatenations of other parts are combined")


def reorder(model: nn.Module, axis: ChannelAxis, order: torch.Tensor) -> None:
    """Gives the channels of an axis another order in place: channel i becomes what was channel `order[i]`.

    What the model computes stays the same, up to the rounding of sums in another order.
    """
    axis = axis.root()
    with torch.no_grad():
        for use in axis.uses:
            tensor: Any = getattr(model.get_submodule(use.module), use.tensor)
            index = order.to(tensor.device)
            if use.block > 1:
                index = (index[:, None] * use.block + torch.arange(use.block, device=tensor.device)).flatten()
            part = tensor.narrow(use.dim, use.offset, axis.size * use.block)
            part.copy_(part.index_select(use.dim, index))
