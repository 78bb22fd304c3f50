"""The recorder behind `count` and `report`: each convolution as it passes PyTorch's dispatcher."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupwise.draw.base import numbers
from groupwise.errors import GroupwiseError
from groupwise.profile.hooks import hooked
from groupwise.profile.operators import dtype_name, is_backward, is_convolution, operator_name, read, stem
from groupwise.profile.workload import Workload, synchronize
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, cost
from groupwise.spec.legible import Printed, legible

# Traced modules call the second one; its first nine arguments are the same.
_FORWARD = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)
_BACKWARD = torch.ops.aten.convolution_backward.default
_CAST = torch.ops.aten._to_copy.default


@dataclass(repr=False)
class ConvCall(Printed):
    """One execution of a convolution. `print()` it for one line.

    - `name`: the layer's name in the model; for a functional call the enclosing module's, with the operator's
      name and a number where there are several
    - `cost`: its spec, sizes, dtype, MACs and bytes: the layer's own where a layer ran, padding of any kind included
    - `parameter`: which parameter of the model holds the weight, equal for calls that share it; None for a weight
      computed on the fly
    - `operator`: PyTorch's operator that ran, such as `aten::convolution` or `quantized::conv2d`
    - `passes`: those that ran, of forward, grad_input, grad_weight
    - `seconds`: wall time of its forward and its backward, where the run was real
    """

    name: str
    cost: Cost
    parameter: Hashable
    operator: str = "aten::convolution"
    passes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0})

    def __str__(self) -> str:
        """Returns one line: the layer's name, the convolution, its sizes and MACs, the operator and the passes."""
        at = self.cost
        sizes = " → ".join(numbers.product(size) for size in (at.input_size, at.output_size))
        macs = f"{numbers.count(at.macs.forward)} MACs"
        ran = f"{self.operator}: {', '.join(self.passes)}"
        return f"{legible(self.name)}: {at.spec}; {sizes}, batch {at.batch:,}, {at.dtype}; {macs}; {ran}"

    # A prompt shows what a notebook does.
    __repr__ = __str__

    @property
    def spec(self) -> ConvSpec:
        """The convolution as numbers."""
        return self.cost.spec

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types. `macs` is what each pass costs; `passes` says which ran."""
        facts = {"name": self.name, "operator": self.operator, **self.spec.to_dict(), **self.cost.to_dict()}
        return {**facts, "passes": list(self.passes)}


@dataclass(frozen=True)
class Run:
    """One recorded run of a workload.

    - `calls`: its convolutions in order of execution
    - `not_counted`: the operators whose names suggest a convolution, but whose arguments do not tell its shape, and how
      often each ran
    - `seconds`: the wall time of the whole run
    """

    calls: list[ConvCall]
    not_counted: dict[str, int]
    seconds: float


def record(workload: Workload) -> Run:
    """Run a workload once on the tensors it has, and record and time each convolution."""
    recorder = Recorder(workload)
    with recorder.naming(), recorder:
        _, seconds = workload.execute()
    return Run(recorder.calls, dict(recorder.not_counted), seconds)


def run(workload: Workload) -> Run:
    """As `record`, on copies: buffers, `.grad` fields, the inputs and the random state stay as they were."""
    with workload.unchanged() as copies:
        return record(copies)


def time_run(workload: Workload) -> float:
    """The seconds that the same run takes with nothing recorded."""
    with workload.unchanged() as copies:
        return copies.execute()[1]


@dataclass(frozen=True)
class _Frame:
    """A module that is running, and the shape of its first input."""

    name: str
    module: torch.nn.Module | None
    shape: tuple[int, ...]

    @property
    def is_conv(self) -> bool:
        """Duck-typed like `ConvSpec.from_module`: a layer of its own kind still is that layer."""
        return hasattr(self.module, "in_channels") and hasattr(self.module, "kernel_size")


_OUTSIDE = _Frame("", None, ())


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, without types
    """Records each convolution of one thread and the backward that belongs to it; times both."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[ConvCall] = []
        self.not_counted: Counter[str] = Counter()
        # The stems of the operators whose gradients are noted there.
        self._differentiated: set[str] = set()
        self._workload = workload
        self._thread = threading.get_ident()
        self._frames: list[_Frame] = []
        self._unnamed: dict[str, int] = {}
        self._parameters: dict[int, str] = {}
        # Held so that no later tensor takes their addresses, and with them their identities.
        self._held: list[Any] = []
        # Calls by the tensors they read, and by the shapes of those.
        self._read: list[tuple[tuple[int, int], tuple[Any, ...], ConvCall]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Runs the operator, and looks at it if it is a convolution."""
        kwargs = kwargs or {}
        if func in _FORWARD:
            result, seconds = self.compute(func, args, kwargs)
            self._forward(args, result, seconds)
            return result
        if func is _BACKWARD:
            result, seconds = self.compute(func, args, kwargs)
            self._backward(args, result, seconds)
            return result
        if func is _CAST:
            return self._cast(args[0], func(*args, **kwargs))
        # Under inference_mode composite operators (conv2d, ...) arrive whole; decomposing one shows the convolution.
        # prim::device and its like are not in the dispatcher, which throws when it is asked about them.
        composite = torch._C._dispatch_has_kernel_for_dispatch_key
        if func.namespace != "prim" and composite(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if is_convolution(func):
            result, seconds = self.compute(func, args, kwargs)
            self._other(func, args, kwargs, result, seconds)
            return result
        return func(*args, **kwargs)

    def compute(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
        """Returns a convolution's result and the wall time that it took."""
        # An extension's operator may take its tensors in lists or by keyword, or None in their place.
        devices = {leaf.device for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        for device in devices:
            synchronize(device)
        start = time.perf_counter()
        result = func(*args, **kwargs)
        for device in devices:
            synchronize(device)
        return result, time.perf_counter() - start

    def _cast(self, source: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """Lets a parameter in another dtype, as autocast makes it, still be that parameter."""
        name = self._parameters.get(_identity(source))
        if name is not None:
            self._parameters[_identity(result)] = name
            self._held.append(result)
        return result

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Knows within the block which module is running, by hooks that it removes at the end."""
        self._parameters = {_identity(tensor): name for name, tensor in self._workload.named_parameters()}
        with hooked(self._workload.named_modules(), self._enter, self._leave):
            yield

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            # The same model may be running in another thread.
            if threading.get_ident() == self._thread:
                first = next(iter((*inputs, *keywords.values())), None)
                shape = tuple(first.shape) if isinstance(first, torch.Tensor) else ()
                self._frames.append(_Frame(name, module, shape))

        return hook

    def _leave(self, module: torch.nn.Module, *_: Any) -> None:
        # A user's hook that raised before this one leaves no frame.
        if threading.get_ident() == self._thread and self._frames and self._frames[-1].module is module:
            self._frames.pop()

    @property
    def _frame(self) -> _Frame:
        """The module that is running, or a frame that stands for code outside of any."""
        return self._frames[-1] if self._frames else _OUTSIDE

    def _name(self, spec: ConvSpec) -> str:
        frame = self._frame
        if frame.is_conv and frame.name:
            return frame.name
        name = f"{frame.name}.{spec.op}" if frame.name else spec.op
        number = self._unnamed[name] = self._unnamed.get(name, 0) + 1
        return f"{name}_{number}" if number > 1 else name

    def _forward(self, args: tuple[Any, ...], result: torch.Tensor, seconds: float) -> None:
        call = self._call(args[0], args[1], args[2], args[3:9], tuple(result.shape))
        call.passes.append("forward")
        call.seconds["forward"] = seconds
        self._read.append((*_read_by(args[0], args[1]), call))
        self.examine(call, ("forward",), args, (result,))

    def examine(
        self, call: ConvCall, passes: Sequence[str], args: tuple[Any, ...], results: Sequence[torch.Tensor | None]
    ) -> None:
        """Does nothing; a recorder that looks at the tensors too overrides it. `args` are the operator's arguments."""

    def _other(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any, seconds: float) -> None:
        """Records a convolution of another operator, or at least that it ran."""
        name = operator_name(func)
        if is_backward(name) and stem(name) in self._differentiated:
            # Its forward has been noted with its gradients.
            return
        reading = read(func, args, kwargs, result)
        if reading is None:
            self.not_counted[name] += 1
            return
        self._held.append(reading.weight)
        at, parameter = self._stated(reading.cost), self._parameters.get(_identity(reading.weight))
        call = ConvCall(self._name(at.spec), at, parameter, name, ["forward"])
        if parameter is None and (self._frame.is_conv or isinstance(reading.weight, torch.ScriptObject)):
            call.parameter = self._parameters.setdefault(_identity(reading.weight), f"{call.name}.weight")
        call.seconds["forward"] = seconds
        self.calls.append(call)
        # Its gradients end in operators that have no fixed name, or in several.
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if self._workload.backward and torch.is_grad_enabled() and any(one.requires_grad for one in tensors):
            self.not_counted[f"gradients of {name}"] += 1
            self._differentiated.add(stem(name))

    def _stated(self, at: Cost) -> Cost:
        """The cost with the padding that the running layer states and applies before its operator."""
        frame = self._frame
        if not frame.is_conv or getattr(frame.module, "padding_mode", "zeros") == "zeros":
            return at
        module: Any = frame.module
        try:
            spec = replace(at.spec, padding=module.padding, padding_mode=module.padding_mode)
            stated = cost(spec, frame.shape[-spec.dims :], batch=at.batch, dtype=at.dtype)
        except (GroupwiseError, AttributeError):
            return at
        if stated.output_size != at.output_size:
            return at
        return replace(stated, traffic=replace(at.traffic, input=stated.traffic.input))

    def _call(
        self,
        source: torch.Tensor,
        weight: torch.Tensor,
        bias: Any,
        options: tuple[Any, ...],
        out_shape: tuple[int, ...],
    ) -> ConvCall:
        self._held.append(weight)
        parameter = self._parameters.get(_identity(weight))
        at = self._layer_cost(source, weight, out_shape)
        if at is None:
            spec = ConvSpec.from_operator(source, weight, bias, *options)
            at = cost(spec, tuple(source.shape[2:]), batch=source.shape[0], dtype=dtype_name(source.dtype))
        elif parameter is None:
            # weight_norm makes a layer's weight of two others, which are still the layer's.
            parameter = f"{self._frame.name}.weight"
        call = ConvCall(self._name(at.spec), at, parameter)
        self.calls.append(call)
        return call

    def _layer_cost(self, source: torch.Tensor, weight: torch.Tensor, out_shape: tuple[int, ...]) -> Cost | None:
        """The cost as the running layer states it, or None where no layer runs or it computes something else.

        Padding that is copied, or longer on one side, never reaches the operator.
        """
        frame = self._frame
        if not frame.is_conv:
            return None
        try:
            spec = ConvSpec.from_module(frame.module)
            at = cost(spec, frame.shape[-spec.dims :], batch=source.shape[0], dtype=source.dtype)
        except GroupwiseError:
            return None
        agrees = spec.weight_shape == tuple(weight.shape) and at.output_size == out_shape[2:]
        return at if agrees and spec.out_channels == out_shape[1] else None

    def _backward(self, args: tuple[Any, ...], results: Sequence[torch.Tensor | None], seconds: float) -> None:
        grad_output, source, weight, bias_sizes, mask = args[0], args[1], args[2], args[3], args[10]
        call = self._claim(source, weight)
        if call is None:
            # Its forward had other shapes: vmap folds a batch into the channels of one and not of the other.
            call = self._call(source, weight, bias_sizes, args[4:10], tuple(grad_output.shape))
        passes = [name for name, asked in zip(("grad_input", "grad_weight"), mask, strict=False) if asked]
        call.passes += passes
        call.seconds["backward"] += seconds
        self.examine(call, passes, args, results)

    def _claim(self, source: torch.Tensor, weight: torch.Tensor) -> ConvCall | None:
        """The call that this is the backward of.

        It read the same tensors, or else tensors of the same shapes, as checkpoints and saved tensor hooks make new
        ones. Of several it is the latest one, still without a backward if any is.
        """
        tensors, shapes = _read_by(source, weight)
        same = [call for read, _, call in self._read if read == tensors]
        same = same or [call for _, read, call in self._read if read == shapes]
        waiting = [call for call in same if call.passes == ["forward"]]
        return next(reversed(waiting or same), None)


def _read_by(source: torch.Tensor, weight: torch.Tensor) -> tuple[tuple[int, int], tuple[Any, ...]]:
    return (_identity(source), _identity(weight)), (tuple(source.shape), tuple(weight.shape))


def _identity(thing: Any) -> int:
    # The address of the TensorImpl: it stays, while Python objects of one tensor come and go.
    return int(thing._cdata) if isinstance(thing, torch.Tensor) else id(thing)
