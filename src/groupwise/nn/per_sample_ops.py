"""The operators behind `conv_per_sample`: the convolution and its two gradients, named, with their transforms.

All take the general form: input (B, N, C, *spatial) and weights (N, O, C/groups, *kernel), where weight n convolves
`input[:, n]`. So do their gradients, which are convolutions of the same form and have gradients again. Bias gradients
are sums. `per_sample_products` computes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from groupwise.nn import per_sample_products as products

Ints = Sequence[int]

LIBRARY = torch.library.Library("groupwise", "FRAGMENT")  # type: ignore[no-untyped-call]
_REST = "SymInt[] stride, SymInt[] padding, SymInt[] dilation, SymInt groups) -> Tensor"
_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def _operator(name: str, arguments: str, compute: Callable[..., Tensor]) -> Any:
    """Defines an operator that every device computes by `compute`, and that autocast casts the tensors of."""
    LIBRARY.define(f"{name}({arguments}, {_REST}", tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    LIBRARY.impl(name, compute, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    return getattr(torch.ops.groupwise, name).default


FORWARD = _operator("conv_per_sample", "Tensor input, Tensor weights, Tensor? bias", products.forward)
GRAD_INPUT = _operator("conv_per_sample_grad_input", "Tensor grad, Tensor weights, SymInt[] size", products.grad_input)
GRAD_WEIGHTS = _operator(
    "conv_per_sample_grad_weights", "Tensor grad, Tensor input, SymInt[] kernel", products.grad_weights
)


@torch.library.register_fake("groupwise::conv_per_sample", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(
    input: Tensor, weights: Tensor, bias: Tensor | None, stride: Ints, padding: Ints, dilation: Ints, groups: int
) -> Tensor:
    size = products.output_size(input.shape[3:], weights.shape[3:], stride, padding, dilation)
    return input.new_empty(*input.shape[:2], weights.shape[1], *size)


@torch.library.register_fake("groupwise::conv_per_sample_grad_input", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(grad: Tensor, weights: Tensor, size: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    return grad.new_empty(*grad.shape[:2], weights.shape[2] * groups, *size)


@torch.library.register_fake("groupwise::conv_per_sample_grad_weights", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _(grad: Tensor, input: Tensor, kernel: Ints, stride: Ints, padding: Ints, dilation: Ints, groups: int) -> Tensor:
    return grad.new_empty(grad.shape[1], grad.shape[2], input.shape[2] // groups, *kernel)


def _autocast(device: str) -> None:
    """Lets autocast compute the convolution in its dtype, as it does PyTorch's. Gradients have the forward's."""
    key = f"Autocast{device.upper()}"
    above = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, key))

    def cast(tensor: Tensor | None) -> Tensor | None:
        takes = tensor is not None and tensor.dtype in _FLOATS
        return tensor.to(torch.get_autocast_dtype(device)) if takes and tensor is not None else tensor

    def call(input: Tensor, weights: Tensor, bias: Tensor | None, *rest: Any) -> Tensor:
        with torch._C._ExcludeDispatchKeyGuard(above):
            result: Tensor = FORWARD(cast(input), cast(weights), cast(bias), *rest)
            return result

    LIBRARY.impl("conv_per_sample", call, key)  # type: ignore[no-untyped-call]


for _device in ("cpu", "cuda"):
    _autocast(_device)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    first, second, ctx.third, *ctx.rest = inputs
    ctx.save_for_backward(first, second)


def _save_forward(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, weights, _, *ctx.rest = inputs
    ctx.save_for_backward(input, weights)


def _forward_backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    input, weights = ctx.saved_tensors
    needs = ctx.needs_input_grad
    to_input = GRAD_INPUT(grad, weights, input.shape[3:], *ctx.rest) if needs[0] else None
    to_weights = GRAD_WEIGHTS(grad, input, weights.shape[3:], *ctx.rest) if needs[1] else None
    to_bias = grad.sum([0, *range(3, grad.dim())]) if needs[2] else None
    return to_input, to_weights, to_bias, None, None, None, None


def _grad_input_backward(ctx: Any, change: Tensor) -> tuple[Any, ...]:
    grad, weights = ctx.saved_tensors
    to_grad = FORWARD(change, weights, None, *ctx.rest) if ctx.needs_input_grad[0] else None
    to_weights = GRAD_WEIGHTS(grad, change, weights.shape[3:], *ctx.rest) if ctx.needs_input_grad[1] else None
    return to_grad, to_weights, None, None, None, None, None


def _grad_weights_backward(ctx: Any, change: Tensor) -> tuple[Any, ...]:
    grad, input = ctx.saved_tensors
    to_grad = FORWARD(input, change, None, *ctx.rest) if ctx.needs_input_grad[0] else None
    to_input = GRAD_INPUT(grad, change, input.shape[3:], *ctx.rest) if ctx.needs_input_grad[1] else None
    return to_grad, to_input, None, None, None, None, None


for _name, _backward, _saves in (
    ("conv_per_sample", _forward_backward, _save_forward),
    ("conv_per_sample_grad_input", _grad_input_backward, _save),
    ("conv_per_sample_grad_weights", _grad_weights_backward, _save),
):
    torch.library.register_autograd(f"groupwise::{_name}", _backward, setup_context=_saves, lib=LIBRARY)


def _into_batch(tensor: Tensor, dim: int) -> Tensor:
    """Folds the dimension of a vmap into B, which every sample shares its weight over."""
    return tensor.movedim(dim, 0).flatten(0, 1)


def _into_samples(tensor: Tensor, dim: int | None, at: int, count: int) -> Tensor:
    """Folds the dimension of a vmap into N, which is at `at`."""
    if dim is None:
        return tensor.unsqueeze(at).expand(*tensor.shape[:at], count, *tensor.shape[at:]).flatten(at, at + 1)
    return tensor.movedim(dim, at).flatten(at, at + 1)


def _vmap_shared(call: Any, info: Any, dims: tuple[Any, ...], images: Tensor, weights: Tensor, *rest: Any) -> Any:
    """Batches what has images and weights: over the images alone they share the weights."""
    if dims[1] is None:
        result = call(_into_batch(images, dims[0]), weights, *rest)
        return result.unflatten(0, (info.batch_size, result.shape[0] // info.batch_size)), 0
    folded = _into_samples(images, dims[0], 1, info.batch_size), _into_samples(weights, dims[1], 0, info.batch_size)
    return call(*folded, *rest).unflatten(1, (info.batch_size, weights.movedim(dims[1], 0).shape[1])), 1


def _vmap_forward(info: Any, dims: tuple[Any, ...], input: Tensor, weights: Tensor, bias: Any, *rest: Any) -> Any:
    if dims[0] is None and dims[1] is None:
        result, at = FORWARD(input, weights, None, *rest), None
    else:
        result, at = _vmap_shared(lambda x, w, *more: FORWARD(x, w, None, *more), info, dims, input, weights, *rest)
    if bias is None:
        return result, at
    result = result.unsqueeze(0) if at is None else result.movedim(at, 0)
    bias = bias.unsqueeze(0) if dims[2] is None else bias.movedim(dims[2], 0)
    # (V, B, N, O, *spatial), and a bias for each n and o.
    return result + bias.unsqueeze(1).reshape(bias.shape[0], 1, *bias.shape[1:], *[1] * (result.dim() - 4)), 0


def _vmap_grad_input(info: Any, dims: tuple[Any, ...], grad: Tensor, weights: Tensor, *rest: Any) -> Any:
    return _vmap_shared(GRAD_INPUT, info, dims, grad, weights, *rest)


def _vmap_grad_weights(info: Any, dims: tuple[Any, ...], grad: Tensor, input: Tensor, *rest: Any) -> Any:
    folded = (_into_samples(tensor, dim, 1, info.batch_size) for tensor, dim in zip((grad, input), dims, strict=False))
    result = GRAD_WEIGHTS(*folded, *rest)
    return result.unflatten(0, (info.batch_size, result.shape[0] // info.batch_size)), 0


torch.library.register_vmap("groupwise::conv_per_sample", _vmap_forward, lib=LIBRARY)
torch.library.register_vmap("groupwise::conv_per_sample_grad_input", _vmap_grad_input, lib=LIBRARY)
torch.library.register_vmap("groupwise::conv_per_sample_grad_weights", _vmap_grad_weights, lib=LIBRARY)
