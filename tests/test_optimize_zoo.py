"""Every classifier of torchvision and sixty of timm, as exact as the model. It takes many minutes."""

from __future__ import annotations

import importlib.util
import os
import random

import pytest
import torch

from groupwise.cli.targets import import_torchvision, load_model
from optimized import check, settle

ASKED = os.environ.get("GROUPWISE_TEST_ALL_MODELS") == "1"
pytestmark = pytest.mark.skipif(not ASKED, reason="GROUPWISE_TEST_ALL_MODELS=1 runs it")
# In float64 too, a larger model takes more memory than many machines have.
MOST_PARAMETERS = 45e6


def names(package):
    """The targets of a package, the same sixty of timm each time."""
    if not ASKED or importlib.util.find_spec(package) is None:
        return []
    if package == "torchvision":
        models = import_torchvision()
        return [f"torchvision:{name}" for name in models.list_models(module=models)]
    timm = importlib.import_module("timm")
    return [f"timm:{name}" for name in random.Random(0).sample(sorted(timm.list_models()), 60)]


def size(target, model):
    """The side of an image that the model takes: small, where it has a choice."""
    if target.startswith("timm:"):
        return model.default_cfg["input_size"][-1]
    name = target.split(":")[1]
    return 299 if name == "inception_v3" else 224 if name.startswith(("vit", "maxvit")) else 64


def parameters_of(target):
    """How many parameters a model has: without their memory, unless its builder looks at numbers, as RegNet's does."""
    try:
        with torch.device("meta"):
            model = load_model(target)
    except NotImplementedError:
        model = load_model(target)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize("target", [*names("torchvision"), *names("timm")])
def test_it_is_as_exact_as_the_model(target):
    parameters = parameters_of(target)
    if parameters > MOST_PARAMETERS:
        pytest.skip(f"{parameters} parameters are too many")
    model = settle(load_model(target))
    side = size(target, model)
    check(model, torch.randn(1, 3, side, side), tune=False)
