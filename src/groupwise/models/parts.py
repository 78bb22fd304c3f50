"""Converts tensors of a grouped network to those of its towers or branches, one a group, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]


def split(tensors: Tensors, layers: Mapping[str, int], parts: int, prefix: str) -> dict[str, torch.Tensor]:
    """Returns copies, in which each tensor of `layers` ({name: dimension}) is cut into `parts` equal pieces.

    A piece is named `{prefix}.{part}.{name}`. Tensors of other layers stay whole and keep their names. Every part gets
    a scalar, such as the counter of a batch norm.
    """
    result = {}
    for name, tensor in tensors.items():
        layer = name.split(".")[0]
        if layer not in layers:
            result[name] = tensor.clone()
            continue
        pieces = tensor.chunk(parts, layers[layer]) if tensor.ndim else (tensor,) * parts
        for part, piece in enumerate(pieces):
            result[f"{prefix}.{part}.{name}"] = piece.clone(memory_format=torch.contiguous_format)
    return result


def join(tensors: Tensors, layers: Mapping[str, int], prefix: str) -> dict[str, torch.Tensor]:
    """Returns copies of the tensors with all pieces concatenated: the inverse of `split`."""
    result = {}
    pieces: dict[str, list[torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            pieces.setdefault(grouped_name(name, prefix), []).append(tensor)
        else:
            result[name] = tensor.clone()
    for name, values in pieces.items():
        result[name] = torch.cat(values, layers[name.split(".")[0]]) if values[0].ndim else values[0].clone()
    return result


def grouped_name(name: str, prefix: str) -> str:
    """Returns `name` for `{prefix}.{part}.{name}`, and any other name as it is."""
    return name.split(".", 2)[2] if name.startswith(f"{prefix}.") else name
