"""`Batch`: one call of a model with calibration data, read from what users and data loaders give."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from groupwise.errors import GroupwiseError, name_some
from groupwise.spec.legible import legible

# How many shapes a message lists.
_SHAPES = 6
_FORMS = (
    "give a tensor, the only input of the model; a dict of keyword arguments; or a pair (inputs, targets), whose "
    "inputs are a tensor, a tuple of positional arguments or a dict; targets may be None"
)


@dataclass(frozen=True)
class Batch:
    """The arguments of one call, and the targets of its outputs; None where there are none."""

    arguments: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] = field(default_factory=dict)
    targets: Any = None

    def run(self, model: nn.Module) -> Any:
        """Returns what a model makes of it."""
        return model(*self.arguments, **self.keywords)

    def __str__(self) -> str:
        named = [*enumerate(self.arguments), *self.keywords.items()]
        if len(named) == len(self.arguments) == 1 and isinstance(named[0][1], torch.Tensor):
            return f"of shape {tuple(named[0][1].shape)}"
        return "of shapes " + name_some([f"{legible(str(name))}: {_shape(value)}" for name, value in named], _SHAPES)

    def kind(self) -> tuple[Any, ...]:
        """Returns what is equal for batches that a model takes alike: names, shapes and types."""
        named = [*enumerate(self.arguments), *self.keywords.items()]
        return tuple(
            (name, *((leaf.shape, leaf.dtype) if isinstance(leaf, torch.Tensor) else (type(leaf),)))
            for name, value in named
            for leaf in tree_leaves(value)
        )


def read(data: Any) -> Iterator[Batch]:
    """Yields the batches of data: an iterable of batches, such as a list or a `DataLoader`, or one tensor or dict.

    A batch is

    - a tensor: the only input of the model
    - a dict: keyword arguments of the model
    - a pair (inputs, targets), or inputs alone in a tuple of one, as data loaders yield them. The inputs are a tensor,
      a tuple of positional arguments, or a dict of keyword arguments. Targets may be None

    So a model of two inputs takes `[((a, b), None)]`, and `[(a, b)]` is one input with its targets. Raises
    `GroupwiseError` for anything else, for a tuple of batches, for no batch, and for values that are not finite.
    """
    if isinstance(data, (torch.Tensor, Mapping, Batch)):
        data = [data]
    elif isinstance(data, tuple):
        raise GroupwiseError(
            "data is a tuple, which may be one pair or several batches; put the batches into a list: "
            "[(inputs, targets)] or [inputs, more_inputs]"
        )
    elif isinstance(data, (str, bytes)) or not isinstance(data, Iterable):
        raise GroupwiseError(f"data is a {type(data).__name__}; give a list of batches, or a DataLoader")
    number = -1
    for number, given in enumerate(data):
        yield _batch(number, given)
    if number < 0:
        raise GroupwiseError("data has no batch; give at least one tensor of inputs, or pair (inputs, targets)")


def check_taken(model: nn.Module, batches: Sequence[Batch]) -> None:
    """Raises `GroupwiseError` for batches that a model does not take; those of equal shapes are tried once."""
    kinds = {batch.kind(): batch for batch in reversed(batches)}
    with evaluated(model):
        for batch in reversed(kinds.values()):
            computed(model, batch)


def computed(model: nn.Module, batch: Batch) -> Any:
    """Returns what a model makes of a batch. Raises `GroupwiseError` for one that it does not take."""
    _check_signature(model, batch)
    try:
        return batch.run(model)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError) as error:
        # An assertion need not say anything.
        reason = str(error).split("\n")[0] or type(error).__name__
        raise GroupwiseError(f"the model does not take data {batch}: {reason}") from error


@contextmanager
def evaluated(model: nn.Module) -> Iterator[None]:
    """Runs the model without gradients and in evaluation; afterwards each module has its mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shape(value: Any) -> str:
    """Returns the shape of an argument, or its type and the shapes of the tensors inside it."""
    if isinstance(value, torch.Tensor):
        return str(tuple(value.shape))
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
    shapes = name_some([str(tuple(leaf.shape)) for leaf in tensors], _SHAPES)
    return f"{type(value).__name__} of {shapes}" if shapes else type(value).__name__


def _batch(number: int, given: Any) -> Batch:
    if isinstance(given, Batch):
        return given
    targets = None
    inputs = given
    if isinstance(given, (tuple, list)):
        if not 1 <= len(given) <= 2:
            raise GroupwiseError(f"batch {number} of data is a {type(given).__name__} of {len(given)}; {_FORMS}")
        inputs, targets = (*given, None)[:2]
    if isinstance(inputs, torch.Tensor):
        found = Batch((inputs,), targets=targets)
    elif isinstance(inputs, Mapping) and all(isinstance(name, str) for name in inputs):
        found = Batch(keywords=dict(inputs), targets=targets)
    elif isinstance(inputs, (tuple, list)) and inputs:
        found = Batch(tuple(inputs), targets=targets)
    else:
        where = "has inputs of" if inputs is not given else "is of"
        raise GroupwiseError(f"batch {number} of data {where} type {type(inputs).__name__}; {_FORMS}")
    tensors = [leaf for leaf in tree_leaves((found.arguments, dict(found.keywords))) if isinstance(leaf, torch.Tensor)]
    if not tensors:
        raise GroupwiseError(f"batch {number} of data has inputs without a tensor; {_FORMS}")
    if not any(one.numel() for one in tensors) or any(one.dim() and not one.shape[0] for one in tensors):
        raise GroupwiseError(f"batch {number} of data has no sample; leave it out")
    if any(not bool(torch.isfinite(one).all()) for one in tensors if one.is_floating_point()):
        raise GroupwiseError(f"batch {number} of data has values that are not finite; weights cannot be fitted to them")
    return found


def _check_signature(model: nn.Module, batch: Batch) -> None:
    """Raises `GroupwiseError` if the arguments are not those of the model's forward."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):
        # Code without a signature says itself what it does not take.
        return
    try:
        signature.bind(*batch.arguments, **batch.keywords)
    except TypeError as error:
        hint = ""
        if len(batch.arguments) == 1 and batch.targets is not None:
            hint = "; of a pair only the first is an input: a model of two takes [((a, b), None)] or dicts"
        elif batch.keywords:
            hint = (
                "; all entries of a dict are arguments of the model by name: give its targets beside it, as in "
                "({'x': inputs}, targets), and leave the rest out"
            )
        raise GroupwiseError(
            f"the model does not take data {batch}: {error}; its forward is {type(model).__name__}{signature}{hint}"
        ) from None
