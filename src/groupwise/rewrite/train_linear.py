"""Linear layers of a training step as 1x1 convolutions of images in channels_last, which groupwise's kernels know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch.fx import Graph

from groupwise.kernels import native
from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.nn.functional import computes_here
from groupwise.rewrite.train_origin import differentiates
from groupwise.rewrite.train_trace import reason_to_keep


def dispatch_linear(graph: Graph, modules: Mapping[str, torch.nn.Module]) -> None:
    """Lets each linear layer, by module or by `F.linear`, run by groupwise's kernels where they are faster."""
    if native.status().operators_problem is not None:
        return
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is F.linear:
            node.target = linear
            continue
        module = modules.get(str(node.target)) if node.op == "call_module" else None
        # Only a call of the module runs its hooks and its own forward.
        if type(module) is not torch.nn.Linear or reason_to_keep(module) or len(node.args) != 1 or node.kwargs:
            continue
        with graph.inserting_before(node):
            layer = graph.get_attr(str(node.target))
            made = graph.call_function(of_layer, (layer, *node.args))
        made.meta = dict(node.meta)
        node.replace_all_uses_with(made)
        graph.erase_node(node)


def of_layer(layer: Any, input: torch.Tensor) -> torch.Tensor:
    """Returns layer(input) of a linear layer."""
    return linear(input, layer.weight, layer.bias)


def linear(input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns F.linear(input, weight, bias)."""
    fits = (
        computes_here(input, weight, bias)
        and input.dim() > 1
        and weight.dim() == 2
        and input.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
    )
    if not fits or torch.is_autocast_enabled("cpu"):
        return F.linear(input, weight, bias)
    compute: Any = _Linear.apply if torch.is_grad_enabled() else torch.ops.groupwise.linear
    made: torch.Tensor = compute(input, weight, bias)
    return made


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(input if wanted[1] else None, weight if wanted[0] else None)
        ctx.sizes = input.shape, weight.shape
        made: torch.Tensor = torch.ops.groupwise.linear(input, weight, bias)
        return made

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return None, None, None
        input, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if differentiates(grad):
            flat = grad.reshape(-1, grad.shape[-1])
            return (
                flat.mm(weight).reshape(ctx.sizes[0]) if wanted[0] else None,
                flat.t().mm(input.reshape(-1, input.shape[-1])) if wanted[1] else None,
                flat.sum(0) if wanted[2] else None,
            )
        # What no wanted gradient reads need not be there.
        input = grad.new_empty(()).expand(ctx.sizes[0]) if input is None else input
        weight = grad.new_empty(()).expand(ctx.sizes[1]) if weight is None else weight
        before = switched_on()
        try:
            return torch.ops.groupwise.linear_backward(grad, input, weight, wanted[:3])
        finally:
            switch_back(before)
