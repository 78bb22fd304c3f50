"""The graph of a model by `torch.fx`, traced once in training and once in evaluation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch.distributed import ProcessGroup
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from groupwise.errors import GroupwiseError
from groupwise.parallel.styles.channelwise import units_of


class Tracer(fx.Tracer):
    """Traces into containers and blocks, and takes layers as single calls."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Says whether a module is one call of the graph."""
        layer = isinstance(m, _ConvNd | nn.Linear | _DropoutNd) or units_of(m) is not None
        return layer or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> tuple[nn.Module, fx.Graph, bool]:
    """Returns a copy of the model, its graph, and whether it drew random numbers while it was traced.

    Raises `GroupwiseError` if `torch.fx` cannot follow the model, or if its graphs in the two modes differ.
    """
    with torch.random.fork_rng():
        state = torch.get_rng_state()
        try:
            twin, other = twin_of(model), twin_of(model).train(not model.training)
            graph, again = Tracer().trace(twin), Tracer().trace(other)
        except Exception as error:  # The model's own code raises anything when it is given proxies.
            raise GroupwiseError(
                f"torch.fx cannot follow {type(model).__name__}, so that its layers cannot be planned together "
                f"({error}); split its blocks one by one, or name each layer's style in a plan for parallelize_module"
            ) from error
        drew = not torch.equal(state, torch.get_rng_state())
    one, two = ([(n.op, n.target, [a.name for a in n.all_input_nodes]) for n in g.nodes] for g in (graph, again))
    if one != two:
        raise GroupwiseError(
            f"{type(model).__name__} does not run the same layers in training and in evaluation, so that one plan does "
            "not do for both; split its blocks one by one"
        )
    return twin, graph, drew


def shapes_of(model: nn.Module) -> nn.Module:
    """Returns a copy of the model on the meta device: its tensors have shapes and no values."""
    shapes: dict[int, Any] = {}
    for one in (*model.parameters(), *model.buffers(), *_held(model)):
        shapes[id(one)] = torch.empty_like(one, device="meta") if isinstance(one, torch.Tensor) else one
        if isinstance(one, nn.Parameter):
            shapes[id(one)] = nn.Parameter(shapes[id(one)], requires_grad=one.requires_grad)
    return copy.deepcopy(model, shapes)


def twin_of(model: nn.Module) -> nn.Module:
    """Returns a copy with the same parameters: whatever else the code changes while it is traced stays unchanged."""
    return copy.deepcopy(model, {id(one): one for one in (*model.parameters(), *_held(model))})


def _held(model: nn.Module) -> list[torch.Tensor | ProcessGroup]:
    """Returns what modules hold beside parameters and buffers that cannot be copied: activations, process groups."""
    values = (value for module in model.modules() for value in vars(module).values())
    return [value for value in values if isinstance(value, ProcessGroup | torch.Tensor)]
