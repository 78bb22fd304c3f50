"""`set_groups` gives a layer other groups in place; `lossless` finds the weight that computes the same with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from groupwise.choose.exact.coarsen import blocks, coarser


def set_groups(layer: _ConvNd, groups: int, weight: torch.Tensor) -> None:
    """Gives a layer `groups` and the weight that belongs to it, in the memory format that its weight had."""
    old: Any = layer.weight
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(old.dim())
    if last is not None and not old.is_contiguous() and old.is_contiguous(memory_format=last):
        weight = weight.contiguous(memory_format=last)
    layer.weight = nn.Parameter(weight.detach(), requires_grad=old.requires_grad)
    layer.groups = groups


def lossless(layer: Any, groups: int) -> torch.Tensor | None:
    """Returns the weight with which a layer with other groups computes the same; None if it would lose a part."""
    weight = layer.weight.detach()
    if layer.groups % groups == 0:
        return coarser(weight, layer.groups, groups)
    # Groups that are no parts of the old ones may still be blocks of the dense weight.
    own = layer.groups if groups % layer.groups == 0 else 1
    kept, lost = blocks(coarser(weight, layer.groups, own), own, groups)
    return None if lost else kept
