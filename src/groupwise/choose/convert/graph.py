"""`ChannelFlow`: how channels flow through concatenations, and what reads tensors of a number for each channel."""

from __future__ import annotations

import functools
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from groupwise.parallel.planning import operations as ops
from groupwise.parallel.planning.axes import Axis
from groupwise.parallel.planning.flow import Flow
from groupwise.parallel.planning.operations import argument, does

_CONCATENATES: set[Any] = {torch.cat, torch.concat, torch.concatenate}
_RESHAPES: set[Any] = {torch.reshape, "reshape", "view"}


@dataclass(frozen=True)
class Numbers:
    """A parameter with a number for each channel, and where it has them; `entries` is 1 for a single number.

    - `place`: the dimension that is aligned with the channels, counted from the last
    - `dim`: that dimension of the stored tensor
    """

    module: str
    tensor: str
    entries: int
    place: int
    dim: int
    dims: int


class ChannelFlow(Flow):
    """A `Flow` that also follows channels through concatenations and products with tensors of the model."""

    def concatenated(self, node: fx.Node) -> list[fx.Node]:
        """Returns the values that a node concatenates, as often as each is given; none for any other node."""
        given = argument(node, 0, "tensors") if does(node, _CONCATENATES) else None
        if not isinstance(given, (tuple, list)) or not all(isinstance(one, fx.Node) for one in given):
            return []
        return list(given)

    def concatenates_channels(self, node: fx.Node) -> bool | None:
        """Says whether a concatenation is one of channels, and not of positions; None if that is unknown."""
        axis = self.axes[node]
        dim = argument(node, 1, "dim", node.kwargs.get("axis", 0))
        counted = None if axis is None else axis.counted(dim)
        return None if axis is None or counted is None else counted == axis.place

    def numbers(self, node: fx.Node) -> Numbers | None:
        """Returns what a node reads if that is a parameter with a number for each channel, read just once."""
        source, shape = node, None
        if does(node, _RESHAPES) and node.args and isinstance(node.args[0], fx.Node):
            source, sizes = node.args[0], node.args[1:]
            shape = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if source.op != "get_attr" or len(node.users) != 1:
            return None
        module, _, name = str(source.target).rpartition(".")
        tensor = self._owned(module, name)
        if tensor is None or self._reads[id(tensor)] != 1:
            return None
        stored = list(tensor.shape)
        if shape is None:
            shape = stored
        elif len(stored) != 1 or not all(type(size) is int for size in shape):
            return None
        wide = [dim for dim, size in enumerate(shape) if size != 1]
        if len(wide) > 1 or (wide and shape[wide[0]] not in (-1, max(stored))):
            return None
        place = wide[0] - len(shape) if wide else -1
        return Numbers(module, name, tensor.numel(), place, wide[0] if len(stored) > 1 else 0, len(shape))

    def scales(self, node: fx.Node) -> tuple[fx.Node, Numbers] | None:
        """Returns the value and the numbers that a node multiplies, adds, subtracts or divides channel by channel."""
        inputs = self.tensors(node)
        if not does(node, ops.ARITHMETIC) or len(inputs) != 2:
            return None
        for value, other in (inputs, inputs[::-1]):
            axis, numbers = self.axes[value], self.numbers(other)
            if axis is None or numbers is None or (axis.dims is not None and numbers.dims > axis.dims):
                continue
            if numbers.entries == 1 or numbers.place == axis.place:
                return value, numbers
        return None

    def normalises(self, node: fx.Node) -> tuple[fx.Node, list[Numbers]] | None:
        """Returns the value that `F.layer_norm` normalises over channels, and its weight and bias."""
        if not does(node, {F.layer_norm}):
            return None
        inputs = self.tensors(node)
        shape, axis = argument(node, 1, "normalized_shape"), self.axes[inputs[0]]
        found = [self.numbers(one) for one in inputs[1:]]
        if axis is None or axis.place != -1 or not isinstance(shape, (tuple, list)) or len(shape) != 1:
            return None
        known = [one for one in found if one is not None and one.place == -1]
        return (inputs[0], known) if len(known) == len(found) else None

    def _axis(self, node: fx.Node) -> Axis | None:
        if parts := self.concatenated(node):
            axes = {self.axes[part] for part in parts}
            return axes.pop() if len(axes) == 1 else None
        if found := self.scales(node) or self.normalises(node):
            return self.axes[found[0]]
        if drops_samples(node):
            return self.axes[self.tensors(node)[0]]
        return super()._axis(node)

    def _owned(self, module: str, name: str) -> torch.Tensor | None:
        """Returns a parameter that one module alone has, and that this module's own call does not use.

        What code computes of a buffer while it is traced is a constant of the graph, so nothing tells who reads one.
        """
        owner = self.modules.get(module)
        tensor = None if owner is None else owner._parameters.get(name)
        if tensor is None or any(str(node.target) == module for node in self.graph.find_nodes(op="call_module")):
            return None
        return None if self._owners[id(tensor)] != 1 else tensor

    @functools.cached_property
    def _owners(self) -> Counter[int]:
        held = (one for module in self.modules.values() for one in _tensors(module))
        return Counter(map(id, held))

    @functools.cached_property
    def _reads(self) -> Counter[int]:
        """Counts who reads each tensor outside a call of its module."""
        found: Counter[int] = Counter()
        for node in self.graph.find_nodes(op="get_attr"):
            module, _, name = str(node.target).rpartition(".")
            tensor = getattr(self.modules.get(module), name, None)
            found[id(tensor)] += len(node.users)
        return found


def drops_samples(node: fx.Node) -> bool:
    """Says whether a node is torchvision's `stochastic_depth`, which drops samples and no channels."""
    return getattr(node.target, "__name__", "") == "stochastic_depth"


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [one for one in (*module._parameters.values(), *module._buffers.values()) if one is not None]
