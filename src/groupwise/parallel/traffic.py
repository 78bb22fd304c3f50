"""`traffic`: what the ranks of a split model exchange in a step, layer by layer, counted while it runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import distributed, nn
from torch.distributed.distributed_c10d import _resolve_process_group  # type: ignore[attr-defined]
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from groupwise.parallel.crossing import Crossing
from groupwise.parallel.layer import PartLayer


def traffic(model: nn.Module, *inputs: Any, backward: bool = True) -> tuple[Crossing, ...]:
    """The exchanges of a forward of `model` on `inputs`, and of the backward of its outputs' sum, in order.

    Every rank calls it, as it would the model, which may give a tensor or several in tuples, lists and dicts.
    Parameters keep the gradients that they have, and buffers their values.

    Their number is that of PyTorch's `CommDebugMode`, which knows no sizes, and cannot watch a model with activations
    in place or with a module that is called twice.
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
    return tuple(counter.crossings)


# Of each collective its name, and which tensor is the payload.
_OPERATIONS: dict[str, tuple[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]] = {
    "all_gather_into_tensor": ("all_gather", lambda given, made: made),
    "all_reduce": ("all_reduce", lambda given, made: made),
    "reduce_scatter_tensor": ("reduce_scatter", lambda given, made: given),
    "all_to_all_single": ("all_to_all", lambda given, made: made),
}


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.crossings: list[Crossing] = []
        self._layer, self._backward = "", False

    @contextlib.contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        """Note, within the block, which layer of `model` is at work."""
        parts = [(name, module) for name, module in model.named_modules() if isinstance(module, PartLayer)]
        hooks = [module.register_forward_pre_hook(self._begins(name)) for name, module in parts]
        hooks += [module.register_forward_hook(self._ends(name)) for name, module in parts]
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
            # A layer's backward begins when the gradient by its output has come.
            if output.requires_grad:
                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return hook

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            # DTensor says what it does in operations of local tensors, which come here next.
            return NotImplemented
        made = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__ if isinstance(func, torch._ops.OpOverload) else ""
        if name in _OPERATIONS:
            operation, payload = _OPERATIONS[name]
            tensor = payload(args[0], made)
            size = tensor.numel() * tensor.element_size()
            if operation == "all_to_all":
                # Of what a rank has thereafter, as much as did not lie there before.
                own = args[1][distributed.get_rank(_resolve_process_group(args[3]))]
                size -= size // max(1, sum(args[1])) * own
            self.crossings.append(Crossing(self._layer, self._backward, operation, size))
        return made
