"""`Watch`: notices when a parameter or buffer is replaced, moved or written to."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from operator import attrgetter, is_
from typing import Any

import torch

from groupwise.errors import GroupwiseError

Snapshot = tuple[list[Any], list[int], list[int]]
_version, _address = attrgetter("_version"), torch.Tensor.data_ptr


class Watch:
    """The parameters and buffers of a module that have these names, wherever they are held."""

    def __init__(self, module: torch.nn.Module, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._holders: list[tuple[dict[str, Any], str]] = []
        for name in self.names:
            path, _, key = name.rpartition(".")
            owner = module.get_submodule(path)
            self._holders.append((owner._parameters if key in owner._parameters else owner._buffers, key))

    def tensors(self) -> list[Any]:
        """Returns what is held now."""
        return [holder.get(key) for holder, key in self._holders]

    def snapshot(self) -> Snapshot:
        """Returns what a change is noticed by. Raises `GroupwiseError` for a tensor that cannot be watched."""
        tensors = self.tensors()
        for name, tensor in zip(self.names, tensors, strict=True):
            check_watchable(name, tensor)
        return tensors, list(map(_version, tensors)), list(map(_address, tensors))

    def holds(self, snapshot: Snapshot) -> bool:
        """Tells whether nothing has changed since."""
        tensors, versions, addresses = snapshot
        now = self.tensors()
        return (
            all(map(is_, now, tensors))
            and list(map(_version, now)) == versions
            and list(map(_address, now)) == addresses
        )


def contents(tensor: torch.Tensor) -> bytes:
    """Returns the values of a dense tensor: what notices a change that PyTorch does not count."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu" or not tensor.numel():
        return b""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def check_watchable(name: str, tensor: Any) -> None:
    """Refuses a tensor whose changes nobody counts."""
    if not isinstance(tensor, torch.Tensor):
        raise GroupwiseError(f"{name} is not there any more; call groupwise.optimize on the changed model")
    if tensor.is_inference():
        raise GroupwiseError(
            f"{name} was made in torch.inference_mode(), where changes are not counted; make the model outside of it"
        )
