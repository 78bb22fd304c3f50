"""`Region`: a module and the programs that compute it, one for each kind of input.

A module that cannot be captured stays as it is, and its children become regions of their own. They meet their inputs
when the module runs.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

from groupwise.rewrite.capture import NotCaptured, capture, reason_to_leave
from groupwise.rewrite.plan import Left, Plan, Step
from groupwise.rewrite.program import Program
from groupwise.rewrite.tape import Tape
from groupwise.rewrite.watch import Snapshot, Watch

# The most programs that a module keeps: another makes it forget the oldest.
MOST_PROGRAMS = 8
MISSING = object()
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Ready:
    """A program that can run: it holds for the parameters of its snapshot."""

    program: Program
    watch: Watch
    snapshot: Snapshot
    dtypes: list[tuple[torch.dtype, torch.Size, torch.device]]
    tape: Tape


class Planner:
    """What the regions of one network share: the lock under which they plan, and how they choose."""

    def __init__(self, measure: bool) -> None:
        self.lock = threading.RLock()
        self.measure = measure


class Region:
    """Stands in for the `forward` of a module."""

    is_region = True  # for those who look at a module's `forward`

    def __init__(self, module: torch.nn.Module, name: str, planner: Planner) -> None:
        self.module, self.name, self.planner = module, name, planner
        self.children: list[Region] = []
        self.left: list[Left] = []
        self._ready: OrderedDict[Key, Ready | None] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the module computes, by a program where there can be one."""
        known = _key(args, kwargs)
        if known is None:
            return self.as_it_is(*args, **kwargs)
        key, leaves = known
        ready = self._ready.get(key, MISSING)
        if ready is MISSING or (isinstance(ready, Ready) and not ready.watch.holds(ready.snapshot)):
            ready = self._prepare(key, leaves, args, kwargs)
        return ready.tape.run(leaves) if isinstance(ready, Ready) else self.as_it_is(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Region:
        """Stays itself: whoever copies a module with regions takes them out of the copy."""
        return self

    def as_it_is(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the module's own code."""
        return type(self.module).forward(self.module, *args, **kwargs)

    def forget(self) -> None:
        """Drops every program, so that the next calls make new ones."""
        with self.planner.lock:
            self._ready.clear()
            for child in self.children:
                child.forget()

    def programs(self) -> list[tuple[Key, Ready]]:
        """Returns the programs that are kept, the newest at the end."""
        return [(key, ready) for key, ready in list(self._ready.items()) if ready is not None]

    def put(self, programs: Mapping[Key, Ready]) -> None:
        """Puts programs in the place of those that are kept for the same inputs."""
        with self.planner.lock:
            self._ready.update(programs)

    def steps(self) -> list[Step]:
        """Returns the steps of the newest program, or of the children's."""
        own = self.programs()
        if own:
            return [under(self.name, step) for step in own[-1][1].program.steps]
        return [step for child in self.children for step in child.steps()]

    def all_left(self) -> list[Left]:
        """Returns the modules that stay as they are."""
        return [*self.left, *(left for child in self.children for left in child.all_left())]

    def _prepare(self, key: Key, leaves: Sequence[Any], args: Any, kwargs: Any) -> Ready | None:
        """Makes a program ready, unless another thread has just done so."""
        with self.planner.lock:
            ready = self._ready.get(key)
            if ready is None and key in self._ready:
                return None
            if ready is not None:
                if not ready.watch.holds(ready.snapshot):
                    ready = self._packed_again(ready)
                if ready is None:
                    # Another dtype or shape of a parameter makes another graph.
                    self._ready.clear()
            if ready is None:
                ready = self._planned(leaves, args, kwargs)
            self._ready[key] = ready
            while len(self._ready) > MOST_PROGRAMS:
                self._ready.popitem(last=False)
            return ready

    def _planned(self, leaves: Sequence[Any], args: Any, kwargs: Any) -> Ready | None:
        try:
            measure = self.planner.measure and not torch.are_deterministic_algorithms_enabled()
            program = Program(capture(self.module, args, kwargs), measure)
        except NotCaptured as reason:
            self._leave(str(reason))
            return None
        watch = Watch(self.module, program.states)
        snapshot = watch.snapshot()
        tape = program.pack(dict(zip(watch.names, snapshot[0], strict=True)), leaves)
        return Ready(program, watch, snapshot, _kinds(snapshot[0]), tape)

    def _packed_again(self, ready: Ready) -> Ready | None:
        snapshot = ready.watch.snapshot()
        if _kinds(snapshot[0]) != ready.dtypes:
            return None
        tape = ready.program.pack(dict(zip(ready.watch.names, snapshot[0], strict=True)))
        return Ready(ready.program, ready.watch, snapshot, ready.dtypes, tape)

    def _leave(self, reason: str) -> None:
        if not self.left:
            self.left.append(Left(self.name, reason))
            self._divide(self.module, self.name)

    def _divide(self, module: torch.nn.Module, name: str) -> None:
        """Makes the children regions, apart from those that nothing can be gained of."""
        for key, child in module.named_children():
            path = f"{name}.{key}" if name else key
            if reason := reason_to_leave(child):
                self.left.append(Left(path, reason))
            elif type(child).forward is torch.nn.Module.forward:
                self._divide(child, path)
            elif "forward" not in vars(child) and any(True for _ in child.parameters()):
                region = Region(child, path, self.planner)
                vars(child)["forward"] = region
                self.children.append(region)


def plan_of(region: Region, title: str, shapes: tuple[tuple[int, ...], ...], started: float) -> Plan:
    """Returns the plan of a network that has just run."""
    return Plan(
        title=title,
        steps=tuple(region.steps()),
        left=tuple(region.all_left()),
        input_shapes=shapes,
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - started,
    )


def under(name: str, step: Step) -> Step:
    """Returns a step of a module that has this name in the model."""
    return replace(step, name=f"{name}.{step.name}") if name else step


def _kinds(tensors: Sequence[torch.Tensor]) -> list[tuple[torch.dtype, torch.Size, torch.device]]:
    return [(tensor.dtype, tensor.shape, tensor.device) for tensor in tensors]


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_VALUES = (int, float, bool, str, type(None))
_functorch: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def _key(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Key, Sequence[Any]] | None:
    """Returns what a program depends on, and the leaves of the arguments; None where only the model's own code will do.

    That is under autocast, while the model is traced, compiled or transformed by `torch.func`, and for arguments that
    are not plain CPU tensors and Python values.
    """
    if torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling() or torch._C._is_tracing() or _functorch():
        return None
    leaves: Sequence[Any] = args
    spec: Any = len(args)
    if kwargs or not all(type(arg) in _PLAIN for arg in args):
        leaves, spec = tree_flatten((tuple(args), dict(kwargs)))
    parts: list[Any] = [spec, torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()]
    for leaf in leaves:
        if type(leaf) in _PLAIN:
            if leaf.device.type != "cpu" or leaf.layout is not torch.strided:
                return None
            parts.append((leaf.dtype, leaf.shape, leaf.stride()))
        elif type(leaf) in _VALUES:
            # By its text -0.0 is not 0.0, and a NaN is itself.
            parts.append((type(leaf), repr(leaf)))
        else:
            return None
    return tuple(parts), leaves
