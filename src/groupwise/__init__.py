"""groupwise: the `groups` parameter of PyTorch's convolutions, seen and counted.

Names load on first use, so `import groupwise` costs nothing and `groupwise explain IN OUT` never imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupwise import models as models
    from groupwise import nn as nn
    from groupwise.costs import Cost as Cost
    from groupwise.costs import cost as cost
    from groupwise.errors import GroupwiseError as GroupwiseError
    from groupwise.spec import ConvSpec as ConvSpec
    from groupwise.spec import valid_groups as valid_groups
    from groupwise.wiring import Path as Path
    from groupwise.wiring import Wiring as Wiring

__version__ = "0.1.0"

_HOME = {
    "ConvSpec": "spec",
    "Cost": "costs",
    "GroupwiseError": "errors",
    "Path": "wiring",
    "Wiring": "wiring",
    "cost": "costs",
    "valid_groups": "spec",
}
_MODULES = ("models", "nn")

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"groupwise.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"groupwise.{_HOME[name]}"), name)
    raise AttributeError(f"module 'groupwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
