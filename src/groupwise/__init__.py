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
    from groupwise.choose.assign import Assignment as Assignment
    from groupwise.choose.assign import assign as assign
    from groupwise.choose.convert.regroup import Regrouped as Regrouped
    from groupwise.choose.convert.regroup import regroup as regroup
    from groupwise.choose.measure.choice import Grouping as Grouping
    from groupwise.choose.measure.run import sweep as sweep
    from groupwise.choose.measure.sweep import Sweep as Sweep
    from groupwise.errors import GroupwiseError as GroupwiseError
    from groupwise.explanation import Explanation as Explanation
    from groupwise.explanation import explain as explain
    from groupwise.kernels.dispatch import disable as disable
    from groupwise.kernels.dispatch import enable as enable
    from groupwise.kernels.dispatch import enabled as enabled
    from groupwise.kernels.dispatch import forget as forget
    from groupwise.kernels.plan import Plan as Plan
    from groupwise.kernels.plan import plan as plan
    from groupwise.kernels.plan import record_plans as record_plans
    from groupwise.profile.bench import Bench as Bench
    from groupwise.profile.bench import bench as bench
    from groupwise.profile.bench_change import BenchChange as BenchChange
    from groupwise.profile.count import Count as Count
    from groupwise.profile.count import count as count
    from groupwise.profile.flops import flop_formulas as flop_formulas
    from groupwise.profile.record import ConvCall as ConvCall
    from groupwise.profile.report import Report as Report
    from groupwise.profile.report import report as report
    from groupwise.profile.tune import Tuned as Tuned
    from groupwise.profile.tune import tune as tune
    from groupwise.rewrite import Optimized as Optimized
    from groupwise.rewrite import Trainable as Trainable
    from groupwise.rewrite import optimize as optimize
    from groupwise.rewrite.dynamo import compiled_plans as compiled_plans
    from groupwise.spec.arguments import valid_groups as valid_groups
    from groupwise.spec.convspec import ConvSpec as ConvSpec
    from groupwise.spec.cost import Cost as Cost
    from groupwise.spec.cost import cost as cost
    from groupwise.spec.wiring import Path as Path
    from groupwise.spec.wiring import Wiring as Wiring
    from groupwise.web.explorer import Explorer as Explorer
    from groupwise.web.explorer import explore as explore

__version__ = "0.1.0"

_HOME = {
    "Assignment": "choose.assign",
    "Bench": "profile.bench",
    "BenchChange": "profile.bench_change",
    "Grouping": "choose.measure.choice",
    "ConvCall": "profile.record",
    "ConvSpec": "spec.convspec",
    "Cost": "spec.cost",
    "Count": "profile.count",
    "Explanation": "explanation",
    "Explorer": "web.explorer",
    "GroupwiseError": "errors",
    "Optimized": "rewrite",
    "Path": "spec.wiring",
    "Plan": "kernels.plan",
    "Regrouped": "choose.convert.regroup",
    "Report": "profile.report",
    "Sweep": "choose.measure.sweep",
    "Trainable": "rewrite",
    "Tuned": "profile.tune",
    "Wiring": "spec.wiring",
    "assign": "choose.assign",
    "bench": "profile.bench",
    "compiled_plans": "rewrite.dynamo",
    "cost": "spec.cost",
    "count": "profile.count",
    "disable": "kernels.dispatch",
    "enable": "kernels.dispatch",
    "enabled": "kernels.dispatch",
    "explain": "explanation",
    "explore": "web.explorer",
    "flop_formulas": "profile.flops",
    "forget": "kernels.dispatch",
    "optimize": "rewrite",
    "plan": "kernels.plan",
    "record_plans": "kernels.plan",
    "regroup": "choose.convert.regroup",
    "report": "profile.report",
    "sweep": "choose.measure.run",
    "tune": "profile.tune",
    "valid_groups": "spec.arguments",
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
    importlib.import_module("groupwise.kernels.dispatch").enable_from_environment()
