"""What a model's convolutions compute with groupwise's kernels: by which kernel, how far from float64, and whether the
model's outputs stay what they are without.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from groupwise.kernels import dispatch
from groupwise.kernels.plan import Plan, record_plans
from groupwise.profile import count as counting
from groupwise.profile.record import ConvCall, Recorder

# Roundings of float32 that results of two kernels may be apart, of the largest value: a sum of thousands of products
# is off by tens of them, and a network of many layers by hundreds.
_ROUNDINGS = 2**10


@dataclass(frozen=True)
class Checked:
    """One convolution as the kernels compute it.

    - `kernels`: the one that each pass took, by the pass's name
    - `max_error`: the largest `relative_error` of what its passes gave, against float64; None where torch computes no
      such convolution in float64
    """

    call: ConvCall
    kernels: Mapping[str, str]
    max_error: float | None


@dataclass(frozen=True)
class Agreement:
    """A model's outputs with the kernels against those without.

    - `max_difference`: the largest `relative_error` of an output tensor of floats
    - `top1`: the share of the batch whose largest class is the same, of the first output of shape (batch, classes)
    - `within_rounding`: whether the outputs, and each convolution against float64, differ by rounding only
    """

    max_difference: float
    top1: float | None
    within_rounding: bool

    def to_dict(self) -> dict[str, Any]:
        """The three by name."""
        return {"max_difference": self.max_difference, "top1": self.top1, "within_rounding": self.within_rounding}


def check(
    model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], backward: bool
) -> tuple[list[Checked], Agreement]:
    """Run a model once without the kernels and once with them, and compare."""
    with dispatch.forced(False):
        expected = counting.outputs_of(model, inputs, keywords, backward, Recorder(model))
    checker = _Checker(model)
    with dispatch.forced(True):
        outputs = counting.outputs_of(model, inputs, keywords, backward, checker)
    checked = [
        Checked(call, checker.kernels[id(call)], max(checker.errors[id(call)], default=None)) for call in checker.calls
    ]
    return checked, _compared(outputs, expected, checked)


def kernels_of(plans: Sequence[Plan], passes: Sequence[str], transposed: bool) -> dict[str, str]:
    """Returns the kernel of each pass of one convolution, whose `plans` were recorded; without a plan PyTorch ran."""
    ran = {plan.direction: plan.kernel for plan in plans}
    # A transposed convolution's forward is a plain one's gradient, and its gradient a plain one's forward.
    other = {"forward": "grad_input", "grad_input": "forward"} if transposed else {}
    return {name: ran.get(other.get(name, name), "pytorch") for name in passes}


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest absolute difference from `reference`, relative to the largest absolute value of `reference`.

    Where the reference is not finite nothing is compared. A result of another shape, or not finite where the reference
    is, counts as the largest float, since JSON has no infinity.
    """
    if result.shape != reference.shape:
        return sys.float_info.max
    known = torch.isfinite(reference)
    wide = torch.complex128 if reference.is_complex() else torch.float64
    reference, result = reference[known].to(wide), result[known].to(wide)
    if not reference.numel():
        return 0.0
    error = (result - reference).abs().max().item() / (reference.abs().max().item() or 1.0)
    return error if math.isfinite(error) else sys.float_info.max


class _Checker(Recorder):  # type: ignore[no-untyped-call]  # torch's, without types
    """Records the kernels and the errors of each convolution, by the identity of its call."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__(model)
        self.kernels: dict[int, dict[str, str]] = {}
        self.errors: dict[int, list[float]] = {}
        self._examined: tuple[ConvCall, Sequence[str]] | None = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not str(func).startswith("aten.convolution"):
            return super().__torch_dispatch__(func, types, args, kwargs)
        with record_plans() as plans:
            result = super().__torch_dispatch__(func, types, args, kwargs)
        if self._examined is not None:
            call, passes = self._examined
            self.kernels.setdefault(id(call), {}).update(kernels_of(plans, passes, call.spec.transposed))
            self._examined = None
        return result

    def examine(
        self, call: ConvCall, passes: Sequence[str], args: tuple[Any, ...], results: Sequence[torch.Tensor | None]
    ) -> None:
        """Compare the results with those of the same operator in float64."""
        self._examined = call, passes
        errors = self.errors.setdefault(id(call), [])
        try:
            wide = [_wide(argument) if isinstance(argument, torch.Tensor) else argument for argument in args]
            references = _forward(*wide[:9]) if "forward" in passes else _backward(*wide)
        except RuntimeError:
            # Tensors of another layout (mkldnn) have no float64.
            return
        # The bias's gradient is left out: before a batch norm it is zero, and all that is computed of it rounding.
        for result, reference in list(zip(results, references, strict=True))[:2]:
            if result is not None and reference is not None:
                errors.append(relative_error(result, reference))


def _forward(*arguments: Any) -> Sequence[torch.Tensor | None]:
    return (torch.ops.aten.convolution.default(*arguments),)


def _backward(*arguments: Any) -> Sequence[torch.Tensor | None]:
    gradients: Sequence[torch.Tensor | None] = torch.ops.aten.convolution_backward.default(*arguments)
    return gradients


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def _compared(
    outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], checked: Sequence[Checked]
) -> Agreement:
    if len(outputs) != len(expected):
        return Agreement(sys.float_info.max, None, False)
    pairs = [(a, b) for a, b in zip(outputs, expected, strict=True) if b.is_floating_point() or b.is_complex()]
    differences = [relative_error(a, b) for a, b in pairs]
    found = [(difference, b.dtype) for difference, (_, b) in zip(differences, pairs, strict=True)]
    found += [(one.max_error or 0.0, getattr(torch, one.call.cost.dtype)) for one in checked]
    scores = next(((a, b) for a, b in pairs if a.shape == b.shape and b.dim() == 2 and b.numel()), None)
    top1 = None
    if scores is not None and not scores[1].is_complex():
        top1 = (scores[0].argmax(1) == scores[1].argmax(1)).double().mean().item()
    return Agreement(max(differences, default=0.0), top1, all(error <= _rounding(dtype) for error, dtype in found))


def _rounding(dtype: torch.dtype) -> float:
    """What is taken for rounding: of float32, in which the kernels compute, or some of a dtype that is coarser."""
    own = torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
    return max(_ROUNDINGS * torch.finfo(torch.float32).eps, 4 * own)
