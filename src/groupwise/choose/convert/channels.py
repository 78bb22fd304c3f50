"""`Channels`: the channel axes of a model, and every tensor that has an entry for each channel of one."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from groupwise.choose.convert.axes import ChannelAxis, Parts, Use, add, join, pin, roots
from groupwise.choose.convert.graph import ChannelFlow, Numbers, drops_samples
from groupwise.errors import GroupwiseError
from groupwise.nn.forwards import known_forward
from groupwise.parallel.planning import operations as ops
from groupwise.parallel.planning.axes import Axis
from groupwise.parallel.planning.operations import does
from groupwise.parallel.styles.channelwise import STATELESS

# These compute each channel alone, by numbers of its own or by none.
_KEEP = (_BatchNorm, _InstanceNorm, nn.PReLU, _DropoutNd, nn.Flatten, *STATELESS)


class Channels:
    """The channel axes of a model, which `torch.fx` must be able to trace.

    `inputs` and `outputs` have the axes of each convolution and linear layer by the layer's name: one, or one for each
    part of a concatenation. What lies between layers joins their axes: activations, normalisations, poolings, sums,
    depthwise convolutions and tensors with a number for each channel keep channels apart and in order. What depends on
    the order, such as a shuffle, pins it. The layers of `dense` are seen as if they had one group. Those of `grouped`
    may have groups without a loss, in the stored order, which the layers beside them must not change.

    Raises `GroupwiseError` if `torch.fx` cannot follow the model.
    """

    def __init__(self, model: nn.Module, dense: Collection[str] = (), grouped: Collection[str] = ()) -> None:
        self.inputs: dict[str, Parts] = {}
        self.outputs: dict[str, Parts] = {}
        self._dense, self._grouped = dense, grouped
        self._flow = _followed(model)
        self._of: dict[fx.Node, Parts] = {}
        for node in self._flow.graph.nodes:
            self._visit(node)
        self._pin_shared()
        self._pin_read_elsewhere()

    def _visit(self, node: fx.Node) -> None:
        flow, tensors = self._flow, self._flow.tensors(node)
        layer = flow.layer(node)
        if layer is not None:
            self._layer(node, layer, self._parts(tensors[0]))
        elif flow.concatenated(node) and flow.concatenates_channels(node) is not None:
            self._of[node] = self._concatenated(node)
        elif found := flow.scales(node):
            self._of[node] = self._numbered(self._parts(found[0]), [found[1]])
        elif normalised := flow.normalises(node):
            self._of[node] = self._numbered(self._parts(normalised[0]), normalised[1])
        elif len(tensors) == 2 and self._joins(node, tensors):
            first, second = self._parts(tensors[0]), self._parts(tensors[1])
            join(first, second)
            # A single channel is combined with each of the other value's, as many as there are then.
            self._of[node] = roots(max(first, second, key=_count))
        elif tensors and self._keeps(node, tensors[0]):
            self._of[node] = self._carried(node, self._parts(tensors[0]))
        else:
            for one in tensors:
                pin(self._parts(one), f"{_called(node)} depends on the order of its channels")

    def _parts(self, node: fx.Node) -> Parts:
        """Returns the axes of a node's value; one that nothing is known of is pinned."""
        if node not in self._of:
            self._of[node] = (ChannelAxis(),)
            pin(self._of[node], _origin(node))
        return roots(self._of[node])

    def _concatenated(self, node: fx.Node) -> Parts:
        """Returns the axes of all parts of a concatenation; along positions the parts have one order."""
        parts = [self._parts(one) for one in self._flow.concatenated(node)]
        if not self._flow.concatenates_channels(node):
            for other in parts[1:]:
                join(parts[0], other)
            return parts[0]
        found = tuple(axis for part in parts for axis in part)
        if not all(axis.size for axis in found):
            pin(found, f"{_called(node)} puts them beside others, of which nothing tells how many they are")
        return found

    def _numbered(self, parts: Parts, numbers: Sequence[Numbers]) -> Parts:
        """Adds tensors of the model that have a number for each channel, and returns the axes of what they make."""
        for one in numbers:
            if one.entries == 1:
                continue
            if _count(parts) > 1:
                add(parts, one.module, one.tensor, one.dim, one.entries)
                continue
            # A single channel becomes as many as there are numbers.
            pin(parts, f"{one.tensor} has {one.entries} numbers for {_count(parts) or 'an unknown number of'} channels")
            parts = (ChannelAxis(one.entries, pinned=f"{one.tensor} fixes the order of its numbers"),)
        return parts

    def _layer(self, node: fx.Node, layer: _ConvNd | nn.Linear, before: Parts) -> None:
        name = str(node.target)
        if isinstance(layer, nn.Linear):
            add(before, name, "weight", 1, layer.in_features)
            after: Parts = (ChannelAxis(layer.out_features, [Use(name, "weight", 0)]),)
        else:
            after = self._convolution(name, layer, before)
        if layer.bias is not None:
            add(after, name, "bias", 0, sum(axis.size for axis in roots(after)))
        self.inputs[name], self.outputs[name] = before, after
        self._of[node] = after

    def _convolution(self, name: str, layer: _ConvNd, before: Parts) -> Parts:
        if layer.groups == layer.in_channels == layer.out_channels != 1:
            add(before, name, "weight", 0, layer.in_channels)
            return before
        into, out = (0, 1) if isinstance(layer, _ConvTransposeNd) else (1, 0)
        after = ChannelAxis(layer.out_channels, [Use(name, "weight", out)])
        if layer.groups == 1 or name in self._dense:
            add(before, name, "weight", into, layer.in_channels)
        if layer.groups > 1 or name in self._grouped:
            reason = f"{name} has groups={layer.groups} already"
            if layer.groups == 1:
                reason = f"{name} can have groups in the stored order without a loss"
            for axis in (*roots(before), after):
                axis.grouped[name] = reason
                if name not in self._dense:
                    axis.pin(reason)
        return (after,)

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
        if drops_samples(node):
            return True
        return (module is None or isinstance(module, _KEEP)) and self._flow.passes(node)

    def _carried(self, node: fx.Node, parts: Parts) -> Parts:
        """Adds the tensors of a layer that has an entry for each channel."""
        module = self._flow.module(node)
        for name, tensor in [] if module is None else (*module.named_parameters(), *module.named_buffers()):
            if tensor.dim() == 1 and tensor.numel() > 1:
                add(parts, str(node.target), name, 0, tensor.numel())
        return parts

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
                pin(self._parts(one), reason)


def _is_symmetric(norm: nn.LayerNorm | nn.GroupNorm, axis: Axis) -> bool:
    """Says whether a normalisation over channels computes the same in any order of them."""
    if norm._forward_hooks or norm._forward_pre_hooks or not known_forward(norm, (nn.LayerNorm, nn.GroupNorm)):
        return False
    if isinstance(norm, nn.LayerNorm):
        return axis.place == -1 and len(norm.normalized_shape) == 1 and not parametrize.is_parametrized(norm)
    return axis.is_map and norm.num_groups in (1, norm.num_channels) and not parametrize.is_parametrized(norm)


def _followed(model: nn.Module) -> ChannelFlow:
    try:
        return ChannelFlow(model)
    except GroupwiseError as error:
        kind, cause = type(model).__name__, error.__cause__
        why = f"{kind} does not run the same layers in training and in evaluation"
        if cause is not None:
            reason = str(cause).split("\n")[0]
            why = f"torch.fx cannot follow {kind} ({reason})"
        raise GroupwiseError(
            f"{why}, so that nothing tells which layers have their channels in one order; give gather=True, so that "
            'layers move their channels at each call, or give regroup form="factored", which keeps their order'
        ) from cause


def _count(parts: Parts) -> int:
    """Returns how many channels a value has; 0 if that is unknown."""
    sizes = [part.size for part in roots(parts)]
    return sum(sizes) if all(sizes) else 0


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
