"""`set_groups`: gives a layer another number of groups in place."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd


def set_groups(layer: _ConvNd, groups: int, weight: torch.Tensor) -> None:
    """Gives a layer `groups` and the weight that belongs to it, in the memory format that its weight had."""
    old: Any = layer.weight
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(old.dim())
    if last is not None and not old.is_contiguous() and old.is_contiguous(memory_format=last):
        weight = weight.contiguous(memory_format=last)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=old.requires_grad)
    layer.groups = groups
