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

# `convolution`, `conv2d`, `qconv`, `deform_conv`; not `convert`, `convex`, `convergence`, nor the network ConvNeXt.
_CONVOLUTION = re.compile(r"conv(?!e|next)", re.IGNORECASE)
# Operators that only rearrange a weight.
_HELPER = re.compile(r"pre_?pack|unpack|reorder", re.IGNORECASE)
_INPUT, _WEIGHT, _BIAS = ("input", "self", "X", "qx", "x"), ("weight", "W", "qw"), ("bias", "B")
# The layout of tensors that only oneDNN reads.
_ONEDNN = getattr(torch, "_mkldnn")  # noqa: B009  # torch's stub does not name it
# PyTorch's names and ONNX's. `pads` holds the padding before along each dimension, then that after.
_GEOMETRY = {
    "stride": ("stride", "strides"),
    "padding": ("padding", "pad", "pads"),
    "dilation": ("dilation", "dil", "dilations"),
}
_GROUPS = ("groups", "group")
_TRANSPOSED = re.compile(r"transpose|deconv", re.IGNORECASE)
# What names of a forward and of its backward differ in.
_PASS = re.compile(r"_?(forward|fwd|backward|bwd).*")


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
    """Whether an operator may be a convolution: its name says so, it takes two tensors or more and returns one.

    A packed weight counts as a tensor, a list of tensors as several, and a bias not at all.
    """
    name = func.name().split("::")[-1].split(".")[0]
    if not _CONVOLUTION.search(name) or _HELPER.search(name):
        return False
    takes = [str(one.type) for one in func._schema.arguments if one.name not in _BIAS]
    tensors = sum("Tensor" in kind for kind in takes)
    operands = tensors + sum("List[Tensor" in kind or "torch.classes" in kind for kind in takes)
    return tensors > 0 and operands > 1 and any("Tensor" in str(one.type) for one in func._schema.returns)


@cache
def _has_geometry(func: Any) -> bool:
    """Whether an operator has an argument for stride, padding, dilation or groups, as every convolution needs."""
    names = {re.sub(r"_[dhw]$", "", one.name) for one in func._schema.arguments}
    return any(names.intersection(known) for known in (*_GEOMETRY.values(), _GROUPS))


def is_backward(name: str) -> bool:
    """Whether `namespace::name` names the gradients of an operator."""
    return "backward" in name or "bwd" in name


def stem(name: str) -> str:
    """What the names of a forward and of its backward share: `torchvision::deform_conv2d`, of both its operators."""
    namespace, _, operator = name.partition("::")
    return f"{namespace}::{_PASS.sub('', operator).strip('_')}"


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
        elif isinstance(weight, torch.Tensor) and _has_geometry(func):
            tensor, facts = weight, _stated(given, operator_name(func), source, weight)
        else:
            return None
        at = _cost(operator_name(func), source, tensor, facts, output)
    except (GroupwiseError, AttributeError, RuntimeError, TypeError, ValueError, IndexError, ZeroDivisionError):
        return None
    return None if at is None else Reading(at, source, tensor if packed is None else packed)


def _first(given: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((given[name] for name in names if name in given), None)


def _stated(given: Mapping[str, Any], name: str, source: torch.Tensor, weight: torch.Tensor) -> dict[str, Any]:
    """The keywords of `ConvSpec.from_operator` after the weight, from arguments of the usual names."""
    dims = source.dim() - 2
    _check_onnx(given, weight)
    facts = {key: _geometry(given, names) for key, names in _GEOMETRY.items()}
    # An empty list stands for the defaults.
    facts = {key: value for key, value in facts.items() if value is not None and value != []}
    if "pads" in given and "padding" in facts:
        facts["padding"] = _before(facts["padding"], dims)
    transposed = bool(given.get("transposed", _TRANSPOSED.search(name) is not None))
    # Depthwise operators have no such argument: the shapes tell.
    groups = _first(given, _GROUPS)
    if groups is None:
        groups = 1 if transposed else source.shape[1] // weight.shape[1]
    bias = _first(given, _BIAS) is not None
    return facts | {
        "bias": bias,
        "transposed": transposed,
        "groups": groups,
        "output_padding": given.get("output_padding", 0),
    }


def _check_onnx(given: Mapping[str, Any], weight: torch.Tensor) -> None:
    """Raises `ValueError` where ONNX pads by rule, or states another kernel than the weight has."""
    if given.get("auto_pad") not in (None, "", "NOTSET"):
        raise ValueError("auto_pad leaves the padding open")
    if list(given.get("kernel_shape") or weight.shape[2:]) != list(weight.shape[2:]):
        raise ValueError("kernel_shape is not the weight's")


def _before(pads: Any, dims: int) -> Any:
    """The padding on either side of each dimension from ONNX's `pads`; raises `ValueError` where the two differ."""
    if isinstance(pads, int) or len(pads) != 2 * dims:
        return pads
    before, after = list(pads[:dims]), list(pads[dims:])
    if before != after:
        raise ValueError("a ConvSpec pads both sides alike")
    return before


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
