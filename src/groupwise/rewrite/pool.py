"""Max pooling in channels_last, by vectors of channels."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.rewrite.steps import is_plain, put, value

aten = torch.ops.aten


def name_pools(graph: Graph) -> None:
    """Puts groupwise's operator in place of max pooling, in networks whose images become channels_last."""
    if native.status().operators_problem or not any(
        getattr(node.meta.get("geometry"), "dims", 0) == 2 for node in graph.nodes
    ):
        return
    for node in list(graph.nodes):
        given = _of_max_pool(node)
        if given is not None:
            meta = {"engine": "groupwise", "constant": False}
            put(graph, [node], torch.ops.groupwise.max_pool2d.default, given, meta)


def _of_max_pool(node: Node) -> tuple[Any, ...] | None:
    """Returns the operator's arguments, if it computes what the node does."""
    if node.target is not aten.max_pool2d.default or node.kwargs:
        return None
    given: list[Any] = list(node.args)
    defaults: list[Any] = [[], [0, 0], [1, 1], False]
    source, kernel, stride, padding, dilation, ceil_mode = [*given, *defaults[len(given) - 2 :]]
    if not is_plain(source) or value(source).dim() != 4:
        return None
    kernel, stride, padding = (_pair(numbers) for numbers in (kernel, stride or kernel, padding))
    return (source, kernel, stride, padding, ceil_mode) if set(dilation) == {1} else None


def _pair(numbers: Any) -> list[int]:
    return [numbers[0], numbers[-1]]
