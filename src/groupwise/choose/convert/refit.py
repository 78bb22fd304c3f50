"""A grouped layer, plain or transposed, fitted to desired outputs by least squares on calibration data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from groupwise.choose.convert.patches import (
    Convolution,
    can_have,
    columns,
    extents,
    from_columns,
    output,
    patches,
)
from groupwise.errors import GroupwiseError, check_integer
from groupwise.spec.legible import Printed

# Positions for each unknown of a group, and the least number of them.
_OVERSAMPLING = 10
_LEAST_POSITIONS = 8_192
# Values of patches in memory at once: 64 MiB in float64.
_CHUNK = 2**23
# A pivot or an eigenvalue below this, relative to 1, is rounding.
_SINGULAR = 1e-11

Batches = Tensor | Sequence[Tensor]


@dataclass(frozen=True, repr=False)
class Refit(Printed):
    """Parameters of a layer fitted to calibration data.

    - `weight`, `bias`: in the layer's shape, dtype and device; the layer's own where no fit lowers the error
    - `before`, `after`: squared error over all positions of the calibration data, relative to the squared targets
    - `positions`: how many output positions the fit used, of `of` in all
    """

    weight: Tensor
    bias: Tensor | None
    before: float
    after: float
    positions: int
    of: int

    def __str__(self) -> str:
        return (
            f"the relative squared error falls from {self.before:.4g} to {self.after:.4g}, "
            f"fitted on {self.positions} of {self.of} positions"
        )

    __repr__ = __str__


@torch.no_grad()
def refit(
    layer: nn.Module,
    inputs: Batches,
    targets: Batches,
    *,
    ridge: float = 1e-4,
    positions: int | None = None,
    seed: int = 0,
) -> Refit:
    """Fits the weight, and the bias if there is one, so that the layer's outputs come closest to `targets`.

    Each group is a least-squares problem of its own: its outputs depend on its inputs only. The fit is regularised
    towards the layer's present weight, so directions that the data does not show keep their values. The layer is not
    changed. The error on all calibration data is measured before and after, and a fit that raises it is dropped.

    Args:
        layer: a plain or transposed convolution of `torch.nn`, 1-D to 3-D, with any groups, stride, padding, padding
            mode, output padding and dilation.
        inputs: a batch or a sequence of batches of the layer's inputs, (batch, channels, ...). Take them from the
            network as converted so far: then the fit repairs what earlier layers lost too.
        targets: the outputs that the layer should have, as many batches; usually the unconverted layer's. Those of a
            transposed layer may have any `output_size` that it can be called with.
        ridge: the regularisation, relative to the mean square of the inputs that a group's weight sees.
        positions: the most output positions to fit on, sampled without repetition; all batches share them by size.
            None takes ten for each unknown of an output channel, and at least 8,192.
        seed: of the sampling; equal seeds give equal samples.

    Raises:
        GroupwiseError: another kind of layer, batches of unequal number or unexpected shapes, values that are not
            finite, a negative ridge.
    """
    convolution = _checked_layer(layer)
    if not (isinstance(ridge, int | float) and math.isfinite(ridge) and ridge >= 0):
        raise GroupwiseError(f"ridge={ridge!r} must be a finite number of at least 0")
    seed = check_integer("seed", seed, 0)
    pairs = _pairs(convolution, inputs, targets)
    counts = [target[:, 0].numel() for _, target in pairs]
    unknowns = columns(convolution).shape[1] + (convolution.bias is not None)
    most = max(_OVERSAMPLING * unknowns, _LEAST_POSITIONS) if positions is None else positions
    most = check_integer("positions", most, 1, 2**62)
    samples = _samples(counts, most, seed)
    weight, bias = _fitted(convolution, pairs, samples, float(ridge))
    before = _error(convolution, pairs, convolution.weight, convolution.bias)
    after = _error(convolution, pairs, weight, bias)
    if not after <= before:
        weight, after = convolution.weight.detach().clone(), before
        bias = None if convolution.bias is None else convolution.bias.detach().clone()
    return Refit(weight, bias, before, after, sum(map(len, samples)), sum(counts))


@torch.no_grad()
def relative_error(layer: nn.Module, inputs: Batches, targets: Batches) -> float:
    """Returns the squared error of a layer's outputs, relative to the squared targets; it takes what `refit` takes."""
    convolution = _checked_layer(layer)
    return _error(convolution, _pairs(convolution, inputs, targets), convolution.weight, convolution.bias)


def _checked_layer(layer: nn.Module) -> Convolution:
    """Returns the layer, which must be one that can be fitted."""
    if not isinstance(layer, Convolution):
        raise GroupwiseError(
            f"refit takes a convolution layer of torch.nn, plain or transposed, not {type(layer).__name__}"
        )
    if isinstance(layer.weight, nn.UninitializedParameter):
        raise GroupwiseError("the layer is lazy and has no weight yet; run it once before refit")
    if not layer.weight.is_floating_point() or layer.weight.is_meta:
        form = f"{layer.weight.dtype} on {layer.weight.device}"
        raise GroupwiseError(f"the layer's weight is {form}; refit takes real floating-point values")
    for name, tensor in (("weight", layer.weight), ("bias", layer.bias)):
        if tensor is not None and not bool(torch.isfinite(tensor).all()):
            raise GroupwiseError(f"the layer's {name} has NaN or infinite values; all must be finite")
    return layer


def _pairs(layer: Convolution, inputs: Batches, targets: Batches) -> list[tuple[Tensor, Tensor]]:
    """Returns pairs of inputs and targets, checked."""
    first, second = ([side] if isinstance(side, Tensor) else list(side) for side in (inputs, targets))
    if len(first) != len(second) or not first:
        raise GroupwiseError(
            f"inputs has {len(first)} batches and targets {len(second)}; there must be as many, and at least one"
        )
    for number, (given, wanted) in enumerate(zip(first, second, strict=True)):
        dims = layer.weight.ndim
        if given.ndim != dims or given.shape[1] != layer.in_channels:
            raise GroupwiseError(
                f"batch {number} of inputs has shape {tuple(given.shape)}; "
                f"the layer takes {dims} dimensions, (batch, {layer.in_channels}, ...)"
            )
        size, ends = given.shape[2:], (len(given), layer.out_channels)
        if wanted.ndim != dims or wanted.shape[:2] != ends or not can_have(layer, size, wanted.shape[2:]):
            raise GroupwiseError(
                f"batch {number} of targets has shape {tuple(wanted.shape)}; "
                f"the layer's output for these inputs has {(*ends, *extents(layer, size))}"
            )
        for name, side in (("inputs", given), ("targets", wanted)):
            if not bool(torch.isfinite(side).all()):
                raise GroupwiseError(f"batch {number} of {name} has NaN or infinite values; all must be finite")
    return list(zip(first, second, strict=True))


def _samples(counts: list[int], most: int, seed: int) -> list[Tensor]:
    """Returns the positions of each batch to fit on: all of them, or `most` in all, spread evenly over the batches."""
    total, before = sum(counts), 0
    generator = torch.Generator().manual_seed(seed)
    samples = []
    for count in counts:
        if total <= most:
            samples.append(torch.arange(count))
            continue
        share = most * (before + count) // total - most * before // total
        before += count
        samples.append(torch.randperm(count, generator=generator)[:share].sort().values)
    return samples


def _fitted(
    layer: Convolution, pairs: list[tuple[Tensor, Tensor]], samples: list[Tensor], ridge: float
) -> tuple[Tensor, Tensor | None]:
    """Returns the weight and the bias that solve the normal equations of each group, summed over all samples."""
    groups, has_bias = layer.groups, layer.bias is not None
    present = columns(layer).double()
    if layer.bias is not None:
        present = torch.cat([present, layer.bias.double().reshape(groups, 1, -1)], dim=1)
    unknowns = present.shape[1]
    gram = present.new_zeros(groups, unknowns, unknowns)
    moment = torch.zeros_like(present)
    chunk = max(1, _CHUNK // (groups * unknowns))
    for (given, wanted), sample in zip(pairs, samples, strict=True):
        seen = patches(layer, given.to(present.device), wanted.shape[2:])
        outputs = wanted.to(present.device).movedim(1, -1)
        for positions in torch.split(sample, chunk):
            place = torch.unravel_index(positions.to(present.device), outputs.shape[:-1])
            rows = seen[place].double().reshape(len(positions), groups, unknowns - has_bias).transpose(0, 1)
            if has_bias:
                rows = torch.cat([rows, rows.new_ones(groups, len(positions), 1)], dim=2)
            gram += rows.mT @ rows
            own = outputs[place].double().reshape(len(positions), groups, present.shape[2])
            moment += rows.mT @ own.transpose(0, 1)
    fitted = present + _solved(gram, moment - gram @ present, ridge, has_bias)
    weight = from_columns(layer, fitted[:, : unknowns - has_bias]).to(layer.weight.dtype)
    return weight, fitted[:, -1].reshape(-1).to(layer.weight.dtype) if has_bias else None


def _solved(gram: Tensor, residual: Tensor, ridge: float, has_bias: bool) -> Tensor:
    """Returns the change of the parameters; the bias is not regularised."""
    size = gram.shape[1] - has_bias
    diagonal = gram.diagonal(dim1=1, dim2=2)
    penalty = torch.zeros_like(diagonal)
    penalty[:, :size] = ridge * diagonal[:, :size].mean(dim=1, keepdim=True)
    # Columns of unit length: channels of different scale are no sign of singular equations.
    scale = (diagonal + penalty).sqrt()
    scale[scale == 0] = 1.0
    matrix = (gram + torch.diag_embed(penalty)) / (scale[:, :, None] * scale[:, None])
    residual = residual / scale[:, :, None]
    factor, failed = torch.linalg.cholesky_ex(matrix)
    singular = (failed > 0) | (factor.diagonal(dim1=1, dim2=2).amin(dim=1) ** 2 < _SINGULAR)
    change = torch.cholesky_solve(residual, factor)
    for t in singular.nonzero().flatten().tolist():
        # Inputs that depend on one another leave the fit open: take the smallest change.
        change[t] = torch.linalg.pinv(matrix[t], rtol=_SINGULAR, hermitian=True) @ residual[t]
    return change / scale[:, :, None]


def _error(layer: Convolution, pairs: list[tuple[Tensor, Tensor]], weight: Tensor, bias: Tensor | None) -> float:
    """Returns the squared error of the outputs over all pairs, relative to the squared targets."""
    wide, offset = weight.double(), None if bias is None else bias.double()
    error = scale = 0.0
    for given, wanted in pairs:
        target = wanted.to(wide.device).double()
        made = output(layer, given.to(wide.device).double(), wide, offset, target.shape[2:])
        error += float((made - target).square().sum())
        scale += float(target.square().sum())
    return error / scale if scale else error
