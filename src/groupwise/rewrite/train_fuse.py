"""`fuse_training`: batch normalisations of an fx graph become one operator with their activations and residual sums."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from groupwise.nn.functional import batch_norm_act
from groupwise.nn.norm import apply_norm
from groupwise.rewrite.plan import Left


@dataclass(frozen=True)
class Fused:
    """A batch normalisation that is one operator with what follows it."""

    name: str
    """The module, or the node in the graph."""
    activation: str
    """The activation that it computes too; `none` if there is none."""
    residual: str = ""
    """What it adds before the activation: the module that made it, or the operator in its module; empty if nothing."""


@dataclass(frozen=True)
class Notes:
    """What `fuse_training` did to a graph."""

    fused: tuple[Fused, ...]
    left: tuple[Left, ...]
    """The batch normalisations that stay as they are, and why."""
    squeezed: tuple[str, ...] = ()
    """The first layers of the squeeze and excitations that are one operator."""


def fuse_training(graph_module: GraphModule) -> tuple[GraphModule, Notes]:
    """Fuses the batch normalisations of a graph in place, and returns the graph and what was done.

    Each BatchNorm, by module or by `F.batch_norm`, becomes one call that also computes the activation and the residual
    sum behind it, where nothing else reads what lies between. The modules stay where they are in `graph_module`: the
    calls read their parameters, statistics and training mode when they run. Gradients are those of the graph before.
    """
    notes = fuse_graph(graph_module.graph, graph_module)
    graph_module.recompile()
    return graph_module, notes


def fuse_graph(graph: Graph, root: torch.nn.Module) -> Notes:
    """Does what `fuse_training` does for a graph whose modules are below `root`, without compiling it."""
    modules = dict(root.named_modules(remove_duplicate=False))
    fused: list[Fused] = []
    left: dict[str, Left] = {}
    for node in _later_first(graph, modules):
        if node.op == "call_module":
            if reason := norm_refusal(modules[str(node.target)]):
                left[str(node.target)] = Left(str(node.target), reason)
                continue
            if node.kwargs or len(node.args) != 1:
                left[str(node.target)] = Left(str(node.target), "its call has other arguments than a tensor")
                continue
        fused.append(_fuse(graph, node, modules))
    return Notes(tuple(reversed(fused)), tuple(reversed(left.values())))


def norm_refusal(norm: torch.nn.Module) -> str | None:
    """Says why a batch normalisation stays as it is; None if it can be fused."""
    if has_hooks(norm):
        return "it has hooks"
    if parametrize.is_parametrized(norm):
        return "it is parametrized"
    if "forward" in vars(norm):
        return "its forward is set on the instance"
    if isinstance(norm, torch.nn.SyncBatchNorm):
        return "a SyncBatchNorm has the statistics of several processes"
    if type(norm) not in _EXACT and own_activation(norm) is None:
        return f"{type(norm).__name__} is a subclass of BatchNorm, whose code may do more"
    return None


def has_hooks(module: torch.nn.Module) -> bool:
    """Tells whether the module has hooks around its forward or backward."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def activation_of(module: torch.nn.Module) -> tuple[str, float] | None:
    """Returns the name and the slope of an activation module that the operator knows, or None."""
    if type(module) not in _MODULES or has_hooks(module) or "forward" in vars(module):
        return None
    slope = getattr(module, "negative_slope", 0.01)
    return _MODULES[type(module)], slope


def own_activation(norm: torch.nn.Module) -> tuple[str, float] | None:
    """Returns the activation that timm's BatchNormAct2d has in itself, or None for other modules."""
    kind = type(norm)
    if (kind.__module__, kind.__name__) != ("timm.layers.norm_act", "BatchNormAct2d"):
        return None
    drop, act = norm.get_submodule("drop"), norm.get_submodule("act")
    if type(drop) is not torch.nn.Identity or has_hooks(drop):
        return None
    return activation_of(act)


_EXACT = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d, torch.nn.BatchNorm3d)
_MODULES: dict[type, str] = {
    torch.nn.Identity: "none",
    torch.nn.ReLU: "relu",
    torch.nn.ReLU6: "relu6",
    torch.nn.SiLU: "silu",
    torch.nn.Hardswish: "hardswish",
    torch.nn.Hardsigmoid: "hardsigmoid",
    torch.nn.Sigmoid: "sigmoid",
    torch.nn.Tanh: "tanh",
    torch.nn.LeakyReLU: "leaky_relu",
}
_FUNCTIONS: dict[Any, str] = {
    F.relu: "relu",
    F.relu_: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    F.tanh: "tanh",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    F.leaky_relu: "leaky_relu",
    F.leaky_relu_: "leaky_relu",
}
# The operator keeps the residual for the backward of these, where PyTorch keeps the sum.
KEEPS_RESIDUAL = {"silu", "hardswish", "hardsigmoid"}
_METHODS = {name + suffix: name for name in ("relu", "sigmoid", "tanh") for suffix in ("", "_")}
_SUMS = {operator.add, torch.add}
_SUMS_IN_PLACE = {operator.iadd, "add_"}

_FRESH = {
    *(*_SUMS, *_FUNCTIONS, apply_norm, batch_norm_act, F.batch_norm, F.linear, torch.cat, torch.mul, operator.mul),
    *(F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d, F.max_pool2d, F.avg_pool2d),
}
_FRESH_MODULES = (
    *(torch.nn.modules.conv._ConvNd, torch.nn.Linear, _BatchNorm, torch.nn.MaxPool2d, torch.nn.AvgPool2d),
    *(kind for kind in _MODULES if kind is not torch.nn.Identity),
)


def _later_first(graph: Graph, modules: dict[str, torch.nn.Module]) -> list[Node]:
    """Returns the batch normalisations, the last first: of two that are summed the later one takes the sum."""

    def is_norm(node: Node) -> bool:
        if node.op == "call_module":
            return isinstance(modules.get(str(node.target)), _BatchNorm)
        return node.op == "call_function" and node.target is F.batch_norm

    return [node for node in graph.nodes if is_norm(node)][::-1]


def _fuse(graph: Graph, node: Node, modules: dict[str, torch.nn.Module]) -> Fused:
    """Puts one call in the place of the node and of what follows it."""
    last, residual = node, None
    own = own_activation(modules[str(node.target)]) if node.op == "call_module" else None
    activation, slope = own or ("none", 0.01)
    if activation == "none":
        if (found := _sum_after(node, modules)) is not None:
            last, residual = found
        # An activation sees its input alone, so that it can move up to the sum.
        place = last
        if (act := _activation_after(last, modules)) is not None:
            last, activation, slope = act
        if residual is not None and activation in KEEPS_RESIDUAL and _written_after(graph, residual, place, modules):
            last, place, residual, activation = node, node, None, "none"
    else:
        place = node
    options: dict[str, Any] = {} if activation == "none" else {"activation": activation}
    if residual is not None:
        options["residual"] = residual
    if activation == "leaky_relu":
        options["negative_slope"] = slope
    with graph.inserting_before(place):
        if node.op == "call_module":
            norm = graph.get_attr(str(node.target))
            made = graph.call_function(apply_norm, (norm, node.args[0]), options)
        else:
            made = graph.call_function(batch_norm_act, node.args, {_NAMES.get(k, k): v for k, v in node.kwargs.items()})
            made.kwargs = {**made.kwargs, **options}
    made.meta = dict(last.meta)
    last.replace_all_uses_with(made)
    for gone in dict.fromkeys((last, place, node)):
        graph.erase_node(gone)
    name = str(node.target) if node.op == "call_module" else node.name
    return Fused(name, activation, "" if residual is None else _name(residual))


def _name(node: Node) -> str:
    """Returns the name of what made a tensor: a module, or an operator or input with the module that it stands in."""
    if node.op in ("call_module", "placeholder"):
        return str(node.target)
    if node.target is apply_norm:
        # It reads the module first.
        return str(node.all_input_nodes[0].target)
    stack = list(node.meta.get("nn_module_stack", {}).values())
    own = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.name)
    return ".".join(filter(None, (stack[-1][0] if stack else "", own)))


_NAMES = {"input": "x"}


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _activation_after(node: Node, modules: dict[str, torch.nn.Module]) -> tuple[Node, str, float] | None:
    """Returns the activation that alone reads the node, its name and its slope."""
    user = _only_user(node)
    if user is None or not user.args or user.args[0] is not node:
        return None
    known = activation_at(user, modules)
    return (user, *known) if known else None


def activation_at(node: Node, modules: dict[str, torch.nn.Module]) -> tuple[str, float] | None:
    """Returns the name and the slope of the activation that a node computes of its first argument, or None."""
    if not node.args:
        return None
    if node.op == "call_module":
        known = activation_of(modules[str(node.target)])
        alone = len(node.args) == 1 and not node.kwargs
        return known if known and known[0] != "none" and alone else None
    if node.op == "call_method":
        name = _METHODS.get(str(node.target))
        return (name, 0.01) if name and len(node.args) == 1 and not node.kwargs else None
    name = _FUNCTIONS.get(node.target) if node.op == "call_function" else None
    # Dynamo calls ReLU6 so.
    if node.target is F.hardtanh and node.args[1:3] == (0, 6):
        name = "relu6"
    if name is None or not node.kwargs.keys() <= {"inplace", "negative_slope"}:
        return None
    slope = node.kwargs.get("negative_slope", 0.01)
    if name == "leaky_relu" and len(node.args) > 1:
        slope = node.args[1]
    return (name, slope) if isinstance(slope, int | float) else None


def _sum_after(node: Node, modules: dict[str, torch.nn.Module]) -> tuple[Node, Node] | None:
    """Returns the sum that alone reads the node, and what it adds to it."""
    user = _only_user(node)
    if user is None or user.kwargs or len(user.args) != 2:
        return None
    first, second = user.args
    in_place = user.target in _SUMS_IN_PLACE
    known = user.op == "call_function" and (user.target in _SUMS or user.target is operator.iadd)
    known |= user.op == "call_method" and user.target in ("add", "add_")
    if not known or not isinstance(first, Node) or not isinstance(second, Node) or first is second:
        return None
    # A sum in place writes to its first argument, which others may read if it is the residual.
    if in_place and first is not node:
        return None
    residual = second if first is node else first
    return (user, residual) if can_move(node, user, modules) else None


def can_move(node: Node, place: Node, modules: dict[str, torch.nn.Module]) -> bool:
    """Tells whether nothing between a node, as a batch normalisation, and a place changes what it reads or does."""
    between, state = node.next, _state(node)
    while between is not place:
        # Statistics that both update are updated in this order.
        if _state(between) & state:
            return False
        # A write may reach what the batch normalisation reads through a view.
        if writes(between, modules):
            return False
        between = between.next
    return True


def _written_after(graph: Graph, read: Node, place: Node, modules: dict[str, torch.nn.Module]) -> bool:
    """Tells whether something behind a place may write to the memory of what was read."""
    memory: dict[Node, frozenset[Node]] = {}
    for node in graph.nodes:
        shared = frozenset([node])
        for source in _shared_with(node, modules):
            shared |= memory[source]
        memory[node] = shared
    node = place.next
    while node.op != "root":
        if writes(node, modules) and any(memory[read] & memory[written] for written in _written_by(node)):
            return True
        node = node.next
    return False


def _written_by(node: Node) -> list[Node]:
    return [given for given in (*node.args[:1], node.kwargs.get("out")) if isinstance(given, Node)]


def _shared_with(node: Node, modules: dict[str, torch.nn.Module]) -> list[Node]:
    """Returns what a node reads and may share memory with: all, unless it is known to make memory of its own."""
    if writes(node, modules):
        return _written_by(node)
    fresh = node.op == "call_function" and node.target in _FRESH
    if node.op == "call_module":
        fresh = isinstance(modules.get(str(node.target)), _FRESH_MODULES)
    return [] if fresh else node.all_input_nodes


def _state(node: Node) -> set[str]:
    """Returns what a batch normalisation updates: its module, or its running statistics."""
    if node.op == "call_module":
        return {str(node.target)}
    if node.target not in (F.batch_norm, batch_norm_act, apply_norm):
        return set()
    held = node.args[:1] if node.target is apply_norm else node.args[1:3]
    held = (*held, *(node.kwargs.get(name) for name in ("running_mean", "running_var")))
    return {str(it.target) if it.op == "get_attr" else it.name for it in held if isinstance(it, Node)}


def _reads(node: Node) -> list[Any]:
    return [arg for arg in node.args if isinstance(arg, Node)]


def writes(node: Node, modules: dict[str, torch.nn.Module]) -> bool:
    """Tells whether a node writes to its first argument, as far as its name says."""
    if node.op == "call_module":
        return bool(getattr(modules.get(str(node.target)), "inplace", False))
    if node.kwargs.get("inplace") or "out" in node.kwargs:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return (name.endswith("_") and not name.endswith("__")) or name == "__setitem__"
    if node.op == "call_function":
        return name in ("setitem", "iadd", "isub", "imul", "itruediv") or (name.endswith("_") and name[:1] != "_")
    return False
