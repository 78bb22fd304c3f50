"""The networks that made groups famous, with random weights: AlexNet on two GPUs, and ResNeXt."""

from __future__ import annotations

from collections.abc import Callable

import torch

from groupwise.models.alexnet import AlexNet, AlexNetTowers, Tower, alexnet, alexnet_towers
from groupwise.models.resnext import Bottleneck, ResNeXt, resnext50_32x4d, resnext101_32x8d, resnext101_64x4d
from groupwise.models.resnext_forms import BranchBottleneck, ConcatBottleneck

# Each takes num_classes=1000 and returns a network from (N, 3, 224, 224) to (N, num_classes).
MODELS: dict[str, Callable[..., torch.nn.Module]] = {
    "alexnet": alexnet,
    "alexnet_towers": alexnet_towers,
    "resnext50_32x4d": resnext50_32x4d,
    "resnext101_32x8d": resnext101_32x8d,
    "resnext101_64x4d": resnext101_64x4d,
}

__all__ = [
    "MODELS",
    "AlexNet",
    "AlexNetTowers",
    "Bottleneck",
    "BranchBottleneck",
    "ConcatBottleneck",
    "ResNeXt",
    "Tower",
    "alexnet",
    "alexnet_towers",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
]
