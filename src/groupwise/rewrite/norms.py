"""A BatchNorm that no layer can take becomes one operator with the sum and the activation that follow it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.rewrite.recipe import Operation, Recipe, Slot
from groupwise.rewrite.steps import activation_of, args_of, is_tensor, only_reader, put, value

aten = torch.ops.aten
# The activations that the operator knows, by the names that plans have for them.
KNOWN = {"relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu"}


def batch_norm_act(
    source: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    mean: torch.Tensor,
    variance: torch.Tensor,
    eps: float,
    activation: str,
    slope: float,
) -> torch.Tensor:
    """Returns activation(batch_norm(source) + residual), in memory of its own."""
    found: torch.Tensor = torch.ops.groupwise.batch_norm_act(
        source, weight, bias, mean, variance, residual, False, eps, activation, slope
    )[0]
    return found


def norm_recipe(given: int, source: Any, residual: Any, *numbers: Any) -> Recipe:
    """Returns the same as operators, of so many values. The first of them also returns the statistics."""
    *vectors, eps, activation, slope = numbers
    words = (source, *vectors, residual, False, eps, activation, slope)
    norm = Operation(torch.ops.groupwise.batch_norm_act.default, words)
    return Recipe(given, norm, Operation(operator.getitem, (Slot(given), 0)))


def fuse_norms(graph: Graph) -> None:
    """Joins each BatchNorm, a sum with what has its shape, and an activation. Needs the marks of constants."""
    if native.status().operators_problem:
        return
    for node in list(graph.nodes):
        if node.target is aten.batch_norm.default and _is_taken(node):
            _join(graph, node)


def _is_taken(node: Node) -> bool:
    source, weight, bias, mean, variance, training, _, eps = args_of(node)[:8]
    numbers = [given for given in (weight, bias, mean, variance) if given is not None]
    if training or mean is None or variance is None or eps < 0 or not is_tensor(source):
        return False
    floats = all(is_tensor(given) and value(given).dtype == torch.float32 for given in (source, *numbers))
    return floats and value(source).numel() > 0 and all(given.meta.get("constant") for given in numbers)


def _join(graph: Graph, node: Node) -> None:
    chain, residual, words = [node], None, []
    reader = only_reader(node)
    if reader is not None and (residual := _residual(reader, node)) is not None:
        chain, words = [node, reader], ["sum"]
        reader = only_reader(reader)
    activation = None if reader is None or not is_tensor(reader) else activation_of(reader)
    name = activation.name if activation is not None and activation.name in KNOWN else None
    if name is not None and reader is not None:
        chain, words = [*chain, reader], [*words, name]
    if not words:
        return
    source, weight, bias, mean, variance, _, _, eps = args_of(node)[:8]
    slope = activation.scalars[0] if name == "leaky_relu" and activation is not None else 0.01
    numbers = (source, residual, weight, bias, mean, variance, eps, name or "none", slope)
    meta = {**node.meta, "val": chain[-1].meta["val"], "fused": tuple(words)}
    put(graph, chain[::-1], batch_norm_act, numbers, meta)


def _residual(node: Node, norm: Node) -> Node | None:
    """Returns what a sum adds to the BatchNorm, if it has the same shape."""
    if node.target is not aten.add.Tensor or node.kwargs.get("alpha", 1) != 1:
        return None
    first, second = args_of(node)[:2]
    other = second if first is norm else first
    if not is_tensor(other) or other is norm:
        return None
    alike = value(other).shape == value(norm).shape == value(node).shape
    return other if alike and value(other).dtype == value(norm).dtype == torch.float32 else None
