"""The form `block`: dense layers become grouped ones, with the channels around them in the order of the groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from groupwise.choose.assign import assign
from groupwise.choose.convert.channels import ChannelAxis, Channels, reorder
from groupwise.choose.convert.gather import GatheredConv
from groupwise.choose.exact.coarsen import blocks
from groupwise.choose.exact.like import set_groups
from groupwise.errors import GroupwiseError
from groupwise.spec.legible import legible

BEST, STORED, RANDOM = ORDERS = ("best", "stored", "random")


@dataclass(frozen=True)
class Order:
    """The channels of a layer in the order of its groups: permutations, and what part of the weight they keep."""

    outputs: torch.Tensor
    inputs: torch.Tensor
    bound: float


@dataclass(frozen=True)
class Converted:
    """A layer that has its form.

    - `facts`: for its row
    - `outputs`: the order of its outputs; None for the stored one
    - `fitted`: the convolution inside it whose weight can be fitted; empty for itself
    """

    facts: Mapping[str, Any]
    outputs: torch.Tensor | None = None
    fitted: str = ""


class Orders:
    """The orders of channels around layers that become grouped, one layer after another.

    Two layers that need different orders of the same channels cannot both have theirs folded.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        self._taken: dict[int, str] = {}

    def refusal(self, name: str) -> str:
        """Says why the order of a layer's channels cannot be folded into its neighbours; empty if it can."""
        before, after = self._axes(name)
        if before is None or after is None:
            return "torch.fx does not find it in the model's graph"
        if before is after:
            return "its input and its output have channels of one order, as a residual sum demands"
        for axis, end in ((before, "input"), (after, "output")):
            if axis.pinned:
                return f"the order of its {end} channels cannot change: {axis.pinned}"
            if other := self._taken.get(id(axis)):
                return f"its {end} channels have the order of the groups of {legible(other)}"
        return ""

    def take(self, name: str) -> None:
        """Notes that a layer becomes grouped, so that the orders of its channels are its own from now on."""
        for axis in self._axes(name):
            if axis is not None:
                self._taken[id(axis)] = name

    def fold(self, model: nn.Module, name: str, order: Order) -> tuple[str, ...]:
        """Reorders the channels around a layer in place, and returns the tensors of other layers that changed."""
        changed = []
        for axis, places in zip(self._axes(name), (order.inputs, order.outputs), strict=True):
            assert axis is not None
            reorder(model, axis, places)
            changed += [f"{use.module}.{use.tensor}" for use in axis.uses if use.module != name]
        return tuple(dict.fromkeys(changed))

    def _axes(self, name: str) -> tuple[ChannelAxis | None, ChannelAxis | None]:
        found = (self._channels.inputs.get(name), self._channels.outputs.get(name))
        before, after = (None if axis is None else axis.root() for axis in found)
        return before, after


def foldable(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Says for each dense layer why it cannot become grouped if those before it do; empty if it can.

    Raises `GroupwiseError` if `torch.fx` cannot follow the model.
    """
    orders, found = Orders(Channels(model)), {}
    for name in names:
        found[name] = orders.refusal(name)
        if not found[name]:
            orders.take(name)
    return found


def as_blocks(model: nn.Module, wanted: Mapping[str, int], order: str, gather: bool, seed: int) -> dict[str, Converted]:
    """Makes dense layers of a model grouped in place: each keeps the blocks of the best order of its channels.

    The orders are folded into the layers around it. Where that cannot be, the layer gathers its channels if `gather`;
    else `GroupwiseError` is raised before any work.
    """
    refused = foldable(model, wanted)
    if not gather and any(refused.values()):
        told = "; ".join(f"{legible(name)}: {reason}" for name, reason in refused.items() if reason)
        raise GroupwiseError(f"{told}; leave them out, or give gather=True, which moves channels at each call")
    orders, found = Orders(Channels(model)), {}
    for name, groups in wanted.items():
        layer: Any = model.get_submodule(name)
        made = _order(layer, groups, order, seed)
        facts: dict[str, Any] = {"how": "block", "bound": made.bound}
        if refused[name]:
            facts["kept"] = _gathered(model, name, groups, made)
        else:
            facts["folded"] = orders.fold(model, name, made)
            facts["kept"] = _cut(layer, groups)
        found[name] = Converted(facts, made.outputs, "conv" if refused[name] else "")
    return found


def _order(layer: _ConvNd, groups: int, order: str, seed: int) -> Order:
    """Returns the order of a layer's channels for `groups`."""
    best = assign(layer.weight, groups, transposed=isinstance(layer, _ConvTransposeNd), seed=seed)
    if order == BEST:
        return Order(torch.tensor(best.outputs), torch.tensor(best.inputs), best.bound)
    counts = (layer.out_channels, layer.in_channels)
    if order == STORED:
        outputs, inputs = map(torch.arange, counts)
    else:
        generator = torch.Generator().manual_seed(seed)
        outputs, inputs = (_random(count, groups, generator) for count in counts)
    return Order(outputs, inputs, best.bound)


def _random(count: int, groups: int, generator: torch.Generator) -> torch.Tensor:
    """Returns random groups of channels, in order inside each."""
    return torch.randperm(count, generator=generator).reshape(groups, -1).sort(1).values.flatten()


def _cut(layer: _ConvNd, groups: int) -> float:
    """Drops what is outside the blocks of a dense layer's weight, and returns the fraction of its square that stays."""
    kept, lost = blocks(layer.weight.detach(), 1, groups)
    set_groups(layer, groups, kept)
    return 1 - lost


def _gathered(model: nn.Module, name: str, groups: int, order: Order) -> float:
    """Puts a layer that gathers its channels in the place of a dense one, and returns what it keeps of the weight."""
    layer: Any = model.get_submodule(name)
    dims = (order.inputs, order.outputs) if isinstance(layer, _ConvTransposeNd) else (order.outputs, order.inputs)
    with torch.no_grad():
        for dim, places in enumerate(dims):
            layer.weight.copy_(layer.weight.index_select(dim, places.to(layer.weight.device)))
        if layer.bias is not None:
            layer.bias.copy_(layer.bias[order.outputs.to(layer.bias.device)])
    kept = _cut(layer, groups)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, GatheredConv(layer, order.inputs, order.outputs))
    return kept
