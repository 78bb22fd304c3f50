"""Fusing: activations and sums go into the layer before them, if that has no other reader."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.fx import Graph, Node

from groupwise.rewrite.norms import fuse_norms
from groupwise.rewrite.steps import activation_of, args_of, is_layer, is_tensor, only_reader, value

aten = torch.ops.aten


def fuse(graph: Graph) -> None:
    """Fuses in the order in which the graph computes, so that an epilogue grows with what follows."""
    order = {node: number for number, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        if node.op == "call_function" and is_tensor(node):
            _activation(graph, node, order) or _sum(graph, node, order)
    fuse_norms(graph)


def _activation(graph: Graph, node: Node, order: dict[Node, int]) -> bool:
    activation = activation_of(node)
    if activation is None:
        return False
    layer = args_of(node)[0]
    if not _is_open(layer, node) or layer.meta["epilogue"].last is not None:
        return False
    layer.meta["epilogue"] = layer.meta["epilogue"].with_activation(activation)
    _absorb(graph, layer, node, activation.name)
    return True


def _sum(graph: Graph, node: Node, order: dict[Node, int]) -> bool:
    if node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return False
    # The layer that comes last has its residual ready, wherever that comes from.
    candidates = [
        (layer, other)
        for layer, other in (args_of(node)[:2], args_of(node)[1::-1])
        if _is_open(layer, node) and not layer.meta["epilogue"].residual and _are_alike(layer, other, node)
    ]
    if not candidates:
        return False
    layer, other = max(candidates, key=lambda pair: order[pair[0]])
    layer.meta["epilogue"] = replace(layer.meta["epilogue"], residual=True)
    layer.args = (*args_of(layer)[:3], other)
    # The residual may be computed after the layer.
    node.prepend(layer)
    order[layer] = order[node]
    _absorb(graph, layer, node, "sum")
    return True


def _is_open(layer: object, reader: Node) -> bool:
    return isinstance(layer, Node) and is_layer(layer) and only_reader(layer) is reader


def _are_alike(layer: Node, other: object, node: Node) -> bool:
    if not isinstance(other, Node) or not is_tensor(other):
        return False
    first, second, result = value(layer), value(other), value(node)
    return first.shape == second.shape == result.shape and first.dtype == second.dtype == result.dtype


def _absorb(graph: Graph, layer: Node, node: Node, word: str) -> None:
    layer.meta["fused"] = (*layer.meta["fused"], word)
    layer.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(layer)
    graph.erase_node(node)
