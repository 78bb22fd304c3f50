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
        (*found, moved, other)
        for moved, other in (args_of(node)[:2], args_of(node)[1::-1])
        if (found := _layer_behind(moved, node)) and _are_alike(moved, other, node)
    ]
    if not candidates:
        return False
    layer, moves, moved, other = max(candidates, key=lambda found: order[found[0]])
    # The residual may be computed after the layer.
    with graph.inserting_before(node):
        for move in moves:
            other = _moved_back(graph, move, other)
    layer.meta["epilogue"] = replace(layer.meta["epilogue"], residual=True)
    layer.args = (*args_of(layer)[:3], other)
    for late in (layer, *reversed(moves)):
        node.prepend(late)
        order[late] = order[node]
    _absorb(graph, layer, node, "sum", moved)
    return True


def _layer_behind(moved: object, reader: Node) -> tuple[Node, list[Node]] | None:
    """Returns a layer that can add a residual, and what moves dimensions between it and its reader, the last first."""
    moves: list[Node] = []
    while isinstance(moved, Node) and moved.target in _MOVES and only_reader(moved) is reader:
        moves.append(moved)
        reader, moved = moved, args_of(moved)[0]
    if not _is_open(moved, reader) or moved.meta["epilogue"].residual:  # type: ignore[attr-defined]
        return None
    return moved, moves  # type: ignore[return-value]


def _moved_back(graph: Graph, move: Node, other: Node) -> Node:
    """Returns the residual as it is before a move of dimensions."""
    dims = args_of(move)[1:]
    if move.target is aten.permute.default:
        order = [dim % len(dims[0]) for dim in dims[0]]
        dims = ([order.index(dim) for dim in range(len(order))],)
    made = graph.call_function(move.target, (other, *dims))  # type: ignore[arg-type]
    made.meta = {**move.meta, "val": move.target(value(other), *dims)}  # type: ignore[operator]
    return made


_MOVES = {aten.permute.default, aten.transpose.int}


def _is_open(layer: object, reader: Node) -> bool:
    return isinstance(layer, Node) and is_layer(layer) and only_reader(layer) is reader


def _are_alike(layer: Node, other: object, node: Node) -> bool:
    if not isinstance(other, Node) or not is_tensor(other):
        return False
    first, second, result = value(layer), value(other), value(node)
    return first.shape == second.shape == result.shape and first.dtype == second.dtype == result.dtype


def _absorb(graph: Graph, layer: Node, node: Node, word: str, moved: Node | None = None) -> None:
    """Leaves out a node that a layer computes, or what moves the layer's dimensions."""
    layer.meta["fused"] = (*layer.meta["fused"], word)
    last = moved or layer
    last.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(last)
    graph.erase_node(node)
