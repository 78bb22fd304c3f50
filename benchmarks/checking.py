"""No figure comes from a wrong result: what is timed is first compared with float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

# A kernel of this package may have at most this many times PyTorch's own error.
TIMES_PYTORCH = 2.0
# An inference engine may use Winograd's transforms, which cost some digits, and may sum in 16 bits. Beyond these errors
# it computes wrong, or in another dtype.
ENGINE_ERROR = {"float32": 1e-3, "bfloat16": 2**-5, "float16": 2**-7, "float64": 1e-10}


class WrongResult(Exception):
    """Raised for a result that is too far from float64 to be timed."""


def largest_error(result: Tensor, exact: Tensor) -> float:
    """Returns the largest difference of any value, relative to the largest exact value."""
    if result.shape != exact.shape:
        return float("inf")
    scale = exact.abs().max().item() or 1.0
    error = (result.double() - exact).abs().max().item() / scale
    # NaN compares false with everything, and is a large error here.
    return error if error == error else float("inf")


def mean_error(result: Tensor, exact: Tensor) -> float:
    """Returns the root mean square difference, relative to that of the exact values."""
    if result.shape != exact.shape:
        return float("inf")
    error = ((result.double() - exact).norm() / (exact.norm() or 1.0)).item()
    return error if error == error else float("inf")


def check_error(
    what: str, ours: float, pytorch: float, dtype: torch.dtype = torch.float32, of_oracle: float = 0.0
) -> None:
    """Raises `WrongResult` if an error exceeds twice PyTorch's plus the rounding of the output, and of the oracle."""
    allowed = TIMES_PYTORCH * pytorch + torch.finfo(dtype).eps + of_oracle
    if not ours <= allowed:
        raise WrongResult(
            f"{what} is {ours:.2e} from float64, and PyTorch's {pytorch:.2e}; at most {allowed:.2e} is timed"
        )


def bound_of_sum(products: int, sizes: Tensor, exact: Tensor) -> float:
    """Returns how far two float64 sums of so many products may differ, relative to the largest exact value.

    `sizes` are the sums of the products' absolute values. Each sum is within `products * u` times its size, whatever
    its order (Higham, Accuracy and Stability of Numerical Algorithms, section 4.2).
    """
    return products * torch.finfo(torch.float64).eps * sizes.max().item() / (exact.abs().max().item() or 1.0)


def check(
    what: str,
    ours: Sequence[Mapping[str, Tensor]],
    pytorch: Sequence[Mapping[str, Tensor]],
    exact: Mapping[str, Tensor],
    dtype: torch.dtype = torch.float32,
    of_oracle: Mapping[str, float] | None = None,
) -> tuple[float, float]:
    """Compares named results of a dtype, of one memory format or several, with float64.

    `of_oracle` says how far each oracle may itself be from the exact value, which matters for results of float64.
    Returns the largest error of groupwise and of PyTorch. Raises `WrongResult` if groupwise's is too large beside the
    largest that PyTorch has in any of its memory formats.
    """
    errors = {}
    for name, right in exact.items():
        mine, theirs = (max(largest_error(one[name], right) for one in some) for some in (ours, pytorch))
        check_error(f"{what}: {name}", mine, theirs, dtype, (of_oracle or {}).get(name, 0.0))
        errors[name] = mine, theirs
    return max(mine for mine, _ in errors.values()), max(theirs for _, theirs in errors.values())


def check_engine(what: str, result: Tensor, exact: Tensor, dtype: str = "float32") -> float:
    """Returns the error of an inference engine's output. Raises `WrongResult` if it is too large."""
    error, allowed = largest_error(result, exact), ENGINE_ERROR[dtype]
    if not error <= allowed:
        raise WrongResult(f"{what} is {error:.2e} from float64; at most {allowed:.0e} is timed in {dtype}")
    return error
