"""Every convolution a model executes, counted at operator level: forward and backward.

A `TorchDispatchMode` sees `aten::convolution` itself, so `F.conv2d`, subclasses, weights computed on the fly and
groups = batch count like any layer. On fake tensors nothing is computed, and a copy of the model is what runs.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from groupwise.errors import GroupwiseError
from groupwise.profile.record import ConvCall, Recorder, synchronize

Keywords = Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a model with everything recorded: its convolutions in order, and the seconds it all took."""

    calls: list[ConvCall]
    seconds: float


def count(model: Callable[..., Any], *inputs: Any, kwargs: Keywords = None, backward: bool = False) -> list[ConvCall]:
    """The convolutions of `model(*inputs, **kwargs)` in order of execution.

    A module is copied with fake tensors in place of its own, which have shapes and no values, so nothing is computed
    and the model itself is not touched. What cannot be traced that way is run for real instead: a callable that is no
    module (nobody knows what it holds), a module that cannot be copied or looks at values. With `backward`, the
    gradients of every parameter and input that asks for one are traced too.

    Raises `GroupwiseError` for a module with lazy parameters and for a `backward` with nothing to differentiate, and
    whatever the model itself raises.
    """
    check_model(model)
    keywords = dict(kwargs or {})
    if not _is_traceable(model) or on_meta(model, inputs, keywords):
        return run(model, inputs, keywords, backward).calls
    try:
        with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with FakeCopyMode(mode):
                twin = copy.deepcopy(model)
            fakes, fake_keywords = tree_map_only(torch.Tensor, mode.from_tensor, (tuple(inputs), keywords))
            return _record(twin, fakes, fake_keywords, backward)[0]
    except GroupwiseError:
        raise
    except Exception:
        # Fake tensors refuse what depends on values (`if x.sum() > 0`, `.item()`), each kernel in its own words,
        # and so do copies. The real run decides: it counts the same, or raises the model's own error.
        return run(model, inputs, keywords, backward).calls


def run(model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], backward: bool) -> Run:
    """Run the model on its real tensors, recording and timing each convolution.

    Buffers (running statistics), `.grad` fields, the inputs and the random state stay as they were.
    """
    with _unchanged(model, inputs, keywords) as (copies, copied_keywords):
        return Run(*_record(model, copies, copied_keywords, backward))


def time_run(model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], backward: bool) -> float:
    """Seconds that the same run takes with nothing recorded."""
    with _unchanged(model, inputs, keywords) as (copies, copied_keywords):
        return _execute(model, copies, copied_keywords, backward)[1]


def outputs_of(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    backward: bool,
    recorder: Recorder,
) -> list[torch.Tensor]:
    """The tensors of the model's output, from a run like the others that `recorder` looks at."""
    with _unchanged(model, inputs, keywords) as (copies, copied_keywords), recorder.naming(), recorder:
        output, _ = _execute(model, copies, copied_keywords, backward)
        return [tensor.detach().clone() for tensor in tensors_of(output)]


def check_model(model: object) -> None:
    """Refuse what is no model, and modules that do not have their parameters yet."""
    if not callable(model):
        raise GroupwiseError(f"{model!r} is not a model; give a torch.nn.Module or a callable, then its inputs")
    if isinstance(model, torch.nn.Module):
        tensors = itertools.chain(model.named_parameters(), model.named_buffers())
        lazy = [name for name, tensor in tensors if is_lazy(tensor)]
        if lazy:
            raise GroupwiseError(f"{lazy[0]} is a lazy parameter without a shape; run the model once, then count it")


def on_meta(model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any]) -> bool:
    """Whether the tensors have shapes only (device meta), so that a run computes nothing and takes no time."""
    tensors = list(tensors_of(model, inputs, keywords))
    return bool(tensors) and all(tensor.is_meta for tensor in tensors)


def _is_traceable(model: Callable[..., Any]) -> bool:
    """Whether a copy stands for the model: not where a function, or a `forward` put on an instance, may hold others."""
    return isinstance(model, torch.nn.Module) and not any("forward" in vars(module) for module in model.modules())


def tensors_of(*things: Any) -> Iterator[torch.Tensor]:
    """Every tensor in models, containers, dataclasses."""
    for thing in things:
        if isinstance(thing, torch.nn.Module):
            yield from thing.parameters()
            yield from thing.buffers()
            continue
        for leaf in tree_leaves(thing):
            if isinstance(leaf, torch.Tensor):
                yield leaf
            elif dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
                yield from tensors_of(*vars(leaf).values())


@contextmanager
def _unchanged(
    model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any]
) -> Iterator[tuple[Any, Any]]:
    """Copies of the inputs for one run; after it the buffers and the random state are what they were."""
    modules = list(model.modules()) if isinstance(model, torch.nn.Module) else []
    held = [(module, dict(module._buffers)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
    buffers = list(model.buffers()) if isinstance(model, torch.nn.Module) else []
    # Also where the caller is in inference mode, whose tensors no gradient can be taken of.
    with torch.inference_mode(False), torch.random.fork_rng():
        saved = [buffer.detach().clone() for buffer in buffers]
        try:
            yield tree_map_only(torch.Tensor, _copy, (tuple(inputs), dict(keywords)))
        finally:
            for module, own in held:
                module._buffers.update(own)
            # All of them: batch norm writes to its statistics without autograd's version counters telling.
            for buffer, value in zip(buffers, saved, strict=True):
                _restore(buffer, value)


def _restore(buffer: torch.Tensor, value: torch.Tensor) -> None:
    with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
        if buffer.shape != value.shape:
            buffer.resize_(value.shape)
        buffer.copy_(value)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _record(
    model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], backward: bool
) -> tuple[list[ConvCall], float]:
    recorder = Recorder(model)
    with recorder.naming(), recorder:
        _, seconds = _execute(model, inputs, keywords, backward)
    return recorder.calls, seconds


def _execute(
    model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], backward: bool
) -> tuple[Any, float]:
    """The model's output, and the seconds that it and its gradients took."""
    # Not the caller's grad mode: what is counted must not depend on where that happens.
    with torch.enable_grad() if backward else torch.no_grad():
        devices = {tensor.device for tensor in tensors_of(model, inputs, keywords)}
        for device in devices:
            synchronize(device)
        start = time.perf_counter()
        output = model(*inputs, **keywords)
        if backward:
            _backward(model, inputs, keywords, output)
        for device in devices:
            synchronize(device)
        return output, time.perf_counter() - start


def _backward(model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], output: Any) -> None:
    """Gradients of everything that asks for one, through `torch.autograd.grad` so that no `.grad` changes."""
    wanted = [tensor for tensor in tensors_of(model, inputs, keywords) if tensor.requires_grad]
    outputs = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
    if not wanted or not outputs:
        fix = "unfreeze some parameters"
        if not isinstance(model, torch.nn.Module):
            fix = "give the module itself, whose parameters a function hides, or an input with requires_grad"
        raise GroupwiseError(
            "backward=True, but no output of the model depends on a parameter or input with requires_grad; "
            f"{fix}, or leave backward out"
        )
    torch.autograd.grad(outputs, wanted, [torch.ones_like(tensor) for tensor in outputs], allow_unused=True)
