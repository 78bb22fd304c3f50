"""Folding: scales and shifts of channels go into the weight and the bias of the layer before or after them.

A folded weight is an expression of parameters. It is computed in float64 and rounded once, when the weights are packed,
so that a parameter that changes needs no new capture.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.rewrite.branches import FLOATS, Affine, expression, join_branches
from groupwise.rewrite.steps import Geometry, args_of, convolution, is_layer, is_tensor, only_reader, value

aten = torch.ops.aten


def mark_constants(graph: Graph) -> None:
    """Marks in `meta["constant"]` the nodes that depend on parameters, buffers and constants only."""
    for node in graph.nodes:
        if node.op == "placeholder":
            node.meta["constant"] = "state" in node.meta
        elif node.op == "call_function":
            random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
            known = all(source.meta.get("constant") for source in node.all_input_nodes)
            node.meta["constant"] = known and not random


def fold(graph: Graph) -> None:
    """Folds what can be folded. Needs `mark_constants`, and keeps the marks."""
    changed = True
    while changed:
        changed = False
        for node in list(graph.nodes):
            if node.op != "call_function" or node.meta["constant"]:
                continue
            if join_branches(graph, node, partial(_affine, graph)):
                changed = True
                continue
            affine = _affine(graph, node)
            if affine is not None and (_into_layer_before(graph, *affine) or _into_layer_after(graph, *affine)):
                changed = True
    _hoist(graph)


def _hoist(graph: Graph) -> None:
    """Moves constant expressions to the front, each after what it reads: a layer may read what was made after it."""
    start = next(node for node in graph.nodes if node.op != "placeholder")
    with graph.inserting_before(start):
        mark = graph.call_function(aten.detach.default, ())
    moved: set[Node] = set()

    def move(node: Node) -> None:
        if node.op == "call_function" and node not in moved:
            moved.add(node)
            for source in node.all_input_nodes:
                move(source)
            mark.prepend(node)

    for node in list(graph.nodes):
        if node.meta.get("constant"):
            move(node)
    graph.erase_node(mark)


# The functions below are nodes of constant expressions.


def bn_scale(weight: torch.Tensor | None, variance: torch.Tensor, eps: float) -> torch.Tensor:
    """Returns what a BatchNorm multiplies by."""
    scale = (variance.double() + eps).rsqrt()
    return scale if weight is None else weight.double() * scale


def bn_shift(bias: torch.Tensor | None, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns what a BatchNorm adds after it multiplied by `scale`."""
    shift = -mean.double() * scale
    return shift if bias is None else bias.double() + shift


def channel_vector(constant: Any, channels: int, negate: bool, invert: bool) -> torch.Tensor:
    """Returns one number for each channel, of a constant that has one, or one for all."""
    vector = torch.as_tensor(constant, dtype=torch.float64).reshape(-1).expand(channels)
    vector = -vector if negate else vector
    return 1 / vector if invert else vector


def _by_groups(weight: torch.Tensor, groups: int) -> torch.Tensor:
    return weight.reshape(groups, -1, *weight.shape[1:])


def scaled_outputs(weight: torch.Tensor, scale: torch.Tensor, groups: int, transposed: bool) -> torch.Tensor:
    """Returns a weight whose layer's outputs are multiplied by `scale`."""
    weight = weight.double()
    if not transposed:
        return weight * scale.reshape(-1, *[1] * (weight.dim() - 1))
    parts = _by_groups(weight, groups)
    return (parts * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).flatten(0, 1)


def scaled_inputs(weight: torch.Tensor, scale: torch.Tensor, groups: int) -> torch.Tensor:
    """Returns a weight whose layer's inputs are multiplied by `scale`."""
    parts = _by_groups(weight.double(), groups)
    return (parts * scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))).flatten(0, 1)


def moved_bias(bias: torch.Tensor | None, scale: torch.Tensor | None, shift: torch.Tensor | None) -> torch.Tensor:
    """Returns bias * scale + shift."""
    if bias is None:
        assert shift is not None
        return shift
    moved = bias.double() if scale is None else bias.double() * scale
    return moved if shift is None else moved + shift


def shift_through(weight: torch.Tensor, shift: torch.Tensor, groups: int) -> torch.Tensor:
    """Returns what a layer makes of inputs that are `shift` everywhere."""
    parts = _by_groups(weight.double(), groups)
    product = parts * shift.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return product.flatten(2).sum(-1).flatten()


# Operator with a constant -> (is it a product, negate the constant, invert it).
ARITHMETIC: dict[Any, tuple[bool, bool, bool]] = {
    aten.mul.Tensor: (True, False, False),
    aten.div.Tensor: (True, False, True),
    aten.add.Tensor: (False, False, False),
    aten.sub.Tensor: (False, True, False),
}
WORDS = {True: "scale", False: "shift"}


def _affine(graph: Graph, node: Node) -> Affine | None:
    """Returns (node, what it reads, the dimension of channels, scale, shift) of a node that scales or shifts those."""
    if node.target is aten.batch_norm.default:
        return _of_batch_norm(graph, node)
    if node.target in ARITHMETIC and not node.kwargs and len(args_of(node)) == 2:
        return _of_arithmetic(graph, node)
    return None


def _of_batch_norm(graph: Graph, node: Node) -> Affine | None:
    source, weight, bias, mean, variance, training, _, eps = args_of(node)[:8]
    parameters = [given for given in (weight, bias, mean, variance) if given is not None]
    if training or mean is None or not all(is_tensor(p) and p.meta["constant"] for p in parameters):
        return None
    if not is_tensor(source) or value(source).dtype not in FLOATS:
        return None
    scale = expression(graph, node, bn_scale, weight, variance, eps)
    return node, source, 1, scale, expression(graph, node, bn_shift, bias, mean, scale)


def _of_arithmetic(graph: Graph, node: Node) -> Affine | None:
    product, negate, invert = ARITHMETIC[node.target]
    source, constant = args_of(node)
    if node.target in (aten.mul.Tensor, aten.add.Tensor) and _is_constant(source):
        source, constant = constant, source
    if not is_tensor(source) or source.meta["constant"] or not _is_constant(constant):
        return None
    # Infinite weights would make NaN where the model has an infinite output.
    if not isinstance(constant, Node) and not (math.isfinite(constant) and (constant != 0 or not invert)):
        return None
    result = value(node)
    if result.shape != value(source).shape or result.dtype != value(source).dtype or result.dtype not in FLOATS:
        return None
    shape = list(value(constant).shape) if isinstance(constant, Node) else []
    wide = [axis - len(shape) + result.dim() for axis, size in enumerate(shape) if size != 1]
    if len(wide) > 1:
        return None
    axis = wide[0] if wide else -1
    # Without an axis the constant is one number, which belongs to the channels of any layer.
    channels = result.shape[axis] if wide else 1
    vector = expression(graph, node, channel_vector, constant, int(channels), negate, invert)
    return (node, source, axis, vector, None) if product else (node, source, axis, None, vector)


def _is_constant(given: Any) -> bool:
    return isinstance(given, int | float) or (is_tensor(given) and bool(given.meta["constant"]))


def _into_layer_before(graph: Graph, node: Node, source: Node, axis: int, scale: Any, shift: Any) -> bool:
    """Folds into the layer whose outputs are scaled, also behind a permutation of dimensions."""
    layer, position = source, axis
    while layer.op == "call_function" and only_reader(layer) is not None and layer.target in _MOVES:
        if position >= 0:
            position = _MOVES[layer.target](layer, position)
        if not is_tensor(args_of(layer)[0]):
            return False
        layer = args_of(layer)[0]
    if not is_layer(layer) or only_reader(layer) is None or layer.meta["epilogue"].words:
        return False
    weight, bias = args_of(layer)[1:3]
    if value(layer).dtype not in FLOATS:
        return False
    channel = 1 if layer.target is convolution else value(layer).dim() - 1
    if position not in (-1, channel):
        return False
    channels = int(value(layer).shape[channel])
    scale, shift = (v and expression(graph, layer, channel_vector, v, channels, False, False) for v in (scale, shift))
    geometry: Geometry | None = layer.meta.get("geometry")
    if scale is not None:
        groups, transposed = (geometry.groups, geometry.transposed) if geometry else (1, False)
        scaled = expression(graph, layer, scaled_outputs, weight, scale, groups, transposed)
        scaled.meta["val"] = value(weight)
        layer.update_arg(1, scaled)
    if bias is not None or shift is not None:
        layer.update_arg(2, expression(graph, layer, moved_bias, bias, scale, shift))
    _note(layer, node)
    node.replace_all_uses_with(source)
    graph.erase_node(node)
    return True


def _into_layer_after(graph: Graph, node: Node, source: Node, axis: int, scale: Any, shift: Any) -> bool:
    """Folds into the one layer that reads the scaled values, if no padding mixes zeros with them."""
    layer = only_reader(node)
    if not is_layer(layer) or layer is None or args_of(layer)[0] is not node:
        return False
    # x - 1000 keeps digits that weight * x - weight * 1000 loses. A BatchNorm's mean is about as large as its input.
    if shift is not None and node.target is not aten.batch_norm.default:
        return False
    weight, bias = args_of(layer)[1:3]
    geometry: Geometry | None = layer.meta.get("geometry")
    if geometry is not None and geometry.is_padded:
        return False
    channel = 1 if layer.target is convolution else value(node).dim() - 1
    if axis not in (-1, channel):
        return False
    channels, groups = int(value(node).shape[channel]), geometry.groups if geometry else 1
    scale, shift = (v and expression(graph, layer, channel_vector, v, channels, False, False) for v in (scale, shift))
    if shift is not None:
        through = expression(graph, layer, shift_through, weight, shift, groups)
        layer.update_arg(2, expression(graph, layer, moved_bias, bias, None, through))
    if scale is not None:
        scaled = expression(graph, layer, scaled_inputs, weight, scale, groups)
        scaled.meta["val"] = value(weight)
        layer.update_arg(1, scaled)
    _note(layer, node)
    layer.update_arg(0, source)
    graph.erase_node(node)
    return True


def _transposed(node: Node, axis: int) -> int:
    first, second = (dim % value(node).dim() for dim in args_of(node)[1:])
    moves: dict[int, int] = {first: second, second: first}
    return moves.get(axis, axis)


# Operators that only move dimensions: which dimension of the input a dimension of the output is.
_MOVES: dict[Any, Callable[[Node, int], int]] = {
    aten.permute.default: lambda node, axis: int(args_of(node)[1][axis]) % value(node).dim(),
    aten.transpose.int: _transposed,
}


def _note(layer: Node, node: Node) -> None:
    word = "batch norm" if node.target is aten.batch_norm.default else WORDS[ARITHMETIC[node.target][0]]
    layer.meta["fused"] = (*layer.meta["fused"], word)
