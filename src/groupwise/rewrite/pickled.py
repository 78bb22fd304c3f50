"""How a network is pickled: what the classes of its model need is imported before they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from groupwise.models.others import import_torchvision, imported_first


def reduced(network: Any, model: torch.nn.Module) -> tuple[Any, ...]:
    """Returns what `__reduce_ex__` of a network does."""
    return bare, (type(network), imported_first(model)), network.__getstate__()


def bare(kind: type[torch.nn.Module], packages: Sequence[str]) -> torch.nn.Module:
    """Returns a network without its state, once these packages are imported. Pickles name this function."""
    if "torchvision" in packages:
        import_torchvision()
    return object.__new__(kind)
