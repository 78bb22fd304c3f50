"""Compares the kinds of values in a checkpoint with those that an optimiser has."""

from __future__ import annotations

import pathlib
import reprlib
from numbers import Real
from typing import Any

import torch

from groupwise.parallel.checkpoint.files import damaged

_OPTIMIZER = "optimizer."


def check_kind(path: pathlib.Path, name: str, own: object, value: object) -> None:
    """Refuses a setting or a state of the optimiser that is not of the kind of its own one."""
    # Only the model knows what its own extra state may be.
    if not name.startswith(_OPTIMIZER):
        return
    if name.endswith(".params"):
        if not isinstance(own, list) or not isinstance(value, list) or not _same_names(own, value):
            raise damaged(path, f"{name} is {reprlib.repr(value)} and the optimiser's is {reprlib.repr(own)}")
    elif not _fits(own, value):
        raise damaged(path, f"{name} is {_said(value)} and the optimiser's is {_said(own)}")


def kind(value: object) -> str:
    """Returns the kind of a value in words: values of one kind may replace one another."""
    if isinstance(value, torch.Tensor):
        kinds = "complex " * value.is_complex() or "floating-point " * value.is_floating_point()
        return f"{kinds or 'integer '}tensor"
    # Most settings of this kind, such as foreach, are None until PyTorch or the user decides.
    if value is None or isinstance(value, bool):
        return "choice"
    if isinstance(value, Real):
        return "number"
    return type(value).__name__


def _same_names(own: list[Any], value: list[Any]) -> bool:
    return all(type(name) is str for name in value) and sorted(own) == sorted(value)


def _fits(own: object, value: object) -> bool:
    if isinstance(own, list | tuple) and type(own) is type(value) and isinstance(value, list | tuple):
        return len(own) == len(value) and all(map(_fits, own, value))
    # An optimiser may have its rate or the number of its steps as a number or as a tensor of one element.
    numbers = (kind(one) == "number" or (isinstance(one, torch.Tensor) and one.numel() == 1) for one in (own, value))
    if all(numbers):
        return True
    # Others choose by a name, such as LBFGS its line search.
    if {kind(own), kind(value)} == {"choice", "str"}:
        return own is None or value is None
    return kind(own) == kind(value) and not isinstance(own, torch.Tensor)


def _said(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {kind(value)} of shape {tuple(value.shape)}"
    return f"{reprlib.repr(value)} of type {type(value).__name__}"
