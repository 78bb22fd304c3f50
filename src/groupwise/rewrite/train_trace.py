"""`trace`: the calls that a module makes, as an fx graph. What cannot be traced in it stays a call of its module."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Tracer
from torch.fx.proxy import TraceError
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

from groupwise.nn.forwards import has_own_forward
from groupwise.rewrite.capture import LOCK
from groupwise.rewrite.train_fuse import has_hooks

# What stands for a tensor in a `Form`.
TENSOR = object()
MODEL = "model"  # the name of the traced module in its holder
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Form:
    """The arguments of a call without their tensors."""

    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def fill(self, tensors: tuple[Any, ...]) -> tuple[list[Any], dict[str, Any]]:
        """Returns the arguments with these tensors."""
        found = iter(tensors)
        args = [next(found) if arg is TENSOR else arg for arg in self.args]
        return args, {name: next(found) if arg is TENSOR else arg for name, arg in self.kwargs}


def take_apart(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Form, list[torch.Tensor]] | None:
    """Returns the form of the arguments and their tensors; None where they are more than tensors and plain values."""
    values = (*args, *kwargs.values())
    if not all(map(is_plain, values)):
        return None
    tensors = [value for value in values if isinstance(value, torch.Tensor)]
    places = [TENSOR if isinstance(value, torch.Tensor) else value for value in values]
    return Form(tuple(places[: len(args)]), tuple(zip(kwargs, places[len(args) :], strict=True))), tensors


def is_plain(value: Any) -> bool:
    """Tells whether a value may be an argument of what is traced."""
    return isinstance(value, torch.Tensor) or type(value) in _PLAIN


class Holder(torch.nn.Module):
    """Has the traced module as `model`: the module itself gets no attributes, and can be kept whole."""

    def __init__(self, model: torch.nn.Module, form: Form) -> None:
        super().__init__()
        self.model = model
        self.form = form

    def forward(self, *tensors: Any) -> Any:
        """Calls the module with `tensors` in its arguments."""
        args, kwargs = self.form.fill(tensors)
        return self.model(*args, **kwargs)


def trace(module: torch.nn.Module, form: Form, keep: str = "") -> tuple[Holder, Graph, dict[str, str]]:
    """Returns the calls that the module makes, below a `Holder`, and the modules that are kept whole with the reasons.

    The generated code reads modules and parameters from the holder's `model` when it runs. A module whose code cannot
    be traced, or does what a graph would forget, is one call in the graph.

    - `keep`: why the module itself is kept whole; empty if it is not
    """
    holder = Holder(module, form)
    with LOCK, quietly(), torch.enable_grad():
        tracer = _Tracer({MODEL: keep} if keep else {})
        graph = tracer.trace(holder)
    return holder, graph, tracer.kept


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps warnings of a trial from the user, who gets them when the network is called."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def reason_to_keep(module: torch.nn.Module) -> str | None:
    """Says why the code of a module is not looked into; None if nothing is against it."""
    if has_hooks(module):
        return "it has hooks"
    if parametrize.is_parametrized(module):
        return "it is parametrized"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted"
    if has_own_forward(module):
        return "its forward is set on the instance"
    return None


class _Refused(Exception):
    """Says why a module stays one call."""


class _Tracer(Tracer):
    """Traces modules; where that fails within a module, the call of the module stands in the graph."""

    proxy_buffer_attributes = True

    def __init__(self, keep: Mapping[str, str]) -> None:
        super().__init__()
        self._keep = keep
        self.kept: dict[str, str] = {}
        self._modes: list[tuple[Any, ...]] = [_modes()]

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        form: Any = self.root.form
        count = sum(value is TENSOR for value in (*form.args, *(value for _, value in form.kwargs)))
        tensors = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(count)]
        return root_fn, [self.root, *tensors]

    def create_node(self, *args: Any, **kwargs: Any) -> Any:
        self._check_modes()
        return super().create_node(*args, **kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: Any) -> Any:
        # A module that is kept whole takes its nodes out of the graph, so that none may be used again.
        return super().getattr(attr, attr_val, {})

    def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
        ours = type(m).__module__.startswith("groupwise.nn")
        return ours or isinstance(m, _BatchNorm) or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: torch.nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        self._check_modes()
        path = self.path_of_module(m)
        reason = self._keep.get(path) or reason_to_keep(m)
        if reason is None and self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)
        if reason is None:
            done, depth = len(self.graph.nodes), len(self.module_stack)
            kept = dict(self.kept)
            held, drawn = dict(vars(m)), _generators()
            self._modes.append(_modes())
            try:
                result = super().call_module(m, forward, args, kwargs)
                if vars(m).keys() != held.keys() or any(vars(m)[name] is not held[name] for name in held):
                    raise _Refused("its forward sets attributes")
                if _generators() != drawn:
                    raise _Refused("it draws random numbers that do not depend on its input")
                return result
            except Exception as error:
                reason = _reason(error)
                vars(m).clear()
                vars(m).update(held)
                _set_generators(drawn)
                self.kept = kept
                while len(self.module_stack) > depth:
                    self.module_stack.popitem()
                for node in list(self.graph.nodes)[done:][::-1]:
                    self.graph.erase_node(node)
            finally:
                self._modes.pop()
        self.kept[path] = reason
        return self.create_proxy("call_module", path, args, kwargs)

    def _check_modes(self) -> None:
        if _modes() != self._modes[-1]:
            raise _Refused("it changes the gradient mode or autocast, or recomputes (checkpoint)")


def _modes() -> tuple[Any, ...]:
    """Returns what a graph would not repeat."""
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled("cpu"),
        torch._C._autograd._top_saved_tensors_default_hooks(False),
    )


def _generators() -> tuple[Any, ...]:
    return torch.get_rng_state().numpy().tobytes(), random.getstate()


def _set_generators(state: tuple[Any, ...]) -> None:
    torch.set_rng_state(torch.frombuffer(bytearray(state[0]), dtype=torch.uint8))
    random.setstate(state[1])


def _reason(error: Exception) -> str:
    if isinstance(error, _Refused):
        return str(error)
    if isinstance(error, TraceError):
        return "its control flow depends on its input"
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"torch.fx cannot trace it: {(lines[0] if lines else type(error).__name__)[:120].rstrip('.')}"
