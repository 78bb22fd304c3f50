"""Max pooling, and means over all pixels, in channels_last, by vectors of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.rewrite.steps import is_tensor, put, value

aten = torch.ops.aten


def name_pools(graph: Graph) -> None:
    """Puts groupwise's operators in place of pooling, in networks whose images become channels_last."""
    if native.status().problem or not any(getattr(node.meta.get("geometry"), "dims", 0) == 2 for node in graph.nodes):
        return
    for node in list(graph.nodes):
        for target, arguments in (
            (torch.ops.groupwise.max_pool2d.default, _of_max_pool),
            (torch.ops.groupwise.mean_pool2d.default, _of_mean),
        ):
            given = arguments(node)
            if given is not None:
                put(graph, [node], target, given, {"engine": "groupwise", "constant": False})
                break


def _is_image(node: Any) -> bool:
    return is_tensor(node) and value(node).dim() == 4 and value(node).dtype == torch.float32


def _of_mean(node: Node) -> tuple[Any, ...] | None:
    """Returns the operator's arguments, if the node computes the means over all pixels."""
    if node.target not in (aten.adaptive_avg_pool2d.default, aten.mean.dim) or node.kwargs:
        return None
    source, dims, *rest = node.args
    if not _is_image(source):
        return None
    if node.target is aten.adaptive_avg_pool2d.default:
        return (source, True) if _pair(dims) == [1, 1] else None
    over: Any = dims or ()
    return (source, bool(rest and rest[0])) if sorted(dim % 4 for dim in over) == [2, 3] else None


def _of_max_pool(node: Node) -> tuple[Any, ...] | None:
    """Returns the operator's arguments, if it computes what the node does."""
    if node.target is not aten.max_pool2d.default or node.kwargs:
        return None
    given: list[Any] = list(node.args)
    defaults: list[Any] = [[], [0, 0], [1, 1], False]
    source, kernel, stride, padding, dilation, ceil_mode = [*given, *defaults[len(given) - 2 :]]
    if not _is_image(source):
        return None
    kernel, stride, padding = (_pair(numbers) for numbers in (kernel, stride or kernel, padding))
    return (source, kernel, stride, padding, ceil_mode) if set(dilation) == {1} else None


def _pair(numbers: Any) -> list[int]:
    return [numbers[0], numbers[-1]]
