"""Tensors of a grouped network as those of its parts, one per group, and back."""

from __future__ import annotations

from collections.abc import Mapping

import torch

Tensors = Mapping[str, torch.Tensor]


def split(tensors: Tensors, layers: Mapping[str, int], parts: int, prefix: str) -> dict[str, torch.Tensor]:
    """Cut the tensors of `layers`, {name: dimension}, into `parts`, named `{prefix}.{part}.{name}`; all are copies.

    Tensors of other layers are shared by the parts and keep their names; a scalar (a batch norm's counter) goes to
    every part.
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
    """The inverse of `split`; all are copies."""
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
    """`{prefix}.{part}.{name}` without the part; other names as they are."""
    return name.split(".", 2)[2] if name.startswith(f"{prefix}.") else name
