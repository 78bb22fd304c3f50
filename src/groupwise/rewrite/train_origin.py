"""Layers of a training step that compute an activation again in the backward, from what its BatchNorm keeps anyway."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.nn.functional import normalised
from groupwise.nn.norm import arguments
from groupwise.rewrite.train_switch import dispatch_backward

# What is computed again at a time: with its gradient it stays in the L3 cache, or in that of the core.
BLOCK = 4 << 20

aten = torch.ops.aten
Tensors = Sequence[torch.Tensor | None]


class How(Protocol):
    """How a tensor is computed from the tensors of its `Origin`."""

    def like(self, tensors: Tensors) -> torch.Tensor:
        """Returns a tensor of its shape and memory format."""

    def again(self, tensors: Tensors, samples: slice) -> torch.Tensor:
        """Returns some samples of it, in new memory and without a gradient."""

    def differentiable(self, tensors: Tensors) -> torch.Tensor:
        """Returns it as a function of the tensors."""


@dataclass(frozen=True)
class Origin:
    """What a tensor can be computed from again.

    `version` is that of the tensor: a change in place ends what is known of it.
    """

    how: How
    tensors: tuple[torch.Tensor | None, ...]
    version: int


@dataclass(frozen=True)
class _Normalised:
    """activation(batch_norm(x) + residual), of x, weight, bias, mean, variance, and what the residual comes from."""

    batch: bool
    eps: float
    activation: str
    slope: float
    residual: How | None

    def like(self, tensors: Tensors) -> torch.Tensor:
        assert tensors[0] is not None
        return tensors[0]

    def again(self, tensors: Tensors, samples: slice) -> torch.Tensor:
        x, weight, bias, mean, variance, *others = tensors
        assert x is not None
        residual = self.residual.again(others, samples) if self.residual is not None else None
        return self._computed(taken(x, samples), weight, bias, mean, variance, residual, batch=False)

    def differentiable(self, tensors: Tensors) -> torch.Tensor:
        x, weight, bias, mean, variance, *others = tensors
        residual = self.residual.differentiable(others) if self.residual is not None else None
        return self._computed(x, weight, bias, mean, variance, residual, batch=self.batch)

    def _computed(self, *tensors: Any, batch: bool) -> torch.Tensor:
        found: torch.Tensor = torch.ops.groupwise.batch_norm_act(
            *tensors, batch, self.eps, self.activation, self.slope
        )[0]
        return found


@dataclass(frozen=True)
class _Scaled:
    """The product of a gate, which comes first, and of what the other tensors give."""

    scaled: How

    def like(self, tensors: Tensors) -> torch.Tensor:
        return self.scaled.like(tensors[1:])

    def again(self, tensors: Tensors, samples: slice) -> torch.Tensor:
        gate, *others = tensors
        assert gate is not None
        # Nothing else reads what was computed for this product.
        return self.scaled.again(others, samples).mul_(taken(gate, samples))

    def differentiable(self, tensors: Tensors) -> torch.Tensor:
        gate, *others = tensors
        assert gate is not None
        return self.scaled.differentiable(others) * gate


def normalise(
    least: float,
    norm: Any,
    input: torch.Tensor,
    activation: str = "none",
    residual: torch.Tensor | None = None,
    negative_slope: float = 0.01,
    residual_origin: Origin | None = None,
) -> tuple[torch.Tensor, Origin | None]:
    """Returns what `apply_norm` does, and the origin of that, if it has one and `least` numbers a sample."""
    return with_origin(least, arguments(norm, input), activation, residual, negative_slope, residual_origin)


def with_origin(
    least: float,
    given: Any,
    activation: str,
    residual: torch.Tensor | None,
    negative_slope: float,
    residual_origin: Origin | None,
) -> tuple[torch.Tensor, Origin | None]:
    """Does what `normalise` does, for the first arguments of `batch_norm_act`."""
    y, statistics = normalised(*(*given, activation, residual, negative_slope))
    lacks = residual is not None and not holds(residual_origin, residual)
    if statistics is None or lacks or not y.requires_grad or not is_large(y, least):
        return y, None
    tensors = (given[0], *given[3:5], *statistics)
    if residual_origin is None:
        how = None
    else:
        how, tensors = residual_origin.how, (*tensors, *residual_origin.tensors)
    return y, Origin(_Normalised(given[5], given[7], activation, negative_slope, how), tensors, y._version)


def is_large(z: torch.Tensor, least: float) -> bool:
    """Tells whether a tensor has so many numbers a sample."""
    if (sizes := _sizes.get()) is not None:
        sizes.add(z.numel() // max(1, z.shape[0]))
    return z.numel() >= least * z.shape[0]


_sizes: ContextVar[set[float] | None] = ContextVar("_sizes", default=None)


@contextmanager
def sizes_seen() -> Iterator[set[float]]:
    """Collects the numbers a sample of all activations that might be computed again, in this thread."""
    found: set[float] = set()
    before = _sizes.set(found)
    try:
        yield found
    finally:
        _sizes.reset(before)


def convolve(z: torch.Tensor, origin: Origin | None, conv: torch.nn.Module) -> torch.Tensor:
    """Returns conv(z). The backward computes z again where z has an origin."""
    options = options_of(conv, z) if holds(origin, z) else None
    if options is None:
        return dispatch_backward(conv(z))
    made: torch.Tensor = _Convolution.apply(z, conv.weight, conv.bias, origin, options)  # type: ignore[no-untyped-call]
    return made


def scale(z: torch.Tensor, origin: Origin | None, gate: torch.Tensor) -> tuple[torch.Tensor, Origin | None]:
    """Returns z * gate and its origin. The backward computes z again where z has an origin."""
    if not fits_scale(z, origin, gate):
        return z * gate, None
    assert origin is not None
    product: torch.Tensor = _Scale.apply(z, gate, origin)  # type: ignore[no-untyped-call]
    return product, Origin(_Scaled(origin.how), (gate, *origin.tensors), product._version)


def fits_scale(z: torch.Tensor, origin: Origin | None, gate: Any) -> bool:
    """Tells whether z has an origin and a gate one factor a sample and channel."""
    if not torch.is_grad_enabled() or not holds(origin, z) or type(gate) not in _PLAIN or z.dim() < 3:
        return False
    return bool(gate.dtype == z.dtype and gate.shape == (*z.shape[:2], *(1,) * (z.dim() - 2)))


def pool(z: torch.Tensor, origin: Origin | None, module: torch.nn.MaxPool2d) -> torch.Tensor:
    """Returns module(z) of a maximum pooling, whose backward asks for the shape of z alone."""
    made: torch.Tensor
    if not holds(origin, z) or module.return_indices or not torch.is_grad_enabled():
        made = module(z)
    else:
        sizes = (module.kernel_size, module.stride, module.padding, module.dilation)
        pairs = (tuple(it) if isinstance(it, tuple | list) else (it, it) for it in sizes)
        made = _MaxPool.apply(z, origin, (*pairs, module.ceil_mode))  # type: ignore[no-untyped-call]
    return made


_PLAIN = (torch.Tensor, torch.nn.Parameter)


def holds(origin: Origin | None, z: torch.Tensor) -> bool:
    """Tells whether z has an origin, and is still what that says."""
    return origin is not None and z._version == origin.version


def options_of(conv: Any, x: torch.Tensor) -> tuple[Any, ...] | None:
    """Returns the last arguments of `torch.convolution` for a layer that has a gradient; None if it may do more."""
    weight = conv.weight
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or conv.padding_mode != "zeros":
        return None
    if isinstance(conv.padding, str) or type(weight) not in _PLAIN or weight.dtype != torch.float32:
        return None
    # A convolution takes an image without a dimension for the samples, too.
    if x.dim() != weight.dim():
        return None
    return conv.stride, conv.padding, conv.dilation, False, (0,) * len(conv.stride), conv.groups


def differentiates(grad: torch.Tensor) -> bool:
    """Tells whether a backward must use operators that have a gradient, and that take a batch of gradients."""
    functorch = torch._C._functorch
    # `is_grads_batched` makes tensors of the older kind.
    batched = functorch.is_batchedtensor(grad) or functorch.is_legacy_batchedtensor(grad)
    return torch.is_grad_enabled() or batched


def blocks(x: torch.Tensor) -> Iterator[slice]:
    """Returns the samples of x, in blocks of similar size."""
    samples = x.shape[0]
    count = min(samples, -(-x.numel() * x.element_size() // BLOCK))
    for i in range(count):
        yield slice(i * samples // count, (i + 1) * samples // count)


def taken(t: torch.Tensor, samples: slice) -> torch.Tensor:
    """Returns some samples of a tensor: itself, and no view, where they are all."""
    return t if samples.start == 0 and samples.stop == t.shape[0] else t[samples]


def input_gradient(grad: torch.Tensor, like: torch.Tensor, weight: torch.Tensor, options: Any) -> torch.Tensor:
    """Returns the gradient of a convolution's input, which asks for the shape of that alone: `like` has it."""
    made: torch.Tensor = aten.convolution_backward(grad, like, weight, *options, (True, False, False))[0]
    return made


def add_weight_gradients(
    sums: Sequence[torch.Tensor | None],
    grad: torch.Tensor,
    z: torch.Tensor,
    weight: torch.Tensor,
    options: Any,
    wanted: Sequence[bool],
) -> list[torch.Tensor | None]:
    """Returns the sums with the gradients of weight and bias by some samples of the input, z; None if not wanted."""
    if not any(wanted):
        return list(sums)
    return added(sums, aten.convolution_backward(grad, z, weight, *options, (False, *wanted))[1:])


def added(sums: Sequence[Any], parts: Sequence[Any]) -> list[Any]:
    """Returns the sums with the parts added, in place; the first parts become the sums."""
    return [part if all is None else all.add_(part) for all, part in zip(sums, parts, strict=True)]


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, origin: Origin, options: Any
    ) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(weight, *origin.tensors)
        ctx.how, ctx.options = origin.how, (bias if bias is None else list(bias.shape), *options)
        return torch.convolution(z, weight, bias, *options)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return (None,) * 5
        weight, *tensors = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        before = switched_on()
        try:
            if differentiates(grad):
                z = ctx.how.differentiable(tensors)
                return (*aten.convolution_backward(grad, z, weight, *ctx.options, wanted), None, None)
            grad_weight, grad_bias = _weight_gradients(ctx, grad, weight, tensors, wanted[1:])
            grad_z = input_gradient(grad, ctx.how.like(tensors), weight, ctx.options) if wanted[0] else None
        finally:
            switch_back(before)
        return grad_z, grad_weight, grad_bias, None, None


def _weight_gradients(
    ctx: Any, grad: torch.Tensor, weight: torch.Tensor, tensors: Tensors, wanted: Sequence[bool]
) -> list[torch.Tensor | None]:
    """Returns the gradients of weight and bias, block by block of the samples."""
    sums: list[torch.Tensor | None] = [None, None]
    if not any(wanted):
        return sums
    for samples in blocks(ctx.how.like(tensors)):
        z = ctx.how.again(tensors, samples)
        sums = add_weight_gradients(sums, taken(grad, samples), z, weight, ctx.options, wanted)
    return sums


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, gate: torch.Tensor, origin: Origin) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gate, *origin.tensors)
        ctx.how = origin.how
        return z * gate

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return None, None, None
        gate, *tensors = ctx.saved_tensors
        pixels = tuple(range(2, grad.dim()))
        grad_gate = None
        if ctx.needs_input_grad[1]:
            if differentiates(grad):
                grad_gate = (ctx.how.differentiable(tensors) * grad).sum(pixels, keepdim=True)
            else:
                found = [
                    ctx.how.again(tensors, samples).mul_(taken(grad, samples)).sum(pixels, keepdim=True)
                    for samples in blocks(grad)
                ]
                grad_gate = torch.cat(found)
        return grad * gate if ctx.needs_input_grad[0] else None, grad_gate, None


class _MaxPool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: torch.Tensor, origin: Origin, options: Any) -> torch.Tensor:
        ctx.set_materialize_grads(False)
        y, places = aten.max_pool2d_with_indices(z, *options)
        # Places within a plane of pixels are kept in as few bytes as hold them.
        pixels = z.shape[-2] * z.shape[-1]
        kept = next(dtype for dtype in (torch.int16, torch.int32, torch.int64) if pixels - 1 <= torch.iinfo(dtype).max)
        ctx.save_for_backward(places.to(kept), origin.how.like(origin.tensors))
        ctx.options = options
        made: torch.Tensor = y
        return made

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor | None) -> Any:
        if grad is None:
            return None, None, None
        places, like = ctx.saved_tensors
        return aten.max_pool2d_with_indices_backward(grad, like, *ctx.options, places.long()), None, None
