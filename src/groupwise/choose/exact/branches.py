"""Parallel convolutions as one layer, and a grouped layer as its branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy

from groupwise.errors import GroupwiseError, check_integer, list_some
from groupwise.nn.layer import arguments_of
from groupwise.spec.arguments import valid_groups
from groupwise.spec.convspec import ConvSpec


def merge(layers: Iterable[nn.Module], *, shared_input: bool = False) -> nn.Module:
    """Returns one layer that computes what parallel layers compute, their outputs side by side.

    The inputs are side by side too, and the groups add up. With `shared_input` the dense layers read one input, may
    differ in out_channels, and become one dense layer. Raises `GroupwiseError` for layers that differ otherwise.
    """
    if not isinstance(layers, Iterable):
        raise GroupwiseError(
            f"merge takes a list of layers, and this is one {type(layers).__name__}; give [one, other]"
        )
    layers = list(layers)
    if not layers:
        raise GroupwiseError("merge has no layers; give at least one")
    convolutions = [_checked(layer) for layer in layers]
    first = convolutions[0]
    specs = [ConvSpec.from_module(layer) for layer in convolutions]
    if shared_input and (most := max(spec.groups for spec in specs)) > 1:
        raise GroupwiseError(f"groups={most} cannot read a shared input as one layer; make the layers dense first")
    outputs = specs[0].out_channels
    for place, (layer, spec) in enumerate(zip(convolutions, specs, strict=True)):
        alike = dataclasses.replace(spec, out_channels=outputs) if shared_input else spec
        if type(layer) is not type(first) or alike != specs[0] or _state(layer) != _state(first):
            raise GroupwiseError(
                f"layer {place} is {layer}, unlike layer 0, {first}; merged layers have one class, one set of "
                "arguments, bias or none, dtype, device, requires_grad and mode"
            )
    outputs = sum(spec.out_channels for spec in specs)
    spec = dataclasses.replace(specs[0], out_channels=outputs)
    if not shared_input:
        count = len(layers)
        spec = dataclasses.replace(spec, in_channels=count * spec.in_channels, groups=count * spec.groups)
    weight = torch.cat([layer.weight.detach() for layer in convolutions], int(shared_input and spec.transposed))
    biases = [layer.bias.detach() for layer in convolutions if layer.bias is not None]
    return _made(first, spec, weight, torch.cat(biases) if biases else None)


def split(layer: nn.Module, count: int | None = None) -> list[nn.Module]:
    """Returns the branches of a grouped layer, in order: each reads and writes an equal run of channels.

    There are as many as groups, all dense. A smaller `count` gives layers of several groups each, and undoes a `merge`
    of so many. Raises `GroupwiseError` for a count that does not divide the groups.
    """
    whole = _checked(layer)
    spec = ConvSpec.from_module(whole)
    number = spec.groups if count is None else check_integer("count", count, 1)
    if spec.groups % number:
        valid = list_some(list(valid_groups(spec.groups, spec.groups)), number)
        raise GroupwiseError(f"count={number} must divide groups={spec.groups} of the layer; valid: {valid}")
    branch = dataclasses.replace(
        spec,
        in_channels=spec.in_channels // number,
        out_channels=spec.out_channels // number,
        groups=spec.groups // number,
    )
    weights = whole.weight.detach().chunk(number)
    biases = [None] * number if whole.bias is None else whole.bias.detach().chunk(number)
    return [
        _made(whole, branch, w.clone(), None if b is None else b.clone()) for w, b in zip(weights, biases, strict=True)
    ]


def _checked(layer: nn.Module) -> _ConvNd:
    if not isinstance(layer, _ConvNd) or type(layer).__module__ not in ("torch.nn.modules.conv", "groupwise.nn.conv"):
        raise GroupwiseError(f"{type(layer).__name__} is not a convolution layer of torch.nn or groupwise.nn")
    if any(p is not None and is_lazy(p) for p in layer._parameters.values()):
        raise GroupwiseError(f"{type(layer).__name__} does not know its size yet; run it on an input first")
    hooks = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if layer._parameters.get("weight") is None or hooks:
        raise GroupwiseError(f"{type(layer).__name__} has hooks or computes its weight; remove them first")
    return layer


def _state(layer: _ConvNd) -> tuple[object, ...]:
    tensors = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    return layer.training, *((t.dtype, t.device, t.requires_grad) for t in tensors)


def _made(like: _ConvNd, spec: ConvSpec, weight: torch.Tensor, bias: torch.Tensor | None) -> nn.Module:
    made = type(like)(**arguments_of(spec), device="meta", dtype=weight.dtype)
    made.weight = nn.Parameter(weight, requires_grad=like.weight.requires_grad)
    if bias is not None and like.bias is not None:
        made.bias = nn.Parameter(bias, requires_grad=like.bias.requires_grad)
    return made.train(like.training)
