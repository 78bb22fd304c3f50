"""`bench`: one layer, timed by PyTorch's kernels and by groupwise's, in every memory format that it may have."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from groupwise.draw.text import bench as bench_text
from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.kernels.plan import DIRECTIONS, MEMORY_FORMATS, record_plans
from groupwise.profile.report import machine
from groupwise.profile.roofline import measure_roofline
from groupwise.profile.timing import not_measured, routing_of
from groupwise.profile.verify import kernels_of
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, cost, layer_and_input

DTYPES = ("float32", "float64", "bfloat16", "float16")
WORKS = {"forward": ("forward",), "training step": DIRECTIONS}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# Shorter than this, a sample is of several calls.
_SAMPLE_SECONDS = 1e-3
_MOST_CALLS = 100
# What PyTorch's RuntimeErrors say where memory runs out, or where a size is more than any memory.
_NO_MEMORY = re.compile(r"memory(?![_ ]format)|bad_alloc|overflow", re.IGNORECASE)
# Which work, whether by groupwise's kernels, and in which memory format.
_Key = tuple[str, bool, str]


@dataclass(frozen=True)
class Timing:
    """One way to compute a layer, and the median time of one call.

    - `work`: `forward`, or `training step`: the forward and the gradients of input, weight and bias
    - `library`: whose kernels, `pytorch` or `groupwise`; `kernels`: the one that each pass took
    - `speedup`: against PyTorch in the same memory format
    - `roofline`: the share of the bound that it reaches; None for other dtypes than float32
    """

    work: str
    library: str
    memory_format: str
    kernels: Mapping[str, str]
    ms: float
    speedup: float
    roofline: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**dataclasses.asdict(self), "kernels": dict(self.kernels)}


@dataclass(frozen=True, repr=False)
class Bench:
    """One layer, timed. `print()` it for the table.

    - `cost`: the layer, its size and what it costs; `timings`: one for each way to compute it
    - `repeats`: how many samples the medians are of; `machine`: where it was measured
    - `not_measured`: why groupwise's kernels were not measured; None if they were
    """

    cost: Cost
    timings: tuple[Timing, ...]
    repeats: int
    machine: dict[str, Any]
    not_measured: str | None

    def __str__(self) -> str:
        return bench_text.table(self.to_dict(), self.cost)

    # So that a prompt shows what a notebook does.
    __repr__ = __str__

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.cost.spec.to_dict(),
            **self.cost.to_dict(),
            "timings": [timing.to_dict() for timing in self.timings],
            "repeats": self.repeats,
            "machine": self.machine,
            "not_measured": self.not_measured,
        }


def bench(
    spec_or_layer: Any,
    input_shape: Sequence[int],
    dtype: Any = None,
    threads: int | None = None,
    repeats: int = 20,
) -> Bench:
    """Time a convolution (a `ConvSpec` or a layer) on the CPU, on an input of `input_shape`, (N, in_channels, *size).

    A layer with weights of its own is made, and run by PyTorch's kernels and by groupwise's, contiguous and (2-D)
    channels_last, forward and a training step, all in turn. Times are medians of `repeats` samples, and a sample is
    one call, or the mean of as many as take a millisecond.

    - `dtype`: float32, float64, bfloat16 or float16, of which groupwise's kernels take float32; the layer's own, and
      float32 for a spec, if left out
    - `threads`: `torch.get_num_threads()` if left out

    Raises `GroupwiseError` for a shape that does not fit the layer, or the memory. Where groupwise's kernels cannot
    run, PyTorch's are timed.

    Examples:
        >>> made = bench(ConvSpec(8, 8, 3, groups=8), (1, 8, 16, 16), repeats=1)
        >>> made.timings[0].library
        'pytorch'
    """
    spec, input_shape, dtype = layer_and_input(spec_or_layer, input_shape, dtype)
    size = spec.check_input(input_shape)
    batch = check_integer("batch", input_shape[0], 1)
    at = cost(spec, size, batch, check_choice("dtype", dtype, DTYPES))
    repeats = check_integer("repeats", repeats, 1)
    with _threads(threads) as count, torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng([]):
        reason = not_measured({"cpu"})
        roofline = measure_roofline(count)
        formats = MEMORY_FORMATS if spec.dims == 2 else MEMORY_FORMATS[:1]
        ways = list(itertools.product((False,) if reason else (False, True), formats))
        calls: dict[_Key, Callable[[], object]] = {}
        kernels = {}
        with _refusing_what_does_not_fit(tuple(input_shape)):
            for route, name in ways:
                made = _calls(at, _FORMATS[name])
                calls |= {(work, route, name): call for work, call in zip(WORKS, made, strict=True)}
                kernels[route, name] = _kernels(made[-1], spec, route)
            medians = {key: statistics.median(times) * 1e3 for key, times in _interleave(calls, repeats).items()}
        about = {**machine(), "roofline": roofline.to_dict()}
    timings = []
    for work, (route, name) in itertools.product(WORKS, ways):
        ms, bound = medians[work, route, name], roofline.bound_ms(at, len(WORKS[work]))
        timings.append(
            Timing(
                work,
                "groupwise" if route else "pytorch",
                name,
                {passed: kernels[route, name][passed] for passed in WORKS[work]},
                ms,
                medians[work, False, name] / ms,
                None if bound is None else bound / ms,
            )
        )
    return Bench(at, tuple(timings), repeats, about, reason)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Let torch have so many threads."""
    before = torch.get_num_threads()
    count = before if count is None else check_integer("threads", count, 1)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _refusing_what_does_not_fit(shape: tuple[int, ...]) -> Iterator[None]:
    """Memory may run out where a tensor is made, in the first training step or between two that are timed."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        raise GroupwiseError(
            f"an input of shape {shape} and what is made of it do not fit the memory; give a smaller size or batch"
        ) from None


def _calls(at: Cost, memory_format: torch.memory_format) -> tuple[Callable[[], object], Callable[[], object]]:
    """The layer's forward and its training step, on tensors of their own."""
    layer = _layer(at)
    source = torch.randn(at.batch, at.spec.in_channels, *at.input_size, dtype=getattr(torch, at.dtype))
    source = source.contiguous(memory_format=memory_format).requires_grad_()
    if memory_format is torch.channels_last:
        layer = layer.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in its stub
    gradient = torch.randn_like(layer(source))
    wanted = [source, *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(source)

    def step() -> object:
        return torch.autograd.grad(layer(source), wanted, gradient)

    return forward, step


def _layer(at: Cost) -> torch.nn.Module:
    arguments = dataclasses.asdict(at.spec)
    transposed = arguments.pop("transposed")
    if not transposed:
        del arguments["output_padding"]
    layer = getattr(torch.nn, f"Conv{'Transpose' * transposed}{at.spec.dims}d")
    made: torch.nn.Module = layer(**arguments, dtype=getattr(torch, at.dtype))
    return made


def _kernels(step: Callable[[], object], spec: ConvSpec, route: bool) -> dict[str, str]:
    """The kernel of each pass of a training step."""
    if not route:
        return dict.fromkeys(DIRECTIONS, "pytorch")
    with routing_of(route), record_plans() as plans:
        step()
    return kernels_of(plans, DIRECTIONS, spec.transposed)


def _interleave(calls: Mapping[_Key, Callable[[], object]], repeats: int) -> dict[_Key, list[float]]:
    """Seconds of each call, all in turn, so that a slow moment of the machine falls on all alike."""
    times: dict[_Key, list[float]] = {key: [] for key in calls}
    counts = dict.fromkeys(calls, 1)
    # Two rounds warm up, and the second says how many calls make a sample.
    for number in range(-2, repeats):
        for key, call in calls.items():
            with routing_of(key[1]):
                start = time.perf_counter()
                for _ in range(counts[key]):
                    call()
                seconds = (time.perf_counter() - start) / counts[key]
            if number >= 0:
                times[key].append(seconds)
            elif number == -1:
                counts[key] = max(1, min(_MOST_CALLS, round(_SAMPLE_SECONDS / seconds)))
    return times
