"""`inline`: puts the operators of a graph's inner graphs in their places."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import GraphModule, Node

from groupwise.rewrite.steps import args_of

_GRADIENTS: Any = getattr(torch.ops.higher_order, "wrap_with_set_grad_enabled", None)
_AUTOCAST: Any = getattr(torch.ops.higher_order, "wrap_with_autocast", None)


def inline(module: GraphModule) -> None:
    """Inlines what runs with gradients on or off, or without autocast: a rewritten network runs without either."""
    found = True
    while found:
        found = False
        for node in list(module.graph.nodes):
            place = _place(node)
            if place is not None and isinstance(getattr(module, str(args_of(node)[place].target), None), GraphModule):
                _put(module, node, place)
                found = True


def _place(node: Node) -> int | None:
    """Returns the place of an inner graph among the arguments of what calls it, or None."""
    if node.op != "call_function":
        return None
    if node.target is _GRADIENTS:
        return 1
    if node.target is _AUTOCAST:
        device, _, enabled = args_of(node)[:3]
        return 4 if device != "cpu" or not enabled else None
    return None


def _put(module: GraphModule, node: Node, place: int) -> None:
    graph, (inner, *operands) = module.graph, args_of(node)[place:]
    body = getattr(module, str(inner.target))
    for name, child in body.named_children():
        # An inner graph may have inner graphs, whose names are those of others here.
        module.add_module(f"{inner.target}_{name}", child)
    given = iter(operands)
    values: dict[Node, Any] = {}
    results: Any = ()
    with graph.inserting_before(node):
        for each in body.graph.nodes:
            if each.op == "placeholder":
                values[each] = next(given)
            elif each.op == "output":
                results = torch.fx.node.map_arg(args_of(each)[0], values.__getitem__)
            else:
                values[each] = graph.node_copy(each, values.__getitem__)
                if each.op == "get_attr":
                    values[each].target = f"{inner.target}_{each.target}"
    for user in list(node.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[args_of(user)[1]])
            graph.erase_node(user)
    if isinstance(results, Node):
        node.replace_all_uses_with(results)
    graph.erase_node(node)
    if not inner.users:
        graph.erase_node(inner)
