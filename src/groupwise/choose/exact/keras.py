"""Kernels of Keras in PyTorch's layout, and back. A separable layer holds a `depthwise` and a `conv` kernel."""

from __future__ import annotations

import torch

from groupwise.errors import GroupwiseError, check_choice

KINDS = ("conv", "depthwise", "transposed")


def from_keras(kernel: torch.Tensor, kind: str = "conv") -> torch.Tensor:
    """Returns PyTorch's weight: `conv` (*k, in/groups, out) becomes (out, in/groups, *k).

    `depthwise` (*k, in, multiplier) becomes (in * multiplier, 1, *k), and `transposed` (*k, out, in) becomes
    (in, out, *k). Raises `GroupwiseError` for another kind or number of dimensions.
    """
    _check(kernel, kind)
    *spatial, first, second = range(kernel.dim())
    if kind == "depthwise":
        return kernel.permute(first, second, *spatial).flatten(0, 1).unsqueeze(1).contiguous()
    return kernel.permute(second, first, *spatial).contiguous()


def to_keras(weight: torch.Tensor, kind: str = "conv", *, groups: int | None = None) -> torch.Tensor:
    """Returns the kernel that `from_keras` reads; a `depthwise` weight needs `groups`, its input channels."""
    _check(weight, kind)
    if kind == "depthwise":
        if groups is None or groups < 1 or weight.shape[0] % groups or weight.shape[1] != 1:
            raise GroupwiseError(f"groups={groups} of weight {tuple(weight.shape)}; give the layer's in_channels")
        weight = weight.reshape(groups, -1, *weight.shape[2:])
        return weight.permute(*range(2, weight.dim()), 0, 1).contiguous()
    return weight.permute(*range(2, weight.dim()), 1, 0).contiguous()


def _check(weight: torch.Tensor, kind: str) -> None:
    check_choice("kind", kind, KINDS)
    if not 3 <= weight.dim() <= 5:
        raise GroupwiseError(f"a kernel of {weight.dim()} dimensions is no convolution's; it has 3, 4 or 5")
