"""Branches: convolutions, scales and shifts of one tensor that are summed become one convolution.

Networks such as RepVGG, MobileOne and RepGhost are trained with parallel branches: convolutions, a BatchNorm, the
tensor itself. All of these are linear, so one weight computes their sum.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.rewrite.steps import Geometry, args_of, convolution, is_layer, is_tensor, only_reader, value

aten = torch.ops.aten
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# (node, what it reads, the dimension of channels, scale, shift) of a node that scales or shifts channels.
Affine = tuple[Node, Node, int, "Node | None", "Node | None"]
# The tap of a larger kernel where the first tap of another lies, and the taps between two.
Places = tuple[tuple[int, int], ...]


# The functions below are nodes of constant expressions.


def widened(weight: torch.Tensor, kernel: tuple[int, ...], places: Places) -> torch.Tensor:
    """Returns a weight whose taps lie in a larger kernel."""
    wide = torch.zeros((*weight.shape[:2], *kernel), dtype=torch.float64)
    taps: list[slice] = [
        slice(first, first + step * (size - 1) + 1, step)
        for (first, step), size in zip(places, weight.shape[2:], strict=True)
    ]
    index: Any = (slice(None), slice(None), *taps)
    wide[index] = weight.double()
    return wide


def one_tap(scale: torch.Tensor | None, shape: tuple[int, ...], tap: tuple[int, ...]) -> torch.Tensor:
    """Returns a weight of this shape that multiplies each channel by its scale, or by 1."""
    weight, channels = torch.zeros(shape, dtype=torch.float64), torch.arange(shape[0])
    factors = torch.ones(1, dtype=torch.float64) if scale is None else scale.double().reshape(-1)
    # A group has as many outputs as inputs.
    index: Any = (channels, channels % shape[1], *tap)
    weight[index] = factors.expand(shape[0])
    return weight


def of_channels(vector: torch.Tensor, channels: int) -> torch.Tensor:
    """Returns one number for each channel, of a vector that has those, or one for all."""
    return vector.double().reshape(-1).expand(channels)


def summed(first: torch.Tensor | None, second: torch.Tensor | None, signs: tuple[int, int]) -> torch.Tensor:
    """Returns the sum of two tensors, each times its sign. One may be None, which adds nothing."""
    parts = [part.double() * sign for part, sign in zip((first, second), signs, strict=True) if part is not None]
    return parts[0] if len(parts) == 1 else parts[0] + parts[1]


def join_branches(graph: Graph, node: Node, affine: Callable[[Node], Affine | None]) -> bool:
    """Puts one convolution in place of the sum or difference of a convolution and another branch of what it reads.

    `affine` finds what scales and shifts channels.
    """
    signs = _signs(node)
    if signs is None:
        return False
    parts: Any = args_of(node)
    for layer, other, (sign, factor) in ((*parts, signs), (*parts[::-1], signs[::-1])):
        if not _is_open(layer, node):
            continue
        found = _of_layer(graph, layer, other, node) or _of_channels(graph, layer, other, affine)
        if found is None:
            continue
        weight, bias, words = found
        _update(graph, layer, 1, weight, (sign, factor))
        if args_of(layer)[2] is not None or bias is not None:
            _update(graph, layer, 2, bias, (sign, factor))
        layer.meta["fused"] = (*layer.meta["fused"], *words, "branch")
        node.replace_all_uses_with(layer)
        graph.erase_node(node)
        if not other.users:
            graph.erase_node(other)
        return True
    return False


def _signs(node: Node) -> tuple[int, int] | None:
    """Returns the signs of the two tensors that a node adds up; None if it does something else."""
    signs = {aten.add.Tensor: (1, 1), aten.sub.Tensor: (1, -1)}.get(node.target)  # type: ignore[call-overload]
    if signs is None or node.kwargs or len(args_of(node)) != 2:
        return None
    made = value(node)
    for part in args_of(node):
        if not is_tensor(part) or value(part).shape != made.shape or value(part).dtype != made.dtype:
            return None
    return signs if made.dtype in FLOATS else None


def _is_open(layer: Node, reader: Node) -> bool:
    """Tells whether a node is a convolution of something that runs, which the reader alone reads."""
    if not is_layer(layer) or layer.target is not convolution or only_reader(layer) is not reader:
        return False
    return not (layer.meta["geometry"].transposed or layer.meta["epilogue"].words)


Found = tuple[Node, "Node | None", tuple[str, ...]]


def _of_layer(graph: Graph, layer: Node, other: Node, node: Node) -> Found | None:
    """Returns the weight of another convolution in the kernel of the layer, its bias, and what was fused into it."""
    if not _is_open(other, node) or args_of(other)[0] is not args_of(layer)[0]:
        return None
    large, small = layer.meta["geometry"], other.meta["geometry"]
    weight, bias = args_of(other)[1:3]
    kernel, taps = (tuple(value(args_of(each)[1]).shape[2:]) for each in (layer, other))
    places = _places(large, kernel, small, taps)
    if large.groups != small.groups or places is None:
        return None
    made = expression(graph, layer, widened, weight, kernel, places)
    return made, bias, other.meta["fused"]


def _places(large: Geometry, kernel: tuple[int, ...], small: Geometry, taps: tuple[int, ...]) -> Places | None:
    """Returns where the taps of a convolution lie in the kernel of another; None where it lacks one."""
    if large.stride != small.stride:
        return None
    found = []
    for axis, (size, count) in enumerate(zip(kernel, taps, strict=True)):
        first, rest = divmod(large.padding[axis] - small.padding[axis], large.dilation[axis])
        step, odd = divmod(small.dilation[axis], large.dilation[axis]) if count > 1 else (1, 0)
        if rest or odd or first < 0 or first + step * (count - 1) >= size:
            return None
        found.append((first, step))
    return tuple(found)


def _of_channels(graph: Graph, layer: Node, other: Node, affine: Callable[[Node], Affine | None]) -> Found | None:
    """Returns the weight that scales the channels of what the layer reads, in its kernel, and what shifts them."""
    source, shape, at = args_of(layer)[0], tuple(value(args_of(layer)[1]).shape), layer.meta["geometry"]
    still = Geometry((1,) * at.dims, (0,) * at.dims, (1,) * at.dims, at.groups)
    places = _places(at, shape[2:], still, (1,) * at.dims)
    if places is None or shape[0] != shape[1] * at.groups:
        return None
    scale = shift = None
    words: tuple[str, ...] = ()
    if other is source:
        # Beside the weights of a dense layer, 1 leaves them fewer digits, and the sum costs little.
        if shape[1] > 1:
            return None
    else:
        found = affine(other) if source in other.all_input_nodes else None
        if found is None or found[1] is not source or found[2] not in (-1, 1):
            return None
        # x - 1000 keeps digits that a sum loses. A BatchNorm's mean is about as large as its input.
        norm = other.target is aten.batch_norm.default
        scale, shift = found[3:]
        if shift is not None and not norm:
            return None
        words = ("batch norm",) if norm else ("scale",)
    tap = tuple(first for first, _ in places)
    made = expression(graph, layer, one_tap, scale, shape, tap)
    return made, shift and expression(graph, layer, of_channels, shift, shape[0]), words


def _update(graph: Graph, layer: Node, place: int, other: Node | None, signs: tuple[int, int]) -> None:
    """Puts the sum of a weight or bias and another one in its place."""
    given = args_of(layer)[place]
    made = expression(graph, layer, summed, given, other, signs)
    if is_tensor(given):
        made.meta["val"] = value(given)
    layer.update_arg(place, made)


def expression(graph: Graph, before: Node, function: Callable[..., Any], *args: Any) -> Node:
    """Returns a new node that calls a function of constants."""
    with graph.inserting_before(before):
        made = graph.call_function(function, args)
    made.meta = {"constant": True}
    return made
