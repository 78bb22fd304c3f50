"""`Structure`: notices when a submodule of a model is added, removed or replaced."""

from __future__ import annotations

from typing import Any

import torch

_values, _tuple = dict.values, tuple


class Structure:
    """The submodules that a model has, and where."""

    def __init__(self, model: torch.nn.Module) -> None:
        places: list[dict[str, Any]] = [part._modules for part in model.modules() if isinstance(part._modules, dict)]
        # Most modules hold none, and it takes less time to see that they still do not.
        self._empty = [place for place in places if not place]
        self._places = [place for place in places if place]
        self._held = self._now()

    def holds(self) -> bool:
        """Tells whether each place still holds the module that it held."""
        return not any(self._empty) and self._now() == self._held

    def _now(self) -> list[tuple[Any, ...]]:
        # Modules are equal if they are the same. This runs at each call of a network.
        return list(map(_tuple, map(_values, self._places)))


def countable(model: torch.nn.Module) -> None:
    """Replaces the parameters and buffers that were made in inference mode, where changes are not counted."""
    made: dict[int, torch.Tensor] = {}
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is None or not tensor.is_inference():
                    continue
                if id(tensor) not in made:
                    made[id(tensor)] = _countable(tensor)
                held[name] = made[id(tensor)]  # type: ignore[assignment]


def _countable(tensor: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode(False), torch.no_grad():
        copied = tensor.clone()
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, tensor.requires_grad)
        return copied
