"""How channels flow through a model: its graph, and what each step does to channels that are split."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from torch import fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from groupwise.parallel.planning import operations as ops
from groupwise.parallel.planning.axes import Axis, keeps_channels, pads, reordered, slices_only
from groupwise.parallel.planning.operations import argument, attribute, does, fact
from groupwise.parallel.planning.trace import shapes_of, trace
from groupwise.parallel.styles.base import is_plain
from groupwise.parallel.styles.channelwise import ACTIVATIONS, PADS, STATELESS, units_of

# These take (N, C) for a single sample.
_OF_MAPS = (_InstanceNorm, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Flow:
    """The graph of a model and, by node, what it does to channels.

    `root` is a copy of the model that has shapes and no values, so that a flow does not depend on what becomes of the
    model.
    """

    def __init__(self, model: nn.Module) -> None:
        twin, self.graph, self.drew = trace(model)
        self.root = shapes_of(twin)
        self.modules = dict(self.root.named_modules())
        self._calls: dict[Any, list[fx.Node]] = defaultdict(list)
        self._numbers: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "call_module":
                self._calls[node.target].append(node)
            inputs = node.all_input_nodes
            if fact(node) or (inputs and does(node, ops.NUMBERS) and self._numbers.issuperset(inputs)):
                self._numbers.add(node)
        self._dims = self._infer_dims()
        self.axes: dict[fx.Node, Axis | None] = {}
        for node in self.graph.nodes:
            self.axes[node] = self._axis(node)

    @property
    def random(self) -> bool:
        """Whether the model draws random numbers in training: in layers, in functions, or while it is traced."""
        layers = self.modules.values()
        return (
            self.drew
            or any(isinstance(layer, _DropoutNd) and layer.p for layer in layers)
            or any(isinstance(layer, nn.RReLU) or getattr(layer, "dropout", None) for layer in layers)
            or any(does(node, ops.RANDOM) for node in self.graph.nodes)
        )

    def module(self, node: fx.Node) -> nn.Module | None:
        """Returns the module that a node calls."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes whose tensors a node takes, without those whose values are sizes."""
        return [] if node in self._numbers else [one for one in node.all_input_nodes if one not in self._numbers]

    def layer(self, node: fx.Node) -> _ConvNd | nn.Linear | None:
        """Returns the convolution or `Linear` that a node calls, unless it reads another dimension than channels."""
        module, inputs = self.module(node), self.tensors(node)
        if module is None or not inputs or _hooked(module) or not is_plain(module):
            return None
        axis = self.axes[inputs[0]]
        if isinstance(module, nn.Linear):
            return module if axis is None or axis.place == -1 else None
        if not isinstance(module, _ConvNd) or isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return None
        return module if axis is None or axis.is_map else None

    def passes(self, node: fx.Node) -> bool:
        """Says whether a node computes each channel of its first tensor alone."""
        inputs = self.tensors(node)
        axis = self.axes[inputs[0]] if inputs else None
        if axis is None:
            return False
        module = self.module(node)
        if isinstance(module, nn.Flatten):
            return axis.is_map and self._flattens(node) and not _hooked(module)
        if module is not None:
            return self._module_passes(module, axis)
        if len(inputs) != 1:
            return False
        if does(inputs[0], ops.PIECES):
            return does(node, ops.INDEXING) and type(node.args[1]) is int
        if does(node, ops.ELEMENTWISE) or does(node, ops.ARITHMETIC):
            return True
        if keeps_channels(node, axis) or reordered(node, axis) is not None:
            return True
        pools = does(node, ops.POOLINGS) and _fits(axis, getattr(node.target, "__name__", ""))
        return axis.is_map and (pools or self._flattens(node) or self._averages(node, axis))

    def gates(self, node: fx.Node) -> bool:
        """Says whether a node multiplies two tensors of the same channels, as squeeze-and-excitation does."""
        inputs = self.tensors(node)
        if not does(node, ops.PRODUCTS) or len(inputs) != 2:
            return False
        one, other = (self.axes[given] for given in inputs)
        if one is None or other is None or one.place != other.place:
            return False
        return one.dims == other.dims or None in (one.dims, other.dims)

    def reads_common(self, user: fx.Node, node: fx.Node) -> bool:
        """Says whether `user` reads a fact of `node` that all shards have in common: any size but that of channels."""
        axis, name = self.axes[node], fact(user)
        if not name or axis is None:
            return False
        if name in ops.COMMON:
            return True
        if name == "size" and (dim := argument(user, 1, "dim")) is not None:
            return self._is_position(dim, axis)
        return all(
            does(one, ops.INDEXING) and (self._is_position(one.args[1], axis) or not one.users) for one in user.users
        )

    def channels(self, node: fx.Node) -> int:
        """Returns the channels of a node's value; 0 if no layer before it says so, as after a flatten."""
        while (layer := self.layer(node)) is None and (self.passes(node) or self.gates(node)):
            if self._flattens(node):
                return 0
            node = self.tensors(node)[0]
        return 0 if layer is None else layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels

    def calls(self, node: fx.Node) -> list[fx.Node]:
        """Returns the nodes that call the same module."""
        return self._calls[node.target]

    def _axis(self, node: fx.Node) -> Axis | None:
        """Returns where the channels of a node's value lie, None if that is unknown."""
        inputs, module = self.tensors(node), self.module(node)
        if isinstance(module, _ConvNd):
            dims = len(module.kernel_size) + 2
            return Axis(1 - dims, dims)
        before = self.axes[inputs[0]] if inputs else None
        if isinstance(module, nn.Linear):
            return Axis(-1, self._dims.get(node)) if before is None or before.place == -1 else None
        if before is None:
            return None
        if before.is_map and self._flattens(node):
            return Axis(-1, 2)
        if before.is_map and self._averages(node, before):
            return before if argument(node, 2, "keepdim", False) else Axis(-1, 2)
        if (after := reordered(node, before)) is not None:
            return after
        if self.passes(node) or self.gates(node) or does(node, ops.ARITHMETIC):
            return before
        # Normalisations keep the shape, also those that mix channels, and so do dropouts.
        return before if module is not None and (hasattr(module, "eps") or isinstance(module, _DropoutNd)) else None

    def _infer_dims(self) -> dict[fx.Node, int]:
        """Returns how many dimensions each value has, as far as convolutions before it and after it tell."""
        dims: dict[fx.Node, int] = {}
        for node in self.graph.nodes:
            module, inputs = self.module(node), self.tensors(node)
            if isinstance(module, _ConvNd):
                for one in (node, *inputs[:1]):
                    dims.setdefault(one, len(module.kernel_size) + 2)
            elif self._flattens(node):
                dims[node] = 2
            elif does(node, ops.PERMUTES):
                order = node.args[1:] if len(node.args) > 2 else argument(node, 1, "dims", ())
                dims.setdefault(node, len(order) if isinstance(order, (tuple, list)) else 1)
        pairs = [(node, self.tensors(node)[0]) for node in self.graph.nodes if self._keeps_dims(node)]
        known = -1
        while known != len(dims):
            known = len(dims)
            for node, before in (*pairs, *reversed(pairs)):
                for one, other in ((node, before), (before, node)):
                    if one in dims:
                        dims.setdefault(other, dims[one])
        return dims

    def _keeps_dims(self, node: fx.Node) -> bool:
        """Says whether a node's value has as many dimensions as the first tensor that it takes."""
        module, inputs = self.module(node), self.tensors(node)
        if not inputs or self._flattens(node):
            return False
        if module is not None:
            known = isinstance(module, nn.Linear | _DropoutNd) or units_of(module) is not None
            return known or hasattr(module, "eps")
        if does(node, ops.INDEXING):
            piece = does(inputs[0], ops.PIECES) and type(node.args[1]) is int
            return piece or slices_only(node.args[1])
        if attribute(node) in ops.TRANSPOSES:
            return True
        keep = ops.ELEMENTWISE | ops.POOLINGS | ops.REORDERS | ops.NARROWS | ops.PIECES | ops.PADS
        return does(node, keep) or (does(node, ops.ARITHMETIC) and len(inputs) == 1)

    def _module_passes(self, module: nn.Module, axis: Axis) -> bool:
        if _hooked(module) or units_of(module) in (None, 1):
            return False
        if type(module) in ACTIVATIONS:
            return True
        if type(module) in PADS:
            return not pads(module.padding, axis.place)
        if axis.is_row:
            return type(module) not in STATELESS and not isinstance(module, _OF_MAPS)
        # A layer for maps of other dimensions would take this one for a single sample, whose channels lie elsewhere.
        return axis.is_map and all(_fits(axis, base.__name__) for base in type(module).__mro__)

    def _flattens(self, node: fx.Node) -> bool:
        module = self.module(node)
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        return (
            does(node, ops.FLATTENS)
            and argument(node, 1, "start_dim", 0) == 1
            and argument(node, 2, "end_dim", -1) == -1
        )

    def _averages(self, node: fx.Node, axis: Axis) -> bool:
        """Says whether a node is the mean over all positions of a map."""
        if not does(node, ops.MEANS) or axis.dims is None:
            return False
        dims = argument(node, 1, "dim")
        dims = sorted([dims] if isinstance(dims, int) else dims if isinstance(dims, (list, tuple)) else [])
        return bool(dims) and dims in (list(range(2 - axis.dims, 0)), list(range(2, axis.dims)))

    @staticmethod
    def _is_position(dim: Any, axis: Axis) -> bool:
        counted = axis.counted(dim)
        return counted is not None and counted != axis.place


def _fits(axis: Axis, name: str) -> bool:
    """Says whether a function or class of that name, max_pool2d or BatchNorm1d, takes maps of that many dimensions."""
    found = re.search("([123])d$", name)
    return found is None or int(found[1]) + 2 == axis.dims


def _hooked(module: nn.Module) -> bool:
    """Says whether other code than its forward runs: hooks, which would find a shard, or what computes its tensors."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or parametrize.is_parametrized(module)
