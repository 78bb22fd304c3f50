"""`fuse_squeezes`: squeeze and excitation of an fx graph for training becomes one operator, forward and backward."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from groupwise.nn.functional import PYTORCH, computes_here
from groupwise.rewrite.train_filters import is_layer
from groupwise.rewrite.train_fuse import activation_at, has_hooks, writes
from groupwise.rewrite.train_trace import reason_to_keep

_PRODUCTS = {operator.mul, torch.mul, torch.multiply}
_PIXELS = ((2, 3), [2, 3], (-2, -1), [-2, -1])


@dataclass(frozen=True)
class _Gate:
    """What makes the factors of a product: two layers and their activations, and all nodes from there to the mean."""

    layers: tuple[str, str]
    activations: tuple[str, str]
    nodes: tuple[Node, ...]


def fuse_squeezes(graph: Graph, root: torch.nn.Module) -> tuple[str, ...]:
    """Puts one call in place of each squeeze and excitation, and returns the names of their first layers.

    It is a product of a tensor with a gate, which two 1x1 convolutions make of the means over the tensor's pixels. The
    call reads the layers and their parameters when it runs.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    found: list[str] = []
    for node in list(graph.nodes):
        product = node.target in _PRODUCTS if node.op == "call_function" else node.target in ("mul", "multiply")
        if node.op not in ("call_function", "call_method") or not product or node.kwargs or len(node.args) != 2:
            continue
        for source, factor in (node.args, node.args[::-1]):
            gate = _gate(source, factor, node, modules)
            if gate is not None:
                _replace(graph, node, source, gate)
                found.append(gate.layers[0])
                break
    return tuple(found)


def apply_squeeze(
    first: torch.nn.Conv2d, second: torch.nn.Conv2d, x: torch.Tensor, activation1: str, activation2: str
) -> torch.Tensor:
    """Returns x times activation2(second(activation1(first(mean of x)))), one factor a sample and channel."""
    if squeezes_here(first, second, x):
        found: torch.Tensor = torch.ops.groupwise.squeeze_excite(
            x, first.weight, first.bias, activation1, second.weight, second.bias, activation2
        )
        return found
    factor = PYTORCH[activation1](first(F.adaptive_avg_pool2d(x, 1)))
    return x * PYTORCH[activation2](second(factor))


def squeezes_here(first: torch.nn.Conv2d, second: torch.nn.Conv2d, x: torch.Tensor) -> bool:
    """Tells whether the operator can compute this, as PyTorch would."""
    parameters = (first.weight, first.bias, second.weight, second.bias)
    return x.dim() == 4 and computes_here(x, *parameters) and not torch.is_autocast_enabled("cpu")


def _gate(source: Any, factor: Any, product: Node, modules: dict[str, torch.nn.Module]) -> _Gate | None:
    if not isinstance(source, Node) or not isinstance(factor, Node):
        return None
    layers: list[str] = []
    activations: list[str] = []
    nodes: list[Node] = []
    node: Any = factor
    reader = product
    while isinstance(node, Node) and list(node.users) == [reader]:
        nodes.append(node)
        if _is_mean_of(node, source, modules):
            # Without an activation of its own a layer has none.
            if len(layers) != 2 or len(activations) != 2:
                return None
            inside = {id(it) for it in nodes}
            between = nodes[-1].next
            while between is not product:
                if id(between) not in inside and writes(between, modules):
                    return None
                between = between.next
            return _Gate((layers[1], layers[0]), (activations[1], activations[0]), tuple(nodes))
        if (known := activation_at(node, modules)) is not None:
            if len(activations) > len(layers) or known[0] == "leaky_relu":
                return None
            activations.append(known[0])
        elif node.op == "call_module" and _is_small(modules[str(node.target)]):
            if len(node.args) != 1 or node.kwargs or len(layers) == 2:
                return None
            if len(activations) == len(layers):
                activations.append("none")
            layers.append(str(node.target))
        else:
            return None
        reader, node = node, node.args[0]
    return None


def _is_small(module: torch.nn.Module) -> bool:
    """Tells whether a module is a product of its input, of one pixel, with one matrix."""
    if not isinstance(module, torch.nn.Conv2d) or not is_layer(module) or reason_to_keep(module):
        return False
    return module.kernel_size == (1, 1) and module.groups == 1 and module.padding in ((0, 0), "valid")


def _is_mean_of(node: Node, source: Node, modules: dict[str, torch.nn.Module]) -> bool:
    """Tells whether a node is the mean of the source over all its pixels, with dimensions of size 1 for these."""
    if not node.args or node.args[0] is not source:
        return False
    if node.op == "call_module":
        pool = modules[str(node.target)]
        if type(pool) is not torch.nn.AdaptiveAvgPool2d or has_hooks(pool) or "forward" in vars(pool):
            return False
        return len(node.args) == 1 and pool.output_size in (1, (1, 1))
    if node.op == "call_function" and node.target is F.adaptive_avg_pool2d:
        return len(node.args) == 2 and node.args[1] in (1, (1, 1)) and not node.kwargs
    if node.target not in (torch.mean, "mean"):
        return False
    given = dict(zip(("dim", "keepdim"), node.args[1:], strict=False)) | node.kwargs
    return given.keys() == {"dim", "keepdim"} and given["keepdim"] is True and given["dim"] in _PIXELS


def _replace(graph: Graph, product: Node, source: Node, gate: _Gate) -> None:
    with graph.inserting_before(product):
        layers = [graph.get_attr(name) for name in gate.layers]
        made = graph.call_function(apply_squeeze, (*layers, source, *gate.activations))
    made.meta = dict(product.meta)
    product.replace_all_uses_with(made)
    for gone in (product, *gate.nodes):
        graph.erase_node(gone)
