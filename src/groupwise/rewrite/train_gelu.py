"""GELUs of a training step, whose backward writes over the gradient that it is given where nothing else holds that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph, Node

from groupwise.kernels import native
from groupwise.nn.functional import computes_here
from groupwise.rewrite.train_trace import reason_to_keep


def dispatch_gelus(graph: Graph, modules: Mapping[str, torch.nn.Module]) -> tuple[str, ...]:
    """Lets each GELU, by module or by `F.gelu`, run by groupwise's operator, and returns their modules or nodes."""
    if native.status().operators_problem is not None:
        return ()
    found = []
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is F.gelu:
            node.target = gelu
            found.append(node.name)
        elif node.op == "call_module" and _is_gelu(node, modules):
            with graph.inserting_before(node):
                module = graph.get_attr(str(node.target))
                made = graph.call_function(of_module, (module, *node.args))
            made.meta = dict(node.meta)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
            found.append(str(node.target))
    return tuple(found)


def _is_gelu(node: Node, modules: Mapping[str, torch.nn.Module]) -> bool:
    module = modules.get(str(node.target))
    # Only a call of the module runs its hooks and its own forward.
    return type(module) is torch.nn.GELU and not reason_to_keep(module) and len(node.args) == 1 and not node.kwargs


def of_module(module: Any, input: torch.Tensor) -> torch.Tensor:
    """Returns module(input) of a GELU."""
    return gelu(input, approximate=module.approximate)


def gelu(input: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """Returns F.gelu(input, approximate=approximate)."""
    if approximate not in ("none", "tanh") or not computes_here(input):
        return F.gelu(input, approximate=approximate)
    made: torch.Tensor = torch.ops.groupwise.gelu(input, approximate)
    return made
