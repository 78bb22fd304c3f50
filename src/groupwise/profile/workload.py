"""`Workload`: a model, what it is called with, and whether its gradients run; checked, copied, named and run once."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves, tree_map_only

from groupwise.errors import GroupwiseError
from groupwise.spec.effective import unpacked

# What `torch.compile`, activation checkpointing and FSDP call the module that they wrap.
_WRAPPED = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


@dataclass(frozen=True, eq=False)
class Workload:
    """One call of a model: `model(*inputs, **kwargs)`, and with `backward` its gradients.

    - `model`: a `torch.nn.Module` or any callable
    - `inputs`, `kwargs`: its arguments
    - `backward`: whether the gradients of every parameter and input that requires one are computed too

    Raises `GroupwiseError` for a model that is not callable and for a module with lazy parameters.
    """

    model: Callable[..., Any]
    inputs: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    backward: bool = False

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise GroupwiseError(
                f"{self.model!r} is not a model; give a torch.nn.Module or a callable, then its inputs"
            )
        if self.module is not None:
            tensors = itertools.chain(self.module.named_parameters(), self.module.named_buffers())
            lazy = [plain_name(name) for name, tensor in tensors if is_lazy(tensor)]
            if lazy:
                raise GroupwiseError(
                    f"{lazy[0]} is a lazy parameter without a shape; run the model once, then count it"
                )

    @property
    def module(self) -> torch.nn.Module | None:
        """The model if it is a module."""
        return self.model if isinstance(self.model, torch.nn.Module) else None

    @property
    def title(self) -> str:
        """What the model is called: a module's class, a function's name."""
        if self.module is None:
            return str(getattr(self.model, "__name__", "model"))
        return type(getattr(self.module, "_orig_mod", self.module)).__name__

    @property
    def is_compiled(self) -> bool:
        """Whether `torch.compile` wraps the model or one of its modules."""
        modules = [] if self.module is None else self.module.modules()
        return any(hasattr(module, "_orig_mod") or module._compiled_call_impl is not None for module in modules)

    @property
    def on_meta(self) -> bool:
        """Whether all tensors have shapes only (device meta), so that a run computes nothing and takes no time."""
        tensors = list(self.tensors())
        return bool(tensors) and all(tensor.is_meta for tensor in tensors)

    @property
    def is_traceable(self) -> bool:
        """Whether a copy stands for the model; a function, or a `forward` set on an instance, may hold others."""
        return self.module is not None and not any("forward" in vars(module) for module in self.module.modules())

    @property
    def parameters(self) -> int:
        """How many parameters the model has; those that quantized layers hold packed count too."""
        if self.module is None:
            return 0
        packed = (unpacked(module, name) for module in self.module.modules() for name in ("weight", "bias"))
        held = itertools.chain(self.module.parameters(), packed)
        return sum(tensor.numel() for tensor in held if isinstance(tensor, torch.Tensor))

    def tensors(self) -> Iterator[torch.Tensor]:
        """Every tensor of the model and its arguments."""
        return tensors_of(self.model, self.inputs, dict(self.kwargs))

    def named_modules(self) -> Iterator[tuple[str, torch.nn.Module]]:
        """Every module with its name, from which the names of wrappers such as `_orig_mod` are left out."""
        for name, module in [] if self.module is None else self.module.named_modules():
            yield plain_name(name), module

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """Every parameter with its name, from which the names of wrappers such as `_orig_mod` are left out."""
        for name, parameter in [] if self.module is None else self.module.named_parameters():
            yield plain_name(name), parameter

    @contextmanager
    def fake(self) -> Iterator[Workload]:
        """The same workload on fake tensors, which have shapes and no values; within the block they are in force."""
        # A caller in inference mode makes tensors that no gradient can be taken of.
        with torch.inference_mode(False), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            with FakeCopyMode(mode):
                twin = copy.deepcopy(self.model)
            inputs, kwargs = tree_map_only(torch.Tensor, mode.from_tensor, (self.inputs, dict(self.kwargs)))
            yield dataclasses.replace(self, model=twin, inputs=inputs, kwargs=kwargs)

    @contextmanager
    def unchanged(self) -> Iterator[Workload]:
        """The same workload on copies of its arguments; afterwards buffers and random state are what they were."""
        modules = [] if self.module is None else list(self.module.modules())
        held = [(module, dict(module._buffers)) for module in modules if not isinstance(module, torch.jit.ScriptModule)]
        buffers = [] if self.module is None else list(self.module.buffers())
        with torch.inference_mode(False), torch.random.fork_rng():
            saved = [buffer.detach().clone() for buffer in buffers]
            try:
                inputs, kwargs = tree_map_only(torch.Tensor, _copy, (self.inputs, dict(self.kwargs)))
                yield dataclasses.replace(self, inputs=inputs, kwargs=kwargs)
            finally:
                for module, own in held:
                    module._buffers.update(own)
                # Every buffer is restored: batch norm writes its statistics without a trace in autograd's versions.
                for buffer, value in zip(buffers, saved, strict=True):
                    _restore(buffer, value)

    def execute(self) -> tuple[Any, float]:
        """Run once, on the arguments themselves; returns the output, and the seconds that it and its gradients took."""
        # The caller's grad mode is overridden, so that the count does not depend on it.
        with torch.enable_grad() if self.backward else torch.no_grad():
            devices = {tensor.device for tensor in self.tensors()}
            for device in devices:
                synchronize(device)
            start = time.perf_counter()
            output = self.model(*self.inputs, **self.kwargs)
            if self.backward:
                self._differentiate(output)
            for device in devices:
                synchronize(device)
            return output, time.perf_counter() - start

    def _differentiate(self, output: Any) -> None:
        """Compute all gradients through `torch.autograd.grad`, which leaves every `.grad` as it is."""
        wanted = [tensor for tensor in self.tensors() if tensor.requires_grad]
        outputs = [tensor for tensor in tensors_of(output) if tensor.requires_grad]
        if not wanted or not outputs:
            fix = "unfreeze some parameters"
            if self.module is None:
                fix = "give the module itself, whose parameters a function hides, or an input with requires_grad"
            raise GroupwiseError(
                "backward=True, but no output of the model depends on a parameter or input with requires_grad; "
                f"{fix}, or leave backward out"
            )
        torch.autograd.grad(outputs, wanted, [torch.ones_like(tensor) for tensor in outputs], allow_unused=True)


def plain_name(name: str) -> str:
    """A module's or parameter's name without the wrappers on its path: `_orig_mod.0._orig_mod.conv` is `0.conv`."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPED)


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


def synchronize(device: torch.device) -> None:
    """Wait for what the device has queued; the CPU queues nothing."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def _restore(buffer: torch.Tensor, value: torch.Tensor) -> None:
    with torch.inference_mode() if buffer.is_inference() else torch.no_grad():
        if buffer.shape != value.shape:
            buffer.resize_(value.shape)
        buffer.copy_(value)
