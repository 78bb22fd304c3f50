"""In-place operators become functional, where nothing reads the memory that they wrote by another name later."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.rewrite.capture import NotCaptured, module_of
from groupwise.rewrite.kept import Kept
from groupwise.rewrite.norms import batch_norm_act
from groupwise.rewrite.steps import args_of, chain, is_layer

aten = torch.ops.aten

# Composite operators whose schema does not say it, but whose result has memory of its own. Others may return a view.
FRESH = {
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
    *(aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
    *(aten.linear.default, aten.batch_norm.default, aten.layer_norm.default, aten.group_norm.default),
    *(aten.relu6.default, aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default),
    *(aten.adaptive_avg_pool1d.default, aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default),
    *(aten.upsample_bilinear2d.vec, aten.upsample_nearest2d.vec, aten.scaled_dot_product_attention.default),
    *(aten.softmax.int, aten.log_softmax.int),
}
# Operators that write to running statistics, which their schema does not say: where the flag and the mean are.
STATISTICS = {aten.batch_norm.default: (5, 3), aten.instance_norm.default: (5, 3)}
# In-place operators that do nothing where their third argument, for training, is False.
DROPOUTS = {aten.dropout_.default, aten.feature_dropout_.default, aten.alpha_dropout_.default}
Roots = dict[Node, frozenset[Node]]


def memory_of(graph: Graph) -> Roots:
    """Returns for each node the nodes whose memory its value may share; its own, if it is fresh.

    What a kept module read or made has that module's node among them: a hook may hold the memory for ever.
    """
    roots: Roots = {}
    for node in graph.nodes:
        shared: frozenset[Node] = frozenset()
        for argument in _shared_with(node):
            shared |= roots[argument]
        roots[node] = shared or frozenset([node])
    for node in graph.nodes:
        if isinstance(node.target, Kept):
            held = frozenset().union(*(roots[read] for read in node.all_input_nodes)) | {node}
            for other, memory in roots.items():
                if memory & held:
                    roots[other] = memory | {node}
    return roots


def _shared_with(node: Node) -> Iterable[Node]:
    if node.op != "call_function" or is_layer(node) or node.target in (batch_norm_act, chain):
        return []
    if node.target is operator.getitem or not isinstance(node.target, torch._ops.OpOverload):
        return node.all_input_nodes
    schema = node.target._schema
    if any(result.alias_info is not None for result in schema.returns):
        named = zip(schema.arguments, args_of(node), strict=False)
        found = [given for argument, given in named if argument.alias_info is not None]
        found += [node.kwargs[a.name] for a in schema.arguments if a.alias_info is not None and a.name in node.kwargs]
        return _nodes(found)
    name = str(node.target.name())  # type: ignore[no-untyped-call]
    composite = torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeImplicitAutograd")
    return node.all_input_nodes if composite and node.target not in FRESH else []


def _nodes(given: Any) -> list[Node]:
    if isinstance(given, Node):
        return [given]
    return [node for part in given for node in _nodes(part)] if isinstance(given, list | tuple) else []


def make_functional(graph: Graph) -> None:
    """Replaces each in-place operator. Raises `NotCaptured` where the graph would not compute the same then."""
    for node in list(graph.nodes):
        if node.target in DROPOUTS and not args_of(node)[2]:
            node.replace_all_uses_with(args_of(node)[0])
            graph.erase_node(node)
    order = {node: number for number, node in enumerate(graph.nodes)}
    roots = memory_of(graph)
    for node in list(graph.nodes):
        flag, mean = STATISTICS.get(node.target, (0, 0))
        if flag and args_of(node)[flag] and args_of(node)[mean] is not None:
            raise NotCaptured(f"{module_of(node)} updates its running statistics")
        if not _writes(node):
            continue
        target = args_of(node)[0] if args_of(node) else None
        if not isinstance(target, Node) or not str(node.target).split(".")[1].endswith("_"):
            raise NotCaptured(f"{module_of(node)} writes by {node.target}")
        holders = {root for root in roots[target] if isinstance(root.target, Kept)}
        if any(order[holder] < order[node] for holder in holders):
            raise NotCaptured(f"{module_of(node)} writes to memory that a module which stays as it is has seen")
        written = roots[target] - holders
        for root in written:
            if root.op == "placeholder":
                name = root.meta.get("state")
                raise NotCaptured(f"it writes to its {f'parameter or buffer {name}' if name else 'input'}")
        for other, memory in roots.items():
            late = [user for user in other.users if order[user] > order[node]]
            if other is not node and memory & written and late and order[other] < order[node]:
                raise NotCaptured(f"{module_of(node)} writes to memory that is read by another name later")
        twin = _functional(node, target)
        # What is derived from the result shares the new memory.
        for other, memory in roots.items():
            if order[other] >= order[node] and memory & written:
                roots[other] = (memory - written) | {node}
        node.target = twin


def _writes(node: Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _functional(node: Node, target: Node) -> Any:
    _, name, overload = str(node.target).split(".")
    twin = getattr(getattr(aten, name[:-1], None), overload, None)
    tensors = [source.meta["val"] for source in node.all_input_nodes]
    own = target.meta["val"].dtype
    # In place, the result has the dtype of what is written.
    if twin is None or any(isinstance(t, torch.Tensor) and t.dim() and t.dtype != own for t in tensors):
        raise NotCaptured(f"{module_of(node)} writes by {node.target}")
    return twin
