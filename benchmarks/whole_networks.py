"""The networks that `whole.py` times: well known ones of torchvision, and six of timm that chance chose.

python benchmarks/whole_networks.py        draws the networks of timm again, and prints them
"""

from __future__ import annotations

import random
import re
import warnings

import torch
from torch import Tensor, nn

from groupwise.cli.targets import import_torchvision, load_model

TORCHVISION = (
    "torchvision:resnext50_32x4d",
    "torchvision:mobilenet_v2",
    "torchvision:mobilenet_v3_large",
    "torchvision:efficientnet_b0",
    "torchvision:regnet_y_400mf",
    "torchvision:shufflenet_v2_x1_0",
    "torchvision:convnext_tiny",
)
# `draw(SEED)` with timm 1.0.31. Nobody looked at a time before, and none was exchanged for another.
SEED, COUNT, MOST_PARAMETERS = 2026, 6, 30_000_000
TIMM = (
    "timm:mobilenetv3_large_100",
    "timm:dla60x",
    "timm:semnasnet_050",
    "timm:repghostnet_200",
    "timm:regnetz_b16",
    "timm:seresnext26t_32x4d",
)
NETWORKS = (*TORCHVISION, *TIMM)
SIZE = 224
# As many images as the largest batch that is asked for by default; smaller batches are the first of them.
MOST_IMAGES = 8


def draw(seed: int = SEED) -> list[str]:
    """Draws networks of timm, one a family: with groups above 1, images of 224 pixels, at most 30 M parameters.

    The names are shuffled by the seed and tried in that order. A family is what a name has before the first digit or
    underscore.
    """
    import_torchvision()
    import timm

    names, found, families = sorted(timm.list_models()), [], set()
    for name in random.Random(seed).sample(names, len(names)):
        family = re.split(r"[_\d]", name)[0]
        if family not in families and is_fit(name):
            found.append(f"timm:{name}")
            families.add(family)
        if len(found) == COUNT:
            break
    return found


def is_fit(name: str) -> bool:
    """Tells whether a network of timm meets the conditions of `draw`."""
    import timm

    config = timm.models.get_pretrained_cfg(name)
    if config is None or config.input_size != (3, SIZE, SIZE):
        return False
    try:
        with torch.device("meta"):
            model = timm.create_model(name, pretrained=False)
    except (RuntimeError, NotImplementedError, TypeError):
        # A few networks compute values while they are built, which meta tensors lack.
        return False
    grouped = any(isinstance(part, nn.Conv2d) and part.groups > 1 for part in model.modules())
    return grouped and sum(parameter.numel() for parameter in model.parameters()) <= MOST_PARAMETERS


def build(name: str) -> nn.Module:
    """Builds a network with random weights that are the same in every process, and nothing that draws numbers."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = load_model(name)
    for part in model.modules():
        kind = type(part).__name__
        if kind in ("Dropout", "StochasticDepth"):
            part.p = 0.0
        elif kind == "DropPath":
            part.drop_prob = 0.0
    return model


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    """Draws images and labels, the same in every process."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(max(batch, MOST_IMAGES), 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(1000, (len(images),), generator=generator)
    return images[:batch].clone(), labels[:batch]


if __name__ == "__main__":
    print("\n".join(draw()))
