"""Passes that leave out what computes nothing, and name what several operators compute together."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.rewrite.functional import memory_of
from groupwise.rewrite.kept import Kept
from groupwise.rewrite.steps import args_of, is_layer, is_tensor, only_reader, value

aten = torch.ops.aten


def _keeps_dtype(node: Node) -> bool:
    source = args_of(node)[0]
    return is_tensor(source) and value(source).dtype == value(node).dtype and not node.kwargs.get("copy", False)


def _keeps_shape(node: Node) -> bool:
    source = args_of(node)[0]
    return is_tensor(source) and value(source).shape == value(node).shape


def _adds_nothing(node: Node) -> bool:
    source, other = args_of(node)[:2]
    normed = isinstance(source, Node) and source.target is aten.batch_norm.default
    return normed and other == 0 and not isinstance(other, Node) and _keeps_dtype(node)


# Operators that return their first argument, each with a condition on the node.
IDENTITIES: dict[Any, Callable[[Node], bool]] = {
    aten.dropout.default: lambda node: not args_of(node)[2],
    aten.feature_dropout.default: lambda node: not args_of(node)[2],
    aten.alpha_dropout.default: lambda node: not args_of(node)[2],
    aten.alias.default: lambda node: True,
    aten.detach.default: lambda node: True,
    aten.lift_fresh.default: lambda node: True,
    aten.lift_fresh_copy.default: lambda node: True,
    # Nothing here depends on strides: views become reshapes, and outputs get the strides of the captured ones. What is
    # an output itself may be a copy of an input, which its caller may write to.
    aten.contiguous.default: lambda node: all(reader.op != "output" for reader in node.users),
    aten.to.dtype: _keeps_dtype,
    aten.to.dtype_layout: _keeps_dtype,
    aten.type_as.default: _keeps_dtype,
    aten.expand.default: _keeps_shape,
    aten.reshape.default: _keeps_shape,
    # Branches that a network sums in a loop begin with 0. Another tensor than a BatchNorm's may be the caller's.
    aten.add.Tensor: _adds_nothing,
}


def simplify(graph: Graph) -> None:
    """Runs the passes of this module."""
    for node in list(graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
    for node in list(graph.nodes):
        if node.target is aten._assert_tensor_metadata.default:
            graph.erase_node(node)
        elif node.op == "call_function" and (condition := IDENTITIES.get(node.target)) and condition(node):
            _replace(graph, node, args_of(node)[0])
    for pattern in (_silu, _channel_shuffle):
        for node in list(graph.nodes):
            pattern(graph, node)
    remove_unread(graph)


def remove_unread(graph: Graph) -> None:
    """Erases what nothing reads, apart from inputs, operators that check or write something, and kept modules."""
    for node in reversed(list(graph.nodes)):
        pure = not (isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable)
        pure = pure and not isinstance(node.target, Kept)
        if node.op == "call_function" and not node.users and pure and "_assert" not in str(node.target):
            graph.erase_node(node)


def change_layout(graph: Graph) -> None:
    """Puts images into channels_last where they enter a network with 2-D convolutions: at the input, and once more
    behind a module that stays as it is. A layer that alone reads a contiguous image gets it as it is, and writes
    channels_last.
    """
    if not any(getattr(node.meta.get("geometry"), "dims", 0) == 2 for node in graph.nodes):
        return
    for node in list(graph.nodes):
        if not enters(node) or not is_tensor(node) or value(node).dim() != 4:
            continue
        # A module that stays as it is gets the strides that it knows.
        readers = [user for user in node.users if user.op != "output" and not isinstance(user.target, Kept)]
        if not readers:
            continue
        if len(readers) == 1 and may_change(readers[0], node):
            readers[0].meta["enters"] = True
            continue
        with graph.inserting_before(min(readers)):
            changed = graph.call_function(to_channels_last, (node,))
        changed.meta = {"val": node.meta["val"]}
        for reader in readers:
            reader.replace_input_with(node, changed)


def may_change(reader: Node | None, node: Node) -> bool:
    """Tells whether a reader is a layer whose engines may change the format of a contiguous image themselves."""
    contiguous = value(node).is_contiguous() and not value(node).is_contiguous(memory_format=torch.channels_last)
    if reader is None or not is_layer(reader) or args_of(reader)[3:] != () or args_of(reader)[0] is not node:
        return False
    at = reader.meta.get("geometry")
    return contiguous and at is not None and at.dims == 2


def enters(node: Node) -> bool:
    """Tells whether a node's value comes from outside of the rewritten operators."""
    if node.op == "placeholder":
        return "state" not in node.meta
    return node.target is operator.getitem and isinstance(args_of(node)[0].target, Kept)


def to_channels_last(source: torch.Tensor) -> torch.Tensor:
    """Returns the tensor in channels_last."""
    return source.contiguous(memory_format=torch.channels_last)


def _replace(graph: Graph, node: Node, other: Any) -> None:
    node.replace_all_uses_with(other)
    graph.erase_node(node)


def _silu(graph: Graph, node: Node) -> None:
    """Names x * sigmoid(x)."""
    if node.target is not aten.mul.Tensor:
        return
    for source, gate in (args_of(node)[:2], args_of(node)[1::-1]):
        if isinstance(gate, Node) and gate.target is aten.sigmoid.default and args_of(gate)[0] is source:
            with graph.inserting_before(node):
                made = graph.call_function(aten.silu.default, (source,))
            made.meta = dict(node.meta)
            _replace(graph, node, made)
            return


def _channel_shuffle(graph: Graph, node: Node) -> None:
    """Names what splits the channels into groups, exchanges the two dimensions and joins them again."""
    if node.target is not aten.reshape.default or not is_tensor(args_of(node)[0]):
        return
    swapped = args_of(node)[0]
    split = args_of(swapped)[0] if _swaps_groups(swapped) else None
    if not isinstance(split, Node) or split.target is not aten.reshape.default or not is_tensor(args_of(split)[0]):
        return
    source = args_of(split)[0]
    shape, parts = value(source).shape, value(split).shape
    if len(shape) != 4 or len(parts) != 5 or value(node).shape != shape or parts[0] != shape[0]:
        return
    if parts[3:] != shape[2:] or math.prod(parts[1:3]) != shape[1] or value(source).dtype != torch.float32:
        return
    with graph.inserting_before(node):
        made = graph.call_function(aten.native_channel_shuffle.default, (source, int(parts[1])))
    made.meta = dict(node.meta)
    _replace(graph, node, made)


def _swaps_groups(node: Node) -> bool:
    if only_reader(node) is None:
        return False
    if node.target is aten.transpose.int:
        return sorted(args_of(node)[1:]) == [1, 2]
    return node.target is aten.permute.default and list(args_of(node)[1]) == [0, 2, 1, 3, 4]


def copy_shared_outputs(graph: Graph) -> None:
    """Copies outputs that share memory with a parameter or another constant: a caller may write to an output."""
    roots = memory_of(graph)
    output = graph.output_node()
    constant = {node for node in graph.nodes if node.meta.get("constant")}
    for node in output.all_input_nodes:
        if roots[node] & constant:
            with graph.inserting_before(output):
                made = graph.call_function(aten.clone.default, (node,))
            made.meta = {"val": node.meta["val"]}
            output.replace_input_with(node, made)
