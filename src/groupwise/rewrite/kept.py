"""`Kept`: a module inside a captured one that stays as it is. It runs between the rewritten operators.

The export sees one operator in its place. What the module computes on fake tensors tells the shapes.
"""

from __future__ import annotations

import copy
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

_LIBRARY = torch.library.Library("groupwise_rewrite", "FRAGMENT")  # type: ignore[no-untyped-call]
_LIBRARY.define("kept(Tensor[] given, int number) -> Tensor[]")  # type: ignore[no-untyped-call]
KEPT = torch.ops.groupwise_rewrite.kept.default

_numbers = itertools.count()
_calls: dict[int, Kept] = {}
_thread = threading.local()


class OtherOutput(Exception):
    """A module that is kept answered otherwise than it did when the model was captured."""


@dataclass(frozen=True)
class Tensor:
    """What is known of a tensor before it is there."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @staticmethod
    def of(tensor: torch.Tensor) -> Tensor:
        """Returns what is known of a tensor."""
        return Tensor(tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def empty(self) -> torch.Tensor:
        """Returns memory for it."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype)

    def laid_out(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensor with these strides: the module's own code may depend on them."""
        wanted, given = self.stride, tensor.stride()
        if all(a == b for a, b, size in zip(wanted, given, self.shape, strict=True) if size > 1):
            return tensor
        return self.empty().copy_(tensor)


@dataclass(frozen=True, eq=False)
class Kept:
    """One call of a module that stays as it is: tensors to tensors, in order.

    - `given`, `made`: the leaves of its arguments and of its output, `Tensor` where they are tensors
    """

    module: torch.nn.Module
    given: Sequence[Any]
    in_spec: TreeSpec
    made: Sequence[Any]
    out_spec: TreeSpec

    # What looks at a node's target: it is no constant, and a plan calls it so.
    tags = (torch.Tag.nondeterministic_seeded,)
    __name__ = "as it is"

    def __call__(self, tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Runs the module. Raises `OtherOutput` where that gives other shapes or values than were captured."""
        if getattr(_thread, "rehearses", False):
            return self._random()
        left = iter(tensors)
        leaves = [leaf.laid_out(next(left)) if isinstance(leaf, Tensor) else leaf for leaf in self.given]
        args, kwargs = tree_unflatten(leaves, self.in_spec)
        found, spec = tree_flatten(self.module(*args, **kwargs))
        if spec != self.out_spec or not all(map(_alike, found, self.made)):
            raise OtherOutput
        return [leaf for leaf in found if isinstance(leaf, torch.Tensor)]

    def _random(self) -> list[torch.Tensor]:
        """Returns outputs for a rehearsal, in which no code or hook of the user may run."""
        generator = torch.Generator().manual_seed(0)
        tensors = [leaf.empty().zero_() for leaf in self.made if isinstance(leaf, Tensor)]
        return [t.normal_(generator=generator) if t.dtype.is_floating_point else t for t in tensors]


@contextmanager
def rehearsal() -> Iterator[None]:
    """Kept modules do not run in this thread: the operators around them are tried on random numbers."""
    _thread.rehearses = True
    try:
        yield
    finally:
        _thread.rehearses = False


class Stand(torch.nn.Module):
    """Stands in for a module while the model around it is exported."""

    def __init__(self, module: torch.nn.Module, numbers: list[int]) -> None:
        super().__init__()
        # As a child of this module it would be exported too.
        vars(self)["_module"], vars(self)["_numbers"] = module, numbers
        vars(self)["_double"] = _without_hooks(copy.deepcopy(module))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Notes the call, and returns what has the shapes of its output."""
        leaves, in_spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        given = [Tensor.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        with torch.utils._python_dispatch._disable_current_modes(), FakeTensorMode(allow_non_fake_inputs=True):
            made, out_spec = self._shapes(given, in_spec)
        number = next(_numbers)
        _calls[number] = Kept(vars(self)["_module"], given, in_spec, made, out_spec)
        vars(self)["_numbers"].append(number)
        results = iter(torch.ops.groupwise_rewrite.kept(tensors, number))
        return tree_unflatten([next(results) if isinstance(leaf, Tensor) else leaf for leaf in made], out_spec)

    def _shapes(self, given: Sequence[Any], in_spec: TreeSpec) -> tuple[list[Any], TreeSpec]:
        leaves = [leaf.empty() if isinstance(leaf, Tensor) else leaf for leaf in given]
        args, kwargs = tree_unflatten(leaves, in_spec)
        before = [leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor)]
        found, out_spec = tree_flatten(vars(self)["_double"](*args, **kwargs))
        if before != [leaf._version for leaf in leaves if isinstance(leaf, torch.Tensor)]:
            raise RuntimeError("a module that stays as it is writes to its input")
        if not all(isinstance(leaf, torch.Tensor | int | float | str | None) for leaf in found):
            raise RuntimeError("a module that stays as it is returns more than tensors")
        return [Tensor.of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in found], out_spec


@torch.library.register_fake("groupwise_rewrite::kept", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _fake(given: list[torch.Tensor], number: int) -> list[torch.Tensor]:
    return [leaf.empty() for leaf in _calls[number].made if isinstance(leaf, Tensor)]


def put_back(graph: Graph) -> None:
    """Replaces the operator by the calls that it stands for."""
    for node in graph.nodes:
        if node.target is KEPT:
            tensors, number = node.args
            node.target, node.args = _calls[number], (tensors,)


def forget(numbers: Sequence[int]) -> None:
    """Drops what an export noted."""
    for number in numbers:
        _calls.pop(number, None)


def standing(module: torch.nn.Module, reasons: Mapping[str, str], numbers: list[int]) -> dict[int, Stand]:
    """Returns what stands in for the submodules of these names, by their identity."""
    parts = {id(part): part for part in map(module.get_submodule, reasons)}
    return {number: Stand(part, numbers) for number, part in parts.items()}


def _without_hooks(module: torch.nn.Module) -> torch.nn.Module:
    for part in module.modules():
        part._forward_hooks.clear()
        part._forward_pre_hooks.clear()
    return module


def _alike(found: Any, expected: Any) -> bool:
    if isinstance(expected, Tensor):
        return (
            isinstance(found, torch.Tensor) and tuple(found.shape) == expected.shape and found.dtype == expected.dtype
        )
    return type(found) is type(expected) and bool(found == expected)
