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

from groupwise.rewrite.capture import NotCaptured, capture, first_line, reason_to_leave
from groupwise.rewrite.choose import Deadline, fastest, reason_of, time_calls
from groupwise.rewrite.compiled import Compiled
from groupwise.rewrite.kept import OtherOutput, rehearsal
from groupwise.rewrite.plan import Left, Plan, Step
from groupwise.rewrite.program import Program
from groupwise.rewrite.recipe import Call
from groupwise.rewrite.tape import Tape
from groupwise.rewrite.watch import Snapshot, Watch

# The most programs that a module keeps: another makes it forget the oldest.
MOST_PROGRAMS = 8
# A module in two dtypes is timed for about so many seconds. The program in the dtype that was asked for has this share
# of the time in which engines are chosen: the one in float32 seldom runs.
BUDGET, ASKED = 0.2, 2 / 3
Key = tuple[Any, ...]


@dataclass(frozen=True)
class Ready:
    """A program that can run: it holds for the parameters of its snapshot. Some modules in it stay as they are.

    - `widened`: why it computes float32 where bfloat16 was asked for; empty where it computes what was asked for
    """

    program: Program
    watch: Watch
    snapshot: Snapshot
    kinds: list[Any]
    tape: Tape | Compiled
    left: tuple[Left, ...]
    widened: str = ""


@dataclass
class Refused:
    """Why there is no program. Only a call that succeeds proves that the inputs were not to blame."""

    reason: str
    proven: bool = False


Met = tuple["Region", Ready | Refused]


class Planner:
    """What the regions of one network share: the lock under which they plan, and how they choose."""

    def __init__(self, seconds: float, dtype: torch.dtype | None) -> None:
        self.lock = threading.RLock()
        self.seconds, self.dtype = seconds, dtype
        # How often there was something new to say about a plan.
        self.news = 0
        self.thread = _Thread()


class _Thread(threading.local):
    """What one call of the network meets, in the thread that makes it."""

    met: list[Met] | None = None
    # Until when engines are timed in the call, for all of its regions.
    deadline: Deadline | None = None
    # Whether the call only makes a program ready, and does not run it where there is one for the whole network.
    only_plans: bool = False


class Region:
    """Stands in for the `forward` of a module."""

    is_region = True  # for those who look at a module's `forward`

    def __init__(self, module: torch.nn.Module, name: str, planner: Planner) -> None:
        self.module, self.name, self.planner = module, name, planner
        self.children: list[Region] = []
        self.unfit: list[Left] = []
        self._divided: list[torch.nn.Module] = []
        self._proven = False
        self._ready: OrderedDict[Key, Ready | Refused] = OrderedDict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the module computes, by a program where there can be one."""
        only_plans, self.planner.thread.only_plans = self.planner.thread.only_plans, False
        known = key_of(args, kwargs)
        if known is None:
            return self.as_it_is(*args, **kwargs)
        key, leaves = known
        ready = self._ready.get(key)
        if ready is None or (isinstance(ready, Ready) and not ready.snapshot.holds()):
            ready = self._prepare(key, leaves, args, kwargs)
        self._note(ready)
        if isinstance(ready, Refused):
            return self._in_parts(key, ready, args, kwargs)
        # What a module that is left as it is returns, only a run tells.
        if only_plans and not ready.left:
            return None
        try:
            return ready.tape.run(leaves)
        except OtherOutput:
            refused = self._refuse(key, "the outputs of a module in it change with each call")
        self._note(refused)
        return self._in_parts(key, refused, args, kwargs)

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
        return [(key, ready) for key, ready in list(self._ready.items()) if isinstance(ready, Ready)]

    def knows(self, key: Key) -> bool:
        """Tells whether it is settled how inputs of this kind run."""
        return key in self._ready

    def put(self, programs: Mapping[Key, Ready]) -> None:
        """Puts programs in the place of those that are kept for the same inputs."""
        with self.planner.lock:
            self._ready.update(programs)

    def _note(self, ready: Ready | Refused) -> None:
        if (met := self.planner.thread.met) is not None:
            met.append((self, ready))

    def _prepare(self, key: Key, leaves: Sequence[Any], args: Any, kwargs: Any) -> Ready | Refused:
        """Makes a program ready, unless another thread has just done so."""
        with self.planner.lock:
            ready = self._ready.get(key)
            if isinstance(ready, Refused):
                return ready
            if ready is not None:
                if not ready.snapshot.holds():
                    ready = self._packed_again(ready)
                if ready is None:
                    # Another dtype or shape of a parameter makes another graph, and so does None.
                    self._ready.clear()
            if ready is None:
                try:
                    ready = self._planned(leaves, args, kwargs)
                except NotCaptured as reason:
                    return self._refuse(key, str(reason))
                self.planner.news += 1
            self._keep(key, ready)
            return ready

    def _planned(self, leaves: Sequence[Any], args: Any, kwargs: Any) -> Ready:
        seconds, dtype = self.planner.seconds, self.planner.dtype
        if not seconds or torch.are_deterministic_algorithms_enabled():
            return self._made(leaves, args, kwargs, None, dtype)
        if (deadline := self.planner.thread.deadline) is None:
            deadline = self.planner.thread.deadline = Deadline(seconds)
        if dtype is None:
            return self._made(leaves, args, kwargs, deadline, None)
        low = self._made(leaves, args, kwargs, deadline.part(ASKED), dtype)
        return _faster(low, self._made(leaves, args, kwargs, deadline, None), leaves)

    def _made(
        self, leaves: Sequence[Any], args: Any, kwargs: Any, deadline: Deadline | None, dtype: torch.dtype | None
    ) -> Ready:
        captured = capture(self.module, args, kwargs)
        program = Program(captured, deadline, dtype)
        watch = Watch(self.module, program.states)
        snapshot = watch.snapshot()
        try:
            with rehearsal():
                tape = program.pack(snapshot.states, leaves)
        except RuntimeError as error:
            # Inputs that the model refuses too, such as another dtype: its own code says so.
            raise NotCaptured(f"an operator fails: {first_line(error)}") from None
        left = tuple(Left(under(self.name, name), reason) for name, reason in captured.left.items())
        return Ready(program, watch, snapshot, kinds_of(snapshot.held), tape, left)

    def _packed_again(self, ready: Ready) -> Ready | None:
        snapshot = ready.watch.snapshot()
        if kinds_of(snapshot.held) != ready.kinds:
            return None
        tape = ready.program.pack(snapshot.states)
        return replace(ready, snapshot=snapshot, tape=tape)

    def _keep(self, key: Key, ready: Ready | Refused) -> None:
        self._ready[key] = ready
        while len(self._ready) > MOST_PROGRAMS:
            self._ready.popitem(last=False)

    def _refuse(self, key: Key, reason: str) -> Refused:
        with self.planner.lock:
            refused = Refused(reason)
            self._keep(key, refused)
            if not self._divided:
                self._divide(self.module, self.name)
            self.planner.news += 1
            return refused

    def _in_parts(self, key: Key, refused: Refused, args: Any, kwargs: Any) -> Any:
        """Runs the module's own code, in which the children are regions."""
        try:
            output = self.as_it_is(*args, **kwargs)
        except Exception:
            if not refused.proven:
                self._unlearn(key)
            raise
        refused.proven = self._proven = True
        return output

    def _unlearn(self, key: Key) -> None:
        """Forgets what a call that failed seemed to teach."""
        with self.planner.lock:
            self._ready.pop(key, None)
            if self._proven:
                return
            for module in self._divided:
                vars(module).pop("forward", None)
            self._divided, self.children, self.unfit = [], [], []

    def _divide(self, module: torch.nn.Module, name: str) -> None:
        """Makes the children regions, apart from those that nothing can be gained of."""
        for key, child in module.named_children():
            path = under(name, key)
            if reason := reason_to_leave(child):
                self.unfit.append(Left(path, reason))
            elif type(child).forward is torch.nn.Module.forward:
                self._divide(child, path)
            elif "forward" not in vars(child) and any(True for _ in child.parameters()):
                region = Region(child, path, self.planner)
                vars(child)["forward"] = region
                self._divided.append(child)
                self.children.append(region)


def _faster(low: Ready, wide: Ready, leaves: Sequence[Any]) -> Ready:
    """Returns the program in bfloat16, or the one in float32 if that is measured to be faster as a whole."""
    calls: dict[str, Call] = {"bfloat16": lambda _: low.tape.run(leaves), "float32": lambda _: wide.tape.run(leaves)}
    with rehearsal(), torch.no_grad():
        first = {name: _seconds(call) for name, call in calls.items()}
        # Only calls that leave no time for rounds count from the first: one round of others may be interrupted.
        seconds = time_calls(calls, [torch.empty(0)], first if sum(first.values()) > BUDGET else None, BUDGET)
    if fastest(seconds) == "bfloat16":
        return low
    return replace(wide, widened=reason_of(seconds, "float32"))


def _seconds(call: Call) -> float:
    started = time.perf_counter()
    call(torch.empty(0))
    return time.perf_counter() - started


def plan_of(met: Sequence[Met], title: str, inputs: Sequence[Any], started: float) -> Plan:
    """Returns the plan of a network whose regions have just run so."""
    steps: list[Step] = []
    left: dict[Left, None] = {}
    interpreted: list[Left] = []
    widened: list[Left] = []
    for region, ready in met:
        if isinstance(ready, Ready):
            if ready.program.interpreted:
                interpreted.append(Left(region.name, ready.program.interpreted))
            if ready.widened:
                widened.append(Left(region.name, ready.widened))
            steps += [placed(step, region.name) for step in ready.program.steps]
            left |= dict.fromkeys(ready.left)
        else:
            left |= dict.fromkeys([Left(region.name, ready.reason), *region.unfit])
    return Plan(
        title=title,
        steps=tuple(steps),
        left=tuple(left),
        input_shapes=tuple(tuple(leaf.shape) for leaf in inputs if isinstance(leaf, torch.Tensor)),
        threads=torch.get_num_threads(),
        seconds=time.perf_counter() - started,
        interpreted=tuple(interpreted),
        widened=tuple(widened),
        inputs=tuple(words_of(leaf) for leaf in inputs),
    )


def words_of(leaf: Any) -> str:
    """Returns an input as a plan shows it: shape and dtype of a tensor, and any other value."""
    if not isinstance(leaf, torch.Tensor):
        return repr(leaf)
    dtype = str(leaf.dtype).removeprefix("torch.")
    return f"{'×'.join(map(str, leaf.shape)) or 'one number'} {dtype}"


def under(name: str, key: str) -> str:
    """Returns the name of what a module of this name holds by this key."""
    return f"{name}.{key}" if name else key


def placed(step: Step, name: str) -> Step:
    """Returns a step of a module of this name with the names of the whole model."""
    return replace(step, name=under(name, step.name), layers=tuple(under(name, layer) for layer in step.layers))


def kinds_of(held: Sequence[torch.Tensor | None]) -> list[Any]:
    """Returns what the graph of a model depends on, of parameters and buffers."""
    return [None if tensor is None else (tensor.dtype, tensor.shape, tensor.device) for tensor in held]


_PLAIN = (torch.Tensor, torch.nn.Parameter)
_VALUES = (int, float, bool, str, type(None))
_functorch: Callable[[], Any] = torch._C._functorch.peek_interpreter_stack


def key_of(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Key, Sequence[Any]] | None:
    """Returns what a program depends on, and the leaves of the arguments; None where only the model's own code will do.

    That is under autocast, while the model is transformed by `torch.func`, and for arguments that are not plain CPU
    tensors and Python values.
    """
    if torch.is_autocast_enabled("cpu") or _functorch():
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


def reason_to_run_whole(args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Says why `key_of` returns None."""
    if torch.is_autocast_enabled("cpu"):
        return "it was called under autocast"
    if _functorch():
        return "torch.func transformed it"
    kinds: dict[str, None] = {}
    for leaf in tree_flatten((tuple(args), dict(kwargs)))[0]:
        if isinstance(leaf, torch.Tensor):
            if type(leaf) not in _PLAIN or leaf.device.type != "cpu" or leaf.layout is not torch.strided:
                kinds["a tensor that is no plain CPU tensor"] = None
        elif type(leaf) not in _VALUES:
            kinds[type(leaf).__name__] = None
    return f"its arguments are more than tensors and plain values: {', '.join(kinds)}"
