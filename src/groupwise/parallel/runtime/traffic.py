"""`traffic`: counts the collectives that the ranks of a split model run in a step, layer by layer."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupwise.draw.text.table import Tabular
from groupwise.parallel.styles.layer import ShardLayer
from groupwise.spec.collectives import Collective
from groupwise.spec.legible import Printed

_HEAD = ("layer", "backward", "operation", "payload")


class Collectives(tuple[Collective, ...], Tabular, Printed):
    """The collectives of a step, in the order in which they ran: a tuple that prints as a table."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Returns the collectives as JSON values."""
        return {"collectives": [one.to_dict() for one in self]}

    def columns(self) -> tuple[Sequence[str], Sequence[Sequence[Any]]]:
        """Returns the column names, and the values of each collective."""
        return _HEAD, [tuple(one.to_dict().values()) for one in self]

    def __str__(self) -> str:
        return "\n".join(map(str, self)) or "no collective"


def traffic(model: nn.Module, *inputs: Any, backward: bool = True) -> Collectives:
    """Runs a step of `model` on `inputs` and returns its collectives in order.

    The step is a forward and, with `backward`, the backward of the outputs' sum. Every rank calls it, as it would call
    the model. The model may return a tensor, or several in tuples, lists and dicts. Parameters keep the gradients that
    they have, and buffers their values.

    PyTorch's `CommDebugMode` counts the same collectives without their bytes, and cannot watch a model that has
    activations in place or calls a module twice.
    """
    counter = _Counter()
    kept = {parameter: parameter.grad for parameter in model.parameters()}
    for parameter in kept:
        parameter.grad = None
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    try:
        with torch.random.fork_rng(), counter, counter.watch(model), torch.set_grad_enabled(backward):
            output = model(*inputs)
            if backward:
                tensors = [
                    leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.requires_grad
                ]
                torch.autograd.backward([tensor.sum() for tensor in tensors])
    finally:
        for parameter, grad in kept.items():
            parameter.grad = grad
        for buffer, before in buffers:
            buffer.copy_(before)
    return Collectives(counter.collectives)


# The name of each of PyTorch's operators, and the function that picks the payload from its input and its output.
_OPERATIONS: dict[str, tuple[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "all_gather_into_tensor": ("all_gather", lambda given, made: made),
    "all_reduce": ("all_reduce", lambda given, made: made),
    "reduce_scatter_tensor": ("reduce_scatter", lambda given, made: given),
    "all_to_all_single": ("all_to_all", lambda given, made: made),
}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.collectives: list[Collective] = []
        self._layer, self._backward = "", False

    @contextlib.contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Notes, within the block, which layer of `model` runs."""
        layers = [(name, module) for name, module in model.named_modules() if isinstance(module, ShardLayer)]
        hooks = [module.register_forward_pre_hook(self._begins(name)) for name, module in layers]
        hooks += [module.register_forward_hook(self._ends(name)) for name, module in layers]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _begins(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._layer, self._backward = name, False

        return hook

    def _ends(self, name: str) -> Callable[..., None]:
        def backward(_: torch.Tensor) -> None:
            self._layer, self._backward = name, True

        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            # A layer's backward begins once the gradient by its output is there.
            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # DTensor runs as operations on local tensors, which come here next.
            return NotImplemented
        made = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else ""
        if name in _OPERATIONS:
            operation, payload = _OPERATIONS[name]
            tensor = payload(args[0], made)
            size = tensor.numel() * tensor.element_size()
            if operation == "all_to_all":
                # The rows that this rank held before do not count.
                own = args[1][distributed.get_rank(_resolve_process_group(args[3]))]
                size -= size // max(1, sum(args[1])) * own
            self.collectives.append(Collective(self._layer, self._backward, operation, size))
        return made
