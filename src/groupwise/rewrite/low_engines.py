"""The engines that compute a layer of bfloat16 by kernels of groupwise that read and write it."""

from __future__ import annotations

import sys

import torch

from groupwise.kernels import native
from groupwise.rewrite.engines import CONVOLUTION, LINEAR, LOW, SOURCE, Engine, Maybe, Work, run_layer, words_of
from groupwise.rewrite.recipe import Operation, Recipe

aten = torch.ops.aten
# The floats of the widest vectors: groups that fill them, or share them, do so with all others.
_LANES = 16


def engines_of(work: Work) -> tuple[Engine, ...]:
    """Returns the rows that may compute a layer, in the order that breaks ties."""
    rows = LINEAR if work.geometry is None else CONVOLUTION
    return (*rows[:-1], *_ROWS, *rows[-1:]) if work.dtype == torch.bfloat16 else rows


def _refuse(work: Work) -> str | None:
    if 0 in (*work.source, *work.result, *work.weight):
        return "nothing to compute"
    return native.status().operators_problem


def _refuse_grouped(work: Work) -> str | None:
    at = work.geometry
    if at is None or at.dims != 2 or at.transposed or not work.channels_last:
        return "it takes images in channels_last"
    outputs, inputs = work.weight[0] // at.groups, work.weight[1]
    fits = inputs % 2 == 0 and (_LANES % inputs == 0 or inputs > _LANES)
    if inputs > 1 and work.weight[0] < _LANES:
        return f"its groups of several channels need {_LANES} in all"
    if at.groups == 1 or inputs != outputs or not (inputs == 1 or fits):
        return (
            "it takes several groups of as many outputs as inputs: one, or an even number that divides 16 or exceeds it"
        )
    return _refuse(work)


def _make_grouped(work: Work, weight: torch.Tensor, bias: Maybe) -> Recipe:
    at, epilogue = work.geometry, work.epilogue
    assert at is not None
    before, after = words_of(epilogue.before), words_of(epilogue.after)
    geometry = map(list, (at.stride, at.padding, at.dilation))
    weight = weight.float() if work.weight[1] == 1 else weight
    layer = torch.classes.groupwise.LowLayer(weight, bias, *geometry, *before, epilogue.residual, *after)
    return run_layer(layer, work)


def _refuse_product(work: Work) -> str | None:
    at = work.geometry
    if at is not None and (at.dims != 2 or at.groups > 1 or at.is_padded or set(work.weight[2:]) != {1}):
        return "it takes dense 1x1 layers"
    if work.weight[1] % 2:
        return "it takes an even number of inputs"
    return _refuse(work)


def _make_product(work: Work, weight: torch.Tensor, bias: Maybe) -> Recipe:
    before, after = words_of(work.epilogue.before), words_of(work.epilogue.after)
    layer = torch.classes.groupwise.LowProduct(weight, bias, *before, work.epilogue.residual, *after)
    recipe = run_layer(layer, work)
    # The layer copies the pixels that a stride leaves.
    for dimension, stride in zip((2, 3), work.geometry.stride if work.geometry else (), strict=False):
        if stride > 1:
            recipe = recipe.behind(Operation(aten.slice.Tensor, (SOURCE, dimension, 0, sys.maxsize, stride)))
    return recipe


_ROWS = (
    Engine("groupwise", _refuse_grouped, _make_grouped, LOW),
    Engine("groupwise", _refuse_product, _make_product, LOW),
)
