"""The engines that compute a convolution or a linear layer: a row each, in the order that breaks ties.

An engine packs a constant weight once, and returns what computes the layer from then on, its epilogue included.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch.nn import functional

from groupwise.kernels import dispatch, native
from groupwise.kernels.plan import record_plans
from groupwise.rewrite.precision import bfloat16_problem
from groupwise.rewrite.steps import Activation, Epilogue, Geometry

mkldnn = torch.ops.mkldnn
Call = Callable[..., torch.Tensor]
Maybe = torch.Tensor | None


@dataclass(frozen=True)
class Work:
    """A layer on an input of one shape.

    - `geometry`: of a convolution; None for a linear layer
    - `overwrite`: whether the sum may be computed where the residual is
    """

    source: tuple[int, ...]
    result: tuple[int, ...]
    weight: tuple[int, ...]
    dtype: torch.dtype
    bias: bool
    geometry: Geometry | None
    epilogue: Epilogue
    overwrite: bool
    channels_last: bool

    @property
    def is_pointwise(self) -> bool:
        """Whether a convolution is a matrix product of pixels and a weight."""
        at = self.geometry
        return (
            at is not None
            and not at.is_padded
            and at.groups == 1
            and set(at.stride) == {1}
            and set(self.weight[2:]) == {1}
        )


@dataclass(frozen=True)
class Engine:
    """One row.

    - `refuse`: returns why the engine cannot run the work, or None
    - `make`: packs weight and bias, and returns what computes the layer of an input, and of a residual if there is one
    """

    name: str
    refuse: Callable[[Work], str | None]
    make: Callable[[Work, torch.Tensor, Maybe], Call]


def finish(output: torch.Tensor, epilogue: Epilogue, residual: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Computes an epilogue in place, pass by pass."""
    if epilogue.before is not None:
        epilogue.before.apply_(output)
    if residual:
        output.add_(residual[0])
        if epilogue.after is not None:
            epilogue.after.apply_(output)
    return output


# oneDNN


def _refuse_onednn(work: Work) -> str | None:
    if problem := onednn_problem():
        return problem
    if work.dtype == torch.bfloat16:
        return bfloat16_problem()
    if work.dtype != torch.float32:
        return f"it takes float32 here, not {str(work.dtype).removeprefix('torch.')}"
    if 0 in (*work.source, *work.result):
        return "the input is empty"
    at = work.geometry
    if at is not None and at.transposed and (at.dims != 2 or at.groups != 1):
        return "it takes transposed convolutions in 2-D without groups"
    return None


def _make_onednn(work: Work, weight: torch.Tensor, bias: Maybe) -> Call:
    at = work.geometry
    if at is None:
        packed = mkldnn._reorder_linear_weight.default(weight, math.prod(work.source[:-1]))
        return _post_ops(mkldnn._linear_pointwise.default, packed, bias, (), work)
    arguments = [list(at.padding), list(at.stride), list(at.dilation), at.groups]
    if at.transposed:
        arguments.insert(1, list(at.output_padding))
        packed = mkldnn._reorder_convolution_transpose_weight.default(weight, *arguments, list(work.source))
        return _post_ops(mkldnn._convolution_transpose_pointwise.default, packed, bias, tuple(arguments), work)
    # PyTorch packs no 1-D weights, and takes them as they are.
    packed = weight
    if at.dims > 1:
        packed = mkldnn._reorder_convolution_weight.default(weight, *arguments, list(work.source))
    last = work.epilogue.after
    fits = work.epilogue.residual and work.epilogue.before is None and (last is None or last.attribute == "relu")
    if not fits or at.groups > 1:
        return _post_ops(mkldnn._convolution_pointwise.default, packed, bias, tuple(arguments), work)
    # The operators with a sum want one dtype, the others keep a float32 bias exact.
    bias = None if bias is None else bias.to(weight.dtype)
    sum_: tuple[object, ...] = ("add", 1.0, None if last is None else "relu", [], None)
    if work.overwrite:
        add_ = mkldnn._convolution_pointwise_.binary
        return lambda source, residual: add_(residual, source, packed, bias, *arguments, *sum_)
    add = mkldnn._convolution_pointwise.binary
    return lambda source, residual: add(source, residual, packed, bias, *arguments, *sum_)


def _post_ops(function: Call, packed: torch.Tensor, bias: Maybe, arguments: tuple[object, ...], work: Work) -> Call:
    """Returns a call whose first activation oneDNN computes; what follows is computed in place."""
    first, rest = work.epilogue.before, Epilogue(None, work.epilogue.residual, work.epilogue.after)
    words = ("none", [], "") if first is None else (first.attribute, list(first.scalars), first.algorithm)
    if not rest.residual:
        return lambda source: function(source, packed, bias, *arguments, *words)
    return lambda source, *residual: finish(function(source, packed, bias, *arguments, *words), rest, residual)


@cache
def onednn_problem() -> str | None:
    """Tries oneDNN's operators, whose names begin with an underscore and may change, on tiny layers.

    Returns why they cannot be used, or None.
    """
    if not torch._C._has_mkldnn:
        return "this PyTorch has no oneDNN"
    generator = torch.Generator().manual_seed(0)
    relu = Epilogue(None, True, Activation("relu", "relu"))
    at = Geometry((1, 1), (1, 1), (1, 1), 1)
    try:
        with torch.no_grad(), torch.inference_mode(False):
            source, weight, residual = (torch.randn(8, 8, 3, 3, generator=generator) for _ in range(3))
            work = Work((8, 8, 3, 3), (8, 8, 3, 3), (8, 8, 3, 3), torch.float32, False, at, relu, False, False)
            made = _make_onednn(work, weight, None)(source, residual)
            exact = functional.conv2d(source.double(), weight.double(), padding=1) + residual.double()
            if not torch.allclose(made.double(), exact.relu(), atol=1e-4):
                return "oneDNN's operators answer wrongly in this PyTorch"
            work = Work((72, 8), (72, 8), (8, 8), torch.float32, False, None, Epilogue(), False, False)
            rows, square = source.reshape(72, 8), weight.reshape(72, 8)[:8]
            if not torch.allclose(
                _make_onednn(work, square, None)(rows).double(), rows.double() @ square.double().T, atol=1e-4
            ):
                return "oneDNN's operators answer wrongly in this PyTorch"
    except (RuntimeError, AttributeError, TypeError) as error:
        return f"oneDNN's operators are not those of this PyTorch ({str(error).splitlines()[0][:80]})"
    return None


# groupwise and PyTorch


def _refuse_groupwise(work: Work) -> str | None:
    if problem := native.status().problem:
        return problem
    if work.dtype not in (torch.float32, torch.bfloat16):
        return f"its kernels compute float32, not {str(work.dtype).removeprefix('torch.')}"
    at = work.geometry
    assert at is not None
    if at.dims > 2:
        return "its kernels compute 1-D and 2-D"
    source = torch.zeros(work.source)
    if work.channels_last:
        source = source.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.zeros(work.weight), torch.zeros(_channels(work)) if work.bias else None
    with record_plans() as plans:
        _convolve(work, weight, bias, 1)(source)
    if not plans or plans[0].kernel == "pytorch":
        return "the planner leaves it to PyTorch"
    return None


def _channels(work: Work) -> int:
    return work.result[1]


def _make_groupwise(work: Work, weight: torch.Tensor, bias: Maybe) -> Call:
    # A fused operator with the epilogue in its store takes the place of these two calls.
    convolve = _convolve(work, weight.float(), bias, 1)
    if work.dtype == torch.float32:
        return lambda source, *residual: finish(convolve(source), work.epilogue, residual)
    # The kernels compute float32: two conversions, and one rounding after the epilogue.
    return lambda source, *residual: finish(convolve(source.float()), work.epilogue, residual).to(work.dtype)


def _make_pytorch(work: Work, weight: torch.Tensor, bias: Maybe) -> Call:
    bias = None if bias is None else bias.to(weight.dtype)
    if work.geometry is None:
        return lambda source, *residual: finish(functional.linear(source, weight, bias), work.epilogue, residual)
    if work.channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    convolve = _convolve(work, weight, bias, -1)
    return lambda source, *residual: finish(convolve(source), work.epilogue, residual)


def _convolve(work: Work, weight: torch.Tensor, bias: Maybe, state: int) -> Call:
    """Returns PyTorch's operator, dispatched to groupwise's kernels if `state` is 1, and to PyTorch's if it is -1."""
    at, convolution = work.geometry, torch.convolution
    assert at is not None
    arguments = (at.stride, at.padding, at.dilation, at.transposed, at.output_padding or (0,) * at.dims, at.groups)
    switch = None if native.status().problem else dispatch.thread_switch()

    def convolve(source: torch.Tensor) -> torch.Tensor:
        if switch is None:
            return convolution(source, weight, bias, *arguments)
        before = switch(state)
        try:
            return convolution(source, weight, bias, *arguments)
        finally:
            switch(before)

    return convolve


# A pointwise convolution as a matrix product


def _refuse_matmul(work: Work) -> str | None:
    if not work.is_pointwise or not work.channels_last:
        return "it takes dense 1x1 layers"
    return None


def _make_matmul(work: Work, weight: torch.Tensor, bias: Maybe) -> Call:
    matrix, bias = weight.flatten(1).contiguous(), None if bias is None else bias.to(weight.dtype)

    def multiply(source: torch.Tensor, *residual: torch.Tensor) -> torch.Tensor:
        output = functional.linear(source.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
        return finish(output, work.epilogue, residual)

    return multiply


def _never(work: Work) -> None:
    return None


CONVOLUTION = (
    Engine("onednn", _refuse_onednn, _make_onednn),
    Engine("groupwise", _refuse_groupwise, _make_groupwise),
    Engine("matmul", _refuse_matmul, _make_matmul),
    Engine("pytorch", _never, _make_pytorch),
)
LINEAR = (
    Engine("onednn", _refuse_onednn, _make_onednn),
    Engine("pytorch", _never, _make_pytorch),
)
# Where nothing is measured: groupwise where its planner takes the layer, else oneDNN, else PyTorch.
UNMEASURED = ("groupwise", "onednn", "pytorch")
# Where the layer computes bfloat16, which groupwise's kernels do not.
UNMEASURED_LOW = ("onednn", "pytorch")
