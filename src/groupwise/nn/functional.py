"""Functions: batch normalisation with an activation and a residual sum, and convolutions with weights for each sample.

`batch_norm_act` is one operator forward and one backward. `conv_per_sample` is in `per_sample`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F

from groupwise.errors import check_choice
from groupwise.kernels import native
from groupwise.nn.per_sample import conv_per_sample

__all__ = ["ACTIVATIONS", "batch_norm_act", "conv_per_sample"]

PYTORCH: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda z: z,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}
ACTIVATIONS = (*PYTORCH, "leaky_relu")
"""The activations that `batch_norm_act` knows. The operator has all of them except gelu, which PyTorch computes."""

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def batch_norm_act(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    activation: str = "none",
    residual: torch.Tensor | None = None,
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Returns activation(batch_norm(x) + residual), where batch_norm is that of `torch.nn.functional`.

    - `activation`: a name in `ACTIVATIONS`; `negative_slope` is that of leaky_relu
    - `residual`: a tensor to add before the activation, or None

    float32 tensors on the CPU are computed by the operator `groupwise::batch_norm_act`, with or without `enable()`. A
    backward keeps x and two numbers a channel; with a residual and an activation it keeps the output too, or, for
    silu, hardswish and hardsigmoid, the residual. Everything else falls back to PyTorch's own operators, which give
    the same results: other dtypes and devices, `torch.func` and forward-mode gradients, `torch.jit.trace`, subclasses
    of tensors, a residual of another shape, empty tensors, gelu, and wrong arguments (with PyTorch's own message).

    Raises `GroupwiseError` for an unknown activation.

    Examples:
        >>> x = torch.randn(2, 8, 4, 4)
        >>> batch_norm_act(x, None, None, training=True, activation="relu").min().item()
        0.0
    """
    given = (x, running_mean, running_var, weight, bias, training, momentum, eps, activation, residual, negative_slope)
    return normalised(*given)[0]


def normalised(*given: Any) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor] | None]:
    """Returns what `batch_norm_act` does, and the mean and the biased variance; None for those where PyTorch ran.

    It is given what `computed` is.
    """
    x, running_mean, running_var, weight, bias, training, momentum, eps, activation, residual, slope = given
    if activation not in ACTIVATIONS:
        check_choice("activation", activation, ACTIVATIONS)
    if takes(x, running_mean, running_var, weight, bias, training, eps, activation, residual):
        return computed(*given)
    z = F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
    z = z if residual is None else z + residual
    return F.leaky_relu(z, slope) if activation == "leaky_relu" else PYTORCH[activation](z), None


def computed(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: str,
    residual: torch.Tensor | None,
    negative_slope: float,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """Does what `normalised` does, for what the operator takes."""
    y, mean, variance = torch.ops.groupwise.batch_norm_act(
        x, weight, bias, running_mean, running_var, residual, training, eps, activation, negative_slope
    )
    if training and running_mean is not None and running_var is not None:
        # PyTorch's batch_norm keeps the statistics for its backward, and does not count its own updates as changes. Nor
        # does this operator: it has no kernel for ADInplaceOrView.
        torch.ops.groupwise.batch_norm_track(
            running_mean, running_var, mean, variance, momentum, x.numel() // x.shape[1]
        )
    return y, (mean, variance)


def takes(
    x: torch.Tensor,
    running_mean: torch.Tensor | None,
    running_var: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    training: bool,
    eps: float,
    activation: str,
    residual: torch.Tensor | None,
) -> bool:
    """Tells whether the operator can compute this, and PyTorch would not refuse it."""
    # This comes first: to look at a size would be traced.
    if is_transformed():
        return False
    if not (_plain(x) and x.dim() >= 2 and x.numel() > 0 and activation != "gelu"):
        return False
    channels = x.shape[1]
    if residual is not None and not (_plain(residual) and residual.shape == x.shape):
        return False
    for numbers in (running_mean, running_var, weight, bias):
        if numbers is not None and not (
            numbers.dtype == torch.float32 and numbers.is_cpu and numbers.dim() == 1 and numbers.shape[0] == channels
        ):
            return False
    # One value a channel has no variance, and eval mode has no statistics of its own.
    known = x.numel() > channels and eps > 0 if training else running_mean is not None and eps >= 0
    return known and (running_mean is None) == (running_var is None) and _kernels_run()


def computes_here(x: torch.Tensor, *parameters: torch.Tensor | None) -> bool:
    """Tells whether the operators of this library can compute a tensor with these parameters."""
    if is_transformed():
        return False
    given = [x, *(t for t in parameters if t is not None)]
    return x.numel() > 0 and all(map(_plain, given)) and _kernels_run()


def _plain(t: torch.Tensor) -> bool:
    return type(t) in _PLAIN and t.dtype == torch.float32 and t.is_cpu and t.layout == torch.strided


def is_transformed() -> bool:
    """Tells whether the call is seen by something that only knows PyTorch's own operators."""
    functorch: bool = torch._C._are_functorch_transforms_active()
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    return functorch or traced or forward_ad._current_level >= 0


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _kernels_run() -> bool:
    # A problem never ends while the process runs.
    return native.status().operators_problem is None
