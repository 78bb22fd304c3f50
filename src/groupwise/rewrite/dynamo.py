"""`torch.compile(model, backend="groupwise")`: the passes of `optimize`, on the graphs that Dynamo makes of a model.

PyTorch finds `backend` by the entry point of this package. It never compiles: no C++ compiler is needed.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from operator import attrgetter
from typing import Any

import torch
from torch.fx import GraphModule

from groupwise.errors import GroupwiseError
from groupwise.kernels import native
from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.rewrite.capture import Captured, NotCaptured, capture, first_line, module_of
from groupwise.rewrite.choose import Deadline, seconds_of
from groupwise.rewrite.compiled import Compiled
from groupwise.rewrite.heap import trim
from groupwise.rewrite.plan import Left, Plan, Plans, Step
from groupwise.rewrite.program import Program
from groupwise.rewrite.region import MOST_PROGRAMS, key_of, kinds_of, words_of
from groupwise.rewrite.tape import Tape
from groupwise.rewrite.train_fuse import fuse_training
from groupwise.rewrite.train_region import mark_convolutions
from groupwise.rewrite.watch import contents

OPTIONS = ("tune",)
# Modules of one class may share a graph of Dynamo's: the most packed weights that a graph keeps.
MOST_TAPES = 64
MISSING = object()
Key = tuple[Any, ...]
_log = logging.getLogger("groupwise")
_version, _address = attrgetter("_version"), torch.Tensor.data_ptr
_numbers = count(1)
_pieces: list[weakref.ref[Piece]] = []


def backend(
    graph_module: GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Returns what computes a graph of Dynamo's. `torch.compile(model, backend="groupwise")` calls it.

    The only option is `tune`, which is that of `groupwise.optimize`: `options={"tune": False}`. Raises `GroupwiseError`
    for others, and for a `mode`.
    """
    if mode is not None:
        raise GroupwiseError(f"mode={mode!r} is not for backend='groupwise'; leave it out: the one option is tune")
    for name, given in (options or {}).items():
        if name not in OPTIONS:
            raise GroupwiseError(
                f"options={{{name!r}: {given!r}}} is not known to backend='groupwise'; the one option is "
                '"tune": options={"tune": False}'
            )
    seconds = seconds_of((options or {}).get("tune"))
    tensors = [given for given in example_inputs if isinstance(given, torch.Tensor)]
    trained = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    piece = Piece(graph_module, example_inputs, seconds, trained)
    _pieces[:] = [known for known in _pieces if known() is not None] + [weakref.ref(piece)]
    return piece


def compiled_plans() -> Plans:
    """Returns the plan of each graph of `torch.compile(model, backend="groupwise")` that lives, and of each shape.

    It is a tuple of plans, which `print()` shows as tables. A graph that runs as Dynamo gave it has a plan without
    steps, which says why.
    """
    return Plans(plan for known in _pieces if (piece := known()) is not None for plan in piece.plans())


class Piece:
    """A graph of Dynamo's, whose placeholders are the parameters and buffers that it reads, and the inputs."""

    def __init__(self, module: GraphModule, examples: Sequence[Any], seconds: float, trained: bool) -> None:
        self.module, self.title = module, f"graph {next(_numbers)}"
        self._seconds, self._trained = seconds, trained
        placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
        self._names = [
            str(node.target) if _is_state(node, example) else ""
            for node, example in zip(placeholders, examples, strict=True)
        ]
        self._own = dict(module.named_parameters()) | dict(module.named_buffers())
        self._lock = threading.RLock()
        self._programs: dict[Key, Program | None] = {}
        self._plans: dict[Key, Plan] = {}
        self._packed: OrderedDict[Key, Packed] = OrderedDict()
        self._seen: dict[Key, State] = {}
        self._told: set[str] = set()
        if trained:
            self._train()

    def __call__(self, *args: Any) -> Any:
        """Computes what the graph computes."""
        if self._trained:
            return self._as_it_is(args)
        inputs = [arg for arg, name in zip(args, self._names, strict=True) if not name]
        held = [arg for arg, name in zip(args, self._names, strict=True) if name]
        known = key_of(inputs, {})
        if known is None:
            return self._as_it_is(args)
        key = known[0]
        packed = self._packed.get((key, *map(id, held)))
        if packed is None or packed.state != self._state(held):
            packed = self._prepare(key, args, inputs, held)
        return self._as_it_is(args) if packed is None else packed.tape.run(inputs)

    def _train(self) -> None:
        """Fuses what gradients pass through."""
        started = time.perf_counter()
        names = {node.name: _plain(module_of(node)) for node in self.module.graph.nodes}
        mark_convolutions(self.module.graph, {})
        notes = fuse_training(self.module)[1]
        steps = []
        for norm in notes.fused:
            words = ("sum" if norm.residual else "", norm.activation if norm.activation != "none" else "")
            steps.append(Step(names.get(norm.name, norm.name), "batch norm", "groupwise", tuple(filter(None, words))))
        title, seconds = f"{self.title} for training", time.perf_counter() - started
        self._plans[()] = Plan(title, tuple(steps), notes.left, (), torch.get_num_threads(), seconds)

    def plans(self) -> list[Plan]:
        """Returns a plan for each shape that came."""
        return list(self._plans.values())

    def _as_it_is(self, args: Sequence[Any]) -> Any:
        """Runs Dynamo's graph, on groupwise's kernels where its planner takes a layer."""
        if native.status().operators_problem:
            return self.module(*args)
        before = switched_on()
        try:
            return self.module(*args)
        finally:
            switch_back(before)

    def _prepare(self, key: Key, args: Sequence[Any], inputs: Sequence[Any], held: Sequence[Any]) -> Packed | None:
        """Packs the weights; None if this call had better run the graph as it is.

        Weights that changed since the last call may change before the next one too, as they do in training. They are
        packed when the same weights come twice.
        """
        with self._lock:
            kind = (key, *kinds_of(held))
            program, example = self._programs.get(kind, MISSING), None
            if program is MISSING:
                program, example = self._planned(kind, args, held), inputs
            if not isinstance(program, Program):
                return None
            where, state = (key, *map(id, held)), self._state(held)
            packed = self._packed.get(where)
            if packed is not None and packed.state == state:
                return packed
            if example is None and self._seen.get(where) != state:
                while len(self._seen) >= MOST_TAPES:
                    self._seen.pop(next(iter(self._seen)))
                self._seen[where] = state
                return None
            started = time.perf_counter()
            try:
                tape = program.pack(self._states(held), example)
            except RuntimeError as error:
                self._programs[kind] = None
                self._tell(f"an operator fails: {first_line(error)}")
                return None
            if example is not None:
                trim()
                plan = self._plans[kind]
                seconds = plan.seconds + time.perf_counter() - started
                self._plans[kind] = replace(plan, steps=program.steps, seconds=seconds)
            self._seen.pop(where, None)
            packed = Packed(tape, state, self._when_gone(where, held))
            self._packed[where] = packed
            while len(self._packed) > MOST_TAPES:
                self._packed.popitem(last=False)
            return packed

    def _planned(self, kind: Key, args: Sequence[Any], held: Sequence[Any]) -> Program | None:
        if len(self._programs) >= MOST_PROGRAMS:
            self._tell(f"it has met {MOST_PROGRAMS} shapes, and plans no more")
            return None
        started, program = time.perf_counter(), None
        left: tuple[Left, ...] = ()
        try:
            for name, tensor in self._states(held).items():
                _check_state(name, tensor)
            measures = self._seconds > 0 and not torch.are_deterministic_algorithms_enabled()
            deadline = Deadline(self._seconds) if measures else None
            program = Program(self._captured(args), deadline)
        except NotCaptured as reason:
            self._tell(str(reason))
            left = (Left("", str(reason)),)
        self._programs[kind] = program
        inputs = [arg for arg, name in zip(args, self._names, strict=True) if not name]
        self._plans[kind] = Plan(
            title=self.title,
            steps=(),
            left=left,
            input_shapes=tuple(tuple(arg.shape) for arg in inputs if isinstance(arg, torch.Tensor)),
            threads=torch.get_num_threads(),
            seconds=time.perf_counter() - started,
            inputs=tuple(map(words_of, inputs)),
        )
        return program

    def _captured(self, args: Sequence[Any]) -> Captured:
        """Returns PyTorch's operators for Dynamo's graph, which has functions of `torch` and methods of tensors."""
        for name, child in self.module.named_children():
            if any(part.training for part in child.modules()):
                raise NotCaptured(f"its graph has a part of its own ({name})")
        captured = capture(_Whole(self.module), args, {})
        placeholders = [node for node in captured.graph.nodes if node.op == "placeholder" and "state" not in node.meta]
        for node, name in zip(placeholders, self._names, strict=True):
            if name:
                node.meta["state"] = name
        for node in captured.graph.nodes:
            stack = node.meta.get("nn_module_stack") or {}
            node.meta["nn_module_stack"] = {part: (_plain(path), kind) for part, (path, kind) in stack.items()}
        return captured

    def _state(self, held: Sequence[Any]) -> State:
        return State.of([*held, *self._own.values()])

    def _states(self, held: Sequence[Any]) -> dict[str, torch.Tensor]:
        own = {f"graph.{name}": tensor for name, tensor in self._own.items()}
        return own | dict(zip(filter(None, self._names), held, strict=True))

    def _when_gone(self, where: Key, held: Sequence[Any]) -> list[weakref.ref[Any]]:
        """Drops packed weights when a parameter that they were made of is gone: its number may come again."""
        packed = self._packed
        return [weakref.ref(tensor, lambda _: packed.pop(where, None)) for tensor in held]

    def _tell(self, reason: str) -> None:
        if reason not in self._told:
            self._told.add(reason)
            _log.warning("torch.compile: %s runs as Dynamo gave it: %s", self.title, reason)


@dataclass(frozen=True)
class State:
    """What a change of parameters and buffers is noticed by.

    PyTorch does not count the changes that a BatchNorm makes to its statistics, so the values of those are compared.
    """

    versions: list[int]
    addresses: list[int]
    statistics: list[bytes]

    @staticmethod
    def of(held: Sequence[torch.Tensor]) -> State:
        """Returns the state of tensors."""
        return State(
            list(map(_version, held)),
            list(map(_address, held)),
            [contents(tensor) for tensor in held if type(tensor) is torch.Tensor and tensor.dim() == 1],
        )


@dataclass(frozen=True)
class Packed:
    """A tape, and the state of the parameters that it was packed from."""

    tape: Tape | Compiled
    state: State
    references: Sequence[weakref.ref[Any]]


class _Whole(torch.nn.Module):
    """Runs a graph node by node, so that its operators keep the names of the modules that they come from."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__()
        self.graph = graph
        self.training = graph.training = False

    def forward(self, *args: Any) -> Any:
        with torch.fx.traceback.preserve_node_meta():
            return torch.fx.Interpreter(self.graph).run(*args)


def _is_state(node: torch.fx.Node, example: Any) -> bool:
    """Tells whether a placeholder is an attribute of a module, which Dynamo makes an input."""
    if not isinstance(example, torch.Tensor):
        return False
    marked = (node.meta.get("tensor_dict") or {}).get("_dynamo_static_input_type")
    return isinstance(example, torch.nn.Parameter) or marked is not None


def _check_state(name: str, tensor: torch.Tensor) -> None:
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.layout is not torch.strided:
        raise NotCaptured(f"{name} is no plain tensor")
    if tensor.device.type != "cpu":
        raise NotCaptured(f"{name} is on {tensor.device}")
    if tensor.is_inference():
        raise NotCaptured(f"{name} was made in torch.inference_mode(), where changes are not counted")


def _plain(path: str) -> str:
    """Returns a module's name without the variable of Dynamo's that holds the model."""
    return re.sub(r"^[LG]\['\w+'\]\.?", "", path)
