"""What a convolution costs: parameters, multiply-accumulates (MACs), bytes, and its dense equivalent.

groupwise counts by formula from a `ConvSpec`, and times nothing. The conventions:

- One MAC is one multiplication and one addition, so 2 FLOP. The bias is not counted.
- Every tap of the kernel counts at every position. `macs_on_padding` says how many of these read padding.
- A transposed convolution counts from its input positions, each of which it spreads over the whole kernel.
- Bytes are the least that any implementation moves: it reads input and weight once, and writes the output once.
  Both backward passes move the same three tensors: grad_input reads grad_output and the weight, grad_weight reads
  both activations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from groupwise.errors import GroupwiseError, check_choice, check_integer
from groupwise.spec.arguments import Extent
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.effective import dtype_of
from groupwise.spec.legible import Printed
from groupwise.spec.tables import html_table

DTYPE_BYTES = {
    "float64": 8,
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
    "int16": 2,
    "int32": 4,
    "int64": 8,
    "complex32": 4,
    "complex64": 8,
    "complex128": 16,
}


@dataclass(frozen=True)
class Macs(Printed):
    """The multiply-accumulates of the forward and of the two gradients."""

    forward: int
    grad_input: int
    grad_weight: int

    def __add__(self, other: Macs) -> Macs:
        return Macs(
            self.forward + other.forward,
            self.grad_input + other.grad_input,
            self.grad_weight + other.grad_weight,
        )

    @property
    def total(self) -> int:
        """The sum of the three passes: one training step."""
        return self.forward + self.grad_input + self.grad_weight

    def __str__(self) -> str:
        return f"{self.forward:,} MACs forward, {self.grad_input:,} grad_input, {self.grad_weight:,} grad_weight"

    def to_dict(self) -> dict[str, int]:
        """Returns the three counts by name."""
        return asdict(self)


@dataclass(frozen=True)
class Traffic(Printed):
    """The bytes that have to move at least once, by tensor."""

    input: int
    weight: int
    output: int

    @property
    def total(self) -> int:
        """The sum of the three tensors."""
        return self.input + self.weight + self.output

    def __str__(self) -> str:
        return f"{self.input:,} bytes of input, {self.weight:,} of weight, {self.output:,} of output"

    def to_dict(self) -> dict[str, int]:
        """Returns the three sizes by name."""
        return asdict(self)


@dataclass(frozen=True)
class Cost:
    """The cost of `spec` on an input of shape (batch, in_channels, *input_size) and of `dtype`. `print()` it.

    - `output_size`: the spatial size of the output
    - `macs`: the multiply-accumulates of each pass
    - `macs_on_padding`: how many MACs of one pass read a zero of the padding (transposed: fall on the cropped edge)
    - `traffic`: the bytes of each tensor
    """

    spec: ConvSpec
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    batch: int
    dtype: str
    macs: Macs
    macs_on_padding: int
    traffic: Traffic

    @property
    def bytes(self) -> int:
        """The least bytes that a pass moves: input and weight read once, output written once."""
        return self.traffic.total

    @property
    def intensity(self) -> float:
        """The arithmetic intensity of the forward pass, in FLOP per byte (a MAC is 2 FLOP)."""
        return 2 * self.macs.forward / self.bytes if self.bytes else 0.0

    def __str__(self) -> str:
        """Returns the convolution and its sizes, and a line each for parameters, MACs, bytes and intensity."""
        table = [self._head, *self._rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [f"{a.ljust(widths[0])}  {b.rjust(widths[1])}  {c.rjust(widths[2])}" for a, b, c in table]
        return "\n".join([self._title, *lines])

    def _repr_html_(self) -> str:
        return html_table(self._title, self._head, self._rows)

    @property
    def _title(self) -> str:
        sizes = " → ".join("×".join(map(str, size)) for size in (self.input_size, self.output_size))
        return f"{self.spec}; {sizes}, batch {self.batch:,}, {self.dtype}"

    @property
    def _head(self) -> tuple[str, str, str]:
        return ("", f"groups={self.spec.groups}", "dense")

    @property
    def _rows(self) -> list[tuple[str, str, str]]:
        """The facts of the two texts, each beside that of the dense equivalent."""
        dense = self.dense()
        return [
            ("parameters", f"{self.spec.parameters:,}", f"{dense.spec.parameters:,}"),
            ("MACs, each pass", f"{self.macs.forward:,}", f"{dense.macs.forward:,}"),
            ("MACs on padding", f"{self.macs_on_padding:,}", f"{dense.macs_on_padding:,}"),
            ("bytes, each pass", f"{self.bytes:,}", f"{dense.bytes:,}"),
            ("FLOP per byte", f"{self.intensity:.3g}", f"{dense.intensity:.3g}"),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Returns sizes, MACs and bytes as plain JSON types."""
        return {
            "input_size": list(self.input_size),
            "output_size": list(self.output_size),
            "batch": self.batch,
            "dtype": self.dtype,
            "macs": self.macs.to_dict(),
            "macs_on_padding": self.macs_on_padding,
            "bytes": self.bytes,
            "traffic": self.traffic.to_dict(),
            "intensity": self.intensity,
        }

    @property
    def ratio(self) -> dict[str, float | None]:
        """The dense equivalent's parameters, MACs and bytes, each divided by this convolution's.

        A ratio is None where this convolution has none of what is counted, as an empty batch has no MACs.
        """
        dense = self.dense()
        pairs = {
            "parameters": (dense.spec.parameters, self.spec.parameters),
            "macs": (dense.macs.forward, self.macs.forward),
            "bytes": (dense.bytes, self.bytes),
        }
        return {name: whole / part if part else None for name, (whole, part) in pairs.items()}

    def with_groups(self, groups: int) -> Cost:
        """Returns the cost with another number of groups, all else equal."""
        return cost(self.spec.with_groups(groups), self.input_size, batch=self.batch, dtype=self.dtype)

    def dense(self) -> Cost:
        """Returns the cost of the dense equivalent (groups=1)."""
        return self.with_groups(1)


def cost(
    spec_or_layer: Any,
    size: Extent | None = None,
    *,
    input_shape: Any = None,
    batch: int | None = None,
    dtype: Any = None,
) -> Cost:
    """Counts one convolution, a `ConvSpec` or a layer, on an input of a given size.

    - `size`: the spatial size of the input, an int for all dimensions or one int a dimension; or
      `input_shape`: (N, in_channels, *size), or a tensor of that shape
    - `batch`: the N that goes with `size`, 1 if left out
    - `dtype`: a name such as `"float32"` or a `torch.dtype`; a layer's own, else float32, if left out

    Raises `GroupwiseError` where neither or both sizes are given, for a size that gives no output, for an unknown
    dtype, and for a layer whose weight contradicts its attributes.

    Examples:
        >>> cost(ConvSpec(128, 128, 3, padding=1, groups=32), 56).macs.forward
        14450688
    """
    spec = spec_of(spec_or_layer)
    given, batch = size_and_batch(spec, size, input_shape, batch)
    if given is None:
        raise GroupwiseError(
            f"cost needs a size: size=56, or input_shape=(1, {spec.in_channels}, {', '.join(['56'] * spec.dims)})"
        )
    out_size = spec.output_size(given)
    dtype = check_dtype(dtype_of(spec_or_layer) if dtype is None else dtype)
    positions = math.prod(given if spec.transposed else out_size)
    per_tap = batch * spec.in_channels * spec.outputs_per_group
    macs = per_tap * positions * math.prod(spec.kernel_size)
    real = per_tap * math.prod(_real_taps(spec, axis, given[axis], out_size[axis]) for axis in range(spec.dims))
    item = DTYPE_BYTES[dtype]
    return Cost(
        spec=spec,
        input_size=given,
        output_size=out_size,
        batch=batch,
        dtype=dtype,
        macs=Macs(macs, macs, macs),
        macs_on_padding=macs - real,
        traffic=Traffic(
            input=item * batch * spec.in_channels * math.prod(given),
            weight=item * spec.weights,
            output=item * batch * spec.out_channels * math.prod(out_size),
        ),
    )


def spec_of(spec_or_layer: Any) -> ConvSpec:
    """Returns a spec as it is, and the spec of a layer; raises `GroupwiseError` for anything else."""
    return spec_or_layer if isinstance(spec_or_layer, ConvSpec) else ConvSpec.from_module(spec_or_layer)


def size_and_batch(
    spec: ConvSpec, size: Extent | None, input_shape: Any, batch: int | None = None
) -> tuple[tuple[int, ...] | None, int]:
    """Returns the spatial size and the batch that `size` and `batch`, or `input_shape`, ask for.

    `input_shape` is (N, in_channels, *size), or a tensor of that shape. The size is None where neither is given, and
    the batch is 1 where none is. Raises `GroupwiseError` for both, and for `batch` beside `input_shape`.
    """
    if input_shape is None:
        batch = check_integer("batch", 1 if batch is None else batch, 0)
        return None if size is None else spec.check_size(size), batch
    shape = getattr(input_shape, "shape", input_shape)
    for name, value in (("size", size), ("batch", batch)):
        if value is not None:
            raise GroupwiseError(
                f"{name}={value} cannot be given beside input_shape={shape}, which says it; leave it out"
            )
    return spec.check_input(shape), check_integer("batch", shape[0], 0)


def check_dtype(dtype: object) -> str:
    """Returns the plain name of a dtype, such as `"float32"`, from a name or a `torch.dtype`."""
    return check_choice("dtype", str(dtype).removeprefix("torch."), DTYPE_BYTES)


def layer_and_input(spec_or_layer: Any, input_shape: Any, dtype: Any) -> tuple[ConvSpec, Sequence[int], str]:
    """Returns the spec, the shape of the input (of a tensor too), and the dtype: the one asked for, else the layer's
    own, else float32."""
    spec = spec_of(spec_or_layer)
    name = check_dtype(dtype_of(spec_or_layer) if dtype is None else dtype)
    return spec, getattr(input_shape, "shape", input_shape), name


def _real_taps(spec: ConvSpec, axis: int, size: int, out_size: int) -> int:
    """Returns how many pairs (position, tap) along one dimension touch a real value.

    A plain convolution at output position o reads o*stride - pad + tap*dilation, which is real inside the input. A
    transposed one at input position i writes to the same expression, which is real inside the cropped output.
    Padding that copies the input (reflect, replicate, circular) consists of real values.
    """
    if spec.padding_mode != "zeros":
        return out_size * spec.kernel_size[axis]
    positions, limit = (size, out_size) if spec.transposed else (out_size, size)
    taps, stride, dilation = spec.kernel_size[axis], spec.stride[axis], spec.dilation[axis]
    pad = spec.pads[axis][0]
    return _pairs(limit - 1 + pad, positions, taps, stride, dilation) - _pairs(
        pad - 1, positions, taps, stride, dilation
    )


def _pairs(reach: int, positions: int, taps: int, stride: int, dilation: int) -> int:
    """Returns how many pairs (position, tap) have position*stride + tap*dilation <= reach.

    The form is closed, as kernels may be huge.
    """
    if reach < 0:
        return 0
    # A tap below `full` has all positions; from `full` to `last` it has floor((reach - tap*dilation) / stride) + 1.
    last = min(taps - 1, reach // dilation)
    full = min(taps, max(0, (reach - (positions - 1) * stride) // dilation + 1))
    rest = max(0, last - full + 1)
    return positions * full + rest + _floor_sum(rest, stride, dilation, reach - last * dilation)


def _floor_sum(n: int, m: int, a: int, b: int) -> int:
    """Returns the sum of floor((a*i + b) / m) for i in 0 .. n-1, by Euclid's algorithm; a and b are not negative."""
    total = 0
    while n:
        total += n * (n - 1) // 2 * (a // m) + n * (b // m)
        a, b = a % m, b % m
        n, b = divmod(a * n + b, m)
        m, a = a, m
    return total
