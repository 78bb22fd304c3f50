"""Which layers of a model can have other groups, and what is wrong with groups that were asked for."""

from __future__ import annotations

import difflib
from collections.abc import Hashable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from groupwise.choose.convert.readers import readers
from groupwise.choose.exact.like import lossless
from groupwise.errors import GroupwiseError, list_some, name_some
from groupwise.parallel.styles.base import is_plain
from groupwise.spec.arguments import valid_groups
from groupwise.spec.legible import legible

_MOST_NAMES = 6


def convertible(model: nn.Module, names: Iterable[str]) -> dict[str, str]:
    """Says for each layer why it cannot have other groups at all; empty if it can."""
    modules = dict(model.named_modules(remove_duplicate=False))
    holders: dict[Hashable, set[str]] = {}
    for name, module in modules.items():
        for thing in (module, *module._parameters.values()):
            if thing is not None:
                holders.setdefault(_identity(thing), set()).add(name)
    return {name: _refusal(name, modules, holders) for name in names}


def check_layers(model: nn.Module, names: Iterable[str]) -> None:
    """Raises `GroupwiseError` if any of the layers cannot have other groups."""
    found = [f"{legible(str(name))}: {reason}" for name, reason in convertible(model, names).items() if reason]
    if found:
        raise GroupwiseError("; ".join(found))


def check_model(model: nn.Module) -> None:
    """Raises `GroupwiseError` for what is no module, or wraps the one whose layers are meant."""
    if not isinstance(model, nn.Module):
        raise GroupwiseError(
            f"{model!r} is a {type(model).__name__}, whose layers cannot be found; give a torch.nn.Module"
        )
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise GroupwiseError("the model is compiled by torch.compile; give the module that you compiled")
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise GroupwiseError(f"the model is a {type(model).__name__}; give the module that it wraps, `model.module`")


def check_numbers(model: nn.Module) -> None:
    """Raises `GroupwiseError` for convolution layers whose numbers no conversion takes, and names them."""
    found: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if reason := _numbers(module):
            found.setdefault(reason, []).append(legible(name))
    if found:
        raise GroupwiseError("; ".join(f"{name_some(names, 3)}: {reason}" for reason, names in found.items()))


def check_groups_of(model: nn.Module, groups: Mapping[str, int]) -> None:
    """Raises `GroupwiseError` if any of the groups cannot be: all of them are told at once."""
    check_model(model)
    found, read = [], readers(model)
    for name, reason in convertible(model, groups).items():
        if reason:
            found.append(f"{legible(str(name))}: {reason}")
            continue
        layer: Any = model.get_submodule(name)
        value = groups[name]
        valid = valid_groups(layer.in_channels, layer.out_channels)
        if type(value) is not int or value not in valid:
            found.append(
                f"{legible(name)}: groups={value!r} must divide in_channels={layer.in_channels} and "
                f"out_channels={layer.out_channels}; valid groups: {list_some(list(valid))}"
            )
        elif layer.groups != value and (why := read.refusal(name, exact=lossless(layer, value) is not None)):
            found.append(f"{legible(name)}: {why}")
    if found:
        raise GroupwiseError("; ".join(found))


def _identity(thing: nn.Module | torch.Tensor) -> Hashable:
    """Returns the same for tensors that begin at the same place of memory: a change of one would change the others."""
    if isinstance(thing, nn.Module) or is_lazy(thing) or thing.is_meta or thing.layout != torch.strided:
        return id(thing)
    # A tensor without elements has no place. Subclasses that hold other tensors say 0, or that they have none.
    try:
        return (str(thing.device), thing.data_ptr()) if thing.numel() and thing.data_ptr() else id(thing)
    except RuntimeError:
        return id(thing)


# Weights of these are converted and fitted. Least squares and permutations of float16 round away what they gain.
_NUMBERS = (torch.float32, torch.float64, torch.bfloat16)


def _numbers(module: nn.Module) -> str:
    """Says why the numbers of a convolution layer cannot be converted; empty if they can, and for other modules."""
    if any(".quantized" in kind.__module__ for kind in type(module).__mro__):
        if not hasattr(module, "kernel_size") or not hasattr(module, "groups"):
            return ""
        return "it is quantized; convert the model to other groups before you quantize it"
    weight = module._parameters.get("weight") if isinstance(module, _ConvNd) else None
    if weight is None or is_lazy(weight) or weight.dtype in _NUMBERS:
        return ""
    kind = str(weight.dtype).removeprefix("torch.")
    if not weight.is_floating_point():
        return f"its weight is {kind}; only real floating-point weights convert"
    return f"its weight is {kind}; convert the model with .float(), and what becomes of it back"


def _refusal(name: Any, modules: Mapping[str, nn.Module], holders: Mapping[Hashable, set[str]]) -> str:
    module = modules.get(name)
    if module is None:
        known = [one for one, it in modules.items() if isinstance(it, _ConvNd)]
        near = difflib.get_close_matches(str(name), known)
        if not isinstance(name, str) and str(name) in modules:
            return f"names of layers are strings; write {str(name)!r}"
        if near:
            return f"the model has no such layer; did you mean {' or '.join(map(legible, near))}?"
        shown = ", ".join(map(legible, known[:_MOST_NAMES])) + ", ..." * (len(known) > _MOST_NAMES)
        return f"the model has no such layer; its convolutions: {shown or 'none'}"
    if reason := _numbers(module):
        return reason
    if not isinstance(module, _ConvNd):
        return f"it is a {type(module).__name__}, and only convolution layers have groups"
    if any(tensor is not None and is_lazy(tensor) for tensor in module._parameters.values()):
        return "it is lazy and has no weight yet; run the model once"
    if parametrize.is_parametrized(module) or "weight" not in module._parameters:
        return "its weight is computed from other parameters; remove the parametrization first"
    if module.weight.is_meta:
        return "its weight is on meta and has no numbers; load the model onto a device first"
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return "it has hooks, which would see other channels; remove them first"
    if not is_plain(module):
        return f"a {type(module).__name__} may compute something of its own; only plain convolution layers convert"
    tensors = [tensor for tensor in module._parameters.values() if tensor is not None]
    if any(tensor._backward_hooks or tensor._post_accumulate_grad_hooks for tensor in tensors):
        return "its parameters have hooks, which would see other channels; remove them first"
    things: list[nn.Module | torch.Tensor] = [module, *tensors]
    for thing in things:
        if len(holders[_identity(thing)]) > 1:
            others = sorted(holders[_identity(thing)] - {name})
            shared = "its module" if thing is module else "a parameter"
            names = ", ".join(map(legible, others))
            return f"it shares {shared} with {names}; give each a copy of its own, or leave it out"
    return ""
