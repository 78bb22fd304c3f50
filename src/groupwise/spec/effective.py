"""The weight and bias that a layer computes with, as shapes: no parametrization runs on the layer's own tensors.

Torch is imported only for a layer that is parametrized, and then its user has imported it already.
"""

from __future__ import annotations

import copy
import inspect
from collections import OrderedDict
from typing import Any

from groupwise.errors import GroupwiseError

# The hooks of `torch.nn.utils.prune`, `spectral_norm` and `weight_norm` compute a tensor before each forward from a
# parameter whose name ends so. The tensor may be stale between forwards, and the parameter cannot be.
_SOURCES = ("orig", "v")


def effective(layer: Any, name: str) -> Any:
    """Returns the tensor `name` ("weight" or "bias") of `layer`, or one that has its shape, strides and dtype.

    - plain: the parameter itself
    - `torch.nn.utils.parametrize`: a tensor on the meta device. Reading the attribute would run the parametrization,
      which may be slow and may change the layer: `spectral_norm` advances its power iteration.
    - `torch.nn.utils.prune`, and the hooks `weight_norm` and `spectral_norm`: the parameter that the hook reads
    - quantized modules: what their method of that name returns

    Returns None where the layer has no such tensor, where its shape cannot be known without running code of the layer,
    and where the layer holds only a shard of its weight or has offloaded it. A weight has 3 dimensions or more and no
    dimension of 0, so one of 0 or 1 dimensions or without elements is not whole: FSDP with `use_orig_params` leaves
    flat shards between forwards, and ZeRO-3 empty tensors. The bias beside such a weight is not known either. Raises
    `GroupwiseError` for a lazy layer that no input has reached.
    """
    tensor = _stored(layer, name)
    if tensor is None or 0 in tensor.shape:
        return None
    return None if _is_shard(tensor if name == "weight" else _stored(layer, "weight")) else tensor


def shape_of_effective(layer: Any, name: str) -> tuple[int, ...] | None:
    """Returns the shape of what `effective` returns, or None."""
    tensor = effective(layer, name)
    return None if tensor is None else tuple(int(length) for length in tensor.shape)


def has_bias(layer: Any) -> bool:
    """Returns whether the layer adds a bias, however it is parametrized."""
    if "bias" in (getattr(layer, "parametrizations", None) or ()) or _source(layer, "bias") is not None:
        return True
    bias = _attribute(layer, "bias")
    return bias is not None and bias is not False


def dtype_of(layer: Any) -> str:
    """Returns the name of the dtype of the layer's weight, `"float32"` where it has none.

    A quantized weight counts as the integers that it stores, and a shard of a weight has the dtype of the whole.
    """
    name = str(getattr(_stored(layer, "weight"), "dtype", "float32")).removeprefix("torch.")
    return {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}.get(name, name)


def unpacked(layer: Any, name: str) -> Any:
    """Returns what the method `name` ("weight" or "bias") of a quantized module returns: a tensor, or None.

    Modules of `torch.ao.nn`, and others with `_packed_params`, have such methods. No method of another module is
    called. Returns None also where the module has no such method, and where the engine in use cannot unpack.
    """
    kind = type(layer)
    held = (vars(layer), vars(layer).get("_modules") or {}) if hasattr(layer, "__dict__") else ()
    if not kind.__module__.startswith("torch.ao.nn.") and not any("_packed_params" in names for names in held):
        return None
    # The class is asked, because to ask the layer for a property would run it.
    method = inspect.getattr_static(kind, name, None)
    if not inspect.isfunction(method):
        return None
    try:
        return method(layer)
    except Exception:
        # A subclass may take other arguments and raise anything; an engine that cannot unpack raises RuntimeError.
        return None


def _stored(layer: Any, name: str) -> Any:
    """Returns what `effective` does, and a shard or an offloaded tensor as it is."""
    lists = getattr(layer, "parametrizations", None)
    if lists is not None and name in lists:
        return _parametrized(lists[name])
    tensor = _source(layer, name)
    if tensor is None:
        tensor = _attribute(layer, name)
    if type(tensor).__name__.startswith("Uninitialized"):
        raise GroupwiseError(
            f"{type(layer).__name__} does not know its in_channels yet, nor the shape of its {name}; "
            "run it once on an input, which sets both"
        )
    return tensor if hasattr(tensor, "shape") else None


def _attribute(layer: Any, name: str) -> Any:
    """Returns the attribute `name`, unpacked where a quantized module has a method; None for any other method."""
    try:
        value = getattr(layer, name, None)
    except Exception:
        # A property is any code.
        return None
    return unpacked(layer, name) if callable(value) else value


def _is_shard(weight: Any) -> bool:
    """Returns whether a weight is not whole: no convolution has one of fewer than 2 dimensions or without elements."""
    return weight is not None and (len(weight.shape) < 2 or 0 in weight.shape)


def _source(layer: Any, name: str) -> Any:
    """Returns the parameter from which a hook computes `name` before each forward, or None without such a hook."""
    parameters = getattr(layer, "_parameters", None) or {}
    if name in parameters:
        return None
    return next((parameters[f"{name}_{end}"] for end in _SOURCES if f"{name}_{end}" in parameters), None)


def _parametrized(parametrization: Any) -> Any:
    """Returns what a `ParametrizationList` computes, on copies of its tensors that have a shape and no values.

    The copies have no hooks: a hook is code of somebody else's, and a copy of it may reach whole models.
    """
    import torch

    memo: dict[int, Any] = {}
    try:
        for module in parametrization.modules():
            memo.update((id(held), OrderedDict()) for name, held in vars(module).items() if "_hooks" in name)
        for tensor in (*parametrization.parameters(), *parametrization.buffers()):
            shape = torch.empty_like(tensor, device="meta", requires_grad=False)
            kept = isinstance(tensor, torch.nn.Parameter)
            memo[id(tensor)] = torch.nn.Parameter(shape, requires_grad=tensor.requires_grad) if kept else shape
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return copy.deepcopy(parametrization, memo)()
    except Exception:
        # A parametrization is any code, and some of it needs values. PyTorch holds a safe one without a right inverse
        # to the shape of its original.
        inverse = any(hasattr(step, "right_inverse") for step in parametrization)
        known = not getattr(parametrization, "unsafe", True) and not inverse
        return getattr(parametrization, "original", None) if known else None
