"""Squeeze and excitation of a training step, and the convolution behind it, as one step of autograd.

It keeps what its input comes from, and not its input or its output: see `train_origin`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.rewrite.train_origin import (
    How,
    Origin,
    Tensors,
    add_weight_gradients,
    added,
    blocks,
    convolve,
    differentiates,
    holds,
    input_gradient,
    options_of,
    taken,
)
from groupwise.rewrite.train_squeeze import apply_squeeze, squeezes_here

ops = torch.ops.groupwise
aten = torch.ops.aten


@dataclass(frozen=True)
class _Squeezed:
    """squeeze_excite of what the other tensors give, by two weights with biases, which come first."""

    input: How
    activations: tuple[str, str]

    def like(self, tensors: Tensors) -> torch.Tensor:
        return self.input.like(tensors[4:])

    def again(self, tensors: Tensors, samples: slice) -> torch.Tensor:
        # Nothing else reads what was computed for this product.
        z = self.input.again(tensors[4:], samples)
        found: torch.Tensor = ops.squeeze_excite.out(z, *_arguments(tensors, self.activations), out=z)
        return found

    def differentiable(self, tensors: Tensors) -> torch.Tensor:
        return _squeezed(self.input.differentiable(tensors[4:]), tensors, self.activations)


def squeeze(
    first: Any, second: Any, z: torch.Tensor, origin: Origin | None, activation1: str, activation2: str
) -> tuple[torch.Tensor, Origin | None]:
    """Returns what `apply_squeeze` does and its origin. The backward computes z again where z has an origin."""
    if origin is None or not _fits(first, second, z, origin):
        return apply_squeeze(first, second, z, activation1, activation2), None
    numbers, activations = _numbers(first, second), (activation1, activation2)
    made: torch.Tensor = _Squeeze.apply(z, *numbers, None, None, origin, activations, ())  # type: ignore[no-untyped-call]
    how = _Squeezed(origin.how, activations)
    return made, Origin(how, (*numbers, *origin.tensors), made._version)


def squeeze_convolve(
    conv: Any, first: Any, second: Any, z: torch.Tensor, origin: Origin | None, activation1: str, activation2: str
) -> torch.Tensor:
    """Returns conv of what `squeeze` returns. The backward computes both again where z has an origin."""
    options = options_of(conv, z) if _fits(first, second, z, origin) else None
    if options is None:
        product, its_origin = squeeze(first, second, z, origin, activation1, activation2)
        return convolve(product, its_origin, conv)
    made: torch.Tensor = _Squeeze.apply(  # type: ignore[no-untyped-call]
        z, *_numbers(first, second), conv.weight, conv.bias, origin, (activation1, activation2), options
    )
    return made


def _fits(first: Any, second: Any, z: torch.Tensor, origin: Origin | None) -> bool:
    return torch.is_grad_enabled() and holds(origin, z) and squeezes_here(first, second, z)


def _numbers(first: Any, second: Any) -> tuple[Any, ...]:
    return first.weight, first.bias, second.weight, second.bias


def _squeezed(z: torch.Tensor, numbers: Tensors, activations: tuple[str, str]) -> torch.Tensor:
    """Returns squeeze_excite of z, by the first four of the numbers."""
    found: torch.Tensor = ops.squeeze_excite(z, *_arguments(numbers, activations))
    return found


def _arguments(numbers: Tensors, activations: tuple[str, str]) -> tuple[Any, ...]:
    return *numbers[:2], activations[0], *numbers[2:4], activations[1]


class _Squeeze(torch.autograd.Function):
    """squeeze_excite of z, and the convolution of that if it has filters."""

    @staticmethod
    def forward(
        ctx: Any,
        z: torch.Tensor,
        weight1: torch.Tensor,
        bias1: torch.Tensor | None,
        weight2: torch.Tensor,
        bias2: torch.Tensor | None,
        filters: torch.Tensor | None,
        offsets: torch.Tensor | None,
        origin: Origin,
        activations: tuple[str, str],
        options: tuple[Any, ...],
    ) -> torch.Tensor:
        numbers = (weight1, bias1, weight2, bias2)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*numbers, filters, *origin.tensors)
        ctx.how, ctx.activations = origin.how, activations
        ctx.options = (None if offsets is None else list(offsets.shape), *options)
        y = _squeezed(z, numbers, activations)
        return y if filters is None else torch.convolution(y, filters, offsets, *options)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return (None,) * 10
        before = switched_on()
        try:
            found = _differentiable(ctx, grad) if differentiates(grad) else _gradients(ctx, grad)
        finally:
            switch_back(before)
        return (*found, None, None, None)


def _differentiable(ctx: Any, grad: torch.Tensor) -> Any:
    """Returns the gradients, by operators that have a gradient."""
    *numbers, filters = ctx.saved_tensors[:5]
    wanted = ctx.needs_input_grad
    # A batch of gradients comes here without a graph.
    with torch.enable_grad():
        z = ctx.how.differentiable(ctx.saved_tensors[5:])
        # A hook of a parameter sees the whole gradient, later.
        numbers = [t if t is None else t.view_as(t) for t in numbers]
        y = _squeezed(z, numbers, ctx.activations)
    grad_y, others = grad, (None, None)
    if filters is not None:
        grad_y, *others = aten.convolution_backward(grad, y, filters, *ctx.options, (any(wanted[:5]), *wanted[5:7]))
    return *_of_squeeze(y, (z, *numbers), wanted, grad_y, create_graph=torch.is_grad_enabled()), *others


def _of_squeeze(
    y: torch.Tensor, inputs: Sequence[Any], wanted: Sequence[bool], grad_y: torch.Tensor, create_graph: bool
) -> list[Any]:
    """Returns the gradients of those inputs of squeeze_excite that want one."""
    found: list[Any] = [None] * 5
    places = [i for i in range(5) if wanted[i]]
    if places:
        made = torch.autograd.grad(y, [inputs[i] for i in places], grad_y, create_graph=create_graph)
        for i, one in zip(places, made, strict=True):
            found[i] = one
    return found


def _gradients(ctx: Any, grad: torch.Tensor) -> Any:
    *numbers, filters = ctx.saved_tensors[:5]
    tensors, wanted = ctx.saved_tensors[5:], ctx.needs_input_grad
    like, grad_y, convolves = ctx.how.like(tensors), grad, filters is not None
    if convolves and any(wanted[:5]):
        grad_y = input_gradient(grad, like, filters, ctx.options)
    leaves = [t if t is None else t.detach().requires_grad_(want) for t, want in zip(numbers, wanted[1:5], strict=True)]
    grad_z: Any = None
    of_numbers: list[Any] = [None] * 4
    of_filters: list[Any] = [None] * 2
    for samples in blocks(like):
        z = ctx.how.again(tensors, samples).requires_grad_(wanted[0])
        with torch.enable_grad():
            y = _squeezed(z, leaves, ctx.activations)
        of_block, *parts = _of_squeeze(y, (z, *leaves), wanted, taken(grad_y, samples), create_graph=False)
        of_numbers = added(of_numbers, parts)
        of_filters = add_weight_gradients(
            of_filters, taken(grad, samples), y.detach(), filters, ctx.options, wanted[5:7]
        )
        if of_block is None or of_block.shape[0] == like.shape[0]:
            grad_z = of_block
            continue
        if grad_z is None:
            # Nothing else reads the gradient that a convolution gave.
            grad_z = grad_y if convolves else torch.empty_like(grad)
        grad_z[samples] = of_block
    return grad_z, *of_numbers, *of_filters
