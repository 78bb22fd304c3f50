"""`Losses`: the loss of a model on data, and how far its outputs are from those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from groupwise.choose.convert.data import Batch, computed, evaluated, read
from groupwise.errors import GroupwiseError

Loss = Callable[[Any, Any], torch.Tensor]


def batches(data: Any, loss: Loss | None = None) -> list[Batch]:
    """Returns the batches of data, with targets that `loss` can take: all have some, or none has.

    Raises `GroupwiseError` as `read` does, and for targets that are no tensor unless there is a `loss` for them.
    """
    found = list(read(data))
    if len({batch.targets is None for batch in found}) > 1:
        raise GroupwiseError(
            "some batches of data have targets and some have none; give targets with all, or with none"
        )
    for number, batch in enumerate(found):
        if loss is None and not isinstance(batch.targets, torch.Tensor | None):
            raise GroupwiseError(
                f"batch {number} of data has targets of type {type(batch.targets).__name__}; give a tensor, or a loss "
                "that takes outputs and such targets. Several inputs without targets are ((a, b), None)"
            )
    return found


class Losses:
    """The mean loss of models on data: by targets if there are some, else by the outputs of the model at the start.

    With integer targets the loss is the cross-entropy, with others the mean square; without targets it is the squared
    difference to the model's own outputs, relative to the square of these. `loss` replaces the first two.

    Raises `GroupwiseError` for targets of other shapes or types than the loss takes of the model's outputs, and for
    classes that these do not have.
    """

    def __init__(self, model: nn.Module, data: Sequence[Batch], loss: Loss | None = None) -> None:
        self._data, self._loss = data, loss
        self.with_targets = data[0].targets is not None
        self._own = outputs(model, data)
        for number, (made, batch) in enumerate(zip(self._own, data, strict=True)):
            if batch.targets is not None and (reason := _refusal(made, batch.targets, loss)):
                raise GroupwiseError(f"batch {number} of data has {reason}")

    @property
    def name(self) -> str:
        """What a rise of the loss is called."""
        return "loss rise" if self.with_targets else "output error"

    def of(self, model: nn.Module) -> tuple[float, float]:
        """Returns the loss of a model, and the relative squared error of its outputs against the first model's."""
        total, weight, square, norm = 0.0, 0, 0.0, 0.0
        found = outputs(model, self._data)
        for made, own, batch in zip(found, self._own, self._data, strict=True):
            square += (made.double() - own.double()).square().sum().item()
            norm += own.double().square().sum().item()
            if batch.targets is not None:
                total += float(self._of(made, batch.targets)) * len(made)
                weight += len(made)
        error = square / norm if norm else 0.0
        return (total / weight if self.with_targets else error), error

    def _of(self, made: torch.Tensor, targets: Any) -> torch.Tensor:
        if self._loss is not None:
            return self._loss(made, targets)
        return F.mse_loss(made, targets) if targets.is_floating_point() else F.cross_entropy(made, targets)


# What PyTorch's cross-entropy takes as classes, and the one that it leaves out of the mean.
_CLASSES, _IGNORED = (torch.int64, torch.uint8), -100


def _refusal(made: torch.Tensor, targets: Any, loss: Loss | None) -> str:
    """Says why no loss can be taken of outputs and their targets; empty if one can."""
    if not made.dim():
        return "targets, and the model returns one number; wrap the model so that it returns an output for each sample"
    if loss is not None:
        return ""
    shape, wanted = tuple(targets.shape), tuple(made.shape)
    has = f"{str(targets.dtype).removeprefix('torch.')} targets of shape {shape}"
    if targets.is_floating_point():
        rule = "the mean square needs targets of the same shape; reshape them, or give a loss"
        return "" if shape == wanted else f"{has} for outputs of shape {wanted}; {rule}"
    if targets.dtype not in _CLASSES:
        return f"{has}; classes are int64 and other targets floating point: give targets.long(), .float() or a loss"
    places = 1 if made.dim() > 1 else 0
    if shape != wanted[:places] + wanted[places + 1 :]:
        rule = f"the cross-entropy needs classes of shape {wanted[:places] + wanted[places + 1 :]}"
        return f"{has} for outputs of shape {wanted}; {rule}; reshape them, or give a loss"
    classes = wanted[places]
    outside = _outside(targets.long(), classes)
    if outside.numel():
        rule = f"the model's outputs have classes 0 to {classes - 1}; give others, or {_IGNORED} to leave a sample out"
        return f"targets of class {int(outside[0])}; {rule}"
    return ""


def _outside(targets: torch.Tensor, classes: int) -> torch.Tensor:
    return targets[((targets < 0) & (targets != _IGNORED)) | (targets >= classes)]


def outputs(model: nn.Module, batches: Iterable[Batch]) -> list[torch.Tensor]:
    """Returns the outputs of a model in evaluation; its training mode is what it was afterwards."""
    with evaluated(model):
        found = [computed(model, batch) for batch in batches]
    for one in found:
        if not isinstance(one, torch.Tensor):
            raise GroupwiseError(
                f"the model returns {type(one).__name__}, and a loss is taken of one tensor; "
                "wrap the model so that it returns its main output"
            )
    return found
