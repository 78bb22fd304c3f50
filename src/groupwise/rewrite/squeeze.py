"""Squeeze and excitation as one step: the mean over the pixels, one or two small layers of it, and the product."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.rewrite.capture import module_of
from groupwise.rewrite.steps import (
    Activation,
    Epilogue,
    args_of,
    convolution,
    is_layer,
    is_plain,
    is_tensor,
    only_reader,
    put,
    value,
)

aten = torch.ops.aten

# What the operator knows by name.
_KNOWN = {"relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh"}
# Operators that keep the order of the numbers, if they keep how many there are.
_SPREADS = {aten.expand.default, aten.expand_as.default}
_MOVES = {
    *(aten.reshape.default, aten.flatten.using_ints, aten.unsqueeze.default, *_SPREADS),
    *(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims),
}
_POOLS = {aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default}


@dataclass(frozen=True)
class _Gate:
    """What makes the factors: the layers in order, and all nodes from the product to the mean."""

    layers: tuple[Node, ...]
    nodes: tuple[Node, ...]


def flat(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Returns a layer's weight as a matrix, in the dtype of what it computes, or its bias, in that of its sums."""
    return weight.flatten(1).to(dtype).contiguous() if weight.dim() > 1 else weight.float()


def name_squeezes(graph: Graph) -> None:
    """Puts one operator in place of each squeeze and excitation. Layers must have their epilogues."""
    if native.status().operators_problem:
        return
    for node in list(graph.nodes):
        if node.target is not aten.mul.Tensor or node.kwargs:
            continue
        for source, factor in (args_of(node)[:2], args_of(node)[1::-1]):
            if (gate := _gate(node, source, factor)) is not None:
                _name(graph, node, source, gate)
                break


def name_means(graph: Graph) -> None:
    """Puts one operator in place of each other mean over all pixels."""
    if native.status().operators_problem:
        return
    for node in list(graph.nodes):
        source: Any = args_of(node)[0] if node.op == "call_function" and args_of(node) else None
        if not is_plain(source) or value(source).dim() < 3 or not is_plain(node, value(source).dtype):
            continue
        if node.kwargs or not _is_mean_of(node, source):
            continue
        keepdim = value(node).dim() == value(source).dim()
        meta = {"engine": "groupwise", "constant": False}
        put(graph, [node], torch.ops.groupwise.mean_pixels.default, (source, keepdim), meta)


def _gate(node: Node, source: Any, factor: Any) -> _Gate | None:
    """Returns how the factors come from the mean of the source, if they do and nothing else reads what is between."""
    if not (is_plain(source) and is_tensor(factor) and is_plain(node, value(source).dtype)):
        return None
    shape = value(source).shape
    if len(shape) < 3 or value(node).shape != shape:
        return None
    layers: list[Node] = []
    nodes: list[Node] = []
    reader = node
    if factor.target in _SPREADS and value(factor).shape == shape and only_reader(factor) is reader:
        nodes.append(factor)
        reader, factor = factor, args_of(factor)[0]
    # A factor with fewer dimensions would meet other ones.
    if not is_tensor(factor) or value(factor).shape != (*shape[:2], *[1] * (len(shape) - 2)):
        return None
    while factor.op == "call_function" and only_reader(factor) is reader and value(factor).shape[:1] == shape[:1]:
        nodes.append(factor)
        if not is_plain(factor, value(source).dtype):
            return None
        if _is_mean_of(factor, source):
            return _Gate(tuple(layers), tuple(nodes)) if 0 < len(layers) <= 2 else None
        before: Any = args_of(factor)[0] if args_of(factor) else None
        if not is_tensor(before):
            return None
        if _is_small(factor):
            layers.insert(0, factor)
        elif factor.target not in _MOVES or value(before).numel() != value(factor).numel():
            return None
        reader, factor = factor, before
    return None


def _is_small(layer: Node) -> bool:
    """Tells whether a layer is a product with one matrix, and an activation that the operator knows."""
    if not is_layer(layer):
        return False
    epilogue: Epilogue = layer.meta["epilogue"]
    geometry: Any = layer.meta.get("geometry")
    if epilogue.residual or (epilogue.before is not None and epilogue.before.name not in _KNOWN):
        return False
    if layer.target is not convolution:
        return value(layer).dim() == 2
    source, weight = (value(given).shape[2:] for given in args_of(layer)[:2])
    return geometry.groups == 1 and not geometry.is_padded and math.prod((*source, *weight)) == 1


def _is_mean_of(node: Node, source: Node) -> bool:
    """Tells whether a node is the mean of the source over all its pixels."""
    if not args_of(node) or args_of(node)[0] is not source:
        return False
    shape = value(source).shape
    if math.prod(value(node).shape) != shape[0] * shape[1]:
        return False
    if node.target is aten.mean.dim:
        dims = args_of(node)[1]
        return dims is not None and {dim % len(shape) for dim in dims} == set(range(2, len(shape)))
    if node.target is aten.avg_pool2d.default:
        # A window as large as the image, without padding or a divisor of its own.
        given: list[Any] = [*args_of(node)]
        window, padding, divisor = given[1], (*given[3:4], ())[0], (*given[6:7], None)[0]
        return [window[0], window[-1]] == list(shape[2:]) and not any(padding) and divisor is None and not node.kwargs
    return node.target in _POOLS


def _name(graph: Graph, node: Node, source: Node, gate: _Gate) -> None:
    """Replaces the product. A gate of one layer is the second of the operator."""
    with graph.inserting_before(node):
        given: list[Any] = [] if len(gate.layers) == 2 else [None, None, "none"]
        for layer in gate.layers:
            activation: Activation | None = layer.meta["epilogue"].before
            given += [_packed(graph, part, value(layer).dtype) for part in args_of(layer)[1:3]]
            given.append("none" if activation is None else activation.name)
    words = [word for layer in gate.layers for word in (layer.target.__name__, *layer.meta["fused"])]  # type: ignore[union-attr]
    fused = ("mean", *words, "product")
    target, in_place = torch.ops.groupwise.squeeze_excite.default, torch.ops.groupwise.squeeze_excite.out
    meta = {"engine": "groupwise", "fused": fused, "in_place": in_place, "constant": False}
    meta["layers"] = tuple(map(module_of, gate.layers))
    put(graph, (node, *gate.nodes), target, (source, *given), meta)


def _packed(graph: Graph, given: Node | None, dtype: torch.dtype) -> Node | None:
    if given is None:
        return None
    made = graph.call_function(flat, (given, dtype))
    made.meta = {"constant": True}
    return made
