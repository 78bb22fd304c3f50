"""The least time that this machine allows a convolution, by the roofline model: it computes no faster than a matrix
product, and moves bytes no faster than a copy.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from groupwise.spec.cost import Cost

# A product large enough to reach the peak, and a copy as large as an activation of an early layer: 2 MiB, which fits
# the caches of most processors.
_SIDE = 768
_COPIED = 2**21


@dataclass(frozen=True)
class Roofline:
    """What the CPU reaches: float32 FLOP a second, and bytes a second."""

    flops: float
    bandwidth: float

    def bound_ms(self, at: Cost, passes: int = 1) -> float | None:
        """The least time of so many passes of a convolution; None for dtypes that the peak is not of.

        FLOP are twice the MACs and bytes those that a pass moves at least, both as `cost` counts them; each pass of a
        convolution has the same.
        """
        if at.dtype != "float32":
            return None
        return passes * max(2 * at.macs.forward / self.flops, at.bytes / self.bandwidth) * 1e3

    def to_dict(self) -> dict[str, float]:
        """Both by name."""
        return {"flop_per_second": self.flops, "bytes_per_second": self.bandwidth}


@cache
def measure_roofline(threads: int) -> Roofline:
    """The roofline of this process on torch's threads, which are `threads`: measured once, in about 0.2 s."""
    with torch.inference_mode():
        left = torch.ones(_SIDE, _SIDE)
        product = torch.empty_like(left)
        source = torch.ones(_COPIED // 4)
        copied = torch.empty_like(source)
        flops = 2 * _SIDE**3 / _fastest(lambda: torch.mm(left, left, out=product))
        # The source is read and the copy written.
        return Roofline(flops, 2 * _COPIED / _fastest(lambda: copied.copy_(source)))


def _fastest(work: Callable[[], object], seconds: float = 0.1) -> float:
    """The least time of as many runs as fit in `seconds`, at least two: the first one warms up."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
