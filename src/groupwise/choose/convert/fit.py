"""`fit`: the weights of converted layers fitted to what the layers computed before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from groupwise.choose.convert.block import Converted, gather_ms
from groupwise.choose.convert.gather import GatheredConv
from groupwise.choose.convert.refit import refit


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
        facts: dict[str, Any] = {}
        if isinstance(layer, GatheredConv):
            given, _ = next(_at(twin, name, batches[:1]))
            facts["gather_ms"] = gather_ms(layer, given)
        # A layer of several convolutions is fitted in the last of them, which makes its outputs.
        inner = made[name].fitted
        order = made[name].outputs
        inputs = [one for one, _ in _at(twin, f"{name}.{inner}" if inner else name, batches)]
        targets = [one if order is None else one.index_select(1, order) for _, one in _at(model, name, batches)]
        fitted = refit(layer.get_submodule(inner) if inner else layer, inputs, targets)
        found[name] = {**facts, "error": fitted.before, "fitted": fitted.after}
    return found


def _running_order(model: nn.Module, names: Mapping[str, Any], inputs: torch.Tensor) -> list[str]:
    """Returns the layers in the order in which they first run; those that do not run are left out."""
    ran: list[str] = []
    hooks = [
        model.get_submodule(name).register_forward_hook(lambda *_, name=name: ran.append(name)) for name in names
    ]
    try:
        with evaluated(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(ran))


def _at(
    model: nn.Module, name: str, batches: Sequence[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yields the input and the output of a layer for each batch."""
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(_: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        seen.append((given[0], output))
        raise _Found

    hook = model.get_submodule(name).register_forward_hook(see)
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
