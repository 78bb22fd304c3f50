"""The recorder behind `count` and `report`: each convolution as it passes PyTorch's dispatcher."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from groupwise.errors import GroupwiseError
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost, cost

# The second is what traced modules call; its first nine arguments are the same.
_FORWARD = (torch.ops.aten.convolution.default, torch.ops.aten._convolution.default)
_BACKWARD = torch.ops.aten.convolution_backward.default
_CAST = torch.ops.aten._to_copy.default


@dataclass
class ConvCall:
    """One execution of a convolution.

    - `name`: the layer's name in the model; for a functional call the enclosing module's, with the operator's
      name and a number where there are several
    - `cost`: its spec, sizes, dtype, MACs and bytes: the layer's own where a layer ran, padding of any kind included
    - `parameter`: which parameter of the model holds the weight, equal for calls that share it; None for a weight
      computed on the fly
    - `passes`: those that ran, of forward, grad_input, grad_weight
    - `seconds`: wall time of its forward and its backward, where the run was real
    """

    name: str
    cost: Cost
    parameter: Hashable
    passes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0})

    @property
    def spec(self) -> ConvSpec:
        """The convolution as numbers."""
        return self.cost.spec


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
    """Records each `aten::convolution` of one thread and the backward that belongs to it; times both."""

    def __init__(self, model: Callable[..., Any]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[ConvCall] = []
        self._model = model
        self._thread = threading.get_ident()
        self._frames: list[_Frame] = []
        self._unnamed: dict[str, int] = {}
        self._parameters: dict[int, str] = {}
        # Held so that no later tensor takes their addresses, and with them their identities.
        self._held: list[torch.Tensor] = []
        # Calls by the tensors they read, and by the shapes of those.
        self._read: list[tuple[tuple[int, int], tuple[Any, ...], ConvCall]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass the operator on; look at convolutions."""
        kwargs = kwargs or {}
        if func in _FORWARD:
            result, seconds = _timed(func, args, kwargs)
            self._forward(args, result, seconds)
            return result
        if func is _BACKWARD:
            result, seconds = _timed(func, args, kwargs)
            self._backward(args, result, seconds)
            return result
        if func is _CAST:
            return self._cast(args[0], func(*args, **kwargs))
        # Under inference_mode composite operators (conv2d, ...) arrive whole; open them to see the convolution.
        # (prim::device and its like are no dispatcher operators, and asking about one throws.)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key
        if func.namespace != "prim" and composite(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)

    def _cast(self, source: torch.Tensor, result: torch.Tensor) -> torch.Tensor:
        """A parameter in another dtype, as autocast makes it, is still that parameter."""
        name = self._parameters.get(_identity(source))
        if name is not None:
            self._parameters[_identity(result)] = name
            self._held.append(result)
        return result

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Know which module is running, by hooks that leave with the context."""
        handles = []
        if isinstance(self._model, torch.nn.Module):
            self._parameters = {_identity(tensor): name for name, tensor in self._model.named_parameters()}
            for name, module in self._model.named_modules():
                # Scripted modules take no such hooks; what they run is named after the module around them.
                if not isinstance(module, torch.jit.ScriptModule):
                    handles.append(module.register_forward_pre_hook(self._enter(name), with_kwargs=True))
                    handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(module: torch.nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
            # The same model may be running in another thread.
            if threading.get_ident() == self._thread:
                first = next(iter((*inputs, *keywords.values())), None)
                shape = tuple(first.shape) if isinstance(first, torch.Tensor) else ()
                self._frames.append(_Frame(name, module, shape))

        return hook

    def _leave(self, module: torch.nn.Module, *_: Any) -> None:
        # A hook of the user's that raised before ours leaves no frame.
        if threading.get_ident() == self._thread and self._frames and self._frames[-1].module is module:
            self._frames.pop()

    @property
    def _frame(self) -> _Frame:
        """What is running: a module, or code outside of any."""
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
        """For a recorder that looks at the tensors too: what an operator was given, and what came of it."""

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
            at = cost(spec, input_shape=source, dtype=source.dtype)
        elif parameter is None:
            # A layer whose weight is made of others (weight_norm): the layer's all the same.
            parameter = f"{self._frame.name}.weight"
        call = ConvCall(self._name(at.spec), at, parameter)
        self.calls.append(call)
        return call

    def _layer_cost(self, source: torch.Tensor, weight: torch.Tensor, out_shape: tuple[int, ...]) -> Cost | None:
        """The cost as the running layer states it: padding that is copied, or longer on one side, never reaches the
        operator. None where no layer runs, or it computes something else than it states."""
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
            # Its forward had other shapes: vmap folds a batch into the channels of one, not of the other.
            call = self._call(source, weight, bias_sizes, args[4:10], tuple(grad_output.shape))
        passes = [name for name, asked in zip(("grad_input", "grad_weight"), mask, strict=False) if asked]
        call.passes += passes
        call.seconds["backward"] += seconds
        self.examine(call, passes, args, results)

    def _claim(self, source: torch.Tensor, weight: torch.Tensor) -> ConvCall | None:
        """The call that this is the backward of: of those that read the same tensors, or else (checkpoints and saved
        tensor hooks make new ones) tensors of the same shapes, the latest one, still without a backward if any is."""
        tensors, shapes = _read_by(source, weight)
        same = [call for read, _, call in self._read if read == tensors]
        same = same or [call for _, read, call in self._read if read == shapes]
        waiting = [call for call in same if call.passes == ["forward"]]
        return next(reversed(waiting or same), None)


def _read_by(source: torch.Tensor, weight: torch.Tensor) -> tuple[tuple[int, int], tuple[Any, ...]]:
    return (_identity(source), _identity(weight)), (tuple(source.shape), tuple(weight.shape))


def _timed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
    """The operator's result and the wall time it took."""
    synchronize(args[0].device)
    start = time.perf_counter()
    result = func(*args, **kwargs)
    synchronize(args[0].device)
    return result, time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for what the device has queued; the CPU queues nothing."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _identity(tensor: torch.Tensor) -> int:
    # The address of the TensorImpl: Python objects of one tensor come and go, that stays.
    return int(tensor._cdata)
