"""Which layers a model's own code reads: other groups would change what that code computes."""

from __future__ import annotations

import pathlib
import sys
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.conv import _ConvNd

from groupwise.parallel.planning.trace import Tracer, twin_of

# What a weight with other groups has in common with the one before.
_COMMON = {"dtype", "device", "layout", "requires_grad", "is_cuda"}
# Methods whose tensor argument only says what the result is like.
_LIKE = {"to", "type_as"}
_TORCH = str(pathlib.Path(torch.__file__).parent)


@dataclass(frozen=True)
class Readers:
    """The layers that code reads outside of their own calls, as far as `torch.fx` can follow the model.

    - `tensors`: any tensor for anything, if only for its dtype
    - `weights`: the weight, for its numbers or its shape
    - `groups`: the number of groups
    """

    tensors: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    def refusal(self, name: str, exact: bool) -> str:
        """Says why a layer cannot have other groups; empty if it can.

        One that is converted exactly keeps its bias, and all of its weight but the shape. Another one may be replaced
        by modules that have no weight.
        """
        if name in self.groups:
            return "code reads its groups, and would compute something else; leave it out"
        if exact and name in self.weights:
            return "code reads its weight, which would have another shape; leave it out"
        if not exact and name in self.tensors:
            return "code reads a tensor of it, which the layer loses or has in another order; leave it out"
        return ""


def readers(model: nn.Module) -> Readers:
    """Returns the layers that the model's code reads, in training or in evaluation.

    Where `torch.fx` cannot follow the model in a mode, what it reads there is not known. Nor is what it reads through
    `parameters()` or `state_dict()`, which give tensors that leave no trace.
    """
    tensors: set[str] = set()
    weights: set[str] = set()
    groups: set[str] = set()
    for training in (False, True):
        try:
            twin = twin_of(model).train(training)
            _watch(twin, groups)
            with torch.random.fork_rng():
                graph = Tracer().trace(twin)
        except Exception:  # The model's own code raises anything when it is given proxies.
            continue
        for node in graph.find_nodes(op="get_attr"):
            layer, _, tensor = str(node.target).rpartition(".")
            tensors.add(layer)
            if tensor == "weight" and not all(_is_harmless(node, user) for user in node.users):
                weights.add(layer)
    return Readers(frozenset(tensors), frozenset(weights), frozenset(groups))


def _watch(model: nn.Module, found: set[str]) -> None:
    """Lets the layers of a model add their names to `found` when code other than PyTorch's reads their groups."""
    for name, layer in model.named_modules():
        if isinstance(layer, _ConvNd):
            layer.__class__ = _watched(type(layer), name, found)


def _watched(kind: type[_ConvNd], name: str, found: set[str]) -> type[_ConvNd]:
    """Returns a subclass of a layer's class. An attribute that is no tensor leaves no trace in a graph."""

    def __getattribute__(self: nn.Module, attribute: str) -> Any:
        if attribute == "groups" and not sys._getframe(1).f_code.co_filename.startswith(_TORCH):
            found.add(name)
        return object.__getattribute__(self, attribute)

    return type(kind.__name__, (kind,), {"__getattribute__": __getattribute__, "__module__": kind.__module__})


def _is_harmless(weight: fx.Node, user: fx.Node) -> bool:
    """Says whether a node reads of a weight only what does not depend on its groups."""
    given: Any = user.args
    if user.op == "call_function" and user.target is getattr:
        return given[1] in _COMMON
    return user.op == "call_method" and user.target in _LIKE and given[0] is not weight
