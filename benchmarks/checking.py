"""No figure from a wrong result: what is timed is compared with float64 first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# PyTorch's own error, doubled, is what a kernel of this package may have.
TIMES_PYTORCH = 2.0
# An inference engine may transform (Winograd), at the price of some digits.
ENGINE_ERROR = 1e-3


class WrongResult(Exception):
    """A result that is too far from float64 to be timed."""


def largest_error(result: Tensor, exact: Tensor) -> float:
    """The largest deviation of any value, as a share of the largest exact value."""
    if result.shape != exact.shape:
        return float("inf")
    scale = exact.abs().max().item() or 1.0
    error = (result.double() - exact).abs().max().item() / scale
    # No number is no small error, whatever it is compared with.
    return error if error == error else float("inf")


def mean_error(result: Tensor, exact: Tensor) -> float:
    """The root of the mean square deviation, as a share of that of the exact values."""
    if result.shape != exact.shape:
        return float("inf")
    error = ((result.double() - exact).norm() / (exact.norm() or 1.0)).item()
    return error if error == error else float("inf")


def check_error(what: str, ours: float, pytorch: float, dtype: torch.dtype = torch.float32) -> None:
    """Raise `WrongResult` if an error exceeds twice PyTorch's and the rounding of the output."""
    allowed = TIMES_PYTORCH * pytorch + torch.finfo(dtype).eps
    if not ours <= allowed:
        raise WrongResult(
            f"{what} is {ours:.2e} from float64, and PyTorch's {pytorch:.2e}; at most {allowed:.2e} is timed"
        )


def check(
    what: str,
    ours: Sequence[Mapping[str, Tensor]],
    pytorch: Sequence[Mapping[str, Tensor]],
    exact: Mapping[str, Tensor],
) -> tuple[float, float]:
    """Compare named results, of one memory format or several, with float64.

    The larger of PyTorch's errors counts: it takes either for right. Gives the largest error of ours and of
    PyTorch's, or raises `WrongResult`.
    """
    errors = {}
    for name, right in exact.items():
        mine, theirs = (max(largest_error(one[name], right) for one in some) for some in (ours, pytorch))
        check_error(f"{what}: {name}", mine, theirs)
        errors[name] = mine, theirs
    return max(mine for mine, _ in errors.values()), max(theirs for _, theirs in errors.values())


def check_engine(what: str, result: Tensor, exact: Tensor) -> float:
    """The error of an inference engine's output, or `WrongResult`."""
    error = largest_error(result, exact)
    if not error <= ENGINE_ERROR:
        raise WrongResult(f"{what} is {error:.2e} from float64; at most {ENGINE_ERROR:.0e} is timed")
    return error
