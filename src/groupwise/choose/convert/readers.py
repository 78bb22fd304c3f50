"""Which layers have tensors that a model's own code reads: other groups would change what that code computes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from groupwise.errors import GroupwiseError
from groupwise.parallel.planning.trace import trace

# What a weight with other groups has in common with the one before.
_COMMON = {"dtype", "device", "layout", "requires_grad", "is_cuda"}
# Methods whose tensor argument only says what the result is like.
_LIKE = {"to", "type_as"}


@dataclass(frozen=True)
class Readers:
    """The layers whose tensors code reads outside of their own calls, as far as `torch.fx` can follow the model.

    - `tensors`: any tensor for anything, if only for its dtype
    - `weights`: the weight, for its numbers or its shape
    """

    tensors: frozenset[str] = frozenset()
    weights: frozenset[str] = frozenset()

    def refusal(self, name: str, exact: bool) -> str:
        """Says why a layer cannot have other groups; empty if it can.

        One that is converted exactly keeps its bias, and all of its weight but the shape. Another one may be replaced
        by modules that have no weight.
        """
        if exact and name in self.weights:
            return "code reads its weight, which would have another shape; leave it out"
        if not exact and name in self.tensors:
            return "code reads a tensor of it, which the layer loses or has in another order; leave it out"
        return ""


def readers(model: nn.Module) -> Readers:
    """Returns the layers whose tensors the model's code reads; none where `torch.fx` cannot follow the model."""
    try:
        _, graph, _ = trace(model)
    except GroupwiseError:
        return Readers()
    tensors, weights = set(), set()
    for node in graph.find_nodes(op="get_attr"):
        layer, _, tensor = str(node.target).rpartition(".")
        tensors.add(layer)
        if tensor == "weight" and not all(_is_harmless(node, user) for user in node.users):
            weights.add(layer)
    return Readers(frozenset(tensors), frozenset(weights))


def _is_harmless(weight: fx.Node, user: fx.Node) -> bool:
    """Says whether a node reads of a weight only what does not depend on its groups."""
    given: Any = user.args
    if user.op == "call_function" and user.target is getattr:
        return given[1] in _COMMON
    return user.op == "call_method" and user.target in _LIKE and given[0] is not weight
