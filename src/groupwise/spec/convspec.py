"""`ConvSpec`: a convolution as numbers, without tensors and without torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from groupwise.errors import MAX_CHANNELS, GroupwiseError, check_choice, check_integer, list_some
from groupwise.spec.arguments import (
    Extent,
    check_groups,
    dims_of,
    expand,
    padding_of,
    per_dimension,
    shape_of,
)
from groupwise.spec.arguments import valid_groups as valid_groups_of
from groupwise.spec.consistency import check_stored
from groupwise.spec.effective import has_bias, shape_of_effective
from groupwise.spec.legible import Printed

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclasses.dataclass(frozen=True, init=False)
class ConvSpec(Printed):
    """One convolution layer as numbers: 1-D, 2-D or 3-D, plain or transposed. Frozen and hashable.

    The arguments are those of `torch.nn.ConvNd`, in the same order. Each tuple has one entry a spatial dimension. An
    int `kernel_size` counts for `dims` dimensions (2 if left out); a sequence sets the number of dimensions itself.

    - `in_channels`, `out_channels`: from 1 to 2**24
    - `kernel_size`, `stride`, `dilation`: positive
    - `padding`: positions added on each side, or `"same"` or `"valid"` (plain convolutions; `"same"` needs stride 1)
    - `groups`: a divisor of both channel counts
    - `bias`: whether the layer has one
    - `padding_mode`: zeros, reflect, replicate or circular; transposed convolutions take zeros
    - `transposed`: True for `ConvTransposeNd`
    - `output_padding`: positions that a transposed convolution adds on one side of its output, fewer than the stride
      or the dilation

    Raises `GroupwiseError`, a `ValueError`, which names the value, the rule and the nearest valid values.

    Examples:
        >>> ConvSpec(8, 4, 5, groups=4).weight_shape
        (4, 2, 5, 5)
        >>> print(ConvSpec(8, 4, 5, stride=2, groups=4))
        conv2d 8 → 4, kernel 5×5, stride 2×2, groups=4
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    bias: bool
    padding_mode: str
    transposed: bool
    output_padding: tuple[int, ...]

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Extent,
        stride: Extent = 1,
        padding: Extent | str = 0,
        dilation: Extent = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        transposed: bool = False,
        output_padding: Extent = 0,
        dims: int | None = None,
    ) -> None:
        in_channels = check_integer("in_channels", in_channels, 1, MAX_CHANNELS)
        out_channels = check_integer("out_channels", out_channels, 1, MAX_CHANNELS)
        groups = check_groups(in_channels, out_channels, groups)
        dims = dims_of(kernel_size, dims)
        for name, flag in (("bias", bias), ("transposed", transposed)):
            if getattr(flag, "shape", ()) or flag not in (True, False):
                raise GroupwiseError(f"{name}={flag!r} is a {type(flag).__name__}; {name} must be True or False")
        values = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": per_dimension("kernel_size", kernel_size, dims, 1),
            "stride": per_dimension("stride", stride, dims, 1),
            "padding": padding_of(padding, dims, transposed),
            "dilation": per_dimension("dilation", dilation, dims, 1),
            "groups": groups,
            "bias": bool(bias),
            "padding_mode": check_choice("padding_mode", padding_mode, PADDING_MODES),
            "transposed": bool(transposed),
            "output_padding": per_dimension("output_padding", output_padding, dims, 0),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check_combination()

    def _check_combination(self) -> None:
        if self.padding == "same" and max(self.stride) > 1:
            raise GroupwiseError(
                f"padding='same' needs stride 1, not stride={self.stride}; give the padding as numbers"
            )
        if self.transposed and self.padding_mode != "zeros":
            raise GroupwiseError(
                f"padding_mode={self.padding_mode!r} is for plain convolutions; transposed ones take 'zeros'"
            )
        if not self.transposed and any(self.output_padding):
            raise GroupwiseError(
                f"output_padding={self.output_padding} is for transposed convolutions; plain ones take 0"
            )
        for extra, stride, dilation in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(stride, dilation):
                raise GroupwiseError(
                    f"output_padding={extra} must be less than the stride ({stride}) or the dilation "
                    f"({dilation}); the largest valid value is {max(stride, dilation) - 1}"
                )

    @classmethod
    def from_module(cls, layer: Any) -> ConvSpec:
        """Returns the spec of a `torch.nn.ConvNd` or `ConvTransposeNd` layer, or of anything with its attributes.

        The shapes of the weight and bias that the layer computes with must be those that its attributes promise. For a
        pruned or parametrized layer these are the effective ones; no parametrization runs. Quantized modules of
        `torch.ao.nn` count too.

        Raises `GroupwiseError` where `layer` is not a convolution layer, where it is lazy and has not run yet, and
        where a shape contradicts the attributes: the message names both shapes and the attributes to set.
        """
        names = [f.name for f in dataclasses.fields(cls)]
        # The class first: to ask the layer for an attribute that is parametrized would compute it.
        missing = [name for name in names if not hasattr(type(layer), name) and not hasattr(layer, name)]
        if missing:
            raise GroupwiseError(
                f"{type(layer).__name__} is not a convolution layer: it has no {', '.join(missing)}; "
                "give a torch.nn.Conv1d, Conv2d, Conv3d or ConvTranspose1d, 2d, 3d"
            )
        weight, bias = shape_of_effective(layer, "weight"), shape_of_effective(layer, "bias")
        values = {name: getattr(layer, name) for name in names if name != "bias"}
        spec = cls(**values, bias=has_bias(layer))
        check_stored(spec, weight, bias)
        return spec

    @classmethod
    def from_operator(
        cls,
        input: Any,
        weight: Any,
        bias: Any = None,
        stride: Extent = 1,
        padding: Extent = 0,
        dilation: Extent = 1,
        transposed: bool = False,
        output_padding: Extent = 0,
        groups: int = 1,
    ) -> ConvSpec:
        """Returns the spec of one call of `aten::convolution`, which takes these arguments in this order.

        `input`, of shape (N, in_channels, *size), `weight` and `bias` are tensors or shapes. `input` may be None, and
        `bias` a bool. Raises `GroupwiseError` where the shapes contradict each other.
        """
        shape = shape_of("weight", weight)
        if not 3 <= len(shape) <= 5:
            raise GroupwiseError(
                f"weight of shape {shape} has {len(shape)} dimensions; a 1-D, 2-D or 3-D convolution's has 3, 4 or 5"
            )
        groups = _groups_of_weight(groups, shape[0], transposed)
        first, second = shape[0], shape[1] * groups
        in_channels, out_channels = (first, second) if transposed else (second, first)
        has_bias = bias if isinstance(bias, bool) else bias is not None
        spec = cls(
            in_channels,
            out_channels,
            shape[2:],
            expand(stride, len(shape) - 2),
            expand(padding, len(shape) - 2),
            expand(dilation, len(shape) - 2),
            groups,
            has_bias,
            transposed=transposed,
            output_padding=expand(output_padding, len(shape) - 2),
        )
        if has_bias and not isinstance(bias, bool) and shape_of("bias", bias) != (out_channels,):
            raise GroupwiseError(f"bias of shape {shape_of('bias', bias)} must have out_channels={out_channels} values")
        if input is not None:
            spec.check_input(shape_of("input", input))
        return spec

    @property
    def dims(self) -> int:
        """The number of spatial dimensions: 1, 2 or 3."""
        return len(self.kernel_size)

    @property
    def op(self) -> str:
        """PyTorch's name of the operator: `conv2d`, `conv_transpose1d`, ..."""
        return f"conv_transpose{self.dims}d" if self.transposed else f"conv{self.dims}d"

    @property
    def kind(self) -> str:
        """`dense` (one group), `depthwise` (one input channel a group) or `grouped` (anything between)."""
        if self.groups == 1:
            return "dense"
        return "depthwise" if self.groups == self.in_channels else "grouped"

    @property
    def inputs_per_filter(self) -> int:
        """The number of input channels that each filter reads: in_channels / groups."""
        return self.in_channels // self.groups

    @property
    def outputs_per_group(self) -> int:
        """The number of filters, and so of output channels, of each group: out_channels / groups."""
        return self.out_channels // self.groups

    @property
    def channel_multiplier(self) -> int | None:
        """The number m of outputs for each input of a depthwise convolution: output o reads input o // m.

        None for other kinds.
        """
        return self.outputs_per_group if self.kind == "depthwise" else None

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """(out, in/groups, *kernel), or (in, out/groups, *kernel) of a transposed convolution."""
        if self.transposed:
            return (self.in_channels, self.outputs_per_group, *self.kernel_size)
        return (self.out_channels, self.inputs_per_filter, *self.kernel_size)

    @property
    def bias_shape(self) -> tuple[int] | None:
        """(out_channels,), or None without a bias."""
        return (self.out_channels,) if self.bias else None

    @property
    def weights(self) -> int:
        """The number of weights, without the bias."""
        return math.prod(self.weight_shape)

    @property
    def parameters(self) -> int:
        """The number of weights and biases."""
        return self.weights + (self.out_channels if self.bias else 0)

    @property
    def valid_groups(self) -> tuple[int, ...]:
        """Every `groups` that these channel counts allow, in ascending order."""
        return valid_groups_of(self.in_channels, self.out_channels)

    @property
    def pads(self) -> tuple[tuple[int, int], ...]:
        """The padding of each dimension as (before, after); an odd `"same"` has its extra position after."""
        if self.padding == "valid":
            return ((0, 0),) * self.dims
        if isinstance(self.padding, str):
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            return tuple((total // 2, total - total // 2) for total in totals)
        return tuple((p, p) for p in self.padding)

    def with_groups(self, groups: int) -> ConvSpec:
        """Returns the same convolution with another number of groups."""
        return dataclasses.replace(self, groups=groups)

    def dense(self) -> ConvSpec:
        """Returns the dense equivalent: groups=1, so that every input reaches every output."""
        return self.with_groups(1)

    def __str__(self) -> str:
        """Returns one line: operator, channels, kernel, the options that differ from their defaults, groups."""
        facts = [f"{self.op} {self.in_channels:,} → {self.out_channels:,}", f"kernel {_product(self.kernel_size)}"]
        for name, default in (("stride", 1), ("padding", 0), ("dilation", 1), ("output_padding", 0)):
            value = getattr(self, name)
            if isinstance(value, str):
                facts.append(f"{name} {value}")
            elif set(value) != {default}:
                facts.append(f"{name} {_product(value)}")
        if self.padding_mode != "zeros":
            facts.append(self.padding_mode)
        return ", ".join([*facts, f"groups={self.groups}"])

    def to_dict(self) -> dict[str, Any]:
        """Returns the arguments and what follows from them as plain JSON types; tuples become lists."""
        facts = {"op": self.op, "kind": self.kind, **dataclasses.asdict(self)}
        del facts["bias"]
        facts |= {
            "weight_shape": self.weight_shape,
            "bias_shape": self.bias_shape,
            "weights": self.weights,
            "parameters": self.parameters,
            "inputs_per_filter": self.inputs_per_filter,
            "filters": self.out_channels,
            "channel_multiplier": self.channel_multiplier,
        }
        return {key: list(value) if isinstance(value, tuple) else value for key, value in facts.items()}

    def check_size(self, size: Extent) -> tuple[int, ...]:
        """Returns the spatial input size as a tuple of `dims` positive ints; an int counts for all dimensions."""
        return per_dimension("size", size, self.dims, 1)

    def check_input(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Returns the spatial size of an input of `shape`, which must be (N, in_channels, *size).

        Raises `GroupwiseError` for any other shape.
        """
        if not isinstance(shape, Sequence) or len(shape) != self.dims + 2 or shape[1] != self.in_channels:
            given = f"of shape {tuple(shape)}" if isinstance(shape, Sequence) else f"{shape!r}"
            sizes = ", ".join(("length", "height, width", "depth, height, width")[self.dims - 1].split(", "))
            raise GroupwiseError(
                f"input {given} does not fit {self.op} with in_channels={self.in_channels}; "
                f"it must be (batch, {self.in_channels}, {sizes})"
            )
        return self.check_size(tuple(shape[2:]))

    def output_size(self, size: Extent) -> tuple[int, ...]:
        """Returns the spatial output size for an input of `size`; raises `GroupwiseError` if there is no output."""
        return tuple(self._output_length(axis, length) for axis, length in enumerate(self.check_size(size)))

    def _output_length(self, axis: int, length: int) -> int:
        before, after = self.pads[axis]
        stride, kernel, dilation = self.stride[axis], self.kernel_size[axis], self.dilation[axis]
        reach = dilation * (kernel - 1) + 1
        # PyTorch copies such padding from the input, which has to be long enough.
        spare = {"reflect": 1, "circular": 0}.get(self.padding_mode)
        pad = max(before, after)
        if spare is not None and pad > length - spare:
            raise GroupwiseError(
                f"padding={pad} with padding_mode={self.padding_mode!r} must be at most {length - spare} "
                f"for size={length} in dimension {axis}; use size >= {max(pad + spare, reach - before - after)} "
                "or less padding"
            )
        if self.transposed:
            result = (length - 1) * stride - before - after + reach + self.output_padding[axis]
            # Padding removes positions on both sides, so half of the missing ones (rounded up) are enough.
            fix = f"padding {before} cuts away all of it; use padding of at most {before - (2 - result) // 2}"
        else:
            result = (length + before + after - reach) // stride + 1
            fix = (
                f"the kernel reaches over {reach} positions (kernel_size {kernel}, dilation {dilation}), more than the "
                f"padded input of {length} + {before} + {after}; use size >= {reach - before - after}"
            )
            if self.padding_mode in ("zeros", "replicate"):
                fix += f", padding >= {-(-(reach - length) // 2)}"
            fix += " or a smaller kernel"
        if result < 1:
            raise GroupwiseError(f"size={length} gives no output in dimension {axis}: {fix}")
        return result


def _product(values: Sequence[int]) -> str:
    return "×".join(map(str, values))


def _groups_of_weight(groups: object, rows: int, transposed: bool) -> int:
    """Returns `groups` as an int; raises `GroupwiseError` unless it divides `rows`, dim 0 of the weight.

    Dim 1 sets no limit: the other channel count is groups times dim 1.
    """
    name = "in_channels" if transposed else "out_channels"
    valid = list_some(list(valid_groups_of(rows, rows)))
    try:
        number = check_integer("groups", groups, 1, MAX_CHANNELS)
    except GroupwiseError as error:
        raise GroupwiseError(f"{error}; valid groups: {valid}") from None
    if rows % number:
        raise GroupwiseError(f"groups={number} must divide {name}={rows}, dim 0 of the weight; valid groups: {valid}")
    return number
