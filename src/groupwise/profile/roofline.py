"""The roofline floor: the least time that this machine allows a convolution.

By the roofline model (Williams, Waterman and Patterson, 2009) a kernel computes no faster than the processor's peak and
moves bytes no faster than its memory. Here the peak is the faster of a matrix product and of multiply-adds on the
registers of each core, and a copy stands for the memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from groupwise.kernels import native
from groupwise.spec.cost import Cost

# The product is large enough to reach the peak. The copy is as large as an activation of an early layer: 2 MiB, which
# fits the caches of most processors.
_SIDE = 768
_COPIED = 2**21


@dataclass(frozen=True)
class Roofline:
    """What the CPU reaches: `flops` in float32 FLOP per second, `bandwidth` in bytes per second."""

    flops: float
    bandwidth: float

    def floor_ms(self, at: Cost, passes: int = 1) -> float | None:
        """The roofline floor of so many passes of a convolution, in ms: max(FLOP / peak, bytes once / bandwidth) each.

        FLOP are twice the MACs, and bytes those that a pass moves at least, both as `cost` counts them; every pass of a
        convolution has the same. None for other dtypes than float32, whose peak is not measured.
        """
        if at.dtype != "float32":
            return None
        return passes * max(2 * at.macs.forward / self.flops, at.bytes / self.bandwidth) * 1e3

    def to_dict(self) -> dict[str, float]:
        """Returns both by name."""
        return {"flop_per_second": self.flops, "bytes_per_second": self.bandwidth}


@cache
def measure_roofline(threads: int) -> Roofline:
    """Measure the roofline of this process with PyTorch's `threads` threads: once a process, in about 0.2 s."""
    with torch.inference_mode():
        left = torch.ones(_SIDE, _SIDE)
        product = torch.empty_like(left)
        source = torch.ones(_COPIED // 4)
        copied = torch.empty_like(source)
        flops = 2 * _SIDE**3 / _fastest(lambda: torch.mm(left, left, out=product))
        # A product may stay far below the peak, which multiply-adds on registers reach.
        if native.status().problem is None:
            flops = max(flops, threads * native.machine()["peak"])
        # A copy reads the source and writes as much.
        return Roofline(flops, 2 * _COPIED / _fastest(lambda: copied.copy_(source)))


def _fastest(work: Callable[[], object], seconds: float = 0.1) -> float:
    """The least time, in seconds, of as many runs as fit in `seconds`, at least two: the first one warms up."""
    times: list[float] = []
    while len(times) < 2 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)
