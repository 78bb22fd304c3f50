"""`plan` and `record_plans`: which kernel computes a convolution, and why; and which kernels computed what ran.

The one planner is in the native core, so `plan` shows what dispatch does.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.kernels import native
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import layer_and_input
from groupwise.spec.effective import effective
from groupwise.spec.legible import Printed

KERNELS = ("planar", "narrow", "groups", "dots", "pixels", "gemm", "brgemm", "stem", "pairs", "fft", "pytorch")
DIRECTIONS = ("forward", "grad_input", "grad_weight")
MEMORY_FORMATS = ("contiguous", "channels_last")
ALL_FORMATS = (*MEMORY_FORMATS, "channels_last_3d")


def formats_of(dims: int) -> tuple[str, ...]:
    """Returns the memory formats of a convolution of so many dimensions, by their names in PyTorch."""
    return {1: ALL_FORMATS[:1], 2: MEMORY_FORMATS, 3: ("contiguous", "channels_last_3d")}[dims]


@dataclass(frozen=True)
class Plan(Printed):
    """How one convolution, or one gradient of it, is computed. `print()` it for the reasons."""

    kernel: str
    """One of `KERNELS`: a kernel of groupwise, or `pytorch`, PyTorch's own."""
    direction: str
    """`forward`, `grad_input` or `grad_weight`. A transposed convolution's forward is a plain one's `grad_input`."""
    memory_format: str
    """`contiguous` or `channels_last`, which is `channels_last_3d` in 3-D."""
    isa: str
    """The instruction set: `baseline`, `avx2` or `avx512`; `neon` on aarch64."""
    threads: int
    """How many threads compute: 1 where the work is too little for more, as `sharing` says then."""
    shape: Mapping[str, Any]
    """batch, groups, in_channels and out_channels; input_size, output_size, kernel_size, stride, padding and dilation
    as (height, width), or (depth, height, width) in 3-D. They describe the plain convolution whose `direction` this
    plan computes."""
    source: str = "sole"
    """Who chose the kernel: `measured` (timings of this machine), `table` (records of processors like this one),
    `model` (a cost model), `order` (PyTorch's time is not known: the kernel that is fastest in float32 or 2-D, else the
    first of the table of kernels), `forced` (the caller), or `sole`, where only one kernel can run."""
    evidence: str = ""
    """What the source says for the kernel."""
    speedup: float | None = None
    """How many times as fast as PyTorch's kernel the source expects the kernel to be, if it says so."""
    sharing: str = ""
    """Why fewer threads compute than were asked for."""
    hazard: str = ""
    """What PyTorch's kernel may do to the process here; groupwise then computes this whatever its speed."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a kernel cannot run, by its name."""
    others: Mapping[str, str] = field(default_factory=dict)
    """What the source says of each other kernel that can run, by its name."""
    tile: str | None = None
    """What one pass of the inner loop computes. This field and those below are None for `pytorch`."""
    block: Mapping[str, int] | None = None
    """How many output rows, columns and groups one task computes."""
    tasks: int | None = None
    """How many tasks the threads share."""
    products: int | None = None
    """How many multiply-accumulates are executed, those on padding and in the empty lanes of vectors among them."""
    scratch_bytes: int | None = None
    """The memory that each thread uses beside the tensors, in bytes."""

    @property
    def reason(self) -> str:
        """Says in one line why this kernel runs."""
        reasons = [self.evidence] if self.evidence else []
        reasons += [f"not {name}: {why}" for name, why in {**self.others, **self.refused}.items()]
        return "; ".join(reasons) or "the only kernel"

    def __str__(self) -> str:
        lines = [f"{self.direction} in {self.memory_format}: {self.kernel} ({self.isa}, {_threads(self.threads)})"]
        if self.tile is not None and self.block is not None and self.scratch_bytes is not None:
            tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
            block = " x ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in self.block.items())
            lines.append(f"  tile {self.tile}")
            lines.append(f"  {tasks} of {block}; {-(-self.scratch_bytes // 1024)} KiB of scratch a thread")
        lines += [f"  {told}" for told in (self.sharing, self.evidence) if told]
        lines += [f"  not {name}: {why}" for name, why in {**self.others, **self.refused}.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types, the entries of `shape` beside the others."""
        facts: dict[str, Any] = {
            "kernel": self.kernel,
            "direction": self.direction,
            "memory_format": self.memory_format,
        }
        facts |= {"isa": self.isa, "threads": self.threads, **self.shape, "refused": dict(self.refused)}
        facts |= {"others": dict(self.others)}
        facts |= {"source": self.source, "evidence": self.evidence, "speedup": self.speedup}
        facts |= {"sharing": self.sharing, "hazard": self.hazard}
        if self.block is not None:
            facts |= {"tile": self.tile, "block": dict(self.block)}
            facts |= {"tasks": self.tasks, "products": self.products, "scratch_bytes": self.scratch_bytes}
        return facts

    @classmethod
    def _of(cls, facts: dict[str, Any]) -> Plan:
        shape = (
            "batch groups in_channels out_channels input_size output_size kernel_size stride padding dilation"
        ).split()
        own = {key: value for key, value in facts.items() if key not in shape}
        return cls(**own, shape={key: facts[key] for key in shape})


def plan(
    spec_or_layer: Any,
    input_shape: Sequence[int],
    dtype: Any = None,
    memory_format: Any = "contiguous",
    threads: int | None = None,
    direction: str = "forward",
) -> Plan:
    """Plans a convolution (a `ConvSpec` or a layer) on an input of `input_shape`, (N, in_channels, *size).

    - `dtype`: the layer's own if left out, and float32 for a spec
    - `memory_format`: `"contiguous"`, `"channels_last"` (2-D), `"channels_last_3d"` (3-D) or torch's constants, of the
      input. A layer's weight counts in the format that it has: if it is channels_last, so is the convolution. A spec's
      weight has the input's format.
    - `threads`: `torch.get_num_threads()` if left out
    - `direction`: `forward`, `grad_input` or `grad_weight` of the layer

    Raises `GroupwiseError` for a shape or memory format that does not fit, and where the kernels cannot run.

    Examples:
        >>> plan(ConvSpec(128, 128, 3, padding=1, groups=32), (1, 128, 56, 56)).kernel
        'planar'
    """
    from groupwise.kernels import dispatch

    *_, dtype = layer_and_input(spec_or_layer, input_shape, dtype)
    library = native.library()
    dispatch.load_measurements()
    numbers = request_numbers(spec_or_layer, input_shape, memory_format, threads, direction)
    array = (ctypes.c_int64 * len(numbers))(*numbers)
    return Plan._of(json.loads(native.read_text(library.groupwise_plan, array, dtype.encode())))


def request_numbers(
    spec_or_layer: Any,
    input_shape: Sequence[int],
    memory_format: Any = "contiguous",
    threads: int | None = None,
    direction: str = "forward",
) -> list[int]:
    """Returns the numbers by which the core knows a request (csrc/binding/c_api.h). Takes what `plan` takes."""
    spec, input_shape, _ = layer_and_input(spec_or_layer, input_shape, None)
    size = spec.check_input(input_shape)
    batch = check_integer("batch", input_shape[0], 0)
    check_choice("direction", direction, DIRECTIONS)
    layout = check_choice(
        "memory_format", str(memory_format).removeprefix("torch.").removesuffix("_format"), ALL_FORMATS
    )
    if layout not in formats_of(spec.dims):
        right = " or ".join(map(repr, formats_of(spec.dims)))
        raise GroupwiseError(
            f"memory_format={layout!r} is for {3 if layout == ALL_FORMATS[-1] else 2}-D convolutions, and this one is "
            f"{spec.dims}-D; give {right}"
        )
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    threads = check_integer("threads", threads, 1)
    axes = _axes(spec, size)
    if spec.transposed and direction != "grad_weight":
        direction = "grad_input" if direction == "forward" else "forward"
    channels = (spec.out_channels, spec.in_channels) if spec.transposed else (spec.in_channels, spec.out_channels)
    weight_last = _weight_is_channels_last(spec_or_layer, layout != "contiguous")
    # PyTorch computes in channels_last if either tensor is.
    last = layout != "contiguous" or weight_last
    numbers = [DIRECTIONS.index(direction), batch, *channels, spec.groups, int(last), threads, spec.dims]
    numbers += [number for axis in axes[-2:] for number in axis]
    # PyTorch runs a transposed convolution with a bias in another way.
    transposed = int(spec.transposed) + int(spec.transposed and spec.bias and direction == "grad_input")
    return [*numbers, int(weight_last), transposed, *axes[-3]]


@contextlib.contextmanager
def record_plans() -> Iterator[list[Plan]]:
    """Records the plans of all convolutions that are dispatched while the block runs, in any thread.

    Yields a list that fills when the block ends, also if it ends with an exception: oldest plan first. A training step
    makes three plans a layer: of the forward and of two gradients. Convolutions that are not dispatched (other dtypes
    or devices, or no `enable()`) make no plan. Blocks may nest and overlap; each gets every plan made while it is
    open.

    One block keeps 100,000 plans. It counts those that come after, and a `RuntimeWarning` tells how many. While no
    block is open, recording costs nothing. Where the kernels cannot run, the list stays empty.

    Examples:
        >>> import groupwise, torch
        >>> conv = torch.nn.Conv2d(8, 8, 3, groups=8)
        >>> with groupwise.enabled(), record_plans() as plans:
        ...     output = conv(torch.randn(1, 8, 16, 16))
        >>> [plan.direction for plan in plans]
        ['forward']
    """
    plans: list[Plan] = []
    if not native.available():
        yield plans
        return
    library = native.library()
    recording = library.groupwise_record_start()
    try:
        yield plans
    finally:
        recorded = json.loads(native.read_text(library.groupwise_record_stop, recording))
        plans += map(Plan._of, recorded["plans"])
        if recorded["dropped"]:
            warnings.warn(
                f"record_plans() kept the first {len(plans)} plans and dropped {recorded['dropped']}; "
                "open the block around fewer convolutions",
                RuntimeWarning,
                stacklevel=3,
            )


def _axes(spec: ConvSpec, size: Sequence[int]) -> list[tuple[int, ...]]:
    """Returns (in, out, kernel, stride, padding, dilation) of depth, height and width, as the operator sees them.

    For a transposed convolution `in` is its output. PyTorch pads before the operator runs where the padding is not
    zeros, or is longer after than before; the padding then belongs to the operator's input. A dimension that the
    convolution lacks has a size of 1.
    """
    out = spec.output_size(size)
    axes: list[tuple[int, ...]] = []
    for axis in range(spec.dims):
        before, after = spec.pads[axis]
        given, length = size[axis], out[axis]
        if spec.padding_mode != "zeros":
            given, before = given + before + after, 0
        elif after != before:
            given += after - before
        if spec.transposed:
            given, length = length, given
        axes.append((given, length, spec.kernel_size[axis], spec.stride[axis], before, spec.dilation[axis]))
    return [(1, 1, 1, 1, 0, 1)] * (3 - spec.dims) + axes


def _weight_is_channels_last(spec_or_layer: Any, input_is: bool) -> bool:
    """Tells whether the layer's weight is channels_last in memory; a spec's weight has the format of the input."""
    weight = effective(spec_or_layer, "weight")
    if weight is None or weight.dim() < 4:
        return input_is
    import torch
    from torch._prims_common import suggest_memory_format

    return suggest_memory_format(weight) in (torch.channels_last, torch.channels_last_3d)


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
