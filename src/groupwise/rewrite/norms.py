"""Fuses the BatchNorms of a graph of PyTorch's functions with the sum and the activation that follow, for training.

Dynamo's graphs are such: their parameters are inputs.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import GraphModule, Node

from groupwise.nn.functional import batch_norm_act
from groupwise.rewrite.capture import module_of
from groupwise.rewrite.steps import args_of, only_reader

_NAMES = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
_DEFAULTS: dict[str, Any] = {"weight": None, "bias": None, "training": False, "momentum": 0.1, "eps": 1e-5}
_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
# Functions and methods -> the activation's name in `batch_norm_act`.
_ACTIVATIONS: dict[Any, str] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), "relu"),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, torch.sigmoid_, "sigmoid", "sigmoid_"), "sigmoid"),
    **dict.fromkeys((F.tanh, torch.tanh, torch.tanh_, "tanh", "tanh_"), "tanh"),
    F.relu6: "relu6",
    F.silu: "silu",
    F.hardswish: "hardswish",
    F.hardsigmoid: "hardsigmoid",
    F.leaky_relu: "leaky_relu",
}


def fuse_norms(module: GraphModule) -> list[tuple[str, tuple[str, ...]]]:
    """Replaces each BatchNorm by `batch_norm_act`. Returns the name of each, and what was fused into it."""
    fused: list[tuple[str, tuple[str, ...]]] = []
    for node in list(module.graph.nodes):
        name, words = module_of(node), _fuse(module, node) if node.target is F.batch_norm else None
        if words is not None:
            fused.append((name, words))
    module.graph.lint()
    module.recompile()
    return fused


def _fuse(module: GraphModule, norm: Node) -> tuple[str, ...] | None:
    given = {**_DEFAULTS, **dict(zip(_NAMES, args_of(norm), strict=False)), **norm.kwargs}
    # A momentum that the graph computes is no number for the operator.
    if not all(isinstance(given[name], int | float) for name in ("training", "momentum", "eps")):
        return None
    chain, words, more = [norm], ["batch norm"], dict[str, Any]()
    reader = _next(chain)
    if reader is not None and (residual := _residual(reader, norm)) is not None:
        chain.append(reader)
        words.append("sum")
        more["residual"] = residual
        reader = _next(chain)
    if reader is not None and (activation := _activation(reader)):
        chain.append(reader)
        words.append(str(activation["activation"]))
        more |= activation
    with module.graph.inserting_before(chain[-1]):
        made = module.graph.call_function(batch_norm_act, tuple(given[name] for name in _NAMES), more)
    made.meta = dict(chain[-1].meta)
    chain[-1].replace_all_uses_with(made)
    for node in reversed(chain):
        module.graph.erase_node(node)
    return tuple(words)


def _next(chain: list[Node]) -> Node | None:
    """Returns what alone reads the last of the chain, if the BatchNorm may be computed there instead."""
    reader = only_reader(chain[-1])
    if reader is None or reader.op not in ("call_function", "call_method") or args_of(reader)[:1] == ():
        return None
    between = chain[0].next
    while between is not reader:
        # It must not read what was written to after it.
        if between not in chain and _writes(between) and args_of(between)[0] in chain[0].all_input_nodes:
            return None
        between = between.next
    return reader


def _writes(node: Node) -> bool:
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    written = name.endswith("_") or name.startswith("i") or name == "setitem" or bool(node.kwargs.get("inplace"))
    return written and bool(args_of(node))


def _residual(reader: Node, norm: Node) -> Node | None:
    """Returns what a sum adds to the BatchNorm, if that has its shape."""
    if reader.target not in _SUMS or reader.kwargs or len(args_of(reader)) != 2:
        return None
    first, second = args_of(reader)
    # In place, the sum would be written where the residual is.
    if reader.target in (operator.iadd, "add_") and first is not norm:
        return None
    other = second if first is norm else first
    shapes = [
        getattr(each.meta.get("example_value"), "shape", None) for each in (norm, other) if isinstance(each, Node)
    ]
    return other if len(shapes) == 2 and shapes[0] is not None and shapes[0] == shapes[1] else None


def _activation(reader: Node) -> dict[str, Any] | None:
    """Returns the arguments of `batch_norm_act` for an activation."""
    if reader.target is F.hardtanh:
        bounds = [
            *args_of(reader)[1:3],
            *(reader.kwargs[name] for name in ("min_val", "max_val") if name in reader.kwargs),
        ]
        return {"activation": "relu6"} if bounds == [0, 6] else None
    name = _ACTIVATIONS.get(reader.target)
    if name is None:
        return None
    if name != "leaky_relu":
        return {"activation": name}
    slope = args_of(reader)[1] if len(args_of(reader)) > 1 else reader.kwargs.get("negative_slope", 0.01)
    return {"activation": name, "negative_slope": slope} if isinstance(slope, int | float) else None
