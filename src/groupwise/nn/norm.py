"""The batch normalisations of `torch.nn` with an activation and a residual sum."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.batchnorm import _NormBase

from groupwise.errors import check_choice
from groupwise.nn.functional import ACTIVATIONS, batch_norm_act


def apply_norm(
    norm: _NormBase,
    input: torch.Tensor,
    activation: str = "none",
    residual: torch.Tensor | None = None,
    negative_slope: float = 0.01,
) -> torch.Tensor:
    """Returns activation(norm(input) + residual) for a batch normalisation, as its own `forward` would.

    It reads the parameters, the statistics and the training mode of `norm`, and updates its statistics.
    """
    return batch_norm_act(*(*arguments(norm, input), activation, residual, negative_slope))


def arguments(norm: _NormBase, input: torch.Tensor) -> tuple[Any, ...]:
    """Returns the first arguments of `batch_norm_act` for a call of `norm`, which counts as one of its batches."""
    norm._check_input_dim(input)  # type: ignore[no-untyped-call]
    factor = 0.0 if norm.momentum is None else norm.momentum
    tracks = norm.training and norm.track_running_stats
    if tracks and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
        if norm.momentum is None:
            factor = 1.0 / float(norm.num_batches_tracked)
    # Statistics that are not tracked are not updated, and eval mode without statistics uses the batch's.
    mean, variance = (norm.running_mean, norm.running_var) if tracks or not norm.training else (None, None)
    batch = norm.training or (norm.running_mean is None and norm.running_var is None)
    return input, mean, variance, norm.weight, norm.bias, batch, factor, norm.eps


class _BatchNormAct(_NormBase):
    """What the three layers share.

    They do not derive from `torch.nn.BatchNorm2d` and its like: `SyncBatchNorm.convert_sync_batchnorm` and the passes
    that fold a normalisation into a convolution would take them for those, and lose the activation.
    """

    _dims: tuple[int, ...]

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        activation: str = "none",
        negative_slope: float = 0.01,
    ) -> None:
        check_choice("activation", activation, ACTIVATIONS)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.activation = activation
        self.negative_slope = negative_slope

    def _check_input_dim(self, input: torch.Tensor) -> None:
        if input.dim() not in self._dims:
            expected = " or ".join(f"{dims}D" for dims in self._dims)
            raise ValueError(f"expected {expected} input (got {input.dim()}D input)")

    def forward(self, input: torch.Tensor, residual: torch.Tensor | None = None) -> torch.Tensor:
        """Returns activation(normalised input + residual), and updates the running statistics in training mode."""
        return apply_norm(self, input, self.activation, residual, self.negative_slope)

    def extra_repr(self) -> str:
        """Returns the text of `torch.nn`, and the activation."""
        text: str = super().extra_repr()  # type: ignore[no-untyped-call]
        slope = f", negative_slope={self.negative_slope}" if self.activation == "leaky_relu" else ""
        return f"{text}, activation={self.activation!r}{slope}"


class BatchNormAct1d(_BatchNormAct):
    """`torch.nn.BatchNorm1d` with an activation and a residual sum: (N, C) or (N, C, L). See `BatchNormAct2d`."""

    _dims = (2, 3)


class BatchNormAct2d(_BatchNormAct):
    """`torch.nn.BatchNorm2d` with an activation and a residual sum: (N, C, H, W).

    It has the same arguments, parameters, buffers and state_dict. `layer(x, residual)` returns
    activation(batch_norm(x) + residual), as `groupwise.nn.functional.batch_norm_act` does. Two arguments are new:

    - `activation`: a name in `groupwise.nn.functional.ACTIVATIONS`, such as `"relu6"`
    - `negative_slope`: that of leaky_relu

    It is no subclass of `torch.nn.BatchNorm2d`, so that code which replaces those leaves it as it is.

    Examples:
        >>> layer = BatchNormAct2d(8, activation="relu6")
        >>> layer(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """

    _dims = (4,)


class BatchNormAct3d(_BatchNormAct):
    """`torch.nn.BatchNorm3d` with an activation and a residual sum: (N, C, D, H, W). See `BatchNormAct2d`."""

    _dims = (5,)
