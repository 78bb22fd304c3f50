"""`compare`: a model before and after `optimize`, timed in turn, and how far both are from float64."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from groupwise.draw.text import busy
from groupwise.draw.text import faster as text
from groupwise.errors import GroupwiseError, check_integer
from groupwise.profile.layers import LayerTimes, layer_times
from groupwise.profile.measuring import UNKNOWN, Interference, Meter
from groupwise.profile.timing import dispatching
from groupwise.spec.legible import Printed

# A gain is one if the network was faster in so many of the rounds.
MOST_ROUNDS = 0.8
Model = Callable[..., Any]


@dataclass(frozen=True)
class Comparison(Printed):
    """A model and the optimized network on one input. Times are medians of runs that alternate, in milliseconds."""

    contiguous_ms: float
    """The model on images as PyTorch stores them by default."""
    channels_last_ms: float
    """The model and its images in channels_last."""
    optimized_ms: float
    model_error: float | None
    """The largest difference between the model's output and that of its float64 copy, divided by the largest output.
    In training it is the norm of the difference of all gradients, divided by the norm of the gradients. None for a
    model that draws random numbers."""
    optimized_error: float | None
    """The same of the optimized network."""
    threads: int
    repeats: int
    channels_last_error: float | None = None
    """The same of the model in channels_last."""
    faster_in: int = 0
    """In how many of the rounds the network was faster than the model in its better memory format."""
    difference: float | None = None
    """The largest difference between the network's output and the model's, divided by the model's largest output."""
    labels: tuple[tuple[int, int], ...] = ()
    """The largest class of each sample, by the model and by the network, if the output is one of (batch, classes)."""
    train: bool = False
    """Whether it is a training step: outputs, a loss and all gradients."""
    dtype: str = "float32"
    """What the layers of the network compute in."""
    model_dtype: str = "float32"
    """What the model computes in."""
    layers: tuple[LayerTimes, ...] = ()
    """The layers one by one, if you asked for them."""
    interference: Interference = UNKNOWN
    """What other processes took meanwhile."""

    @property
    def best_ms(self) -> float:
        """The model's time in its better memory format."""
        return min(self.contiguous_ms, self.channels_last_ms)

    @property
    def speedup(self) -> float:
        """How many times as fast as the model in its better memory format the network is."""
        return self.best_ms / self.optimized_ms

    @property
    def gains(self) -> bool:
        """Whether the network was faster at the median, and in four of five rounds, while the machine was not busy."""
        return not self.interference.busy and self.speedup > 1 and self.faster_in >= MOST_ROUNDS * self.repeats

    @property
    def agrees(self) -> bool | None:
        """Whether the network's error is at most twice that of the model, give or take a few roundings.

        None if there is nothing to compare.
        """
        if self.optimized_error is None or self.model_error is None:
            return None
        eps = torch.finfo(getattr(torch, self.dtype)).eps
        return self.optimized_error <= 2 * max(self.model_error, self.channels_last_error or 0.0) + 16 * eps

    def __str__(self) -> str:
        facts = self.to_dict()
        return "\n".join([*busy.paragraph(facts["interference"]), text.table(facts)])

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types, and what follows from them."""
        facts = {field.name: getattr(self, field.name) for field in fields(self)}
        facts |= {"labels": [list(pair) for pair in self.labels], "layers": [one.to_dict() for one in self.layers]}
        facts["interference"] = self.interference.to_dict()
        return {**facts, "speedup": self.speedup, "gains": self.gains, "agrees": self.agrees}


def compare(
    model: torch.nn.Module,
    network: Any,
    inputs: Sequence[Any],
    repeats: int = 10,
    kwargs: Mapping[str, Any] | None = None,
    train: bool = False,
    layers: bool = False,
) -> Comparison:
    """Times a model and the network that `optimize` made of it, with PyTorch's kernels for the model.

    - `train`: times training steps, whose loss is the mean square of the outputs; running statistics and `.grad` change
    - `layers`: also times layer by layer, in inference
    """
    check_integer("repeats", repeats, 1)
    if layers and train:
        raise GroupwiseError("layers of a training step are not timed one by one; leave out layers or train")
    inputs, keywords = tuple(inputs), dict(kwargs or {})
    last, images = _channels_last(model), tree_map_only(torch.Tensor, _to_last, inputs)
    # The model runs PyTorch's kernels; the network says itself which it wants.
    theirs, ours = partial(dispatching, False), nullcontext
    forms = [_Form(model, inputs, theirs), _Form(last, images, theirs), _Form(network, inputs, ours)]
    meter = Meter()
    seconds = _timed(forms, keywords, repeats, train)
    times = layer_times(model, last, network, (inputs, images), repeats, keywords) if layers else ()
    interference = meter.read()
    exact, outputs = _results(model, forms, keywords, train)
    errors = [None if exact is None else _error(made[0], exact[0], train) for made in outputs]
    contiguous, channels_last, optimized = (statistics.median(found) * 1e3 for found in seconds)
    before = seconds[0] if contiguous < channels_last else seconds[1]
    return Comparison(
        contiguous_ms=contiguous,
        channels_last_ms=channels_last,
        optimized_ms=optimized,
        model_error=errors[0],
        channels_last_error=errors[1],
        optimized_error=errors[2],
        threads=torch.get_num_threads(),
        repeats=repeats,
        faster_in=sum(ours < theirs for ours, theirs in zip(seconds[2], before, strict=True)),
        difference=None if exact is None else _error(outputs[2][1], outputs[0][1], False),
        labels=_labels(outputs[0][1], outputs[2][1]),
        train=train,
        dtype=str(_computed(network) or _dtype(outputs[0][1])).removeprefix("torch."),
        model_dtype=_dtype(outputs[0][1]),
        layers=times,
        interference=interference,
    )


def _computed(network: Any) -> torch.dtype | None:
    """Returns the dtype that layers were asked to compute in; None where that of the model was faster in all of it."""
    dtype: torch.dtype | None = getattr(network, "dtype", None)
    if dtype is None or any(not part.name for part in network.plan.widened):
        return None
    return dtype


class _Form(NamedTuple):
    """A model, its inputs, and the block in which it runs."""

    model: Model
    given: Sequence[Any]
    kernels: Callable[[], AbstractContextManager[None]]


def _timed(forms: Sequence[_Form], keywords: Mapping[str, Any], repeats: int, train: bool) -> list[list[float]]:
    calls = [_call(form.model, form.given, keywords, train) for form in forms]
    seconds: list[list[float]] = [[] for _ in forms]
    with torch.inference_mode(not train):
        for number in range(-2, repeats):
            for form, call, found in zip(forms, calls, seconds, strict=True):
                with form.kernels():
                    start = time.perf_counter()
                    call()
                    elapsed = time.perf_counter() - start
                if number >= 0:
                    found.append(elapsed)
    return seconds


def _call(form: Model, given: Sequence[Any], keywords: Mapping[str, Any], train: bool) -> Callable[[], Any]:
    if not train:
        return lambda: form(*given, **keywords)

    def step() -> Any:
        for parameter in form.parameters():  # type: ignore[attr-defined]
            parameter.grad = None
        output = form(*given, **keywords)
        loss = [leaf.square().mean() for leaf in tree_leaves(output) if _is_differentiable(leaf)]
        if not loss:
            raise GroupwiseError("the model's outputs have no gradient; give a model with parameters to train")
        torch.stack(loss).sum().backward()  # type: ignore[no-untyped-call]
        return output

    return step


def _is_differentiable(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.requires_grad


Results = tuple[Any, Any]
"""What the error is of (gradients in training, else outputs), and the outputs."""


def _results(
    model: torch.nn.Module,
    forms: Sequence[_Form],
    keywords: Mapping[str, Any],
    train: bool,
) -> tuple[Results | None, list[Results]]:
    """Returns the results in float64, None for a model that draws random numbers, and those of each form."""
    before = torch.get_rng_state()
    with torch.inference_mode(not train):
        outputs = []
        for form in forms:
            with form.kernels():
                outputs.append(_result(form.model, form.given, keywords, train))
        if not torch.equal(torch.get_rng_state(), before):
            return None, outputs
        twin = copy.deepcopy(model).double()
        given, wide = tree_map_only(torch.Tensor, _to_double, (tuple(forms[0].given), dict(keywords)))
        return _result(twin, given, wide, train), outputs


def _result(form: Model, given: Sequence[Any], keywords: Mapping[str, Any], train: bool) -> Results:
    output = _call(form, given, keywords, train)()
    if not train:
        return output, output
    gradients = [parameter.grad for parameter in form.parameters() if parameter.grad is not None]  # type: ignore[attr-defined]
    return [gradient.clone() for gradient in gradients], tree_map_only(torch.Tensor, torch.Tensor.detach, output)


def _channels_last(model: torch.nn.Module) -> torch.nn.Module:
    return copy.deepcopy(model).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _to_last(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _to_double(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _error(made: Any, exact: Any, together: bool) -> float:
    """Returns the largest relative difference of any tensor, or that of the norm of all of them together."""
    pairs = [
        (one.double(), true.double())
        for one, true in zip(tree_leaves(made), tree_leaves(exact), strict=True)
        if isinstance(true, torch.Tensor) and true.is_floating_point() and true.numel()
    ]
    if together:
        off, size = (sum(tensor.square().sum().item() for tensor in some) for some in _split(pairs))
        return float((off / (size or 1.0)) ** 0.5)
    found = [(one - true).abs().max().item() / (true.abs().max().item() or 1.0) for one, true in pairs]
    # A NaN is larger than no number, and would be lost.
    return float("nan") if any(map(math.isnan, found)) else max(found, default=0.0)


def _split(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [one - true for one, true in pairs], [true for _, true in pairs]


def _labels(model: Any, network: Any) -> tuple[tuple[int, int], ...]:
    for one, other in zip(tree_leaves(model), tree_leaves(network), strict=True):
        if isinstance(one, torch.Tensor) and one.dim() == 2 and one.is_floating_point() and one.numel():
            return tuple(zip(one.argmax(1).tolist(), other.argmax(1).tolist(), strict=True))
    return ()


def _dtype(output: Any) -> str:
    """Returns the dtype of the first tensor of floats, which says how large a rounding is."""
    found = (leaf.dtype for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point())
    return str(next(found, torch.float32)).removeprefix("torch.")
