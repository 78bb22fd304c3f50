"""The functions and methods that a graph may call, by what they do to channels."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

ELEMENTWISE: set[Any] = {
    *(torch.relu, torch.sigmoid, torch.tanh, torch.abs, torch.clamp, torch.exp, torch.neg, operator.neg),
    *(F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.mish, F.softplus, F.sigmoid, F.tanh, F.hardtanh),
    *(F.hardswish, F.hardsigmoid, F.selu, F.celu),
    *("relu", "relu_", "sigmoid", "tanh", "abs", "clamp", "contiguous", "clone", "detach", "float", "to", "neg"),
}
ARITHMETIC: set[Any] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, torch.add, torch.sub, torch.mul, torch.div),
    *("add", "sub", "mul", "div"),
}
PRODUCTS: set[Any] = {operator.mul, torch.mul, "mul"}
POOLINGS: set[Any] = {
    *(F.max_pool1d, F.max_pool2d, F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.interpolate),
    *(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    *(F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}
FLATTENS: set[Any] = {torch.flatten, "flatten"}
MEANS: set[Any] = {torch.mean, "mean"}
PADS: set[Any] = {F.pad}
PERMUTES: set[Any] = {torch.permute, "permute"}
# These give the dimensions another order.
REORDERS: set[Any] = {
    *(torch.transpose, torch.swapaxes, torch.swapdims, torch.movedim, torch.moveaxis),
    *("transpose", "swapaxes", "swapdims", "movedim", "moveaxis"),
    *PERMUTES,
}
# These attributes do so too. PyTorch gives `T` and `H` to matrices; with more dimensions, `T` is deprecated.
MATRIX_TRANSPOSES = {"T", "H"}
TRANSPOSES = {"mT", "mH", *MATRIX_TRANSPOSES}
NARROWS: set[Any] = {torch.narrow, "narrow"}
# These return a tuple of slices.
PIECES: set[Any] = {torch.chunk, torch.split, torch.tensor_split, "chunk", "split", "tensor_split"}
INDEXING: set[Any] = {operator.getitem}
# These draw random numbers, some of them only in training.
RANDOM: set[Any] = {
    *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, F.rrelu),
    *(torch.bernoulli, torch.rand_like, torch.randn_like, torch.randint_like, torch.multinomial, torch.poisson),
    *(torch.normal, F.gumbel_softmax, torch.dropout, torch.rand, torch.randn, torch.randint, torch.randperm),
    *("bernoulli", "bernoulli_", "random_", "normal_", "uniform_", "exponential_"),
}
# These compute numbers from the sizes of tensors.
NUMBERS: set[Any] = {
    *(operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.neg),
    operator.getitem,
}
# These read what all shards of a tensor have in common.
COMMON: set[str] = {"ndim", "dtype", "device", "dim", "ndimension"}


def does(node: fx.Node, targets: set[Any]) -> bool:
    """Says whether a node calls one of these functions or methods; a module may have any name."""
    return node.op in ("call_function", "call_method") and node.target in targets


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """Returns an argument of a call, which may have been given by its place or by its name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def attribute(node: fx.Node) -> str:
    """Returns the name of the attribute that a node reads; empty for any other node."""
    return str(node.args[1]) if node.op == "call_function" and node.target is getattr else ""


def fact(node: fx.Node) -> str:
    """Returns which fact of a tensor a node reads: shape, size, ndim, dtype, device; empty for any other node."""
    if name := attribute(node):
        return name if name == "shape" or name in COMMON else ""
    name = str(node.target) if node.op == "call_method" else ""
    return name if name == "size" or name in COMMON else ""
