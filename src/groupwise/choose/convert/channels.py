"""`Channels`: the channel axes of a model, and every tensor that has an entry for each channel of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from groupwise.parallel.planning import operations as ops
from groupwise.parallel.planning.axes import Axis
from groupwise.parallel.planning.flow import Flow
from groupwise.parallel.planning.operations import does
from groupwise.parallel.styles.base import known_forward
from groupwise.parallel.styles.channelwise import STATELESS

# These compute each channel alone, by numbers of its own or by none.
_KEEP = (_BatchNorm, _InstanceNorm, nn.PReLU, _DropoutNd, nn.Flatten, *STATELESS)


@dataclass(frozen=True)
class Use:
    """A dimension of a tensor that has `block` neighbouring entries for each channel of an axis."""

    module: str
    tensor: str
    dim: int
    block: int = 1


@dataclass
class ChannelAxis:
    """The channels that layers write and read in one order.

    `pinned` says why no other order computes the same; it is empty if any order does.
    """

    size: int = 0
    uses: list[Use] = field(default_factory=list)
    pinned: str = ""
    _parent: ChannelAxis | None = None

    def root(self) -> ChannelAxis:
        """Returns the axis that this one was joined with."""
        return self if self._parent is None else self._parent.root()

    def pin(self, reason: str) -> None:
        """Keeps the order of the channels; the first reason is kept."""
        self.pinned = self.pinned or reason

    def add(self, module: str, tensor: str, dim: int, entries: int) -> None:
        """Adds a tensor with so many entries along `dim`, as many for each channel."""
        self.size = self.size or entries
        block, rest = divmod(entries, self.size)
        if rest or not block:
            self.pin(f"{module} has {entries} entries for {self.size} channels")
        self.uses.append(Use(module, tensor, dim, block))

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
        one.pin(two.pinned)
        two._parent = one


class Channels:
    """The channel axes of a model, which `torch.fx` must be able to trace.

    `inputs` and `outputs` have the axes of each convolution and linear layer by the layer's name. What lies between
    layers joins their axes: activations, normalisations, poolings, sums and depthwise convolutions keep channels
    apart and in order. What depends on the order, such as a concatenation, pins it.

    Raises `GroupwiseError` if `torch.fx` cannot follow the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.inputs: dict[str, ChannelAxis] = {}
        self.outputs: dict[str, ChannelAxis] = {}
        self._flow = Flow(model)
        self._of: dict[fx.Node, ChannelAxis] = {}
        for node in self._flow.graph.nodes:
            self._visit(node)
        self._pin_shared()
        self._pin_read_elsewhere()

    def _visit(self, node: fx.Node) -> None:
        tensors = self._flow.tensors(node)
        layer = self._flow.layer(node)
        if layer is not None:
            self._layer(node, layer, self._axis(tensors[0]))
        elif len(tensors) == 2 and self._joins(node, tensors):
            self._axis(tensors[0]).join(self._axis(tensors[1]))
            self._of[node] = self._axis(tensors[0])
        elif tensors and self._keeps(node, tensors[0]):
            self._of[node] = self._carried(node, self._axis(tensors[0]))
        else:
            for one in tensors:
                self._axis(one).pin(f"{_called(node)} depends on the order of its channels")

    def _axis(self, node: fx.Node) -> ChannelAxis:
        """Returns the axis of a node's value; one that nothing is known of is pinned."""
        if node not in self._of:
            self._of[node] = ChannelAxis()
            self._of[node].pin(_origin(node))
        return self._of[node].root()

    def _layer(self, node: fx.Node, layer: _ConvNd | nn.Linear, before: ChannelAxis) -> None:
        name = str(node.target)
        if isinstance(layer, nn.Linear):
            before.add(name, "weight", 1, layer.in_features)
            after = ChannelAxis(layer.out_features, [Use(name, "weight", 0)])
        else:
            after = self._convolution(name, layer, before)
        if layer.bias is not None:
            after.root().add(name, "bias", 0, after.root().size)
        self.inputs[name], self.outputs[name] = before, after
        self._of[node] = after

    def _convolution(self, name: str, layer: _ConvNd, before: ChannelAxis) -> ChannelAxis:
        if layer.groups == 1:
            into, out = (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)
            before.add(name, "weight", into, layer.in_channels)
            return ChannelAxis(layer.out_channels, [Use(name, "weight", out)])
        if layer.groups == layer.in_channels == layer.out_channels:
            before.add(name, "weight", 0, layer.in_channels)
            return before
        reason = f"{name} has groups={layer.groups} already"
        before.pin(reason)
        after = ChannelAxis(layer.out_channels)
        after.pin(reason)
        return after

    def _joins(self, node: fx.Node, tensors: Sequence[fx.Node]) -> bool:
        """Says whether a node combines two tensors channel by channel."""
        flow = self._flow
        if flow.gates(node):
            return True
        places = [flow.axes[one] for one in tensors]
        return does(node, ops.ARITHMETIC) and places[0] is not None and places[0] == places[1]

    def _keeps(self, node: fx.Node, before: fx.Node) -> bool:
        """Says whether a node computes each channel alone, and the same whatever the order is."""
        module, axis = self._flow.module(node), self._flow.axes[before]
        if axis is None:
            return False
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            return _is_symmetric(module, axis)
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            # torchvision's function drops samples, and no channels.
            return True
        return (module is None or isinstance(module, _KEEP)) and self._flow.passes(node)

    def _carried(self, node: fx.Node, axis: ChannelAxis) -> ChannelAxis:
        """Adds the tensors of a layer that has an entry for each channel."""
        module = self._flow.module(node)
        for name, tensor in [] if module is None else (*module.named_parameters(), *module.named_buffers()):
            if tensor.dim() == 1 and tensor.numel() > 1:
                axis.add(str(node.target), name, 0, tensor.numel())
        return axis

    def _pin_shared(self) -> None:
        """Pins the axes of what runs more than once: its tensors would have the order of each run."""
        runs: dict[int, list[fx.Node]] = {}
        for node in self._flow.graph.nodes:
            module = self._flow.module(node)
            if module is not None and any(True for _ in (*module.parameters(), *module.buffers())):
                runs.setdefault(id(module), []).append(node)
        for nodes in runs.values():
            if len(nodes) > 1:
                self._pin_around(nodes, f"{nodes[0].target} runs {len(nodes)} times")

    def _pin_read_elsewhere(self) -> None:
        """Pins the axes of layers of which code reads a tensor outside their own calls, or shares it."""
        owners: dict[int, set[str]] = {}
        for name, module in self._flow.root.named_modules():
            for tensor in (*module._parameters.values(), *module._buffers.values()):
                if tensor is not None:
                    owners.setdefault(id(tensor), set()).add(name)
        read = {str(node.target).rpartition(".")[0] for node in self._flow.graph.find_nodes(op="get_attr")}
        shared = {name for names in owners.values() if len(names) > 1 for name in names}
        for node in self._flow.graph.find_nodes(op="call_module"):
            name = str(node.target)
            if name in shared:
                self._pin_around([node], f"{name} shares a tensor with another layer")
            elif name in read:
                self._pin_around([node], f"code reads a tensor of {name}")

    def _pin_around(self, nodes: Sequence[fx.Node], reason: str) -> None:
        for node in nodes:
            for one in (node, *self._flow.tensors(node)):
                self._axis(one).pin(reason)


def reorder(model: nn.Module, axis: ChannelAxis, order: torch.Tensor) -> None:
    """Gives the channels of an axis another order in place: channel i becomes what was channel `order[i]`.

    What the model computes stays the same, up to the rounding of sums in another order.
    """
    with torch.no_grad():
        for use in axis.root().uses:
            tensor: Any = getattr(model.get_submodule(use.module), use.tensor)
            index = order.to(tensor.device)
            if use.block > 1:
                index = (index[:, None] * use.block + torch.arange(use.block, device=tensor.device)).flatten()
            tensor.copy_(tensor.index_select(use.dim, index))


def _is_symmetric(norm: nn.LayerNorm | nn.GroupNorm, axis: Axis) -> bool:
    """Says whether a normalisation over channels computes the same in any order of them."""
    if norm._forward_hooks or norm._forward_pre_hooks or not known_forward(norm, (nn.LayerNorm, nn.GroupNorm)):
        return False
    if isinstance(norm, nn.LayerNorm):
        return axis.place == -1 and len(norm.normalized_shape) == 1 and not parametrize.is_parametrized(norm)
    return axis.is_map and norm.num_groups in (1, norm.num_channels) and not parametrize.is_parametrized(norm)


def _called(node: fx.Node) -> str:
    """Returns what a node is called in a sentence."""
    if node.op == "output":
        return "the output of the model"
    return str(node.target) if isinstance(node.target, str) else str(getattr(node.target, "__name__", node))


def _origin(node: fx.Node) -> str:
    """Says what fixes the order of a node's channels."""
    if node.op == "placeholder":
        return "the order of the model's inputs is fixed"
    return f"{_called(node)} fixes the order of its channels"
