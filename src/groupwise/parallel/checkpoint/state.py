"""Reads the state of a model and its optimiser by the names of the plain model, and describes both in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint.state_dict import get_state_dict

from groupwise.errors import GroupwiseError
from groupwise.parallel.runtime.agreement import described

# This describes a setting of an optimiser: that it is there.
SET = "set"


def states(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the state of both by the names of the plain model, and leaves the optimiser unchanged."""
    held = set(model.parameters())
    stepped = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    others = stepped - held
    # DDP marks the local tensors that it makes of DTensors by `_st_info`; what it lends for a forward is no parameter.
    if any(hasattr(parameter, "_st_info") for parameter in held | others) or (others and not held):
        raise GroupwiseError(
            "DistributedDataParallel(device_mesh=...) has taken the parameters out of the split model, and without "
            "them there is no checkpoint; use torch.distributed.fsdp.fully_shard instead, which leaves them"
        )
    if others:
        raise GroupwiseError(
            f"{len(others)} of the optimiser's {len(stepped)} parameters are not in the model, such as one of shape "
            f"{tuple(next(iter(others)).shape)}; make the optimiser from the model's parameters() once it is split"
        )
    fresh = not optimizer.state
    state, optimizer_state = get_state_dict(model, optimizer)
    if fresh:
        # torch invents a state as after a step without gradients, so that it is removed again.
        optimizer.state.clear()
    return state, optimizer_state


def describe_model(state: Mapping[str, Any]) -> dict[str, str]:
    """Returns the shape and the dtype of each tensor by its name, in words."""
    return described((name, value) for name, value in state.items() if isinstance(value, torch.Tensor))


def describe_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, str]:
    """Returns a description of an optimiser and of what it keeps, in words by name."""
    groups = enumerate(state["param_groups"])
    keys = {state_of(name): ", ".join(sorted(map(str, values))) for name, values in state["state"].items()}
    return {
        "the optimiser": f"{type(optimizer).__name__} (param_groups: {len(state['param_groups'])})",
        "the state of its parameters": "kept" if keys else "none",
        **{f"{key} of param_groups[{number}]": SET for number, group in groups for key in group},
        **keys,
    }


def state_of(name: str) -> str:
    """Returns the name that the state of a parameter has in the description of an optimiser."""
    return f"the state of {name}"
