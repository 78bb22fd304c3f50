"""`Losses`: the loss of a model on data, and how far its outputs are from those of another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from groupwise.choose.convert.fit import computed, evaluated
from groupwise.errors import GroupwiseError

Loss = Callable[[Any, Any], torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor | None]


def batches(data: Iterable[Any]) -> list[Batch]:
    """Returns batches as (inputs, targets); targets are None where a batch is a tensor alone.

    Raises `GroupwiseError` for anything else, and for no batch at all.
    """
    if isinstance(data, torch.Tensor):
        data = [data]
    found: list[Batch] = []
    for batch in data:
        parts = batch if isinstance(batch, (tuple, list)) else (batch,)
        if not 1 <= len(parts) <= 2 or not all(isinstance(part, torch.Tensor) for part in parts):
            raise GroupwiseError(
                f"data has a batch of type {type(batch).__name__}; give tensors of inputs, or pairs (inputs, targets)"
            )
        found.append((parts[0], parts[1] if len(parts) == 2 else None))
    if not found:
        raise GroupwiseError("data has no batch; give at least one tensor of inputs, or pair (inputs, targets)")
    if len({targets is None for _, targets in found}) > 1:
        raise GroupwiseError(
            "some batches of data have targets and some have none; give targets with all, or with none"
        )
    return found


class Losses:
    """The mean loss of models on data: by targets if there are some, else by the outputs of the model at the start.

    With integer targets the loss is the cross-entropy, with others the mean square; without targets it is the squared
    difference to the model's own outputs, relative to the square of these. `loss` replaces the first two.
    """

    def __init__(self, model: nn.Module, data: Sequence[Batch], loss: Loss | None = None) -> None:
        self._data, self._loss = data, loss
        self.with_targets = data[0][1] is not None
        self._own = outputs(model, [inputs for inputs, _ in data])

    @property
    def name(self) -> str:
        """What a rise of the loss is called."""
        return "loss rise" if self.with_targets else "output error"

    def of(self, model: nn.Module) -> tuple[float, float]:
        """Returns the loss of a model, and the relative squared error of its outputs against the first model's."""
        total, weight, square, norm = 0.0, 0, 0.0, 0.0
        found = outputs(model, [inputs for inputs, _ in self._data])
        for made, own, (_, targets) in zip(found, self._own, self._data, strict=True):
            square += (made.double() - own.double()).square().sum().item()
            norm += own.double().square().sum().item()
            if targets is not None:
                total += float(self._of(made, targets)) * len(made)
                weight += len(made)
        error = square / norm if norm else 0.0
        return (total / weight if self.with_targets else error), error

    def _of(self, made: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if self._loss is not None:
            return self._loss(made, targets)
        return F.mse_loss(made, targets) if targets.is_floating_point() else F.cross_entropy(made, targets)


def outputs(model: nn.Module, inputs: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """Returns the outputs of a model in evaluation; its training mode is what it was afterwards."""
    with evaluated(model):
        found = [computed(model, one) for one in inputs]
    for one in found:
        if not isinstance(one, torch.Tensor):
            raise GroupwiseError(
                f"the model returns {type(one).__name__}, and a loss is taken of one tensor; "
                "wrap the model so that it returns its main output"
            )
    return found
