"""The layers that the benchmarks time, as data, and the tensors of each.

`data/layers.json` lists layers of published networks and of users' reports. `data/held_out.json` lists others of the
same kinds; no kernel and no rule of the planner may be tuned to them.
"""

from __future__ import annotations

import json
import math
import pathlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from groupwise import ConvSpec, Cost, cost
from groupwise.kernels.plan import formats_of
from groupwise.kernels.tables import OTHER_DTYPES

DATA = pathlib.Path(__file__).parent / "data"
FILES = {"listed": "layers.json", "held_out": "held_out.json"}
PASSES = ("forward", "training")
DTYPES = ("float32", *OTHER_DTYPES)
# groupwise in float32, timed beside another dtype.
FLOAT32 = "groupwise in float32"
FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
EVERY_FORMAT = {**FORMATS, "channels_last_3d": torch.channels_last_3d}
KINDS = ("1-D", "2-D", "3-D", "transposed")
# The payoff of groups is measured on these: the 3x3 layers of ResNeXt-50's four stages, and a depthwise one.
PAYOFF = ("resnext50-s1", "resnext50-s2", "resnext50-s3", "resnext50-s4", "mobilenetv2-dw144")


@dataclass(frozen=True)
class Layer:
    """One convolution with its input's size and its source."""

    name: str
    network: str
    op: str
    batch: int
    in_channels: int
    out_channels: int
    size: tuple[int, ...]
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    source: str

    @cached_property
    def spec(self) -> ConvSpec:
        """The layer as numbers."""
        return ConvSpec(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            transposed="transpose" in self.op,
        )

    @property
    def memory_formats(self) -> tuple[str, ...]:
        """The memory formats that PyTorch has: two for a 2-D or 3-D convolution, one for a 1-D one."""
        return formats_of(self.spec.dims)

    @property
    def kind(self) -> str:
        """`1-D`, `2-D` or `3-D`, or `transposed`: one of `KINDS`."""
        return "transposed" if self.spec.transposed else f"{self.spec.dims}-D"

    def samples(self, batch: int) -> int:
        """How many samples a run at `batch` has: a layer listed with more keeps its own number."""
        return max(self.batch, batch)

    def cost(self, batch: int) -> Cost:
        """Counts the MACs and bytes of a run at `batch`."""
        return cost(self.spec, self.size, batch=self.samples(batch))

    def tensors(self, batch: int, groups: int | None = None) -> Tensors:
        """Draws the layer's values, the same in every process, scaled so that an output is about 1."""
        spec = self.spec if groups is None else self.spec.with_groups(groups)
        generator = torch.Generator().manual_seed(zlib.crc32(self.name.encode()))

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        samples = self.samples(batch)
        reads = (
            spec.inputs_per_filter * math.prod(spec.kernel_size) / (math.prod(spec.stride) if spec.transposed else 1)
        )
        return Tensors(
            spec,
            draw(samples, spec.in_channels, *self.size),
            draw(*spec.weight_shape) / math.sqrt(reads),
            draw(spec.out_channels),
            draw(samples, spec.out_channels, *spec.output_size(self.size)),
        )


@dataclass(frozen=True)
class Tensors:
    """The tensors that a forward and a training step of one layer need."""

    spec: ConvSpec
    input: Tensor
    weight: Tensor
    bias: Tensor
    grad_output: Tensor

    def to(self, change: Callable[[Tensor], Tensor]) -> Tensors:
        """Returns all of them changed, with nothing recorded for gradients."""
        with torch.no_grad():
            return Tensors(self.spec, *map(change, (self.input, self.weight, self.bias, self.grad_output)))

    def in_format(self, name: str) -> Tensors:
        """Returns them in a memory format, the weight too, as `model.to(memory_format=...)` does."""
        return self.to(lambda t: t.to(memory_format=EVERY_FORMAT[name]) if t.dim() >= 4 else t)

    def forward(self) -> Tensor:
        """Computes the output by the function that PyTorch's layer calls."""
        spec = self.spec
        function = getattr(F, spec.op)
        options = {"stride": spec.stride, "padding": spec.padding, "dilation": spec.dilation, "groups": spec.groups}
        return function(self.input, self.weight, self.bias, **options)

    def step(self) -> tuple[Tensor, ...]:
        """Computes the output and the gradients of input, weight and bias: one training step of the layer."""
        wanted = [t.requires_grad_() for t in (self.input, self.weight, self.bias)]
        output = self.forward()
        return output.detach(), *torch.autograd.grad(output, wanted, self.grad_output)


RESULTS = ("output", "grad_input", "grad_weight", "grad_bias")


def read(which: str) -> list[Layer]:
    """Reads the layers of `listed` or `held_out`."""
    return read_file(FILES[which])


def read_file(name: str) -> list[Layer]:
    """Reads the layers of a file in `data`."""
    entries = json.loads((DATA / name).read_text(encoding="utf-8"))
    return [Layer(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}) for entry in entries]


def chosen(which: str, only: str) -> list[Layer]:
    """Returns the layers whose name or network contains `only`."""
    found = [layer for layer in read(which) if only in layer.name or only in layer.network]
    if not found:
        raise SystemExit(f"no layer of data/{FILES[which]} has {only!r} in its name or network")
    return found
