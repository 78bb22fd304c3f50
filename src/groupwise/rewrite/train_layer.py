"""A BatchNorm, or a product of its output with a gate, and the convolution behind it: one step of autograd."""

from __future__ import annotations

from typing import Any

import torch

from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.nn.functional import computed, takes
from groupwise.nn.norm import arguments
from groupwise.rewrite import train_origin
from groupwise.rewrite.train_origin import (
    Origin,
    add_weight_gradients,
    blocks,
    convolve,
    differentiates,
    fits_scale,
    input_gradient,
    is_large,
    options_of,
    scale,
    taken,
    with_origin,
)

ops = torch.ops.groupwise
aten = torch.ops.aten


def norm_convolve(
    conv: Any, least: float, norm: Any, input: torch.Tensor, activation: str = "none", negative_slope: float = 0.01
) -> torch.Tensor:
    """Returns conv(activation(norm(input))), which computes activations of `least` numbers a sample again."""
    given: Any = arguments(norm, input)
    options = options_of(conv, input) if input.requires_grad and is_large(input, least) else None
    if options is None or not takes(*(*given[:6], given[7], activation, None)):
        y, origin = with_origin(least, given, activation, None, negative_slope, None)
        return convolve(y, origin, conv)
    made: torch.Tensor = _NormConvolution.apply(  # type: ignore[no-untyped-call]
        input, *given[3:5], conv.weight, conv.bias, given, activation, negative_slope, options
    )
    return made


class _NormConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor | None,
        bias: torch.Tensor | None,
        filters: torch.Tensor,
        offsets: torch.Tensor | None,
        given: Any,
        activation: str,
        slope: float,
        options: tuple[Any, ...],
    ) -> torch.Tensor:
        z, statistics = computed(*(*given, activation, None, slope))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, *statistics, filters)
        # Whether the statistics are the batch's; eps; what the convolution is given last.
        ctx.batch, ctx.how = given[5], (given[7], activation, slope)
        ctx.options = (None if offsets is None else list(offsets.shape), *options)
        return torch.convolution(z, filters, offsets, *options)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return (None,) * 9
        before = switched_on()
        try:
            # A mode that counts operators, say, is to see the gradient of a convolution.
            seen = differentiates(grad) or torch._C._len_torch_dispatch_stack() > 0
            found = _differentiable(ctx, grad) if seen else _gradients(ctx, grad)
        finally:
            switch_back(before)
        return (*found, None, None, None, None)


def _differentiable(ctx: Any, grad: torch.Tensor) -> Any:
    """Returns the gradients, by operators that have a gradient."""
    x, weight, bias, mean, variance, filters = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    statistics = (None, None) if ctx.batch else (mean, variance)
    z = ops.batch_norm_act(x, weight, bias, *statistics, None, ctx.batch, *ctx.how)[0]
    grad_z, *others = aten.convolution_backward(grad, z, filters, *ctx.options, (any(wanted[:3]), *wanted[3:5]))
    if not any(wanted[:3]):
        return None, None, None, *others
    want = (*wanted[:3], False)
    first = ops.batch_norm_act_backward(grad_z, x, weight, bias, mean, variance, None, ctx.batch, *ctx.how, want)[:3]
    return *first, *others


def _gradients(ctx: Any, grad: torch.Tensor) -> Any:
    x, weight, bias, mean, variance, filters = ctx.saved_tensors
    offsets, stride, padding, dilation, _, _, groups = ctx.options
    of_filters = (filters, offsets, stride, padding, dilation, groups)
    return ops.norm_convolution_backward(
        grad,
        x,
        weight,
        bias,
        mean,
        variance,
        *of_filters,
        ctx.batch,
        *ctx.how,
        train_origin.BLOCK,
        ctx.needs_input_grad[:5],
    )


def scale_convolve(conv: Any, z: torch.Tensor, origin: Origin | None, gate: torch.Tensor) -> torch.Tensor:
    """Returns conv(z * gate). The backward computes z again where z has an origin."""
    options = options_of(conv, z) if fits_scale(z, origin, gate) else None
    if options is None:
        product, its_origin = scale(z, origin, gate)
        return convolve(product, its_origin, conv)
    made: torch.Tensor = _ScaleConvolution.apply(  # type: ignore[no-untyped-call]
        z, gate, conv.weight, conv.bias, origin, options
    )
    return made


class _ScaleConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        gate: torch.Tensor,
        filters: torch.Tensor,
        offsets: torch.Tensor | None,
        origin: Origin,
        options: tuple[Any, ...],
    ) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gate, filters, *origin.tensors)
        ctx.how, ctx.options = origin.how, (None if offsets is None else list(offsets.shape), *options)
        return torch.convolution(z * gate, filters, offsets, *options)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return (None,) * 6
        gate, filters, *tensors = ctx.saved_tensors
        wanted, pixels = ctx.needs_input_grad, tuple(range(2, grad.dim()))
        before = switched_on()
        try:
            if differentiates(grad):
                z = ctx.how.differentiable(tensors)
                product, *others = aten.convolution_backward(
                    grad, z * gate, filters, *ctx.options, (True, *wanted[2:4])
                )
                return product * gate, (product * z).sum(pixels, keepdim=True), *others, None, None
            like = ctx.how.like(tensors)
            product = input_gradient(grad, like, filters, ctx.options)
            others, factors = [None, None], []
            for samples in blocks(like):
                z = ctx.how.again(tensors, samples)
                if any(wanted[2:4]):
                    of_block = z * taken(gate, samples)
                    others = add_weight_gradients(
                        others, taken(grad, samples), of_block, filters, ctx.options, wanted[2:4]
                    )
                factors.append(z.mul_(taken(product, samples)).sum(pixels, keepdim=True))
        finally:
            switch_back(before)
        return product.mul_(gate), torch.cat(factors), *others, None, None
