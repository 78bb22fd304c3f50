"""Models of other packages."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import torch


def import_torchvision() -> ModuleType:
    """Returns `torchvision.models`, even where torchvision's compiled operators do not fit this torch."""
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
    # A torchvision built for another torch cannot load its operators, and its import fails where it first names one.
    # The networks do not call them, so it is enough to declare the two that it names.
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for name in ("nms", "qnms"):
        schema = f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        _torchvision_library.define(schema)  # type: ignore[no-untyped-call]
    return importlib.import_module("torchvision.models")


# PyTorch drops the declarations once this object is gone.
_torchvision_library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]


def packages_of(model: torch.nn.Module) -> tuple[str, ...]:
    """Returns the packages, of those known to this module, that the classes of a model come from."""
    sources = {type(part).__module__.partition(".")[0] for part in model.modules()}
    return tuple(sorted(sources & {"timm", "torchvision"}))
