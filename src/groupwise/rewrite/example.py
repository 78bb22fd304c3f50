"""What is wrong with the example that `optimize` was given."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from groupwise.errors import GroupwiseError, RefusedExample


def check_kwargs(kwargs: Any) -> None:
    """Refuses what is no dict of arguments by their names."""
    if kwargs is None:
        return
    named = isinstance(kwargs, Mapping)
    wrong = [name for name in kwargs if not isinstance(name, str)] if named else []
    if not named or wrong:
        what = f"kwargs has the key {wrong[0]!r}" if wrong else f"kwargs is a {type(kwargs).__name__}"
        raise GroupwiseError(
            f'{what}; it must be a dict of the model\'s arguments by name, such as kwargs={{"mask": mask}}'
        )


def unknown_arguments(given: Iterable[str], known: Iterable[str]) -> str:
    """Says what arguments that `optimize` does not know may have meant: its own, or the model's."""
    given = list(given)
    near = {name: found[0] for name in given if (found := difflib.get_close_matches(name, known, n=1))}
    meant = f"did you mean {' and '.join(near.values())}? For" if near else "for"
    named = ", ".join(f'"{name}": {name}' for name in given)
    words = "is no argument" if len(given) == 1 else "are no arguments"
    return f"{', '.join(given)} {words} of groupwise.optimize; {meant} the model, write kwargs={{{named}}}"


def refused(
    error: Exception, model: nn.Module, inputs: tuple[Any, ...], kwargs: Mapping[str, Any], call: str
) -> RefusedExample:
    """Returns the error for an example on which a model fails. `call` is how `optimize` is called rightly."""
    given = ", ".join([*map(_word, inputs), *(f"{name}={_word(value)}" for name, value in kwargs.items())])
    return RefusedExample(
        f"model({given}) fails with {type(error).__name__}: {_reason(error)}; it must accept its example; "
        f"{_fix(error, model, inputs, call)}",
        error,
    )


def _fix(error: Exception, model: nn.Module, inputs: tuple[Any, ...], call: str) -> str:
    """Says what to give instead of an example on which a model fails."""
    if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
        if inputs[0] and all(type(size) is int for size in inputs[0]):
            return f"give a tensor of that shape: x = torch.randn{tuple(inputs[0])}; {call}"
        return f"give the model's arguments one by one: {call}"
    dtype = next((weight.dtype for weight in model.parameters() if weight.is_floating_point()), None)
    # PyTorch's errors about dtypes speak of types. Behind others whole numbers may be right, as indices are.
    alone = len(inputs) == 1 and isinstance(inputs[0], torch.Tensor) and "type" in str(error)
    if alone and dtype is not None and inputs[0].dtype != dtype:
        return f"the model computes {str(dtype).removeprefix('torch.')}: give x.to({dtype})"
    return f"give the arguments with which you call the model: {call}"


def _reason(error: Exception) -> str:
    """Returns what an error says, in one line."""
    # PyTorch lists every form in which a function may be called.
    said = str(error).split(", but expected one of:")[0]
    return " ".join(said.split()).rstrip(".:") or type(error).__name__


def _word(given: Any) -> str:
    if isinstance(given, torch.Tensor):
        return f"{str(given.dtype).removeprefix('torch.')} tensor of {'×'.join(map(str, given.shape))}"
    return f"a {type(given).__name__}" if isinstance(given, tuple | list | dict) else repr(given)[:40]
