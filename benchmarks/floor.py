"""The roofline floor: the least time that this machine could take for a layer.

    floor = max(FLOP / peak, bytes once / copy rate)        a training step has three such passes

The peak is the rate of a loop of fused multiply-adds on registers, which the C++ compiler makes of the lines below;
without a compiler, it is the rate of torch's matrix product, some 15 % less. In bfloat16 it is the faster of such a
loop, where the processor has AVX512-BF16, and of torch's matrix product, which may use AMX. The copy rate counts the
bytes that `tensor.copy_` reads and writes between tensors of 1 to 4 MiB, which stay in L3 on most machines. A method
with less arithmetic (Winograd) can take less than the floor, and so can a small layer whose tensors stay in L2.

    python benchmarks/floor.py [--threads 1 2]
"""

from __future__ import annotations

import argparse
import ctypes
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from groupwise import Cost

LOOP = r"""
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float vector __attribute__((vector_size(BYTES)));
// Two fused multiply-adds a cycle need this many sums in flight. Returns the FLOP of the loop.
extern "C" double burn(long rounds) {
  vector sums[12], factor = {}, term = {};
  for (int i = 0; i < 12; i++) sums[i] = term + float(i);
  factor += 0.999f;
  term += 0.001f;
  for (long round = 0; round < rounds; round++)
    for (int i = 0; i < 12; i++) sums[i] = sums[i] * factor + term;
  for (int i = 1; i < 12; i++) sums[0] += sums[i];
  // The sum is read, so that the compiler keeps the loop.
  return sums[0][0] < -1 ? 0 : 2.0 * 12 * (BYTES / 4) * rounds;
}

// The same of products of pairs of bfloat16 numbers; 0 where the processor has none.
extern "C" double burn_bfloat16(long rounds) {
#ifdef __AVX512BF16__
  __m512 sums[12];
  for (int i = 0; i < 12; i++) sums[i] = _mm512_set1_ps(float(i));
  __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.999f), _mm512_set1_ps(0.999f));
  __m512bh term = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.001f), _mm512_set1_ps(0.001f));
  for (long round = 0; round < rounds; round++)
    for (int i = 0; i < 12; i++) sums[i] = _mm512_dpbf16_ps(sums[i], factor, term);
  for (int i = 1; i < 12; i++) sums[0] = _mm512_add_ps(sums[0], sums[i]);
  return _mm512_reduce_add_ps(sums[0]) < -1 ? 0 : 2.0 * 2 * 12 * 16 * rounds;
#else
  return 0;
#endif
}
"""
FLAGS = ["-O3", "-march=native", "-ffp-contract=fast", "-funroll-loops", "-shared", "-fPIC", "-x", "c++"]
COPIED_MIB = (1, 2, 4)


@dataclass(frozen=True)
class Peaks:
    """The best rates of the machine with a number of threads: FLOP and copied bytes per second."""

    threads: int
    flop: float
    copied_bytes: float
    flop_by: str

    def floor_ms(self, cost: Cost, training: bool = False) -> float:
        """Returns the roofline floor of a layer's forward, or of its training step, in ms."""
        passes = 3 if training else 1
        return passes * 1e3 * max(2 * cost.macs.forward / self.flop, cost.bytes / self.copied_bytes)


def measure(threads: int, dtype: str = "float32") -> Peaks:
    """Measures the peaks with that many threads, of float32 or bfloat16; torch keeps its own number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        flop, by = _flop(threads, dtype)
        return Peaks(threads, flop, copy_rate(), by)
    finally:
        torch.set_num_threads(before)


def _best(call: Callable[[], object], runs: int) -> float:
    best = float("inf")
    for _ in range(runs):
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best


def _flop(threads: int, dtype: str) -> tuple[float, str]:
    found = _compiled()
    looped = 0.0 if found is None else _looped(threads, found[dtype])
    if looped and dtype == "float32":
        return looped, "multiply-add loop"
    size = 1024
    left, right, out = (torch.ones(size, size, dtype=getattr(torch, dtype)) for _ in range(3))
    product = 2 * size**3 / _best(lambda: torch.mm(left, right, out=out), 20)
    return max((looped, "loop of products of pairs"), (product, "torch.mm"))


def _looped(threads: int, burn: Callable[[int], float]) -> float:
    """Returns the FLOP per second of a loop in that many threads, 0 where the processor lacks its instruction."""
    rounds = 1_000_000
    # ctypes releases the interpreter's lock, so threads of Python run in parallel.
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best(lambda: list(pool.map(burn, [rounds] * threads)), 100)
    return threads * burn(rounds) / seconds


def loop() -> Callable[[int], float]:
    """Returns the loop of multiply-adds for one thread: a function from a number of rounds to their FLOP."""
    found = _compiled()
    if found is None:
        raise SystemExit("the peak is that of a compiled loop: this needs c++, g++ or clang++")
    return found["float32"]


@cache
def _compiled() -> dict[str, Callable[[int], float]] | None:
    """Returns the loop of each dtype, or None without a compiler."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "burn.so"
        made = subprocess.run([compiler, *FLAGS, "-", "-o", str(path)], input=LOOP, text=True, check=False)
        if made.returncode:
            return None
        library = ctypes.CDLL(str(path))
    found = {"float32": library.burn, "bfloat16": library.burn_bfloat16}
    for burn in found.values():
        burn.restype, burn.argtypes = ctypes.c_double, [ctypes.c_long]
    return found


def copy_rate(sizes: Sequence[int] = COPIED_MIB, runs: int = 200) -> float:
    """Measures bytes per second, read and written, at the best of the sizes, which are in MiB."""
    rates = []
    for mib in sizes:
        source = torch.ones(mib << 18)
        target = torch.empty_like(source)
        rates.append(2 * source.nbytes / _best(lambda target=target, source=source: target.copy_(source), runs))
    return max(rates)


def main() -> None:
    """Prints the peaks."""
    parser = argparse.ArgumentParser(description="Measure the rates from which the roofline floor of a layer follows.")
    parser.add_argument("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    for threads in parser.parse_args().threads:
        peaks = measure(threads)
        print(
            f"{threads} thread{'s' * (threads > 1)}: {peaks.flop / 1e9:.1f} GFLOP/s ({peaks.flop_by}), "
            f"copy {peaks.copied_bytes / 1e9:.1f} GB/s"
        )


if __name__ == "__main__":
    main()
