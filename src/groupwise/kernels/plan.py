"""`plan`: the kernel that a convolution takes, its tile, and for each kernel not taken the reason.

The planner is the native core's, and the only one: what it prints here is what runs.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.kernels import native
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import layer_and_input
from groupwise.spec.effective import effective

KERNELS = ("planar", "channels", "pytorch")
DIRECTIONS = ("forward", "grad_input", "grad_weight")
MEMORY_FORMATS = ("contiguous", "channels_last")


@dataclass(frozen=True)
class Plan:
    """How one convolution, or one gradient of it, is computed."""

    kernel: str
    """`planar` (vectors along the width), `channels` (vectors along the channels) or `pytorch` (PyTorch's own)."""
    direction: str
    """`forward`, `grad_input` or `grad_weight`; a transposed convolution's forward is a plain one's `grad_input`."""
    memory_format: str
    isa: str
    """The instruction set: `baseline` or `avx2`."""
    threads: int
    """That compute: 1 where the work is not worth more."""
    shape: Mapping[str, Any]
    """batch, groups, in_channels, out_channels; input_size, output_size, kernel_size, stride, padding and dilation as
    (height, width): of the plain convolution whose direction this is."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """For each kernel not taken, why."""
    tile: str | None = None
    """What one pass of the inner loop computes; None for `pytorch`, as the rest."""
    block: Mapping[str, int] | None = None
    """Output rows, columns and groups of one task."""
    tasks: int | None = None
    scratch_bytes: int | None = None
    """What each thread keeps beside the tensors."""

    @property
    def reason(self) -> str:
        """Why this kernel runs, in one line."""
        if not self.refused:
            return "the first that takes it"
        return "; ".join(f"not {name}: {why}" for name, why in self.refused.items())

    def __str__(self) -> str:
        lines = [f"{self.direction} in {self.memory_format}: {self.kernel} ({self.isa}, {_threads(self.threads)})"]
        if self.tile is not None and self.block is not None and self.scratch_bytes is not None:
            tasks = "1 task" if self.tasks == 1 else f"{self.tasks} tasks"
            cut = " x ".join(f"{count} {name if count != 1 else name[:-1]}" for name, count in self.block.items())
            lines.append(f"  tile {self.tile}")
            lines.append(f"  {tasks} of {cut}; {-(-self.scratch_bytes // 1024)} KiB of scratch a thread")
        lines += [f"  not {name}: {why}" for name, why in self.refused.items()]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Every fact as plain JSON types."""
        facts: dict[str, Any] = {
            "kernel": self.kernel,
            "direction": self.direction,
            "memory_format": self.memory_format,
        }
        facts |= {"isa": self.isa, "threads": self.threads, **self.shape, "refused": dict(self.refused)}
        if self.block is not None:
            facts |= {"tile": self.tile, "block": dict(self.block)}
            facts |= {"tasks": self.tasks, "scratch_bytes": self.scratch_bytes}
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
    """The plan of a convolution (a `ConvSpec` or a layer) on an input of `input_shape`, (N, in_channels, *size).

    - `dtype`: the layer's own, and float32 for a spec, if left out
    - `memory_format`: `"contiguous"`, `"channels_last"` or torch's own constants: of the input; a layer's weight counts
      as it lies, and if it is channels_last the convolution runs in that format; a spec's weight is in the input's
    - `threads`: `torch.get_num_threads()` if left out
    - `direction`: `forward`, `grad_input` or `grad_weight` of the layer

    Raises `GroupwiseError` for a shape or memory format that does not fit, and where the kernels cannot run.

    Examples:
        >>> plan(ConvSpec(128, 128, 3, padding=1, groups=32), (1, 128, 56, 56)).kernel
        'planar'
    """
    spec, input_shape, dtype = layer_and_input(spec_or_layer, input_shape, dtype)
    size = spec.check_input(input_shape)
    batch = check_integer("batch", input_shape[0], 0)
    check_choice("direction", direction, DIRECTIONS)
    layout = check_choice(
        "memory_format", str(memory_format).removeprefix("torch.").removesuffix("_format"), MEMORY_FORMATS
    )
    if layout == "channels_last" and spec.dims != 2:
        raise GroupwiseError(
            f"memory_format='channels_last' is of 2-D convolutions, and this one is {spec.dims}-D; give 'contiguous'"
        )
    library = native.library()
    if threads is None:
        import torch

        threads = torch.get_num_threads()
    threads = check_integer("threads", threads, 1)
    axes = _axes(spec, size)
    if spec.transposed and direction != "grad_weight":
        direction = "grad_input" if direction == "forward" else "forward"
    channels = (spec.out_channels, spec.in_channels) if spec.transposed else (spec.in_channels, spec.out_channels)
    weight_last = _weight_is_channels_last(spec_or_layer, layout == "channels_last")
    # PyTorch's rule: either tensor asks for it.
    last = layout == "channels_last" or weight_last
    numbers = [DIRECTIONS.index(direction), batch, *channels, spec.groups, int(last), threads, spec.dims]
    numbers += [number for axis in axes for number in axis]
    numbers += [int(weight_last), int(spec.transposed)]
    array = (ctypes.c_int64 * len(numbers))(*numbers)
    return Plan._of(json.loads(native.read_text(library.groupwise_plan, array, dtype.encode())))


def last_plans(clear: bool = True) -> list[Plan]:
    """The plans of the convolutions that took the route since the last call, oldest first (the newest 1024).

    A training step has three for each layer: the forward and two gradients. `clear=False` keeps them for the next call.
    """
    if not native.available():
        return []
    text = native.read_text(native.library().groupwise_last_plans, int(clear))
    return [Plan._of(facts) for facts in json.loads(text)]


def _axes(spec: ConvSpec, size: Sequence[int]) -> list[tuple[int, ...]]:
    """(in, out, kernel, stride, padding, dilation) of the height and the width, as the operator sees them.

    Of a transposed convolution the larger side is `in`. Padding that is no zeros, or more after than before, is made
    before the operator runs, and belongs to its input then.
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
    # A 1-D convolution is one of height 1; of a 3-D one, which no kernel takes, the planner reads two dimensions.
    return [(1, 1, 1, 1, 0, 1), *axes][-2:]


def _weight_is_channels_last(spec_or_layer: Any, input_is: bool) -> bool:
    """As the layer's weight lies, and not as it merely could; a spec's is taken to be in the format of the input."""
    weight = effective(spec_or_layer, "weight")
    if weight is None or weight.dim() != 4:
        return input_is
    import torch
    from torch._prims_common import suggest_memory_format

    return suggest_memory_format(weight) is torch.channels_last


def _threads(count: int) -> str:
    return f"{count} thread" if count == 1 else f"{count} threads"
