"""The form `block`: dense layers become grouped ones, with the channels around them in the order of the groups."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from groupwise.choose.assign import assign
from groupwise.choose.convert.axes import ChannelAxis, Parts, reorder, roots
from groupwise.choose.convert.channels import Channels
from groupwise.choose.convert.gather import GatheredConv
from groupwise.choose.exact.coarsen import blocks
from groupwise.choose.exact.like import set_groups
from groupwise.errors import GroupwiseError
from groupwise.profile.progress import Progress
from groupwise.spec.legible import legible

BEST, STORED, RANDOM = ORDERS = ("best", "stored", "random")
# The ends of a layer.
INPUTS, OUTPUTS = "inputs", "outputs"


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


@dataclass(frozen=True)
class Freedom:
    """Whether the order of a layer's channels can be that of its groups, with all layers around it in the same order.

    - `refused`: why it cannot; empty if it can
    - `fixed`: the end whose channels keep their order, `inputs` or `outputs`; empty if both may change
    """

    refused: str = ""
    fixed: str = ""


class Orders:
    """The orders of channels around layers that become grouped, one layer after another.

    Two layers that need different orders of the same channels cannot both have theirs folded.
    """

    def __init__(self, channels: Channels) -> None:
        self._channels = channels
        # By axis and end: the layer that became grouped, and whether its channels got another order there.
        self._taken: dict[tuple[int, str], tuple[str, bool]] = {}
        # By axis: which of the channels, as the model stored them, each one is since it was folded.
        self._folded: dict[int, torch.Tensor] = {}

    def freedom(self, name: str) -> Freedom:
        """Says whether the order of a layer's channels can be folded into its neighbours."""
        ends = self._ends(name)
        if not all(ends.values()):
            return Freedom("torch.fx does not find it in the model's graph")
        if set(map(id, ends[INPUTS])) & set(map(id, ends[OUTPUTS])):
            return Freedom("its input and its output have channels of one order, as a residual sum demands")
        kept = {}
        for end, axes in ends.items():
            reason = _kept(axes)
            for axis in axes:
                beside = [reason for other, reason in axis.grouped.items() if other != name]
                if beside:
                    return Freedom(f"the order of its {end[:-1]} channels cannot change: {beside[0]}")
                if other := self._holder(axis, end, moves=not reason):
                    return Freedom(f"its {end[:-1]} channels have the order of the groups of {legible(other)}")
            if reason:
                kept[end] = reason
        if len(kept) == 2:
            told = "; ".join(f"the order of its {end[:-1]} channels cannot change: {why}" for end, why in kept.items())
            return Freedom(told)
        return Freedom(fixed=next(iter(kept), ""))

    def take(self, name: str) -> None:
        """Notes that a layer becomes grouped, so that the orders of its channels are its own from now on."""
        for end, axes in self._ends(name).items():
            for axis in axes:
                self._taken[id(axis), end] = name, not _kept(axes)

    def fold(self, model: nn.Module, name: str, order: Order, fixed: str) -> tuple[str, ...]:
        """Reorders the channels around a layer in place, and returns the tensors of other layers that changed."""
        changed = []
        for end, axes in self._ends(name).items():
            if end == fixed:
                continue
            (axis,) = axes
            places = order.inputs if end == INPUTS else order.outputs
            reorder(model, axis, places)
            self._folded[id(axis)] = self._folded[id(axis)][places] if id(axis) in self._folded else places
            changed += [f"{use.module}.{use.tensor}".lstrip(".") for use in axis.uses if use.module != name]
        return tuple(dict.fromkeys(changed))

    def stored(self, name: str, outputs: torch.Tensor) -> torch.Tensor:
        """Returns which outputs of a layer, as the model stored them, those are that it has now at `outputs`."""
        for axis in self._ends(name)[OUTPUTS]:
            if id(axis) in self._folded:
                return self._folded[id(axis)][outputs]
        return outputs

    def _ends(self, name: str) -> dict[str, Parts]:
        found = {INPUTS: self._channels.inputs.get(name, ()), OUTPUTS: self._channels.outputs.get(name, ())}
        return {end: roots(axes) for end, axes in found.items()}

    def _holder(self, axis: ChannelAxis, end: str, moves: bool) -> str:
        """Returns the layer that has the order of an axis; layers that all read it as it is stored share it."""
        for held in (INPUTS, OUTPUTS):
            name, moved = self._taken.get((id(axis), held), ("", False))
            if name and (held != end or moved or moves):
                return name
        return ""


def _kept(axes: Parts) -> str:
    """Says why the channels of an end keep their order; empty if they need not."""
    reasons = [axis.pinned for axis in axes if axis.pinned]
    return reasons[0] if reasons else "a concatenation fixes the order of its parts" if len(axes) > 1 else ""


def freedoms(
    model: nn.Module,
    names: Collection[str],
    gather: Collection[str] = (),
    dense: Collection[str] = (),
    grouped: Collection[str] = (),
) -> tuple[dict[str, Freedom], Orders | None]:
    """Says for each layer whether it can become grouped if all others do too, and returns the orders around them.

    Where two exclude each other the first one can, and those that may gather come last. The layers of `dense` are seen
    as if they had one group; a layer beside one that has groups now is refused all the same, and so is one beside a
    layer of `grouped`, which may have some.

    Raises `GroupwiseError` if `torch.fx` cannot follow the model, unless all layers may gather.
    """
    try:
        orders = Orders(Channels(model, dense, grouped))
    except GroupwiseError as error:
        if not set(gather).issuperset(names):
            raise
        return dict.fromkeys(names, Freedom(str(error))), None
    found = {}
    for name in sorted(names, key=lambda name: name in gather):
        found[name] = orders.freedom(name)
        if not found[name].refused:
            orders.take(name)
    return {name: found[name] for name in names}, orders


def as_blocks(
    model: nn.Module, wanted: Mapping[str, int], order: str, gather: Collection[str], seed: int, progress: Progress
) -> dict[str, Converted]:
    """Makes dense layers of a model grouped in place: each keeps the blocks of the best order of its channels.

    The orders are folded into the layers around it. Where that cannot be, the layers of `gather` gather their channels;
    for others `GroupwiseError` is raised before any work. `progress` is told of each layer that is done.
    """
    free, orders = freedoms(model, wanted, gather)
    if refused := {name: one.refused for name, one in free.items() if one.refused and name not in gather}:
        told = "; ".join(f"{legible(name)}: {reason}" for name, reason in refused.items())
        raise GroupwiseError(f"{told}; leave them out, or give gather=True, which moves channels at each call")
    found = {}
    # Folds go first: they change the weights of layers around them, which must still be plain ones.
    for name in sorted(wanted, key=lambda name: bool(free[name].refused)):
        groups = wanted[name]
        layer: Any = model.get_submodule(name)
        fixed = free[name].fixed
        made = _order(layer, groups, order, seed, fixed)
        facts: dict[str, Any] = {"how": "block", "bound": made.bound, "fixed": fixed}
        # Another layer's fold may have moved the outputs of a layer that gathers.
        outputs = made.outputs if orders is None else orders.stored(name, made.outputs)
        gathers = bool(free[name].refused)
        if gathers:
            facts["kept"] = _gathered(model, name, groups, made)
        else:
            assert orders is not None
            facts["folded"] = orders.fold(model, name, made, fixed)
            facts["kept"] = _cut(layer, groups)
        found[name] = Converted(facts, outputs, "conv" if gathers else "")
        progress(len(found), len(wanted))
    return found


def _order(layer: _ConvNd, groups: int, order: str, seed: int, fixed: str) -> Order:
    """Returns the order of a layer's channels for `groups`; those of the end `fixed` keep theirs."""
    transposed = isinstance(layer, _ConvTransposeNd)
    best = assign(layer.weight, groups, transposed=transposed, fixed=fixed or None, seed=seed)
    if order == BEST:
        return Order(torch.tensor(best.outputs), torch.tensor(best.inputs), best.bound)
    generator = torch.Generator().manual_seed(seed)
    places = []
    for end, count in ((OUTPUTS, layer.out_channels), (INPUTS, layer.in_channels)):
        stored = order == STORED or end == fixed
        places.append(torch.arange(count) if stored else _random(count, groups, generator))
    return Order(places[0], places[1], best.bound)


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
