"""`conv_per_sample`: a convolution in which every sample has its own weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from torch import Tensor

from groupwise.errors import GroupwiseError, check_integer, list_some
from groupwise.nn.per_sample_ops import FORWARD
from groupwise.nn.per_sample_products import output_size
from groupwise.spec.arguments import padding_of, per_dimension, valid_groups

Extent = int | Sequence[int]


def conv_per_sample(
    input: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    stride: Extent = 1,
    padding: Extent | str = 0,
    dilation: Extent = 1,
    groups: int = 1,
) -> Tensor:
    """Convolves every sample with its own weights, as StyleGAN2's modulated convolutions and ensembles do.

    It equals `torch.stack([conv(input[n:n + 1], weights[n], bias[n], ...)[0] for n in range(N)])`, where conv is
    `torch.nn.functional.conv1d`, `conv2d` or `conv3d`: the weights have three dimensions more than kernel_size.

    - `input`: (N, C, *spatial), or (B, N, C, *spatial), a batch of B for each of the N weights
    - `weights`: (N, O, C / groups, *kernel)
    - `bias`: (N, O) or None
    - `stride`, `padding`, `dilation`, `groups`: those of PyTorch's convolutions; groups divides each sample's channels

    Returns (N, O, *spatial), or (B, N, O, *spatial) for an input with a batch.

    It calls one operator, `torch.ops.groupwise.conv_per_sample`, which `torch.compile` and `torch.export` keep as one
    node with a dynamic N. All gradients have gradients, and autocast and `torch.func.vmap` know it. groupwise's kernels
    compute it where the planner chooses them, with or without `enable()`; otherwise PyTorch's grouped convolution or
    matrix products of unfolded inputs, whichever suits the shape. Inside `torch.func.grad`, `vjp` and `jvp` and in
    forward mode, which PyTorch offers to no such operator, it calls PyTorch's grouped convolution.

    Raises `GroupwiseError` for shapes and arguments that do not fit.

    Modulated convolutions are those of Karras et al., "Analyzing and Improving the Image Quality of StyleGAN" (2020),
    equations 1 and 3.

    Examples:
        >>> input, weights = torch.randn(4, 8, 16, 16), torch.randn(4, 6, 8, 3, 3)
        >>> conv_per_sample(input, weights, padding=1).shape
        torch.Size([4, 6, 16, 16])
    """
    dims = _check_shapes(input, weights, bias)
    groups = _check_groups(input.shape[-1 - dims], weights, groups)
    steps = per_dimension("stride", stride, dims, 1)
    spread = per_dimension("dilation", dilation, dims, 1)
    batched = input.dim() == dims + 3
    x = input if batched else input.unsqueeze(0)
    pads = padding_of(padding, dims, False)
    if isinstance(pads, str):
        x, pads = _padded(x, pads, weights.shape[3:], steps, spread)
    out = output_size(x.shape[3:], weights.shape[3:], steps, pads, spread)
    for axis, length in enumerate(out):
        if length < 1:
            reach = spread[axis] * (weights.shape[3 + axis] - 1) + 1
            raise GroupwiseError(
                f"the input is too small: {x.shape[3 + axis]} + 2 × {pads[axis]} padding in spatial dimension {axis}, "
                f"where the kernel with its dilation spans {reach}; it must fit once: give a larger input or padding"
            )
    call = _composite if _differentiates() else FORWARD
    result: Tensor = call(x, weights, bias, steps, pads, spread, groups)
    return result if batched else result.squeeze(0)


def _check_shapes(input: Tensor, weights: Tensor, bias: Tensor | None) -> int:
    """Returns the number of spatial dimensions. Raises `GroupwiseError` for tensors that do not fit each other."""
    for name, tensor in (("input", input), ("weights", weights), ("bias", bias)):
        if not isinstance(tensor, Tensor) and not (name == "bias" and tensor is None):
            raise GroupwiseError(f"{name}={tensor!r} is a {type(tensor).__name__}; give a tensor")
    dims = weights.dim() - 3
    if not 1 <= dims <= 3:
        raise GroupwiseError(
            f"weights has the shape {_show(weights)}, {weights.dim()} dimensions; it must be (N, out_channels, "
            "in_channels / groups, *kernel) with 1 to 3 spatial dimensions; weights.unsqueeze(0) makes one sample's"
        )
    if input.dim() not in (dims + 2, dims + 3):
        raise GroupwiseError(
            f"input has the shape {_show(input)}, {input.dim()} dimensions; weights of {dims} spatial dimensions take "
            f"(N, channels, *spatial) or (B, N, channels, *spatial), {dims + 2} or {dims + 3} of them"
        )
    samples = input.shape[-2 - dims]
    if samples != weights.shape[0]:
        raise GroupwiseError(
            f"input {_show(input)} has {samples} samples and weights {_show(weights)} has {weights.shape[0]}; every "
            "sample has its own weights: give as many; for shared weights call torch.nn.functional.conv"
            f"{dims}d, or expand them: weights.expand({samples}, ...)"
        )
    if bias is not None and (bias.dim() != 2 or bias.shape[0] != samples or bias.shape[1] != weights.shape[1]):
        raise GroupwiseError(
            f"bias has the shape {_show(bias)}; it must be (N, out_channels), here ({samples}, {weights.shape[1]}); "
            f"bias.expand({samples}, {weights.shape[1]}) repeats one bias for all samples"
        )
    # Autocast casts them all.
    kinds = {str(tensor.dtype) for tensor in (input, weights, bias) if tensor is not None}
    if len(kinds) > 1 and not torch.is_autocast_enabled(input.device.type):
        raise GroupwiseError(f"the tensors have different dtypes, {' and '.join(sorted(kinds))}; convert them to one")
    return dims


def _check_groups(channels: int, weights: Tensor, groups: object) -> int:
    """Returns `groups` as an int. Raises `GroupwiseError` where the channels of input and weights do not fit it."""
    number = check_integer("groups", groups, 1)
    outputs, inputs = weights.shape[1], weights.shape[2]
    if channels % number or outputs % number:
        valid = list_some(list(valid_groups(channels, outputs)), near=number)
        raise GroupwiseError(
            f"groups={number} must divide the {channels} input channels and the {outputs} output channels of each "
            f"sample; valid groups: {valid}"
        )
    if inputs * number != channels:
        raise GroupwiseError(
            f"weights {_show(weights)} read {inputs} channels a group, and the input has {channels} channels in "
            f"groups={number}; weights.shape[2] must be {channels} / {number} = {channels // number}"
        )
    return number


def _padded(
    input: Tensor, padding: str, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[Tensor, tuple[int, ...]]:
    """Returns the input and the padding as numbers; an input that needs more after than before gets that here."""
    if padding == "valid":
        return input, (0,) * len(kernel)
    if any(step != 1 for step in stride):
        raise GroupwiseError(f"padding='same' keeps the size, and stride={tuple(stride)} does not; give stride=1")
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    if any(total % 2 for total in totals):
        input = F.pad(input, [n for total in reversed(totals) for n in (0, total % 2)])
    return input, tuple(total // 2 for total in totals)


def _differentiates() -> bool:
    """Tells whether `torch.func` or forward mode differentiates this call, which an operator of a library refuses."""
    if forward_ad._current_level >= 0:
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    if torch.compiler.is_compiling():
        return True
    kinds = torch._C._functorch.TransformType
    stack = torch._C._functorch.get_interpreter_stack() or []
    return any(level.key() in (kinds.Grad, kinds.Jvp) for level in stack)


def _composite(input: Tensor, weights: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
    """Returns the same by PyTorch's grouped convolution."""
    stride, padding, dilation, groups = rest
    samples, outputs = weights.shape[:2]
    flat = None if bias is None else bias.flatten()
    options = (stride, padding, dilation, False, [0] * len(stride), samples * groups)
    made = torch.convolution(input.flatten(1, 2), weights.flatten(0, 1), flat, *options)
    return made.reshape(made.shape[0], samples, outputs, *made.shape[2:])


def _show(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))
