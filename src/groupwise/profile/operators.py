"""Convolutions of every operator: which operators are one, and what their arguments say of it.

`aten::convolution` is only the operator that most models end in. Quantized models, compiled and frozen ones, and
extensions call others. groupwise reads a convolution from the names of an operator's arguments (`weight`, `stride`,
`groups`, ...) or from the packed weight of a quantized one, and believes what it reads only if the output has the shape
that follows from it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from groupwise.errors import GroupwiseError
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, Traffic, cost

# `convolution`, `conv2d`, `qconv`, `deform_conv`; not `convert`, `convex`, `convergence`.
_CONVOLUTION = re.compile(r"conv(?!e)", re.IGNORECASE)
# Operators that only rearrange a weight.
_HELPER = re.compile(r"pre_?pack|unpack|reorder", re.IGNORECASE)
_INPUT, _WEIGHT, _BIAS = ("input", "self", "X", "qx", "x"), ("weight", "W", "qw"), ("bias", "B")
# The layout of tensors that only oneDNN reads.
_ONEDNN = getattr(torch, "_mkldnn")  # noqa: B009  # torch's stub does not name it
_GEOMETRY = {"stride": ("stride",), "padding": ("padding", "pad"), "dilation": ("dilation", "dil")}


@dataclass(frozen=True)
class Reading:
    """A convolution as an operator's arguments state it.

    - `cost`: its spec, sizes, dtype of the input, MACs and bytes (each tensor in its own dtype)
    - `source`: its input; `weight`: the tensor or packed object that holds its weight
    """

    cost: Cost
    source: torch.Tensor
    weight: Any


@cache
def is_convolution(func: Any) -> bool:
    """Whether an operator is a convolution, by its name: one that takes a tensor and returns one."""
    name = func.name().split("::")[-1].split(".")[0]
    if not _CONVOLUTION.search(name) or _HELPER.search(name):
        return False
    takes, gives = ([str(one.type) for one in some] for some in (func._schema.arguments, func._schema.returns))
    return any("Tensor" in kind for kind in takes) and any("Tensor" in kind for kind in gives)


def operator_name(func: Any) -> str:
    """`namespace::name` of an operator, without its overload."""
    return str(func.name().split(".")[0])


def dtype_name(dtype: torch.dtype) -> str:
    """The dtype that values of `dtype` are stored in: `uint8` for `torch.quint8`."""
    return re.sub(r"^torch\.q?", "", str(dtype))


def read(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> Reading | None:
    """What one call of a convolution computed, or None where its arguments do not say."""
    given = dict(zip((one.name for one in func._schema.arguments), args, strict=False)) | dict(kwargs)
    output = result if isinstance(result, torch.Tensor) else next(iter(result or ()), None)
    source, weight = _first(given, _INPUT), _first(given, _WEIGHT)
    packed = next((value for value in given.values() if isinstance(value, torch.ScriptObject)), None)
    if not isinstance(output, torch.Tensor) or not isinstance(source, torch.Tensor):
        return None
    try:
        if packed is not None:
            tensor, facts = _unpacked(packed, source.dim() - 2)
        elif isinstance(weight, torch.Tensor):
            tensor, facts = weight, _stated(given, operator_name(func), source, weight)
        else:
            return None
        at = _cost(operator_name(func), source, tensor, facts, output)
    except (GroupwiseError, AttributeError, RuntimeError, TypeError, IndexError, ZeroDivisionError):
        return None
    return None if at is None else Reading(at, source, tensor if packed is None else packed)


def _first(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((given[name] for name in names if name in given), None)


def _stated(given: Mapping[str, Any], name: str, source: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
    """The keywords of `ConvSpec.from_operator` after the weight, from arguments of the usual names."""
    facts = {key: _geometry(given, names) for key, names in _GEOMETRY.items()}
    facts = {key: value for key, value in facts.items() if value is not None}
    transposed = bool(given.get("transposed", "transpose" in name))
    # Depthwise operators have no such argument: the shapes tell.
    groups = given.get("groups", 1 if transposed else source.shape[1] // weight.shape[1])
    bias = _first(given, _BIAS) is not None
    return facts | {
        "bias": bias,
        "transposed": transposed,
        "groups": groups,
        "output_padding": given.get("output_padding", 0),
    }


def _geometry(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    """One number for each dimension: `stride`, or `stride_h` and `stride_w`."""
    for name in names:
        if name in given:
            return given[name]
        each = [given[f"{name}_{axis}"] for axis in "dhw" if f"{name}_{axis}" in given]
        if each:
            return each
    return None


def _unpacked(packed: Any, dims: int) -> tuple[torch.Tensor, dict[str, Any]]:
    """The weight of a quantized convolution and what is packed with it; a 1-D one is packed as 2-D of height 1."""
    weight, bias = packed.unpack()
    facts = {key: getattr(packed, key)()[-dims:] for key in ("stride", "padding", "dilation", "output_padding")}
    if weight.dim() > dims + 2:
        weight = weight.squeeze(2)
    transposed = bool(packed.transpose())
    if not transposed:
        del facts["output_padding"]
    return weight, facts | {"bias": bias is not None, "transposed": transposed, "groups": packed.groups()}


def _cost(
    name: str, source: torch.Tensor, weight: torch.Tensor, facts: dict[str, Any], out: torch.Tensor
) -> Cost | None:
    """The cost of what the arguments state; None where the output has another shape than they give."""
    given, shape, made = tuple(source.shape), tuple(weight.shape), tuple(out.shape)
    if name == "aten::conv_tbc":
        # (time, batch, channels), and a weight of (kernel, in, out).
        given, made, shape = (given[1], given[2], given[0]), (made[1], made[2], made[0]), shape[::-1]
        facts = facts | {"groups": 1}
    elif facts["transposed"] and facts["groups"] == 1 and weight.layout == _ONEDNN:
        # oneDNN stores a reordered weight by its outputs.
        shape = (shape[1], shape[0], *shape[2:])
    spec = ConvSpec.from_operator(given, shape, **facts)
    at = cost(spec, given[2:], batch=given[0], dtype=dtype_name(source.dtype))
    if made != (given[0], spec.out_channels, *at.output_size):
        return None
    traffic = Traffic(
        at.traffic.input,
        spec.weights * weight.element_size() if weight.layout != _ONEDNN else at.traffic.weight,
        out.numel() * out.element_size(),
    )
    return replace(at, traffic=traffic)
