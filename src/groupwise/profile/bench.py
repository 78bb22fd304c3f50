"""`bench`: one layer, timed by PyTorch's kernels and by groupwise's, in every memory format that it can have."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import pathlib
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from groupwise.draw.html import page as html
from groupwise.draw.text import bench as bench_text
from groupwise.draw.text.table import Tabular
from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.kernels.plan import DIRECTIONS, MEMORY_FORMATS, record_plans
from groupwise.nn.layer import layer_of
from groupwise.profile.bench_change import BenchChange, check_comparable, read_bench
from groupwise.profile.machine import machine
from groupwise.profile.measuring import UNKNOWN, Interference, Meter
from groupwise.profile.roofline import measure_roofline
from groupwise.profile.timing import dispatching, not_measured
from groupwise.profile.verify import kernels_of
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, cost, layer_and_input

DTYPES = ("float32", "float64", "bfloat16", "float16")
WORKS = {"forward": ("forward",), "training step": DIRECTIONS}
_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
# A sample that would be shorter than this is the mean of several calls.
_SAMPLE_SECONDS = 1e-3
_MOST_CALLS = 100
# PyTorch's RuntimeErrors say one of these where memory runs out, or where a size exceeds any memory.
_NO_MEMORY = re.compile(r"memory(?![_ ]format)|bad_alloc|overflow", re.IGNORECASE)
# A key says which work, whether by groupwise's kernels, and in which memory format.
_Key = tuple[str, bool, str]


@dataclass(frozen=True)
class Timing:
    """The median time of one call of a layer, by one library in one memory format.

    - `work`: `forward`, or `training step`: the forward and the gradients of input, weight and bias
    - `library`: whose kernels, `pytorch` or `groupwise`; `kernels`: the kernel of each pass
    - `ms`, `q1_ms`, `q3_ms`: the median of the samples, and the quartiles, between which half of them lie
    - `speedup`: PyTorch's time in the same memory format over this one; None where PyTorch's kernels were not run
    - `roofline`: the fraction of peak that it reaches: its roofline floor over its time; None for other dtypes than
      float32
    """

    work: str
    library: str
    memory_format: str
    kernels: Mapping[str, str]
    ms: float
    q1_ms: float
    q3_ms: float
    speedup: float | None
    roofline: float | None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {**dataclasses.asdict(self), "kernels": dict(self.kernels)}


@dataclass(frozen=True, repr=False)
class Bench(Tabular):
    """One layer, timed. `print()` it for the table.

    - `cost`: the layer, its size and what it costs
    - `timings`: one for each work, library and memory format
    - `repeats`: how many samples each median is taken over; `machine`: where it was measured
    - `not_measured`: why groupwise's kernels were not measured; None if they were
    - `interference`: what other processes took meanwhile
    - `hazards`: why PyTorch's kernels were not run, by the work and the memory format, as in `"forward, contiguous"`
    """

    cost: Cost
    timings: tuple[Timing, ...]
    repeats: int
    machine: dict[str, Any]
    not_measured: str | None
    interference: Interference = UNKNOWN
    hazards: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return bench_text.table(self.to_dict(), self.cost)

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return html.element("pre", str(self))

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and the values of each timing."""
        return bench_text.columns(self.to_dict()["timings"])

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types."""
        return {
            **self.cost.spec.to_dict(),
            **self.cost.to_dict(),
            "timings": [timing.to_dict() for timing in self.timings],
            "repeats": self.repeats,
            "machine": self.machine,
            "not_measured": self.not_measured,
            "interference": self.interference.to_dict(),
            "hazards": dict(self.hazards),
        }

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the run to a file, as JSON, for `compare` of a later one."""
        # A file that is there stays whole until the new one is.
        partial = pathlib.Path(f"{path}.partial")
        partial.write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")
        partial.replace(path)

    def compare(self, before: Bench | Mapping[str, Any] | str | pathlib.Path) -> BenchChange:
        """Returns what changed since an earlier run of the same layer: a `Bench`, its `to_dict()`, or a file of that.

        Raises `GroupwiseError` for a file that `save` did not write, and for a run of another layer, processor or
        number of threads.
        """
        if isinstance(before, Bench):
            before = before.to_dict()
        earlier = before if isinstance(before, Mapping) else read_bench(before)
        check_comparable(earlier, self.cost, self.machine["threads"], self.machine["processor"])
        return BenchChange(self.cost, earlier, self.to_dict())


def bench(
    spec_or_layer: Any,
    input_shape: Sequence[int],
    dtype: Any = None,
    threads: int | None = None,
    repeats: int = 20,
) -> Bench:
    """Time a convolution (a `ConvSpec` or a layer) on the CPU, on an input of `input_shape`, (N, in_channels, *size).

    groupwise makes a layer with weights of its own and runs it by PyTorch's kernels and by groupwise's, contiguous and
    (2-D) channels_last, forward and training step, all in turn. Each time is the median of `repeats` samples; a sample
    is one call, or the mean of as many calls as take a millisecond.

    - `dtype`: float32, float64, bfloat16 or float16, all of which groupwise's kernels take. If left out: the layer's
      own, or float32 for a spec
    - `threads`: how many threads PyTorch's pool may use; `torch.get_num_threads()` if left out

    Raises `GroupwiseError` for a shape that does not fit the layer, and for one that does not fit the memory. Where
    groupwise's kernels cannot run, only PyTorch's are timed; where PyTorch's may end the process, or never end
    themselves, only groupwise's are.

    Examples:
        >>> made = bench(ConvSpec(8, 8, 3, groups=8), (1, 8, 16, 16), repeats=1)
        >>> made.timings[0].library
        'pytorch'
    """
    spec, input_shape, dtype = layer_and_input(spec_or_layer, input_shape, dtype)
    size = spec.check_input(input_shape)
    batch = check_integer("batch", input_shape[0], 1)
    at = cost(spec, size, batch=batch, dtype=check_choice("dtype", dtype, DTYPES))
    repeats = check_integer("repeats", repeats, 1)
    with _threads(threads) as count, torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng([]):
        reason = not_measured({"cpu"})
        roofline = measure_roofline(count)
        formats = MEMORY_FORMATS if spec.dims == 2 else MEMORY_FORMATS[:1]
        pairs = list(itertools.product((False,) if reason else (False, True), formats))
        calls: dict[_Key, Callable[[], object]] = {}
        kernels, hazards = {}, {}
        with _refusing_what_does_not_fit(tuple(input_shape)):
            for ours, name in pairs:
                made = _calls(at, _FORMATS[name])
                for work, call in zip(WORKS, made, strict=True):
                    if hazard := "" if ours else _hazard(call):
                        hazards[f"{work}, {name}"] = hazard
                    else:
                        calls[work, ours, name] = call
                kernels[ours, name] = _kernels(made[-1], spec, ours)
            meter = Meter()
            spread = {key: _quartiles(times) for key, times in _interleave(calls, repeats).items()}
            interference = meter.read()
        about = {**machine(), "roofline": roofline.to_dict()}
    timings = []
    for work, (ours, name) in itertools.product(WORKS, pairs):
        if (work, ours, name) not in spread:
            continue
        pytorch = spread.get((work, False, name))
        (q1, ms, q3), floor = spread[work, ours, name], roofline.floor_ms(at, len(WORKS[work]))
        timings.append(
            Timing(
                work,
                "groupwise" if ours else "pytorch",
                name,
                {passed: kernels[ours, name][passed] for passed in WORKS[work]},
                ms,
                q1,
                q3,
                None if pytorch is None else pytorch[1] / ms,
                None if floor is None else floor / ms,
            )
        )
    return Bench(at, tuple(timings), repeats, about, reason, interference, hazards)


@contextlib.contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Let PyTorch use that many threads within the block."""
    before = torch.get_num_threads()
    count = before if count is None else check_integer("threads", count, 1)
    torch.set_num_threads(count)
    try:
        yield count
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _refusing_what_does_not_fit(shape: tuple[int, ...]) -> Iterator[None]:
    """Turn an error of memory, wherever it runs out, into one that names the input's shape."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _NO_MEMORY.search(str(error)):
            raise
        raise GroupwiseError(
            f"an input of shape {shape} and the tensors computed from it do not fit the memory; give a smaller size or "
            "batch"
        ) from None


def _calls(at: Cost, memory_format: torch.memory_format) -> tuple[Callable[[], object], Callable[[], object]]:
    """The layer's forward and its training step, on tensors of their own."""
    layer = layer_of(at.spec, getattr(torch, at.dtype))
    source = torch.randn(at.batch, at.spec.in_channels, *at.input_size, dtype=getattr(torch, at.dtype))
    source = source.contiguous(memory_format=memory_format).requires_grad_()
    if memory_format is torch.channels_last:
        layer = layer.to(memory_format=memory_format)  # type: ignore[call-overload]  # not in its stub
    with dispatching(False):
        gradient = torch.randn_like(layer(source))
    wanted = [source, *layer.parameters()]

    def forward() -> object:
        with torch.no_grad():
            return layer(source)

    def step() -> object:
        return torch.autograd.grad(layer(source), wanted, gradient)

    return forward, step


def _hazard(call: Callable[[], object]) -> str:
    """What PyTorch's kernels of a call may do to the process, in which groupwise's then compute; empty for nothing."""
    with dispatching(False), record_plans() as plans:
        call()
    return plans[0].hazard if plans else ""


def _kernels(step: Callable[[], object], spec: ConvSpec, ours: bool) -> dict[str, str]:
    """The kernel of each pass of a training step."""
    if not ours:
        return dict.fromkeys(DIRECTIONS, "pytorch")
    with dispatching(ours), record_plans() as plans:
        step()
    return kernels_of(plans, DIRECTIONS, spec.transposed)


def _quartiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """The first quartile, the median and the third, in ms; of one sample, that."""
    ordered = sorted(seconds) * (2 if len(seconds) == 1 else 1)
    first, middle, third = statistics.quantiles(ordered, n=4, method="inclusive")
    return first * 1e3, middle * 1e3, third * 1e3


def _interleave(calls: Mapping[_Key, Callable[[], object]], repeats: int) -> dict[_Key, list[float]]:
    """The seconds of each call, all timed in turn, so that a slow moment of the machine affects all alike."""
    times: dict[_Key, list[float]] = {key: [] for key in calls}
    counts = dict.fromkeys(calls, 1)
    # Two rounds warm up, and the second determines how many calls make a sample.
    for number in range(-2, repeats):
        for key, call in calls.items():
            with dispatching(key[1]):
                start = time.perf_counter()
                for _ in range(counts[key]):
                    call()
                seconds = (time.perf_counter() - start) / counts[key]
            if number >= 0:
                times[key].append(seconds)
            elif number == -1:
                counts[key] = max(1, min(_MOST_CALLS, round(_SAMPLE_SECONDS / seconds)))
    return times
