"""`capture`: the operators that a module runs on an input, as a graph, or the reason why there is none."""

from __future__ import annotations

import copy
import logging
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from typing import Any, TextIO, cast

import torch
from torch.fx import Graph, Node
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec, tree_flatten

from groupwise.rewrite import kept
from groupwise.rewrite.inline import inline

# torch.export and torch.fx put their own functions in place of PyTorch's while they run, for all threads.
LOCK = threading.RLock()


class NotCaptured(Exception):
    """Says why a module stays as it is."""


@dataclass(frozen=True)
class Captured:
    """What a module runs.

    - `graph`: its placeholders are the leaves of the arguments, and parameters, buffers and constants, whose
      `meta["state"]` has the name
    - `constants`: tensors that are no state of the module, by name
    - `out_spec`: how the outputs are arranged
    - `left`: why parts of the module stay as they are, by their names
    """

    graph: Graph
    constants: Mapping[str, torch.Tensor]
    out_spec: TreeSpec
    left: Mapping[str, str]


def twin(module: torch.nn.Module) -> torch.nn.Module:
    """Returns a copy in eval mode with a structure of its own, which shares every parameter and buffer.

    It shares one that is replaced later too, and modules that stay as they are: hooks are their user's. Those are also
    the modules in training mode, unless the whole model is in training mode.
    """
    shared: dict[int, Any] = {}
    for part in module.modules():
        if part is not module and (_reason_to_share(part) or (part.training and not module.training)):
            shared[id(part)] = part
        if not isinstance(part, torch.jit.ScriptModule):
            held = [part._parameters, part._buffers, *part._parameters.values(), *part._buffers.values()]
            shared |= {id(thing): thing for thing in held if thing is not None}
    made = _without_regions(copy.deepcopy(module, shared))
    for part in made.modules():
        if id(part) not in shared:
            part.training = False
    return made


def reason_to_leave(module: torch.nn.Module) -> str | None:
    """Says why this module itself cannot be rewritten; None if nothing is against it."""
    return "it is in training mode" if module.training else _reason_to_share(module)


def _reason_to_share(module: torch.nn.Module) -> str | None:
    if module._forward_hooks or module._forward_pre_hooks:
        return "it has forward hooks"
    if parametrize.is_parametrized(module):
        return "it is parametrized"
    if isinstance(module, torch.jit.ScriptModule):
        return "it is scripted"
    if "forward" in vars(module) and not getattr(vars(module)["forward"], "is_region", False):
        return "its forward is set on the instance"
    return None


def capture(module: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Captured:
    """Returns what `module(*args, **kwargs)` runs. Raises `NotCaptured` where that is not one graph of operators."""
    left = _kept_parts(module)
    if "" in left:
        raise NotCaptured(left[""])
    numbers: list[int] = []
    try:
        with _quietly(), torch.no_grad():
            # The export puts fake tensors in place of parameters while it runs, which other threads must not see.
            apart = _apart(module, kept.standing(module, left, numbers))
            program = torch.export.export(apart, tuple(args), dict(kwargs), strict=False)
            inline(program.graph_module)
            kept.put_back(program.graph)
    except Exception as error:
        reasons = "".join(f"{name}: {reason}, and " for name, reason in left.items())
        raise NotCaptured(f"{reasons}torch.export refuses it: {first_line(error)}") from None
    finally:
        kept.forget(numbers)
    if program.call_spec.in_spec != tree_flatten((tuple(args), dict(kwargs)))[1]:
        raise NotCaptured("torch.export arranges its arguments in another order")
    graph = program.graph
    nodes = {node.name: node for node in graph.nodes}
    constants: dict[str, torch.Tensor] = {}
    for spec in program.graph_signature.input_specs:
        kind, node = spec.kind.name, nodes[spec.arg.name]
        if kind in ("PARAMETER", "BUFFER", "CONSTANT_TENSOR"):
            node.meta["state"] = spec.target
        elif kind != "USER_INPUT":
            raise NotCaptured(f"it has an input of kind {kind.lower()}")
        if kind == "CONSTANT_TENSOR":
            constants[str(spec.target)] = program.constants[str(spec.target)]
    if any(spec.kind.name != "USER_OUTPUT" for spec in program.graph_signature.output_specs):
        raise NotCaptured("it writes to its parameters, buffers or inputs")
    for node in graph.nodes:
        _check(node)
    return Captured(graph, constants, program.call_spec.out_spec, left)


def module_of(node: Node) -> str:
    """Returns the name of the module whose code made the node, or the node's own."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(list(stack.values())[-1][0]) if stack else ""
    return path or node.name


def _kept_parts(module: torch.nn.Module) -> dict[str, str]:
    """Returns why submodules stay as they are, by their names; not those inside of others that stay."""
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if not inside and (reason := reason_to_leave(part)):
            found[name] = reason
    return found


def _apart(module: torch.nn.Module, others: Mapping[int, torch.nn.Module]) -> torch.nn.Module:
    """Returns a copy with other submodules at some places, which shares tensors but not the dictionaries of them."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())} | dict(others)
    return _without_regions(copy.deepcopy(module, memo))


def _without_regions(module: torch.nn.Module) -> torch.nn.Module:
    for part in module.modules():
        if getattr(vars(part).get("forward"), "is_region", False):
            del vars(part)["forward"]
    return module


# Operators whose results, or errors, depend on the strides of what they read.
_READ_MEMORY = {
    torch.ops.aten.as_strided.default,
    torch.ops.aten.view.dtype,
    torch.ops.aten.view_as_complex.default,
    torch.ops.aten.view_as_real.default,
}


def _check(node: Node) -> None:
    if node.op in ("call_module", "call_method", "get_attr") or isinstance(node.target, torch._ops.HigherOrderOperator):
        caller = next(iter(node.users), node) if node.op == "get_attr" else node
        raise NotCaptured(f"its graph has a part of its own ({caller.target})")
    if node.target in _READ_MEMORY:
        raise NotCaptured(
            f"{str(node.target).split('.')[1]} reads memory as it lies, which the rewritten network changes"
        )
    values = node.meta.get("val")
    for found in values if isinstance(values, list | tuple) else [values]:
        if isinstance(found, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise NotCaptured("its control flow or a shape depends on values")
        if isinstance(found, torch.Tensor):
            if not all(isinstance(size, int) for size in found.shape):
                raise NotCaptured("a shape depends on values")
            if found.layout != torch.strided or found.is_quantized:
                raise NotCaptured("it has sparse or quantized tensors")


def first_line(error: Exception) -> str:
    """Returns what an error says, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:160].rstrip(".:")


class _OthersOnly:
    """Standard error for all threads but this one."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Writes what another thread writes."""
        if threading.get_ident() != self._thread:
            self._stream.write(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _quietly() -> Iterator[None]:
    """Keeps what torch.export says about a module that it refuses from the user: the plan says it.

    The export puts functions and streams of its own in place of the process's, so one thread exports at a time.
    """
    with LOCK, _muted():
        yield


@contextmanager
def _muted() -> Iterator[None]:
    logger = logging.getLogger("torch")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        # It prints the graph up to a branch that depends on values.
        with warnings.catch_warnings(), redirect_stderr(cast(TextIO, _OthersOnly(sys.stderr))):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
