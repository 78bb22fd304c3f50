"""Whether a model whose layers were all converted exactly computes what it did, up to rounding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from groupwise.choose.convert.data import Batch, evaluated
from groupwise.errors import GroupwiseError, name_some
from groupwise.spec.legible import legible

# Rounding explains so many times what it makes of the outputs when each converted layer rounds otherwise, and so many
# roundings of an output's largest value.
_TIMES, _ROUNDINGS = 64, 64
# The rounding of bfloat16: a product in TF32 or bfloat16 has no fewer bits.
_FEW_BITS = 2.0**-7
# More names than these are counted.
_NAMES = 6

Convert = Callable[[nn.Module, Sequence[str]], None]


def check_unchanged(model: nn.Module, convert: Convert, names: Sequence[str], batch: Batch) -> None:
    """Raises `GroupwiseError` if a model computes something else on a batch once layers were converted exactly.

    Code may compute with the tensors of a layer where nothing shows it, and other groups then change the result.
    `convert(twin, names)` converts layers of a copy. Copies of the model run in evaluation, with the same random
    numbers, and the model stays as it is. Their floating-point outputs are compared: rounding may change a class.
    """
    exact = _outputs(copy.deepcopy(model), batch)
    nearby = _outputs(_rounding(copy.deepcopy(model), names), batch)
    allowed = [_allowed(*pair) for pair in zip(exact, nearby, strict=True)]

    def change(some: Sequence[str]) -> str:
        twin = copy.deepcopy(model)
        convert(twin, some)
        try:
            found = _outputs(twin, batch)
        except Exception as error:  # The model's own code raises anything.
            return f"the model fails: {(str(error).splitlines() or [type(error).__name__])[0]}"
        return _difference(exact, found, allowed)

    what = change(names)
    if not what:
        return
    guilty = [name for name in names if change([name])] if len(names) > 1 else list(names)
    called = name_some([legible(name) for name in guilty or names], _NAMES)
    raise GroupwiseError(
        f"{called}: the conversion is exact, and yet, on the first batch of data, {what}; code computes with a tensor "
        "of the layer outside its calls, for example through parameters() or in another layer; leave it out"
    )


def _outputs(model: nn.Module, batch: Batch) -> list[torch.Tensor]:
    """Returns the floating-point outputs of a model, each time with the same random numbers."""
    with torch.random.fork_rng(), evaluated(model):
        torch.manual_seed(0)
        made = batch.run(model)
    return [leaf for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def _rounding(model: nn.Module, names: Sequence[str]) -> nn.Module:
    """Lets layers of a model change their outputs by as much as another order of their sums may, and returns it.

    A sum of n products is off by about sqrt(n) roundings of the sum of their absolute values (Higham and Mary, "A New
    Approach to Probabilistic Rounding Error Analysis", 2019).
    """
    generator = torch.Generator().manual_seed(0)
    for name in names:
        layer: Any = model.get_submodule(name)
        absolute = copy.deepcopy(layer).requires_grad_(False)
        for tensor in absolute.parameters():
            tensor.abs_()
        products = layer.weight.numel() // layer.out_channels

        def see(
            _: nn.Module,
            given: tuple[Any, ...],
            keywords: dict[str, Any],
            output: torch.Tensor,
            absolute: nn.Module = absolute,
            products: int = products,
        ) -> torch.Tensor:
            sizes = absolute(*map(_absolute, given), **{key: _absolute(value) for key, value in keywords.items()})
            off = math.sqrt(products) * _rounding_of(output, sums=True) * sizes + _rounding_of(output) * output.abs()
            signs = torch.randint(2, output.shape, generator=generator).to(output.device) * 2 - 1
            changed: torch.Tensor = output + (off * signs).to(output.dtype)
            return changed

        layer.register_forward_hook(see, with_kwargs=True)
    return model


def _absolute(value: Any) -> Any:
    return value.abs() if isinstance(value, torch.Tensor) else value


def _rounding_of(tensor: torch.Tensor, sums: bool = False) -> float:
    """Returns the relative error of a rounding of a tensor, or of the sums that its numbers were rounded from."""
    own = torch.finfo(tensor.dtype).eps
    if sums:
        own = min(own, torch.finfo(torch.float32).eps)
    few = tensor.device.type != "cpu" or torch.get_float32_matmul_precision() != "highest"
    return max(own, _FEW_BITS) if few and tensor.dtype == torch.float32 else own


def _allowed(exact: torch.Tensor, nearby: torch.Tensor) -> float:
    """Returns the largest difference of an output that rounding explains."""
    known = exact.isfinite() & nearby.isfinite() if exact.shape == nearby.shape else torch.zeros(0, dtype=torch.bool)
    if not known.any():
        return math.inf
    one, other = exact[known].double(), nearby[known].double()
    moved, largest = (one - other).abs().max().item(), one.abs().max().item()
    return _TIMES * moved + _ROUNDINGS * _rounding_of(exact) * largest


def _difference(exact: Sequence[torch.Tensor], found: Sequence[torch.Tensor], allowed: Sequence[float]) -> str:
    """Says how outputs differ by more than is allowed; empty if they do not."""
    if len(exact) != len(found):
        return f"the model returns {len(found)} tensors instead of {len(exact)}"
    for one, other, most in zip(exact, found, allowed, strict=True):
        if one.shape != other.shape:
            return f"an output has shape {tuple(other.shape)} instead of {tuple(one.shape)}"
        known = one.isfinite()
        if not known.any():
            continue
        off = (one[known].double() - other[known].double()).abs().max().item()
        # A NaN is no larger than anything.
        if not off <= most:
            largest = one[known].abs().max().item()
            return f"an output of values up to {largest:.2g} is off by {off:.2g}, and rounding explains {most:.1g}"
    return ""
