"""Verification: which kernel computed each convolution, how far from float64, and whether the outputs stay the same."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from groupwise.kernels import dispatch
from groupwise.kernels.plan import Plan, record_plans
from groupwise.profile.record import ConvCall, Recorder
from groupwise.profile.timing import check_same
from groupwise.profile.workload import Workload, tensors_of

# The results of two kernels may differ by this many roundings of float32, relative to the largest value: a sum of
# thousands of products is off by tens of them, and a network of many layers by hundreds.
_ROUNDINGS = 2**10


@dataclass(frozen=True)
class Checked:
    """One convolution as groupwise's kernels compute it.

    - `kernels`: the kernel of each pass that ran, by the pass's name
    - `max_error`: the largest `relative_error` of the results of its passes, against float64; None where PyTorch
      computes no such convolution in float64
    - `hazard`: why PyTorch's kernel did not compute it on PyTorch's side; empty where it did
    """

    call: ConvCall
    kernels: Mapping[str, str]
    max_error: float | None
    hazard: str = ""


@dataclass(frozen=True)
class Agreement:
    """A model's outputs by groupwise's kernels, compared with those by PyTorch's.

    - `max_difference`: the largest `relative_error` of an output tensor of floats
    - `top1`: the fraction of the batch whose largest class is the same, in the first output of shape (batch, classes);
      None where there is no such output
    - `within_rounding`: whether the outputs, and each convolution against float64, differ by rounding only
    """

    max_difference: float
    top1: float | None
    within_rounding: bool

    def to_dict(self) -> dict[str, Any]:
        """Returns the three by name."""
        return {"max_difference": self.max_difference, "top1": self.top1, "within_rounding": self.within_rounding}


def check(workload: Workload) -> tuple[list[Checked], Agreement]:
    """Run a workload once by PyTorch's kernels and once by groupwise's, and compare.

    Raises `GroupwiseError` if the two runs execute other convolutions.
    """
    watch, checker = _Watch(workload), _Checker(workload)
    with dispatch.by_pytorch():
        expected = _outputs(workload, watch)
    with dispatch.forced(True):
        outputs = _outputs(workload, checker)
    check_same([watch.calls, checker.calls])
    checked = [
        Checked(call, checker.kernels_of(call), checker.error_of(call), watch.hazard_of(other))
        for call, other in zip(checker.calls, watch.calls, strict=True)
    ]
    return checked, _compared(outputs, expected, checked)


def kernels_of(plans: Sequence[Plan], passes: Sequence[str], transposed: bool) -> dict[str, str]:
    """The kernel of each pass of one convolution that just ran, given its plans; a pass without one fell back."""
    ran = {plan.direction: plan.kernel for plan in plans}
    # A transposed convolution's forward is a plain one's gradient, and its gradient a plain one's forward.
    other = {"forward": "grad_input", "grad_input": "forward"} if transposed else {}
    return {name: ran.get(other.get(name, name), "pytorch") for name in passes}


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float:
    """The largest absolute difference from `reference`, relative to the largest absolute value of `reference`.

    Values where the reference is not finite are skipped. A result of another shape, or one that is not finite where
    the reference is, counts as the largest float, since JSON has no infinity.
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


class _Planned(Recorder):  # type: ignore[no-untyped-call]  # torch's, without types
    """Records each convolution, and knows the plans that were made for the one that ran last."""

    plans: Sequence[Plan] = ()

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
        """Runs a convolution and keeps its plans."""
        with record_plans() as plans:
            computed = super().compute(func, args, kwargs)
        self.plans = plans
        return computed


class _Watch(_Planned):  # type: ignore[no-untyped-call]  # torch's, without types
    """Records which convolutions PyTorch's kernels do not compute on PyTorch's side, by the identity of the call."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._hazards: dict[int, str] = {}

    def hazard_of(self, call: ConvCall) -> str:
        """Why PyTorch's kernel did not compute a pass of it; empty where it computed all."""
        return self._hazards.get(id(call), "")

    def examine(
        self, call: ConvCall, passes: Sequence[str], args: tuple[Any, ...], results: Sequence[torch.Tensor | None]
    ) -> None:
        """Keeps the first hazard."""
        # PyTorch's side plans nothing else.
        for plan in self.plans:
            self._hazards.setdefault(id(call), plan.hazard)


class _Checker(_Planned):  # type: ignore[no-untyped-call]  # torch's, without types
    """Records the kernels and the errors of each convolution, by the identity of its call."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._kernels: dict[int, dict[str, str]] = {}
        self._errors: dict[int, list[float]] = {}

    def kernels_of(self, call: ConvCall) -> dict[str, str]:
        """The kernel of each pass that ran; only `aten::convolution` dispatches to groupwise's."""
        return self._kernels.get(id(call), dict.fromkeys(call.passes, "pytorch"))

    def error_of(self, call: ConvCall) -> float | None:
        """The largest error of the passes that ran; None where none could be compared."""
        return max(self._errors.get(id(call), ()), default=None)

    def examine(
        self, call: ConvCall, passes: Sequence[str], args: tuple[Any, ...], results: Sequence[torch.Tensor | None]
    ) -> None:
        """Compares the results with those of the same operator in float64."""
        self._kernels.setdefault(id(call), {}).update(kernels_of(self.plans, passes, call.spec.transposed))
        errors = self._errors.setdefault(id(call), [])
        try:
            wide = [_wide(argument) if isinstance(argument, torch.Tensor) else argument for argument in args]
            # groupwise's kernels of float64 are no reference for groupwise's.
            with dispatch.forced(False):
                references = _forward(*wide[:9]) if "forward" in passes else _backward(*wide)
        except RuntimeError:
            # Tensors of another layout (mkldnn) have no float64 form.
            return
        # The bias's gradient is left out: before a batch norm it is zero, and its computed value is all rounding.
        for result, reference in list(zip(results, references, strict=True))[:2]:
            if result is not None and reference is not None:
                errors.append(relative_error(result, reference))


def _outputs(workload: Workload, recorder: Recorder) -> list[torch.Tensor]:
    """The tensors of the model's output, from a run that `recorder` looks at."""
    with workload.unchanged() as copies, recorder.naming(), recorder:
        output, _ = copies.execute()
        return [tensor.detach().clone() for tensor in tensors_of(output)]


def _forward(*arguments: Any) -> Sequence[torch.Tensor | None]:
    return (torch.ops.aten.convolution.default(*arguments),)


def _backward(*arguments: Any) -> Sequence[torch.Tensor | None]:
    gradients: Sequence[torch.Tensor | None] = torch.ops.aten.convolution_backward.default(*arguments)
    return gradients


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    # Some gradients of tensors in other formats PyTorch computes wrongly ("Where PyTorch is wrong" in docs/kernels.md).
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).contiguous()


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
    """The largest difference that counts as rounding: of float32, in which kernels compute, or of a coarser dtype."""
    own = torch.finfo(dtype).eps if dtype.is_floating_point or dtype.is_complex else 0.0
    return max(_ROUNDINGS * torch.finfo(torch.float32).eps, 4 * own)
