"""The weight and bias that a layer computes with, as shapes: no parametrization runs on the layer's own tensors.

Torch is imported only for a layer that is parametrized, and then its user has imported it already.
"""

from __future__ import annotations

import copy
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

    Returns None where the layer has no such tensor, or where its shape cannot be known without running code of the
    layer. Raises `GroupwiseError` for a lazy layer that no input has reached.
    """
    lists = getattr(layer, "parametrizations", None)
    if lists is not None and name in lists:
        return _parametrized(lists[name])
    tensor = _source(layer, name)
    if tensor is None:
        tensor = getattr(layer, name, None)
    if callable(tensor):
        tensor = _unpacked(tensor)
    if type(tensor).__name__.startswith("Uninitialized"):
        raise GroupwiseError(
            f"{type(layer).__name__} does not know its in_channels yet, nor the shape of its {name}; "
            "run it once on an input, which sets both"
        )
    return tensor if hasattr(tensor, "shape") else None


def shape_of_effective(layer: Any, name: str) -> tuple[int, ...] | None:
    """Returns the shape of what `effective` returns, or None."""
    tensor = effective(layer, name)
    return None if tensor is None else tuple(int(length) for length in tensor.shape)


def has_bias(layer: Any) -> bool:
    """Returns whether the layer adds a bias, however it is parametrized."""
    if "bias" in (getattr(layer, "parametrizations", None) or ()) or _source(layer, "bias") is not None:
        return True
    bias = getattr(layer, "bias", None)
    if callable(bias):
        bias = _unpacked(bias)
    return bias is not None and bias is not False


def dtype_of(layer: Any) -> str:
    """Returns the name of the dtype of the layer's weight, `"float32"` where it has none.

    A quantized weight counts as the integers that it stores.
    """
    name = str(getattr(effective(layer, "weight"), "dtype", "float32")).removeprefix("torch.")
    return {"qint8": "int8", "quint8": "uint8", "qint32": "int32"}.get(name, name)


def _unpacked(method: Any) -> Any:
    """Returns what a quantized module's method returns, or None where the engine in use cannot unpack it."""
    try:
        return method()
    except RuntimeError:
        return None


def _source(layer: Any, name: str) -> Any:
    """Returns the parameter from which a hook computes `name` before each forward, or None without such a hook."""
    parameters = getattr(layer, "_parameters", None) or {}
    if name in parameters:
        return None
    return next((parameters[f"{name}_{end}"] for end in _SOURCES if f"{name}_{end}" in parameters), None)


def _parametrized(parametrization: Any) -> Any:
    """Returns what a `ParametrizationList` computes, on copies of its tensors that have a shape and no values."""
    import torch

    memo: dict[int, Any] = {}
    try:
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
