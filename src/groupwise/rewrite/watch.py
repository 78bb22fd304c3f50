"""`Watch`: notices when a parameter or buffer is replaced, moved or written to."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from operator import attrgetter, is_
from typing import Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.kernels import native

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_version, _address = attrgetter("_version"), torch.Tensor.data_ptr


class Watch:
    """The parameters and buffers of a module that have these names, wherever they are held."""

    def __init__(self, module: torch.nn.Module, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        self._holders: list[dict[str, Any]] = []
        self._keys: list[str] = []
        for name in self.names:
            path, _, key = name.rpartition(".")
            owner = module.get_submodule(path)
            self._holders.append(owner._parameters if key in owner._parameters else owner._buffers)
            self._keys.append(key)

    def tensors(self) -> list[Any]:
        """Returns what is held now."""
        return list(map(dict.get, self._holders, self._keys))

    def snapshot(self) -> Snapshot:
        """Returns what a change is noticed by. Raises `GroupwiseError` for a tensor that cannot be watched."""
        tensors = self.tensors()
        for name, tensor in zip(self.names, tensors, strict=True):
            check_watchable(name, tensor)
        return Snapshot(self, tensors)


class Snapshot:
    """The tensors of a watch as they were at one time."""

    def __init__(self, watch: Watch, tensors: list[Any]) -> None:
        self.tensors = tensors
        self._now = watch.tensors
        self._same = _watcher(tensors)

    def holds(self) -> bool:
        """Tells whether nothing has changed since."""
        return all(map(is_, self._now(), self.tensors)) and self._same()


def _watcher(tensors: list[Any]) -> Callable[[], bool]:
    """Returns what tells whether the tensors have the version and the address that they have now."""
    if native.status().problem is None and all(type(tensor) in _PLAIN for tensor in tensors):
        holds: Callable[[], bool] = torch.classes.groupwise.Watch(tensors).holds
        return holds
    versions, addresses = list(map(_version, tensors)), list(map(_address, tensors))
    return lambda: list(map(_version, tensors)) == versions and list(map(_address, tensors)) == addresses


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
