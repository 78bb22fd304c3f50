"""The layer of a `ConvSpec`."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from groupwise.spec.convspec import ConvSpec


def arguments_of(spec: ConvSpec) -> dict[str, Any]:
    """Returns `spec` as the keyword arguments of its layer, in `torch.nn` or in `groupwise.nn`."""
    arguments = dataclasses.asdict(spec)
    if not arguments.pop("transposed"):
        del arguments["output_padding"]
    return arguments


def layer_of(spec: ConvSpec, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """Makes the `torch.nn` layer of `spec`, with random weights of `dtype`."""
    layer = getattr(torch.nn, f"Conv{'Transpose' * spec.transposed}{spec.dims}d")
    made: torch.nn.Module = layer(**arguments_of(spec), dtype=dtype)
    return made
