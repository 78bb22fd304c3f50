"""Every convolution a model executes, counted at operator level: forward and backward.

A `TorchDispatchMode` sees `aten::convolution` itself, so `F.conv2d`, subclasses, weights computed on the fly and
groups = batch count like any layer. On fake tensors nothing is computed and nothing of the model changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from groupwise.costs import Cost, cost
from groupwise.errors import GroupwiseError
from groupwise.spec import ConvSpec

_FORWARD = torch.ops.aten.convolution.default
_BACKWARD = torch.ops.aten.convolution_backward.default


@dataclass
class ConvCall:
    """One execution of a convolution.

    - `name`: the layer's name in the model; for a functional call the enclosing module's, with the operator's
      name and a number where there are several
    - `cost`: its spec, sizes, dtype, MACs and bytes
    - `weight_id`: equal for calls that share one weight
    - `passes`: those that ran, of forward, grad_input, grad_weight
    - `seconds`: wall time of its forward and its backward, where the run was real
    """

    name: str
    cost: Cost
    weight_id: int
    passes: list[str] = field(default_factory=lambda: ["forward"])
    seconds: dict[str, float] = field(default_factory=lambda: {"forward": 0.0, "backward": 0.0})

    @property
    def spec(self) -> ConvSpec:
        """The convolution as numbers."""
        return self.cost.spec


def count(model: Callable[..., Any], *inputs: Any, backward: bool = False) -> list[ConvCall]:
    """The convolutions of `model(*inputs)` in order of execution, without computing anything.

    `model` is a module or any callable, `inputs` its arguments (tensors of any device; only shapes matter). With
    `backward`, the gradients of every parameter and input that asks for one are traced too. A model that looks at
    values, which fake tensors do not have, is counted on a real run instead.

    Raises whatever the model itself raises.
    """
    try:
        return _count_fake(model, inputs, backward)
    except GroupwiseError:
        raise
    except Exception:
        # Fake tensors refuse what depends on values (`if x.sum() > 0`, `.item()`), each kernel in its own words. The
        # real run decides: it counts the same, or raises the model's own error.
        return run(model, inputs, backward)


def run(model: Callable[..., Any], inputs: Sequence[Any], backward: bool) -> list[ConvCall]:
    """Run the model on its real tensors, recording and timing each convolution.

    Buffers (running statistics), `.grad` fields and the random state stay as they were.
    """
    with _unchanged(model) as buffers:
        return _record(model, buffers, inputs, backward)


def time_run(model: Callable[..., Any], inputs: Sequence[Any], backward: bool) -> float:
    """Seconds that the same run takes with nothing recorded."""
    with _unchanged(model) as buffers:
        _synchronize(model, inputs)
        start = time.perf_counter()
        _execute(model, buffers, inputs, backward)
        _synchronize(model, inputs)
        return time.perf_counter() - start


def on_meta(model: Callable[..., Any], inputs: Sequence[Any]) -> bool:
    """Whether any of the tensors has a shape only (device meta), so that nothing can be timed."""
    return any(tensor.is_meta for tensor in _tensors(model, inputs))


@contextmanager
def _unchanged(model: Callable[..., Any]) -> Iterator[dict[str, torch.Tensor]]:
    """Copies of the buffers for a run to write to, and the random state put back after it."""
    buffers = dict(model.named_buffers()) if isinstance(model, torch.nn.Module) else {}
    with torch.random.fork_rng():
        yield {name: buffer.clone() for name, buffer in buffers.items()}


def _count_fake(model: Callable[..., Any], inputs: Sequence[Any], backward: bool) -> list[ConvCall]:
    if on_meta(model, inputs):
        return _record(model, {}, inputs, backward)  # computes nothing as it is
    tensors: dict[str, torch.Tensor] = {}
    if isinstance(model, torch.nn.Module):
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = {name: mode.from_tensor(tensor) for name, tensor in tensors.items()}
        return _record(model, fakes, tree_map_only(torch.Tensor, mode.from_tensor, tuple(inputs)), backward)


def _record(
    model: Callable[..., Any], replaced: Mapping[str, torch.Tensor], inputs: Sequence[Any], backward: bool
) -> list[ConvCall]:
    recorder = Recorder()
    with recorder.naming(model), recorder:
        _execute(model, replaced, inputs, backward)
    return recorder.calls


def _execute(
    model: Callable[..., Any], replaced: Mapping[str, torch.Tensor], inputs: Sequence[Any], backward: bool
) -> None:
    # Not the caller's grad mode: what is counted must not depend on where that happens.
    with torch.enable_grad() if backward else torch.no_grad():
        if replaced and isinstance(model, torch.nn.Module):
            output = functional_call(model, dict(replaced), tuple(inputs))
        else:
            output = model(*inputs)
        if backward:
            _backward(model, replaced, inputs, output)


def _backward(
    model: Callable[..., Any], replaced: Mapping[str, torch.Tensor], inputs: Sequence[Any], output: Any
) -> None:
    """Gradients of everything that asks for one, through `torch.autograd.grad` so that no `.grad` changes."""
    parameters = dict(model.named_parameters()) if isinstance(model, torch.nn.Module) else {}
    candidates = [replaced.get(name, parameter) for name, parameter in parameters.items()] + tree_leaves(inputs)
    wanted = [t for t in candidates if isinstance(t, torch.Tensor) and t.requires_grad]
    outputs = [t for t in tree_leaves(output) if isinstance(t, torch.Tensor) and t.requires_grad]
    if not wanted or not outputs:
        raise GroupwiseError(
            "backward=True, but no output of the model depends on a parameter or input with requires_grad; "
            "unfreeze some parameters or leave backward out"
        )
    torch.autograd.grad(outputs, wanted, [torch.ones_like(t) for t in outputs], allow_unused=True)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's, without types
    """Records each `aten::convolution` and the backward that belongs to it; times them on real tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[ConvCall] = []
        self._modules: list[tuple[str, bool]] = []
        self._unnamed: dict[str, int] = {}
        self._weights: list[torch.Tensor] = []
        self._open: list[tuple[tuple[Any, ...], ConvCall]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Pass the operator on; look at convolutions."""
        kwargs = kwargs or {}
        if func is _FORWARD:
            result, seconds = _timed(func, args, kwargs)
            self._forward(args, seconds)
            return result
        if func is _BACKWARD:
            result, seconds = _timed(func, args, kwargs)
            self._backward(args, seconds)
            return result
        # Under inference_mode composite operators (conv2d, ...) arrive whole; open them to see the convolution.
        # (prim::device and its like are no dispatcher operators, and asking about one throws.)
        composite = torch._C._dispatch_has_kernel_for_dispatch_key
        if func.namespace != "prim" and composite(func.name(), "CompositeImplicitAutograd"):
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        return func(*args, **kwargs)

    @contextmanager
    def naming(self, model: Any) -> Iterator[None]:
        """Know which module is running, by hooks that leave with the context."""
        handles = []
        modules = model.named_modules() if isinstance(model, torch.nn.Module) else ()
        for name, module in modules:
            # Duck-typed like ConvSpec.from_module: a layer of its own kind still is that layer.
            is_conv = hasattr(module, "in_channels") and hasattr(module, "kernel_size")
            enter = self._enter(name, is_conv)
            handles.append(module.register_forward_pre_hook(enter))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, name: str, is_conv: bool) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._modules.append((name, is_conv))

        return hook

    def _leave(self, *_: Any) -> None:
        self._modules.pop()

    def _name(self, spec: ConvSpec) -> str:
        name, is_conv = self._modules[-1] if self._modules else ("", False)
        if is_conv and name:
            return name
        name = f"{name}.{spec.op}" if name else spec.op
        number = self._unnamed[name] = self._unnamed.get(name, 0) + 1
        return f"{name}_{number}" if number > 1 else name

    def _forward(self, args: tuple[Any, ...], seconds: float) -> None:
        source, weight = args[0], args[1]
        spec = ConvSpec.from_operator(source, weight, *args[2:])
        at = cost(spec, tuple(source.shape[2:]), source.shape[0], str(source.dtype))
        # Held so that no later tensor takes its address, and with it its identity.
        self._weights.append(weight)
        call = ConvCall(self._name(spec), at, _identity(weight))
        call.seconds["forward"] = seconds
        self.calls.append(call)
        self._open.append(((_identity(source), _identity(weight)), call))

    def _backward(self, args: tuple[Any, ...], seconds: float) -> None:
        mask = args[10]
        key = (_identity(args[1]), _identity(args[2]))
        shape = (tuple(args[1].shape), tuple(args[2].shape))
        call = self._claim(key, shape)
        if call is None:
            return
        call.passes += [name for name, asked in zip(("grad_input", "grad_weight"), mask, strict=False) if asked]
        call.seconds["backward"] = seconds

    def _claim(self, key: tuple[Any, ...], shape: tuple[Any, ...]) -> ConvCall | None:
        """The latest forward that has had no backward yet: the same tensors or, where they were recreated (saved
        tensor hooks, checkpoints), the same shapes."""
        for index in reversed(range(len(self._open))):
            if self._open[index][0] == key:
                return self._open.pop(index)[1]
        for index in reversed(range(len(self._open))):
            at = self._open[index][1].cost
            if ((at.batch, at.spec.in_channels, *at.input_size), at.spec.weight_shape) == shape:
                return self._open.pop(index)[1]
        return None


def _timed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, float]:
    """The operator's result and the wall time it took."""
    _synchronize_device(args[0].device)
    start = time.perf_counter()
    result = func(*args, **kwargs)
    _synchronize_device(args[0].device)
    return result, time.perf_counter() - start


def _tensors(model: Callable[..., Any], inputs: Sequence[Any]) -> Iterator[torch.Tensor]:
    if isinstance(model, torch.nn.Module):
        yield from model.parameters()
        yield from model.buffers()
    yield from (leaf for leaf in tree_leaves(list(inputs)) if isinstance(leaf, torch.Tensor))


def _synchronize(model: Callable[..., Any], inputs: Sequence[Any]) -> None:
    for device in {tensor.device for tensor in _tensors(model, inputs)}:
        _synchronize_device(device)


def _synchronize_device(device: torch.device) -> None:
    """Wait for what a device has queued; the CPU queues nothing."""
    if device.type not in ("cpu", "meta"):
        torch.accelerator.synchronize(device)


def _identity(tensor: torch.Tensor) -> int:
    # The address of the TensorImpl: Python objects of one tensor come and go, that stays.
    return int(tensor._cdata)
