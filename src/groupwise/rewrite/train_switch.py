"""Dispatch in the thread that runs a network for training, and in the thread of its backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from groupwise.kernels import native
from groupwise.kernels.dispatch import switch_back, switched_on


def dispatch_backward(result: torch.Tensor) -> torch.Tensor:
    """Returns the result of a convolution, whose backward will run with dispatch on."""
    node = result.grad_fn if isinstance(result, torch.Tensor) else None
    if node is not None and type(node).__name__.startswith("ConvolutionBackward"):
        torch.ops.groupwise.dispatch_backward(result)
    return result


def run_backward(results: Sequence[torch.Tensor], grads: Sequence[torch.Tensor]) -> None:
    """Runs a backward with dispatch on, whatever made the results.

    PyTorch's kernels of some gradients reach outside their tensors: the planner keeps those here.
    """
    if native.status().operators_problem is not None:
        torch.autograd.backward(results, grads)
        return
    before = switched_on()
    try:
        torch.autograd.backward(results, grads)
    finally:
        switch_back(before)
