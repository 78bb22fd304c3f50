"""The engines that compute a convolution or a linear layer: a row each, in the order that breaks ties.

An engine packs a constant weight once, and returns a recipe that computes the layer from then on, with its epilogue.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch.nn import functional

from groupwise.kernels import native
from groupwise.kernels.plan import plan
from groupwise.rewrite.precision import bfloat16_problem
from groupwise.rewrite.recipe import Method, Operation, Recipe, Slot
from groupwise.rewrite.steps import Activation, Epilogue, Geometry
from groupwise.spec.convspec import ConvSpec

aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
Maybe = torch.Tensor | None


@dataclass(frozen=True)
class Work:
    """A layer on an input of one shape.

    - `geometry`: of a convolution; None for a linear layer
    - `overwrite`: whether the sum may be computed where the residual is
    - `channels_last`: whether an engine reads that format, and writes it
    - `enters`: whether the input is contiguous nevertheless, because it enters the network there
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
    enters: bool = False

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
    - `kernel`: the one kernel of groupwise that runs; empty for the planner's choice
    """

    name: str
    refuse: Callable[[Work], str | None]
    make: Callable[[Work, torch.Tensor, Maybe], Recipe]
    kernel: str = ""

    @property
    def label(self) -> str:
        """The name, with that of the kernel if the row is about one."""
        return f"{self.name} {self.kernel}".rstrip()


# The kernel of groupwise that reads and writes bfloat16, and the dtypes that the others can compute.
LOW = "bfloat16"
_FLOATS = (torch.float32, torch.bfloat16)
# What a recipe of a layer is given.
SOURCE, RESIDUAL = Slot(0), Slot(1)


def _finished(epilogue: Epilogue, *operations: Operation) -> Recipe:
    """Returns the operations, and an epilogue that is computed in place, pass by pass."""
    given, made = 1 + epilogue.residual, list(operations)

    def last() -> Slot:
        return Slot(given + len(made) - 1)

    if epilogue.before is not None:
        made.append(_in_place(epilogue.before, last()))
    if epilogue.residual:
        made.append(Operation(aten.add_.Tensor, (last(), RESIDUAL)))
        if epilogue.after is not None:
            made.append(_in_place(epilogue.after, last()))
    return Recipe(given, *made)


def _in_place(activation: Activation, slot: Slot) -> Operation:
    operator, scalars, words = activation.in_place
    return Operation(operator, (slot, *scalars), words)


def hazard_of(work: Work) -> str:
    """Returns what PyTorch's kernel of a convolution may do to the process; empty for nothing."""
    at = work.geometry
    if at is None or native.status().problem or 0 in (*work.source, *work.result, *work.weight):
        return ""
    spec = ConvSpec(
        *(work.source[1], work.result[1], work.weight[2:], at.stride, at.padding, at.dilation, at.groups),
        transposed=at.transposed,
        output_padding=at.output_padding or 0,
    )
    return plan(spec, work.source, work.dtype).hazard


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
    if hazard := hazard_of(work):
        return hazard
    at = work.geometry
    if at is not None and at.transposed and (at.dims != 2 or at.groups != 1):
        return "it takes transposed convolutions in 2-D without groups"
    return None


def _make_onednn(work: Work, weight: torch.Tensor, bias: Maybe) -> Recipe:
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
    rest = (packed, bias, *arguments, *sum_)
    if work.overwrite:
        return Recipe(2, Operation(mkldnn._convolution_pointwise_.binary, (RESIDUAL, SOURCE, *rest)))
    return Recipe(2, Operation(mkldnn._convolution_pointwise.binary, (SOURCE, RESIDUAL, *rest)))


def _post_ops(target: Any, packed: torch.Tensor, bias: Maybe, arguments: tuple[object, ...], work: Work) -> Recipe:
    """Returns a recipe whose first activation oneDNN computes; what follows is computed in place."""
    first, rest = work.epilogue.before, Epilogue(None, work.epilogue.residual, work.epilogue.after)
    words = ("none", [], "") if first is None else (first.attribute, list(first.scalars), first.algorithm)
    return _finished(rest, Operation(target, (SOURCE, packed, bias, *arguments, *words)))


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


def native_layer(work: Work, weight: torch.Tensor, bias: Maybe, kernel: str) -> Any:
    """Returns the layer of the native core, which packs the weight for a kernel, or for the planner's choice."""
    at, epilogue = work.geometry or Geometry((), (), (), 1), work.epilogue
    before, after = (words_of(activation) for activation in (epilogue.before, epilogue.after))
    return torch.classes.groupwise.Layer(
        *(weight, bias, list(at.stride), list(at.padding), list(at.dilation), at.transposed),
        *(list(at.output_padding or (0,) * at.dims), at.groups, *before, epilogue.residual, *after, kernel),
    )


def words_of(activation: Activation | None) -> tuple[str, list[float]]:
    """Returns the core's name of an activation, and its numbers."""
    if activation is None:
        return "none", []
    if activation.attribute == "gelu":
        return "gelu" if activation.algorithm == "none" else "gelu_tanh", []
    return ("silu" if activation.attribute == "swish" else activation.attribute), list(activation.scalars)


def _never_ours(work: Work) -> str | None:
    if problem := native.status().operators_problem:
        return problem
    if work.dtype not in _FLOATS:
        return f"its kernels compute float32, not {str(work.dtype).removeprefix('torch.')}"
    if work.geometry is not None and work.geometry.dims > 2:
        return "its kernels compute 1-D and 2-D"
    if 0 in (*work.source, *work.result, *work.weight):
        return "nothing to compute"
    return None


def _refuse_groupwise(work: Work, kernel: str = "") -> str | None:
    return _never_ours(work) or _layer_of(work, kernel).refuses(_like_source(work)) or None


def _layer_of(work: Work, kernel: str) -> Any:
    """Returns a layer that plans and never runs, so that its weights are no numbers."""
    bias = torch.empty(work.result[-1 if work.geometry is None else 1]) if work.bias else None
    return native_layer(work, torch.empty(work.weight), bias, kernel)


def _like_source(work: Work) -> torch.Tensor:
    """Returns a tensor of the source's shape and format, whose memory nothing reads or writes."""
    return torch.empty(work.source, memory_format=torch.channels_last if work.channels_last else None)


def _make_groupwise(work: Work, weight: torch.Tensor, bias: Maybe, kernel: str = "") -> Recipe:
    layer = native_layer(work, weight.float(), bias, kernel)
    if work.dtype == torch.bfloat16:
        return _widened(layer, 1 + work.epilogue.residual)
    return run_layer(layer, work)


def run_layer(layer: Any, work: Work) -> Recipe:
    """Returns a recipe that runs a layer of the native core."""
    if not work.epilogue.residual:
        return Recipe(1, Operation(Method(layer, "run"), (SOURCE, None)))
    if work.overwrite:
        return Recipe(2, Operation(Method(layer, "run_out"), (SOURCE, RESIDUAL, RESIDUAL)))
    return Recipe(2, Operation(Method(layer, "run"), (SOURCE, RESIDUAL)))


def _widened(layer: Any, given: int) -> Recipe:
    """Returns a recipe that computes a layer in float32 of bfloat16 values, and rounds once."""
    wide = [Operation(aten._to_copy.default, (Slot(number),), {"dtype": torch.float32}) for number in range(given)]
    operands = (Slot(given), Slot(given + 1) if given == 2 else None)
    narrow = Operation(aten._to_copy.default, (Slot(2 * given),), {"dtype": torch.bfloat16})
    return Recipe(given, *wide, Operation(Method(layer, "run"), operands), narrow)


def kernel_of(engine: Engine, work: Work) -> str:
    """Returns the name of the kernel that runs a layer; empty for another engine than groupwise."""
    if engine.name != "groupwise" or engine.kernel:
        return engine.kernel
    name: str = _layer_of(work, "").kernel(_like_source(work))
    return name


def expected_speeds(work: Work) -> dict[str, float]:
    """Returns the times of PyTorch's speed that kernels are expected to have, as far as tables or measurements tell."""
    if _never_ours(work):
        return {}
    try:
        return dict(_layer_of(work, "").expected(_like_source(work)))
    except RuntimeError:
        # No kernel computes a layer of such numbers.
        return {}


def _with_kernel(kernel: str) -> Engine:
    """Returns the row of one kernel, where the planner might choose another."""
    refuse = partial(_refuse_groupwise, kernel=kernel)
    return Engine("groupwise", refuse, partial(_make_groupwise, kernel=kernel), kernel)


# Where an image enters a network


def entering(engine: Engine, work: Work) -> Engine:
    """Returns the row for a layer with a contiguous input, in float32 also where the layer computes bfloat16: a kernel
    that reads it in place, or the engine behind a change of the format.
    """
    ours = engine.kernel not in ("", LOW)
    if ours and work.dtype in _FLOATS and _refuse_groupwise(_contiguous(work), engine.kernel) is None:
        return replace(engine, refuse=_never, make=partial(_make_in_place, kernel=engine.kernel))

    def make(work: Work, weight: torch.Tensor, bias: Maybe) -> Recipe:
        change = Operation(aten.contiguous.default, (SOURCE,), {"memory_format": torch.channels_last})
        recipe = engine.make(work, weight.to(work.dtype), bias).behind(change)
        if work.dtype != torch.bfloat16:
            return recipe
        # The format of half the bytes changes.
        return recipe.behind(Operation(aten._to_copy.default, (SOURCE,), {"dtype": work.dtype}))

    return replace(engine, make=make)


def _contiguous(work: Work) -> Work:
    return replace(work, channels_last=False)


def _make_in_place(work: Work, weight: torch.Tensor, bias: Maybe, kernel: str) -> Recipe:
    given, layer = 1 + work.epilogue.residual, native_layer(work, weight, bias, kernel)
    run = Operation(Method(layer, "run_last"), (SOURCE, RESIDUAL if work.epilogue.residual else None))
    if work.dtype == torch.float32:
        return Recipe(given, run)
    return Recipe(given, run, Operation(aten._to_copy.default, (Slot(given),), {"dtype": work.dtype}))


def _make_pytorch(work: Work, weight: torch.Tensor, bias: Maybe) -> Recipe:
    at, bias = work.geometry, None if bias is None else bias.to(weight.dtype)
    if at is None:
        return _finished(work.epilogue, Operation(aten.linear.default, (SOURCE, weight, bias)))
    if work.channels_last:
        weight = weight.contiguous(memory_format=torch.channels_last)
    numbers = (*map(list, (at.stride, at.padding, at.dilation)), at.transposed)
    arguments = (SOURCE, weight, bias, *numbers, list(at.output_padding or (0,) * at.dims), at.groups)
    # What PyTorch's kernel may harm the process by is dispatched, and so computed by one of groupwise's.
    state = 1 if hazard_of(work) else -1
    return _finished(work.epilogue, Operation(aten.convolution.default, arguments, state=state))


# A pointwise convolution as a matrix product


def _refuse_matmul(work: Work) -> str | None:
    if not work.is_pointwise or not work.channels_last:
        return "it takes dense 1x1 layers"
    return None


def _make_matmul(work: Work, weight: torch.Tensor, bias: Maybe) -> Recipe:
    first, bias = 1 + work.epilogue.residual, None if bias is None else bias.to(weight.dtype)
    return _finished(
        work.epilogue,
        Operation(aten.permute.default, (SOURCE, [0, 2, 3, 1])),
        Operation(aten.linear.default, (Slot(first), weight.flatten(1).contiguous(), bias)),
        Operation(aten.permute.default, (Slot(first + 1), [0, 3, 1, 2])),
    )


def _never(work: Work) -> None:
    return None


_KERNELS = tuple(_with_kernel(kernel) for kernel in ("gemm", "brgemm", "groups", "narrow", "planar", "dots", "stem"))
CONVOLUTION = (
    Engine("onednn", _refuse_onednn, _make_onednn),
    Engine("groupwise", _refuse_groupwise, _make_groupwise),
    *_KERNELS,
    Engine("matmul", _refuse_matmul, _make_matmul),
    Engine("pytorch", _never, _make_pytorch),
)
LINEAR = (
    Engine("onednn", _refuse_onednn, _make_onednn),
    _with_kernel("gemm"),
    _with_kernel("brgemm"),
    Engine("pytorch", _never, _make_pytorch),
)
# Where nothing is measured: groupwise where its planner takes the layer, else oneDNN, else PyTorch.
UNMEASURED = ("groupwise", "onednn", "pytorch")
# The same for a layer that computes bfloat16. groupwise's planner knows float32 alone.
UNMEASURED_LOW = ("onednn", "pytorch")
