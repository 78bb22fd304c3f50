"""The channel shuffle of two joined tensors as one step, which also halves the channels where that follows."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.rewrite.steps import args_of, is_plain, only_reader, put, value

aten = torch.ops.aten


def name_shuffles(graph: Graph) -> None:
    """Puts one operator in place of cat, channel shuffle and chunk. `simplify` has named the shuffles."""
    if native.status().operators_problem:
        return
    for node in list(graph.nodes):
        pair = _joined_pair(node)
        if pair is None:
            continue
        halving = only_reader(node)
        halves = halving is not None and _halves(halving, node)
        first, last = node, halving if halves and halving is not None else node
        fused = ("cat", "channel shuffle", *["chunk"] * halves)
        operators = torch.ops.groupwise
        target = operators.interleave_halves.default if halves else operators.interleave.default
        parts = list(dict.fromkeys((last, first, args_of(first)[0])))
        put(graph, parts, target, pair, {"engine": "groupwise", "fused": fused, "constant": False})


def _joined_pair(node: Node) -> tuple[Node, Node] | None:
    """Returns the two tensors whose channels a shuffle puts in turn."""
    if node.target is not aten.native_channel_shuffle.default or args_of(node)[1] != 2:
        return None
    joined = args_of(node)[0]
    if joined.target is not aten.cat.default or only_reader(joined) is not node or args_of(joined)[1:] != (1,):
        return None
    parts: list[Any] = list(args_of(joined)[0])
    if len(parts) != 2 or not all(is_plain(part, value(node).dtype) for part in parts):
        return None
    first, second = parts
    return (first, second) if value(first).shape == value(second).shape else None


def _halves(node: Node, source: Node) -> bool:
    """Tells whether a node cuts the source into the two halves of its channels, and is read part by part."""
    size, dims = value(source).shape[1] // 2, value(source).dim()
    wanted = {
        aten.chunk.default: 2,
        aten.split.Tensor: size,
        aten.split_with_sizes.default: [size, size],
        aten.split.sizes: [size, size],
    }
    if node.target not in wanted or node.kwargs or len(args_of(node)) != 3:
        return False
    given, dim = args_of(node)[1:]
    cuts = (list(given) if isinstance(given, list | tuple) else given) == wanted[node.target]
    return cuts and dim % dims == 1 and all(user.target is operator.getitem for user in node.users)
