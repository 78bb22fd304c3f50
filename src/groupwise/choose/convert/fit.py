"""`fit`: the weights of converted layers fitted to what the layers computed before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from groupwise.choose.convert.block import Converted
from groupwise.choose.convert.data import Batch, evaluated
from groupwise.choose.convert.gather import GatheredConv, gather_seconds
from groupwise.choose.convert.refit import refit, relative_error
from groupwise.errors import GroupwiseError
from groupwise.profile.progress import Progress
from groupwise.spec.legible import legible

# The input and the output of each call of a layer, batch by batch.
Calls = list[list[tuple[torch.Tensor, torch.Tensor]]]


def fit(
    model: nn.Module, twin: nn.Module, made: Mapping[str, Converted], batches: Sequence[Batch], progress: Progress
) -> dict[str, dict[str, Any]]:
    """Fits the converted layers of `twin` in place, in the order in which they run, and returns facts for their rows.

    Each is fitted by least squares to what the layer of `model` computes, on the inputs that it has in `twin` by then.
    A layer that runs several times in one call of the model is fitted to all of its runs. Where a run reads what an
    earlier one computed, the fit changes its own inputs: then the error is taken anew, and a fit that raised it is
    dropped. `progress` is told of each layer that is done.

    Raises `GroupwiseError` for a layer that runs more or less often than in `model`.
    """
    found: dict[str, dict[str, Any]] = {}
    running = _running_order(twin, made, batches)
    for name in running:
        layer: Any = twin.get_submodule(name)
        inner = made[name].fitted
        conv = layer.get_submodule(inner)
        facts: dict[str, Any] = {}
        if isinstance(layer, GatheredConv):
            calls = _calls(twin, name, batches[:1])[0]
            facts["gather_ms"] = sum(gather_seconds(layer, x).forward for x, _ in calls) * 1e3
        # A layer of several convolutions is fitted in the last of them, which makes its outputs.
        place = f"{name}.{inner}" if inner else name
        given, wanted = _calls(twin, place, batches), _calls(model, name, batches)
        _check_as_often(name, wanted, given)
        dims, order = conv.weight.dim(), made[name].outputs
        inputs = [_batched(x, dims) for calls in given for x, _ in calls]
        targets = [_batched(y, dims) for calls in wanted for _, y in calls]
        if order is not None:
            targets = [one.index_select(1, order.to(one.device)) for one in targets]
        fitted = refit(conv, inputs, targets)
        before = [tensor.detach().clone() for tensor in conv.parameters()]
        _set(conv, [fitted.weight] if fitted.bias is None else [fitted.weight, fitted.bias])
        after = fitted.after
        if any(len(calls) > 1 for calls in given):
            inputs = [_batched(x, dims) for calls in _calls(twin, place, batches) for x, _ in calls]
            after = relative_error(conv, inputs, targets)
            if not after <= fitted.before:
                _set(conv, before)
                after = fitted.before
        found[name] = {**facts, "error": fitted.before, "fitted": after}
        progress(len(found), len(running))
    return found


@torch.no_grad()
def _set(conv: nn.Module, values: Sequence[torch.Tensor]) -> None:
    for tensor, value in zip(conv.parameters(), values, strict=True):
        tensor.copy_(value)


def _batched(tensor: torch.Tensor, dims: int) -> torch.Tensor:
    """Returns a tensor with a batch dimension; a single sample has none."""
    return tensor.unsqueeze(0) if tensor.dim() == dims - 1 else tensor


def _check_as_often(name: str, wanted: Calls, given: Calls) -> None:
    for before, after in zip(wanted, given, strict=True):
        if len(before) != len(after):
            raise GroupwiseError(
                f"{legible(name)}: on the same data it runs {len(before)} times in the model and {len(after)} times in "
                "the converted one, so that its weight cannot be fitted; leave it out, or give no data"
            )


def _running_order(model: nn.Module, names: Mapping[str, Any], batches: Sequence[Batch]) -> list[str]:
    """Returns the layers in the order in which they first run; those that do not run are left out."""
    ran: list[str] = []
    hooks = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in names]
    try:
        with evaluated(model):
            for batch in batches:
                batch.run(model)
                if len(set(ran)) == len(names):
                    break
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(ran))


def _calls(model: nn.Module, name: str, batches: Sequence[Batch]) -> Calls:
    """Returns the input and the output of every call of a layer, batch by batch."""
    found: Calls = []

    def see(
        _: nn.Module, given: tuple[torch.Tensor, ...], keywords: dict[str, torch.Tensor], output: torch.Tensor
    ) -> None:
        # What runs next may change either in place.
        found[-1].append(((given[0] if given else keywords["input"]).clone(), output.clone()))

    hook = model.get_submodule(name).register_forward_hook(see, with_kwargs=True)
    try:
        with evaluated(model):
            for batch in batches:
                found.append([])
                batch.run(model)
    finally:
        hook.remove()
    return found
