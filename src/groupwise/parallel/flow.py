"""How channels flow through a model: its graph by `torch.fx`, and what each step does to channels that are split."""

from __future__ import annotations

import copy
import operator
import re
from collections import defaultdict
from typing import Any

import torch
from torch import fx, nn
from torch.distributed import ProcessGroup
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils import parametrize

from groupwise.errors import GroupwiseError
from groupwise.parallel.channelwise import ACTIVATIONS, STATELESS, parts_of
from groupwise.parallel.styles import is_plain

# How a value lies: channels in dimension 1 of (N, C, ...), of (N, C), or in the last of any number of dimensions.
MAP, ROW, LAST = "map", "row", "last"

_ELEMENTWISE: set[Any] = {
    *(torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.clamp, torch.exp, torch.neg, operator.neg),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus, F.sigmoid, F.tanh, F.hardtanh),
    *(F.hardswish, F.hardsigmoid, F.selu, F.celu),
    *("relu", "relu_", "sigmoid", "tanh", "abs", "clamp", "contiguous", "clone", "detach", "float", "to", "neg"),
}
_ARITHMETIC: set[Any] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *("add", "sub", "mul", "div"),
}
_PRODUCTS: set[Any] = {operator.mul, torch.mul, "mul"}
_POOLINGS: set[Any] = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
_FLATTENS: set[Any] = {torch.flatten, "flatten"}
_MEANS: set[Any] = {torch.mean, "mean"}
# What draws random numbers whenever it runs, or unless it is told that it does not train.
_RANDOM: set[Any] = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu),
    *(torch.bernoulli, torch.rand_like, torch.randn_like, torch.randint_like, torch.multinomial, torch.poisson),
    *(torch.normal, F.gumbel_softmax, torch.dropout, torch.rand, torch.randn, torch.randint, torch.randperm),
    *("bernoulli", "bernoulli_", "random_", "normal_", "uniform_", "exponential_"),
}


# These take (N, C) for a single sample.
_OF_MAPS = (_InstanceNorm, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class Flow:
    """The graph of a model and, by node, what it does to channels."""

    def __init__(self, model: nn.Module) -> None:
        self.modules = dict(model.named_modules())
        self.root, self.graph, self.drew = trace(model)
        self.kinds: dict[fx.Node, str] = {}
        self._calls: dict[Any, list[fx.Node]] = defaultdict(list)
        for node in self.graph.nodes:
            self.kinds[node] = self._kind(node)
            if node.op == "call_module":
                self._calls[node.target].append(node)

    @property
    def random(self) -> bool:
        """Whether the model draws random numbers in training: of layers, of functions, or while it is traced."""
        layers = self.modules.values()
        return (
            self.drew
            or any(isinstance(layer, _DropoutNd) and layer.p for layer in layers)
            or any(isinstance(layer, nn.RReLU) or getattr(layer, "dropout", None) for layer in layers)
            or any(_does(node, _RANDOM) for node in self.graph.nodes)
        )

    def module(self, node: fx.Node) -> nn.Module | None:
        """The module that a node calls."""
        return self.modules.get(str(node.target)) if node.op == "call_module" else None

    def layer(self, node: fx.Node) -> _ConvNd | nn.Linear | None:
        """The convolution or `Linear` that a node calls, on channels where they are known to lie."""
        module = self.module(node)
        fits = isinstance(module, _ConvNd) and not isinstance(module, nn.modules.lazy.LazyModuleMixin)
        if module is None or _hooked(module) or not is_plain(module):
            return None
        if isinstance(module, nn.Linear) and node.all_input_nodes:
            fits = self.kinds[node.all_input_nodes[0]] != MAP
        return module if fits else None  # type: ignore[return-value]

    def passes(self, node: fx.Node) -> bool:
        """Whether a node can be computed of any channels alone, those of the first tensor that it takes."""
        if not node.all_input_nodes:
            return False
        kind = self.kinds[node.all_input_nodes[0]]
        module = self.module(node)
        if isinstance(module, nn.Flatten):
            return kind == MAP and self._flattens(node) and not _hooked(module)
        if module is not None:
            return self._module_passes(node, module, kind)
        if len(node.all_input_nodes) != 1:
            return False
        if _does(node, _ELEMENTWISE) or _does(node, _ARITHMETIC):
            return True
        pools = _does(node, _POOLINGS) and self._fits(node, getattr(node.target, "__name__", ""))
        return kind == MAP and (pools or self._flattens(node) or self._averages(node))

    def gates(self, node: fx.Node) -> bool:
        """Whether a node is the product of two tensors: a gate, such as squeeze-and-excitation's."""
        return _does(node, _PRODUCTS) and len(node.all_input_nodes) == 2

    def channels(self, node: fx.Node) -> int:
        """The channels of a node's value, where a layer before it says so, else 0, as of a map that is flattened."""
        while (layer := self.layer(node)) is None and (self.passes(node) or self.gates(node)):
            if self._flattens(node):
                return 0
            node = node.all_input_nodes[0]
        return 0 if layer is None else layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels

    def calls(self, node: fx.Node) -> list[fx.Node]:
        """The nodes that call the same module."""
        return self._calls[node.target]

    def _kind(self, node: fx.Node) -> str:
        module = self.module(node)
        before = self.kinds[node.all_input_nodes[0]] if node.all_input_nodes else LAST
        if isinstance(module, _ConvNd):
            return MAP
        if before == MAP and (self._flattens(node) or self._averages(node)):
            return ROW if self._flattens(node) or not _argument(node, 2, "keepdim", False) else MAP
        if isinstance(module, nn.Linear):
            return before if before == ROW else LAST
        if self.passes(node) or self.gates(node):
            return before
        if _does(node, _ARITHMETIC):
            return before
        # What normalises keeps the shape, also where channels meet.
        return before if module is not None and hasattr(module, "eps") else LAST

    def _module_passes(self, node: fx.Node, module: nn.Module, kind: str) -> bool:
        if _hooked(module) or parts_of(module) in (None, 1):
            return False
        if type(module) in ACTIVATIONS:
            return True
        if kind == ROW:
            return type(module) not in STATELESS and not isinstance(module, _OF_MAPS)
        # One of other dimensions than the map's would take it for a single sample, whose channels lie elsewhere.
        return kind == MAP and all(self._fits(node, base.__name__) for base in type(module).__mro__)

    def _fits(self, node: fx.Node, name: str) -> bool:
        """Whether what is called so, max_pool2d or BatchNorm1d, is for maps of as many dimensions as this."""
        found = re.search("([123])d$", name)
        return found is None or int(found[1]) == self._positions(node)

    def _flattens(self, node: fx.Node) -> bool:
        module = self.module(node)
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        return (
            _does(node, _FLATTENS)
            and _argument(node, 1, "start_dim", 0) == 1
            and _argument(node, 2, "end_dim", -1) == -1
        )

    def _averages(self, node: fx.Node) -> bool:
        """Whether a node is the mean over all positions of a map."""
        if not _does(node, _MEANS):
            return False
        dims = _argument(node, 1, "dim", None)
        dims = sorted([dims] if isinstance(dims, int) else dims if isinstance(dims, (list, tuple)) else [])
        positions = self._positions(node)
        return bool(dims) and dims in (list(range(-positions, 0)), list(range(2, 2 + positions)))

    def _positions(self, node: fx.Node) -> int:
        """The spatial dimensions of a map: those of the last convolution before it."""
        while node.all_input_nodes:
            node = node.all_input_nodes[0]
            module = self.module(node)
            if isinstance(module, _ConvNd):
                return len(module.kernel_size)
        return 0


class _Tracer(fx.Tracer):
    """Goes into containers and blocks, and takes layers as they are."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        layer = isinstance(m, _ConvNd | nn.Linear | _DropoutNd) or parts_of(m) is not None
        return layer or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> tuple[nn.Module, fx.Graph, bool]:
    """A copy of the model and its graph, and whether it drew random numbers meanwhile.

    Raises `GroupwiseError` where `torch.fx` cannot follow it, or does in one mode only.
    """
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        try:
            twin, other = _twin(model), _twin(model).train(not model.training)
            graph, again = _Tracer().trace(twin), _Tracer().trace(other)
        except Exception as error:  # whatever the model's own code raises when it is given proxies
            raise GroupwiseError(
                f"torch.fx cannot follow {type(model).__name__}, so that its layers cannot be planned together "
                f"({error}); split its blocks one by one, or name each layer's style in a plan for parallelize_module"
            ) from error
        drew = not torch.equal(state, torch.get_rng_state())
    one, two = ([(n.op, n.target, [a.name for a in n.all_input_nodes]) for n in g.nodes] for g in (graph, again))
    if one != two:
        raise GroupwiseError(
            f"{type(model).__name__} does not run the same layers in training and in evaluation, so that one plan does "
            "not do for both; split its blocks one by one"
        )
    return twin, graph, drew


def _twin(model: nn.Module) -> nn.Module:
    """A copy of the same parameters: what code does to anything else while it is traced is no part of the model."""
    return copy.deepcopy(model, {id(one): one for one in (*model.parameters(), *held(model))})


def held(model: nn.Module) -> list[torch.Tensor | ProcessGroup]:
    """What modules hold beside parameters and buffers that has no copy: activations of a graph, process groups."""
    values = (value for module in model.modules() for value in vars(module).values())
    return [value for value in values if isinstance(value, ProcessGroup | torch.Tensor)]


def _hooked(module: nn.Module) -> bool:
    """Whether other code than its forward's runs: hooks, which would find a part, or what computes its tensors."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or parametrize.is_parametrized(module)


def _does(node: fx.Node, targets: set[Any]) -> bool:
    """Whether a node calls one of these functions or methods; a module may have any name."""
    return node.op in ("call_function", "call_method") and node.target in targets


def _argument(node: fx.Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)
