"""`distill`: trains a network by labels and by the outputs of a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.nn import functional as F

from groupwise.errors import GroupwiseError, check_integer

# An epoch's batches: inputs (N, ...) and labels (N,).
Batches = Callable[[int], Iterable[tuple[torch.Tensor, torch.Tensor]]]


def distill(
    student: nn.Module,
    teacher: nn.Module | None,
    batches: Batches,
    epochs: int,
    *,
    lr: float = 0.02,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    share: float = 0.5,
    temperature: float = 2.0,
    progress: Callable[[int, int], None] | None = None,
) -> nn.Module:
    """Trains `student` in place by gradient descent with momentum, and returns it.

    The loss is (1 - share) times the cross-entropy of the labels, and `share` times temperature ** 2 times the
    divergence (Kullback-Leibler) of the student's class probabilities from the teacher's, both at that temperature.
    Without a teacher it is the cross-entropy alone. The learning rate falls from `lr` to 0 along a cosine.

    - `batches(epoch)`: the batches of an epoch, (inputs, labels)
    - `progress`: is called after each epoch with the number of epochs that are done and that there are

    The teacher is only evaluated, and keeps its mode. Raises `GroupwiseError` for an epoch without batches and for
    numbers out of range.

    Source: G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """
    check_integer("epochs", epochs, 1)
    if not 0 <= share <= 1 or not temperature > 0:
        raise GroupwiseError(
            f"share={share} must be from 0 to 1, and temperature={temperature} above 0; the defaults are 0.5 and 2"
        )
    optimizer = torch.optim.SGD(
        student.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=True
    )
    teaching = None if teacher is None else [module for module in teacher.modules() if module.training]
    if teacher is not None:
        teacher.eval()
    student.train()
    try:
        for epoch in range(epochs):
            chosen = list(batches(epoch))
            if not chosen:
                raise GroupwiseError(f"batches({epoch}) has no batch; return at least one pair (inputs, labels)")
            for step, (inputs, labels) in enumerate(chosen):
                done = (epoch + step / len(chosen)) / epochs
                for group in optimizer.param_groups:
                    group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * done))
                optimizer.zero_grad()
                _loss(student, teacher, inputs, labels, share, temperature).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            if progress is not None:
                progress(epoch + 1, epochs)
    finally:
        for module in teaching or ():
            module.training = True
    return student.eval()


def _loss(
    student: nn.Module,
    teacher: nn.Module | None,
    inputs: torch.Tensor,
    labels: torch.Tensor,
    share: float,
    temperature: float,
) -> torch.Tensor:
    made = student(inputs)
    loss = F.cross_entropy(made, labels)
    if teacher is None or not share:
        return loss
    with torch.no_grad():
        wanted = teacher(inputs)
    ours, theirs = (F.log_softmax(one / temperature, 1) for one in (made, wanted))
    apart = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
    return (1 - share) * loss + share * temperature**2 * apart
