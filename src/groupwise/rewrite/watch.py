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
    """The parameters and buffers of a module that have these names, wherever they are held, and those that are None."""

    def __init__(self, module: torch.nn.Module, names: Iterable[str]) -> None:
        self.names = list(dict.fromkeys(names))
        places = [(module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in self.names]
        self._holders: list[dict[str, Any]] = [
            owner._parameters if key in owner._parameters else owner._buffers for owner, key in places
        ]
        self._keys = [key for _, key in places]
        for part in module.modules():
            # What is None may become a tensor, and then another graph computes the module.
            for held in (part._parameters, part._buffers):
                # A scripted module has no dictionary.
                empty = [key for key, tensor in held.items() if tensor is None] if isinstance(held, dict) else []
                self._holders += [held] * len(empty)
                self._keys += empty

    def held(self) -> list[Any]:
        """Returns what is held now: tensors and None, those with names first."""
        return list(map(dict.get, self._holders, self._keys))

    def snapshot(self) -> Snapshot:
        """Returns what a change is noticed by. Raises `GroupwiseError` for a tensor that cannot be watched."""
        held = self.held()
        for name, tensor in zip(self.names, held, strict=False):
            if tensor is not None:
                check_watchable(name, tensor)
        return Snapshot(self, held)


class Snapshot:
    """What a watch held at one time."""

    def __init__(self, watch: Watch, held: list[Any]) -> None:
        self.held = held
        self.states = {name: tensor for name, tensor in zip(watch.names, held, strict=False) if tensor is not None}
        self._now = watch.held
        self._same = _watcher([tensor for tensor in held if tensor is not None])

    def holds(self) -> bool:
        """Tells whether nothing has changed since."""
        return all(map(is_, self._now(), self.held)) and self._same()


def _watcher(tensors: list[Any]) -> Callable[[], bool]:
    """Returns what tells whether the tensors have the version and the address that they have now."""
    if native.status().operators_problem is None and all(type(tensor) in _PLAIN for tensor in tensors):
        holds: Callable[[], bool] = torch.classes.groupwise.Watch(tensors).holds
        return holds
    versions, addresses = list(map(_version, tensors)), list(map(_address, tensors))
    return lambda: list(map(_version, tensors)) == versions and list(map(_address, tensors)) == addresses


def contents(tensor: torch.Tensor) -> bytes:
    """Returns the values of a dense tensor: what notices a change that PyTorch does not count."""
    if not tensor.is_contiguous() or tensor.device.type != "cpu" or not tensor.numel():
        return b""
    return ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size())


def check_watchable(name: str, tensor: torch.Tensor) -> None:
    """Refuses a tensor whose changes nobody counts."""
    if tensor.is_inference():
        raise GroupwiseError(
            f"{name} was made in torch.inference_mode(), where changes are not counted; make the model outside of it"
        )
