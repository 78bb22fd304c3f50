"""How a network is pickled: what the classes of its model need is imported before they are."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.models.others import import_torchvision, packages_of


def reduced(network: Any, model: torch.nn.Module) -> tuple[Any, ...]:
    """Returns what `__reduce_ex__` of a network does."""
    return bare, (type(network), packages_of(model)), network.__getstate__()


def bare(kind: type[torch.nn.Module], packages: Sequence[str]) -> torch.nn.Module:
    """Returns a network without its state, once these packages are there. Pickles name this function."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise GroupwiseError(
                f"the network has modules of {package}, which is not installed; install it with: "
                f"pip install --no-deps {package} (without --no-deps it may replace torch)"
            )
    # timm imports torchvision.
    if packages and importlib.util.find_spec("torchvision"):
        import_torchvision()
    return object.__new__(kind)
