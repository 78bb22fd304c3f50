"""`fit`: the weights of converted layers fitted to what the layers computed before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from groupwise.choose.convert.block import Converted, gather_ms
from groupwise.choose.convert.gather import GatheredConv
from groupwise.choose.convert.refit import refit
from groupwise.errors import GroupwiseError


def inputs_of(data: Iterable[Any]) -> list[torch.Tensor]:
    """Returns batches of inputs, checked: a tensor is one batch, and of a pair (inputs, targets) the inputs are taken.

    Raises `GroupwiseError` for anything else, for no batch, and for values that are not finite.
    """
    found = []
    for batch in [data] if isinstance(data, torch.Tensor) else data:
        inputs = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(inputs, torch.Tensor):
            raise GroupwiseError(
                f"data has a batch of type {type(batch).__name__}; give tensors of inputs, or pairs (inputs, targets)"
            )
        if inputs.is_floating_point() and not torch.isfinite(inputs).all():
            raise GroupwiseError("data has values that are not finite; weights cannot be fitted to them")
        found.append(inputs)
    if not found:
        raise GroupwiseError("data has no batch; give at least one tensor of inputs")
    return found


class _Found(Exception):
    """Ends a run of the model as soon as the layer has run."""


def fit(
    model: nn.Module, twin: nn.Module, made: Mapping[str, Converted], batches: Sequence[torch.Tensor]
) -> dict[str, dict[str, Any]]:
    """Fits the converted layers of `twin` in place, in the order in which they run, and returns facts for their rows.

    Each is fitted by least squares to what the layer of `model` computes, on the inputs that it has in `twin` by then.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in _running_order(twin, made, batches[0]):
        layer: Any = twin.get_submodule(name)
        inner = made[name].fitted
        if isinstance(layer.get_submodule(inner), _ConvTransposeNd):
            continue
        facts: dict[str, Any] = {}
        if isinstance(layer, GatheredConv):
            given, _ = next(_at(twin, name, batches[:1]))
            facts["gather_ms"] = gather_ms(layer, given)
        # A layer of several convolutions is fitted in the last of them, which makes its outputs.
        order = made[name].outputs
        inputs = [one for one, _ in _at(twin, f"{name}.{inner}" if inner else name, batches)]
        targets = [one if order is None else one.index_select(1, order) for _, one in _at(model, name, batches)]
        conv = layer.get_submodule(inner)
        fitted = refit(conv, inputs, targets)
        with torch.no_grad():
            conv.weight.copy_(fitted.weight)
            if conv.bias is not None:
                conv.bias.copy_(fitted.bias)
        found[name] = {**facts, "error": fitted.before, "fitted": fitted.after}
    return found


def _running_order(model: nn.Module, names: Mapping[str, Any], inputs: torch.Tensor) -> list[str]:
    """Returns the layers in the order in which they first run; those that do not run are left out."""
    ran: list[str] = []
    hooks = [model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in names]
    try:
        with evaluated(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(ran))


def _at(model: nn.Module, name: str, batches: Sequence[torch.Tensor]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the input and the output of a layer for each batch."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(
        _: nn.Module, given: tuple[torch.Tensor, ...], keywords: dict[str, torch.Tensor], output: torch.Tensor
    ) -> None:
        seen.append(((*given, *keywords.values())[0], output))
        raise _Found

    hook = model.get_submodule(name).register_forward_hook(see, with_kwargs=True)
    try:
        with evaluated(model):
            for inputs in batches:
                try:
                    model(inputs)
                except _Found:
                    yield seen.pop()
    finally:
        hook.remove()


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Runs the model without gradients and in evaluation; afterwards each module has its mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def computed(model: nn.Module, inputs: torch.Tensor) -> Any:
    """Returns what a model makes of a batch. Raises `GroupwiseError` for one that it does not take."""
    try:
        return model(inputs)
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise GroupwiseError(f"the model does not take data of shape {tuple(inputs.shape)}: {reason}") from error
