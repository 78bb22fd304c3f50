"""Which code a module runs: its class's, or a forward of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def has_own_forward(module: torch.nn.Module) -> bool:
    """Tells whether a forward, or the part of one that convolutions call, is set on the module itself."""
    return "forward" in vars(module) or "_conv_forward" in vars(module)


def known_forward(module: torch.nn.Module, kinds: Iterable[type[torch.nn.Module]]) -> bool:
    """Says whether the module computes what one of these classes does.

    A forward of its own, on its class or on the module itself, makes it unknown.
    """
    return not has_own_forward(module) and any(_forwards(type(module)) == _forwards(kind) for kind in kinds)


def _forwards(kind: type[torch.nn.Module]) -> tuple[Any, ...]:
    """Returns the functions that compute a class: PyTorch's convolutions call their `_conv_forward`."""
    return kind.forward, getattr(kind, "_conv_forward", None)
