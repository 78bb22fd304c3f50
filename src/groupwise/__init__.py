"""groupwise: the `groups` parameter of PyTorch's convolutions: seen, counted and computed fast.

Names load on first use: `import groupwise` costs nothing, and `groupwise explain IN OUT` never imports torch.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from groupwise import models as models
    from groupwise import nn as nn
    from groupwise import parallel as parallel
    from groupwise.arguments import valid_groups as valid_groups
    from groupwise.benching import Bench as Bench
    from groupwise.benching import bench as bench
    from groupwise.costs import Cost as Cost
    from groupwise.costs import cost as cost
    from groupwise.counting import count as count
    from groupwise.errors import GroupwiseError as GroupwiseError
    from groupwise.explanation import Explanation as Explanation
    from groupwise.explanation import explain as explain
    from groupwise.planning import Plan as Plan
    from groupwise.planning import last_plans as last_plans
    from groupwise.planning import plan as plan
    from groupwise.recording import ConvCall as ConvCall
    from groupwise.reporting import Report as Report
    from groupwise.reporting import report as report
    from groupwise.routing import disable as disable
    from groupwise.routing import enable as enable
    from groupwise.routing import enabled as enabled
    from groupwise.spec import ConvSpec as ConvSpec
    from groupwise.wiring import Path as Path
    from groupwise.wiring import Wiring as Wiring

__version__ = "0.1.0"

# Functions are verbs and the modules that hold them nouns, so that neither hides the other here.
_HOME = {
    "Bench": "benching",
    "ConvCall": "recording",
    "ConvSpec": "spec",
    "Cost": "costs",
    "Explanation": "explanation",
    "GroupwiseError": "errors",
    "Path": "wiring",
    "Plan": "planning",
    "Report": "reporting",
    "Wiring": "wiring",
    "bench": "benching",
    "cost": "costs",
    "count": "counting",
    "disable": "routing",
    "enable": "routing",
    "enabled": "routing",
    "explain": "explanation",
    "last_plans": "planning",
    "plan": "planning",
    "report": "reporting",
    "valid_groups": "arguments",
}
_MODULES = ("models", "nn", "parallel")

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"groupwise.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"groupwise.{_HOME[name]}"), name)
    raise AttributeError(f"module 'groupwise' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__


if os.environ.get("GROUPWISE_ENABLE"):
    importlib.import_module("groupwise.routing").enable_from_environment()
