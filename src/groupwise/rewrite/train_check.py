"""Whether the traced form of a model computes what the model computes, values and gradients."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from groupwise.kernels import dispatch
from groupwise.rewrite.example import refused
from groupwise.rewrite.samples import first_samples, samples_of
from groupwise.rewrite.train_fuse import Notes
from groupwise.rewrite.train_region import Region, Settings
from groupwise.rewrite.train_switch import run_backward
from groupwise.rewrite.train_trace import quietly


def disagreement(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], samples: int
) -> tuple[str, Notes | None]:
    """Says how the traced form differs from the model on the example, empty if it does not, and what was done in it.

    Compares on the first `samples`, and on the whole example where the two differ on those or the model fails.
    Raises `RefusedExample` if the model fails on both.

    A condition on an argument's type, say, is decided by the trace and not by the argument.
    """
    if samples_of(args, kwargs) > samples:
        # The model may keep something of them, which is of no use to the whole example.
        twins = copy.deepcopy(model), copy.deepcopy(model)
        try:
            difference, notes = _difference(*twins, *first_samples(args, kwargs, samples))
            if not difference:
                return "", notes
        except Exception:
            # The model may accept no other number of samples than the example's.
            pass
    twin = copy.deepcopy(model)
    try:
        return _difference(model, twin, args, kwargs)
    except Exception as error:
        raise refused(error, model, args, kwargs, "groupwise.optimize(model, x, train=True)") from error


def _difference(
    model: torch.nn.Module, twin: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[str, Notes | None]:
    """Does what `disagreement` does, for a model and its twin. Raises what the model raises."""
    state = torch.get_rng_state()
    with quietly(), dispatch.by_pytorch():
        expected = tree_leaves(model(*args, **kwargs))
    try:
        gradients = _gradients(model, expected)
    except Exception:
        gradients = None
    torch.set_rng_state(state)
    try:
        with quietly(), dispatch.by_pytorch():
            region = Region(twin, "", Settings())
            found = tree_leaves(region(*args, **kwargs))
            notes = region.notes()
            same = len(expected) == len(found) and all(map(_close, expected, found))
            if not same:
                return "its traced form gives other values", None
            ours = None if gradients is None else _gradients(twin, found)
    except Exception as error:
        return f"its traced form fails: {(str(error).splitlines() or [type(error).__name__])[0][:120]}", None
    if gradients is None or ours is None or _alike(gradients, ours):
        return "", notes
    # A network may turn the last digit of its input into other gradients.
    with quietly(), dispatch.by_pytorch():
        torch.set_rng_state(state)
        nearby = _gradients(model, tree_leaves(model(*tree_map(_neighbour, args), **tree_map(_neighbour, kwargs))))
    return ("", notes) if _alike(gradients, ours, nearby) else ("its traced form gives other gradients", None)


def _neighbour(value: Any) -> Any:
    return value * (1 + 1e-6) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _gradients(model: torch.nn.Module, results: list[Any]) -> list[torch.Tensor]:
    """Returns the gradients of the parameters, for gradients of the results that no normalisation takes to zero."""
    model.zero_grad()
    wanted = [it for it in results if isinstance(it, torch.Tensor) and it.requires_grad]
    generator = torch.Generator().manual_seed(0)
    if wanted:
        run_backward(wanted, [torch.randn(it.shape, dtype=it.dtype, generator=generator) for it in wanted])
    found = [torch.zeros(1) if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    model.zero_grad()
    return [it.nan_to_num(0, 0, 0) for it in found]


def _alike(expected: list[torch.Tensor], found: list[torch.Tensor], nearby: list[torch.Tensor] | None = None) -> bool:
    """Tells whether gradients differ by roundings alone, which are large in deep networks with few samples."""
    if not expected:
        return not found
    # A gradient that is zero, as that of a bias before a normalisation, consists of roundings.
    floor = 1e-3 * max(it.norm().item() for it in expected)
    for one, other, third in zip(expected, found, nearby or expected, strict=True):
        allowed = 0.05 * one.norm().item() + floor + 3 * (one - third).norm().item()
        if (one - other).norm().item() > allowed:
            return False
    return True


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = a[a.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)
