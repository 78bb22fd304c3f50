"""`optimize`: a network rewritten: for inference layers folded and fused, weights packed, engines chosen; for training
batch normalisations fused.

The package has another name than the function, which is `groupwise.optimize`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, overload

import torch
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from groupwise.errors import GroupwiseError
from groupwise.rewrite.capture import reason_to_leave
from groupwise.rewrite.choose import seconds_of
from groupwise.rewrite.example import check_kwargs, refused, unknown_arguments
from groupwise.rewrite.network import Optimized
from groupwise.rewrite.plan import Left, Plan, Step
from groupwise.rewrite.precision import check_dtype
from groupwise.rewrite.train_choose import for_training
from groupwise.rewrite.train_fuse import Fused, Notes, fuse_training
from groupwise.rewrite.train_network import Trainable, TrainingPlan
from groupwise.rewrite.watch import check_watchable

__all__ = [
    "Fused",
    "Left",
    "Notes",
    "Optimized",
    "Plan",
    "Step",
    "Trainable",
    "TrainingPlan",
    "fuse_training",
    "optimize",
]


OPTIONS = ("kwargs", "tune", "train", "dtype", "recompute")


@overload
def optimize(
    model: torch.nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    tune: bool | None = None,
    train: Literal[False] = False,
    dtype: torch.dtype | None = None,
    recompute: None = None,
) -> Optimized: ...


@overload
def optimize(
    model: torch.nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    tune: bool | None = None,
    train: Literal[True],
    dtype: None = None,
    recompute: bool | None = None,
) -> Trainable: ...


def optimize(
    model: torch.nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    tune: bool | None = None,
    train: bool = False,
    dtype: torch.dtype | None = None,
    recompute: bool | None = None,
    **unknown: Any,
) -> Optimized | Trainable:
    """Returns a network that computes what `model(*inputs, **kwargs)` computes, for inference on the CPU, or training.

    BatchNorms are folded into the layers beside them. Activations and sums are computed by the layer before them.
    Weights are packed, images change to channels_last once, and each layer runs on the engine that is fastest for it.
    `print(network.plan)` lists all that. The model stays as it is, and shares its parameters with the network.

    - `inputs`, `kwargs`: an example of what the network will be called with; other shapes are planned when they come
    - `tune`: None times the engines of each layer on the example, or on as many of its samples as take a few
      milliseconds, and ends after 4.5 seconds: layers that are left run on the engine that False gives. True
      times all of them on the whole example, however long it takes. False times nothing, so that every run makes the
      same choices: groupwise where its planner takes a layer, else oneDNN, else PyTorch. GROUPWISE_TUNE=1 and =0 make
      None mean True and False. Nothing is timed while `torch.use_deterministic_algorithms` is on.
    - `train`: True returns a network for training, a `groupwise.Trainable`: batch normalisations are one operator with
      their activations and residual sums, forward and backward, convolutions are dispatched to groupwise's kernels,
      and `tune` times steps in both memory formats and measures the kernels. It has the model's modules, parameters
      and state_dict, and accepts a model in either mode.
    - `dtype`: `torch.bfloat16` computes layers in bfloat16, with float32 sums, where the processor has such products
      (AVX512-BF16 or AMX), and float32 where `tune` measures the network to be faster in that. What the network takes
      and returns keeps the model's dtypes.
    - `recompute`: for training. True computes activations behind BatchNorms again in the backward, and so keeps less
      memory; False keeps them. None does so with the largest, until a step keeps 30 % less than PyTorch's.

    Raises `GroupwiseError` for what is no module, for a dtype that cannot be computed here, for a model in training
    mode, with hooks or on another device, and for inputs that the model refuses.

    Examples:
        >>> import groupwise, torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU()).eval()
        >>> fast = optimize(model, torch.randn(1, 3, 16, 16), tune=False)
        >>> [step.fused for step in fast.plan.steps if step.kind == "convolution"]
        [('batch norm', 'relu')]
        >>> with torch.inference_mode():
        ...     fast(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 8, 14, 14])
    """
    if unknown:
        raise GroupwiseError(unknown_arguments(unknown, OPTIONS))
    if not isinstance(train, bool):
        raise GroupwiseError(f"train={train!r} is not known; choose one of: True, False")
    _check(model, inputs, kwargs, train)
    check_dtype(dtype)
    seconds = seconds_of(tune)
    if recompute is not None and not isinstance(recompute, bool):
        raise GroupwiseError(f"recompute={recompute!r} is not known; choose one of: True, False, None")
    if recompute is not None and not train:
        raise GroupwiseError(f"recompute={recompute} is for training; leave it out, or write train=True")
    if train and dtype is not None:
        raise GroupwiseError("dtype is for inference; leave it out, and train under torch.autocast('cpu')")
    if train:
        if torch.are_deterministic_algorithms_enabled():
            seconds = 0.0
        return for_training(model, inputs, kwargs or {}, seconds, recompute)
    network = Optimized(model, seconds, dtype)
    # A call in inference mode would make constants that other modes refuse.
    with torch.inference_mode(False), torch.no_grad():
        _try(network, inputs, kwargs or {})
    return network


def _try(network: Optimized, inputs: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        network.prepare(*inputs, **kwargs)
    except GroupwiseError:
        raise
    except Exception as error:
        raise refused(error, network, inputs, kwargs, "groupwise.optimize(model, x)") from error


def _check(model: Any, inputs: tuple[Any, ...], kwargs: Mapping[str, Any] | None, train: bool) -> None:
    if not isinstance(model, torch.nn.Module):
        raise GroupwiseError(f"{type(model).__name__} is not a model; give a torch.nn.Module, then an example input")
    if isinstance(model, Optimized | Trainable):
        raise GroupwiseError("the network is optimized already; give the model that it was made of")
    if isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
        raise GroupwiseError(
            "the model is compiled by torch.compile; give the model that it was made of, or use "
            'torch.compile(model, backend="groupwise")'
        )
    check_kwargs(kwargs)
    if not inputs and not kwargs:
        call = "groupwise.optimize(model, example" + ", train=True" * train
        raise GroupwiseError(f"an example input is missing; write: {call})")
    if model.training and not train:
        raise GroupwiseError(
            "the model is in training mode; write: groupwise.optimize(model.eval(), example), "
            "or train=True for a network that trains"
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise GroupwiseError(f"{name} is a lazy parameter without a shape; run the model once, then optimize it")
        check_watchable(name, tensor)
        _check_device(name, tensor)
    if not train and (reason := reason_to_leave(model)):
        raise GroupwiseError(f"the model cannot be rewritten: {reason}; remove that, or optimize a part of the model")
    tensors = [leaf for leaf in tree_leaves((inputs, dict(kwargs or {}))) if isinstance(leaf, torch.Tensor)]
    for tensor in tensors:
        _check_device("an input", tensor)
    # One of several may be empty, such as a cache at first.
    if tensors and not any(tensor.numel() for tensor in tensors):
        shape = "×".join(map(str, tensors[0].shape))
        raise GroupwiseError(
            f"the example of shape {shape} is empty, and shows nothing of the network's work; give one of the size "
            "that you will use"
        )


def _check_device(name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type != "cpu":
        raise GroupwiseError(f"{name} is on {tensor.device}; groupwise.optimize is for the CPU: use model.cpu()")
