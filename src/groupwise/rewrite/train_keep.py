"""`keep_less`: what reads the output of a BatchNorm computes it again in the backward, instead of keeping it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.nn.norm import apply_norm
from groupwise.rewrite import train_origin
from groupwise.rewrite.train_excite import squeeze, squeeze_convolve
from groupwise.rewrite.train_filters import convolves, layer_of
from groupwise.rewrite.train_fuse import KEEPS_RESIDUAL, can_move
from groupwise.rewrite.train_layer import norm_convolve, scale_convolve
from groupwise.rewrite.train_squeeze import apply_squeeze
from groupwise.rewrite.train_trace import reason_to_keep

Modules = dict[str, torch.nn.Module]

_PRODUCTS = {operator.mul, torch.mul, "mul"}
# These keep nothing, and make new memory.
_FREE = {operator.add, torch.add, "add", torch.cat, torch.mean, "mean"}


def keep_less(graph: Graph, modules: Modules, least: float) -> None:
    """Lets convolutions, products with a gate, squeezes and poolings compute again what a BatchNorm made.

    They do so for outputs of at least `least` numbers a sample.

    Where anything else keeps the output of the BatchNorm for its backward, nothing would be saved, and the graph stays.
    """
    if native.status().operators_problem is not None:
        return
    origins: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if node.target is not apply_norm:
            continue
        if (conv := _alone(node, modules)) is not None:
            _join(graph, node, conv, norm_convolve, (least, *node.args))
        elif _recomputed(node, modules, origins):
            kwargs = dict(node.kwargs)
            if "residual" in kwargs:
                kwargs["residual_origin"] = origins[kwargs["residual"]]
            made, origin = _pair(graph, node, train_origin.normalise, (least, *node.args), kwargs)
            _hand_on(graph, made, origin, modules, origins)


def _alone(node: Node, modules: Modules) -> Node | None:
    """Returns the convolution that alone reads a product, or a BatchNorm without a sum, if that can move to it."""
    reader = next(iter(node.users)) if len(node.users) == 1 else None
    if reader is None or "residual" in node.kwargs or not convolves(reader, node, modules):
        return None
    return reader if _reader(reader, node, modules) == "again" and can_move(node, reader, modules) else None


def _join(graph: Graph, node: Node, conv: Node, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Puts one call in the place of a node and of the convolution that reads it."""
    with graph.inserting_before(conv):
        made = graph.call_function(function, (layer_of(graph, conv), *args), dict(node.kwargs))
    made.meta = dict(conv.meta)
    conv.replace_all_uses_with(made)
    graph.erase_node(conv)
    graph.erase_node(node)


def _recomputed(node: Node, modules: Modules, origins: Mapping[Node, Node]) -> bool:
    residual = node.kwargs.get("residual")
    if residual is not None and (residual not in origins or node.kwargs.get("activation", "none") != "none"):
        return False
    return _all_compute_again(node, modules)


def _all_compute_again(node: Node, modules: Modules) -> bool:
    readers = [_reader(user, node, modules) for user in node.users]
    return "keeps" not in readers and "again" in readers


def _reader(user: Node, node: Node, modules: Modules) -> str:
    """Says what a reader of a node does for its backward: it `keeps` the node, is `free`, or computes it `again`."""
    module = modules.get(str(user.target)) if user.op == "call_module" else None
    if module is not None:
        # Only a call of the module runs its hooks and its own forward.
        if user.args != (node,) or user.kwargs or reason_to_keep(module):
            return "keeps"
        if convolves(user, node, modules) or type(module) is torch.nn.MaxPool2d:
            return "again"
        averages = type(module) is torch.nn.AdaptiveAvgPool2d and module.output_size in (1, (1, 1))
        return "free" if averages else "keeps"
    if convolves(user, node, modules):
        return "again"
    if user.target in _PRODUCTS and len(user.args) == 2 and not user.kwargs and user.args[0] is not user.args[1]:
        return "again" if all(isinstance(arg, Node) for arg in user.args) else "keeps"
    if user.target is apply_squeeze:
        return "again"
    if user.target is apply_norm:
        # With these a normalisation keeps the residual.
        keeps = user.args[1] is node or user.kwargs.get("activation") in KEEPS_RESIDUAL
        return "keeps" if keeps or user.kwargs.get("activation") == "leaky_relu" else "again"
    if user.target is F.adaptive_avg_pool2d:
        return "free" if user.args[1:] in ((1,), ((1, 1),)) and not user.kwargs else "keeps"
    return "free" if user.target in _FREE and "out" not in user.kwargs else "keeps"


def _pair(
    graph: Graph, node: Node, function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Node, Node]:
    """Puts a call that returns a tensor and its origin in the place of a node; returns both."""
    with graph.inserting_before(node):
        both = graph.call_function(function, args, dict(kwargs))
        made, origin = (graph.call_function(operator.getitem, (both, i)) for i in range(2))
    made.meta = dict(node.meta)
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return made, origin


def _hand_on(graph: Graph, made: Node, origin: Node, modules: Modules, origins: dict[Node, Node]) -> None:
    """Gives the origin of a tensor to what reads the tensor."""
    origins[made] = origin
    for user in list(made.users):
        convolution = convolves(user, made, modules)
        if (convolution or user.op == "call_module") and _reader(user, made, modules) == "again":
            function = train_origin.convolve if convolution else train_origin.pool
            with graph.inserting_before(user):
                call = graph.call_function(function, (made, origin, layer_of(graph, user)))
            call.meta = dict(user.meta)
            user.replace_all_uses_with(call)
            graph.erase_node(user)
        elif user.target in _PRODUCTS:
            gate = user.args[1] if user.args[0] is made else user.args[0]
            _multiply(graph, user, train_origin.scale, scale_convolve, (made, origin, gate), modules, origins)
        elif user.target is apply_squeeze:
            first, second, _, *activations = user.args
            args = (first, second, made, origin, *activations)
            _multiply(graph, user, squeeze, squeeze_convolve, args, modules, origins)


def _multiply(
    graph: Graph,
    node: Node,
    function: Callable[..., Any],
    with_convolution: Callable[..., Any],
    args: tuple[Any, ...],
    modules: Modules,
    origins: dict[Node, Node],
) -> None:
    """Puts one call in the place of a product, and of the convolution that alone reads it."""
    if (conv := _alone(node, modules)) is not None:
        _join(graph, node, conv, with_convolution, args)
        return
    product, its_origin = _pair(graph, node, function, args, {})
    if _all_compute_again(product, modules):
        _hand_on(graph, product, its_origin, modules, origins)
    else:
        graph.erase_node(its_origin)
