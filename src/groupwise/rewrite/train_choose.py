"""`for_training`: which form of a network for training is the fastest, and by which kernels, by steps of a copy."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from groupwise.kernels import dispatch, native, tuning
from groupwise.kernels.plan import Plan, record_plans
from groupwise.rewrite.heap import keep, kept, mapped, release
from groupwise.rewrite.samples import first_samples, samples_of
from groupwise.rewrite.train_check import disagreement
from groupwise.rewrite.train_memory import memory_of
from groupwise.rewrite.train_network import Kernels, Timings, Trainable
from groupwise.rewrite.train_region import Settings

# The most often that a step is timed in each form. A long one is timed once if one form is so many times as fast.
ROUNDS, APART = 3, 1.05
# A step is timed on as many samples as take about so many seconds, if time is limited.
STEP = 0.2
# Each thread has a sample at least, and statistics need two. More are compared: of two values a normalisation makes
# 1 and -1, whatever they are.
LEAST_SAMPLES, COMPARED = 2, 3
# To measure the kernels of a convolution takes about as long as so many calls of PyTorch's.
CALLS = 6
# Sources of plans that no measuring would change, and those that tell PyTorch's time on this processor.
MEASURED = ("sole", "measured", "forced")
KNOWN = (*MEASURED, "table")
# The most steps until no convolution is met that was not measured.
MOST_STEPS = 3


def for_training(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], seconds: float, recompute: bool | None
) -> Trainable:
    """Returns a `Trainable`, in the form that is fastest on the example, if that may take so many seconds; 0 for none.

    `recompute` None computes as many activations again as `train_memory` asks for.

    If a table of this processor knows nothing of some layer, kernels are measured however long that takes.
    """
    ends = time.perf_counter() + seconds
    settings = Settings(least=math.inf if recompute is False else 0)
    timings, kernels = Timings(), Kernels()
    kept_mib = notes = None
    if (twin := _copied(model)) is not None:
        samples = samples_of(args, kwargs)
        few = samples if math.isinf(seconds) else min(samples, max(LEAST_SAMPLES, torch.get_num_threads()))
        # Steps update statistics and draw random numbers: the model must not see them.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            tried, named = tree_map(_leaf, (args, dict(kwargs)))
            with mapped() if few == samples else kept(largest=True):
                settings.distrusted, notes = disagreement(twin, tried, named, max(few, COMPARED))
                memory = None if settings.distrusted else memory_of(twin.train(), tried, named, recompute)
            if memory is not None:
                settings.least, kept_mib = memory.least, memory.mib
            if seconds and not settings.distrusted:
                trial = _Trial(twin.train(), tried, named, few, ends)
                timings = trial.choose(settings)
                if timings.ms:
                    with kept(largest=settings.least > 0):
                        kernels = trial.measured(settings, timings)
                del trial
        # The copy, its gradients and its activations are no longer needed.
        del twin
        release()
    network = Trainable(model, settings, replace(timings, kept_mib=kept_mib), kernels)
    keep(network, largest=settings.least > 0)
    vars(network)["_region"].prepare(args, kwargs, notes)
    return network


def _copied(model: torch.nn.Module) -> torch.nn.Module | None:
    """Returns a copy to try steps on; None where there can be none."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return None


def _leaf(value: Any) -> Any:
    """Returns a tensor whose gradient does not reach the user's."""
    wants = isinstance(value, torch.Tensor) and value.requires_grad
    return value.detach().requires_grad_() if wants else value


@dataclass
class _Form:
    """A network of one form of the model."""

    network: Trainable
    any_format: bool
    """Whether it computes the same for inputs of any memory format."""
    plans: list[Plan] | None = None
    """What its last step ran; None before the first one, which plans."""


class _Trial:
    """Steps of a model in several forms, on as many samples of the example as the time allows."""

    def __init__(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], few: int, ends: float
    ) -> None:
        self._model, self._args, self._kwargs, self._ends = model, args, kwargs, ends
        self._samples = samples_of(args, kwargs)
        self._count = min(few, self._samples)
        self._forms: dict[tuple[Any, ...], _Form] = {}

    def choose(self, settings: Settings) -> Timings:
        """Chooses the memory format by time."""
        formats = {"as given": replace(settings)}
        if self._form(formats["as given"]).any_format:
            formats["channels_last"] = replace(settings, channels_last=True)
        ms = self._times(formats)
        if not ms:
            return Timings()
        settings.channels_last = "channels_last" in ms and ms["channels_last"] < ms["as given"]
        return Timings(ms, self._count if self._is_cut else None)

    def _times(self, asked: Mapping[str, Settings]) -> dict[str, float]:
        """Returns the shortest time of a step of each form, in ms, taken in turn; nothing where a step fails."""
        ms = dict.fromkeys(asked, math.inf)
        try:
            known = {name: self._begin(settings) for name, settings in asked.items()}
            for turn in range(ROUNDS):
                started, planned = time.perf_counter(), all(self._form(it).plans is not None for it in asked.values())
                for name, settings in asked.items():
                    seconds = known[name] if turn == 0 and known[name] else self._timed(settings)
                    ms[name] = min(ms[name], seconds * 1e3)
                now = time.perf_counter()
                took = now - started
                # A step that plans is no measure of its form, unless there is no time for another. A short one is soon
                # timed again, and may have been interrupted.
                apart = planned and took > STEP and max(ms.values()) > APART * min(ms.values())
                if self._is_limited and (apart or now + took > self._ends):
                    break
        except Exception:
            return {}
        return ms

    @property
    def _is_limited(self) -> bool:
        return not math.isinf(self._ends)

    @property
    def _is_cut(self) -> bool:
        return self._count < self._samples

    def _form(self, settings: Settings) -> _Form:
        if astuple(settings) not in self._forms:
            network = Trainable(self._model, settings)
            # What a trace makes lives on.
            with mapped():
                any_format = vars(network)["_region"].prepare(self._args, self._kwargs)
            self._forms[astuple(settings)] = _Form(network, any_format)
        return self._forms[astuple(settings)]

    def _begin(self, settings: Settings) -> float:
        """Runs the first step of a form, unless that takes long; returns its seconds if they count, else 0."""
        form = self._form(settings)
        if form.plans is not None:
            return 0.0
        if self._is_cut and all(other.plans is None for other in self._forms.values()):
            before, seconds = self._count, self._timed(settings)
            self._count = min(self._samples, math.ceil(STEP / seconds) * self._count)
            if self._count == before:
                return seconds
        if not self._is_cut:
            # What a plan makes lives on too. Mapping takes time, so that steps that are timed use the heap.
            with mapped():
                self._step(form)
        return 0.0

    def _timed(self, settings: Settings) -> float:
        with kept(largest=settings.least > 0):
            return self._step(self._form(settings))

    def _step(self, form: _Form) -> float:
        recorded: AbstractContextManager[Iterable[Plan]] = nullcontext(())
        if native.status().problem is None:
            recorded = record_plans()
        with recorded as plans:
            seconds = step(form.network, *first_samples(self._args, self._kwargs, self._count))
        form.plans = list(plans)
        return seconds

    def measured(self, settings: Settings, timings: Timings) -> Kernels:
        """Measures the kernels of each convolution and linear layer, in each direction, while there is time.

        The planner knows from now on what was measured. It is kept for later processes as `groupwise.tune` keeps it.
        """
        if native.status().operators_problem is not None:
            return Kernels()
        form = self._form(settings)
        # A step of the whole example is no part of what the core counts.
        whole = min(timings.ms.values()) / 1e3 * max(1, self._samples) / max(1, self._count)
        plans = form.plans or []
        ends = self._ends if all(plan.source in KNOWN for plan in plans) else math.inf
        left = ends - time.perf_counter() - whole
        if left <= 0:
            return Kernels({}, _unmeasured(plans), len(plans))
        counts: dict[str, dict[str, int]] = {}
        is_late = False
        try:
            with dispatch.measuring(CALLS, left):
                for _ in range(MOST_STEPS):
                    seen = tuning.measured()["requests"]
                    with record_plans() as plans:
                        step(form.network, self._args, self._kwargs)
                    is_late = time.perf_counter() + whole > ends
                    if tuning.measured()["requests"] == seen or is_late:
                        break
        except Exception:
            # What the model does with its first samples, it may not do with all.
            return Kernels()
        for plan in plans:
            of_direction = counts.setdefault(plan.direction, {})
            of_direction[plan.kernel] = of_direction.get(plan.kernel, 0) + 1
        # What is never measured, as PyTorch's kernel may do harm there, is not for want of time.
        return Kernels(counts, _unmeasured(plans) if is_late else 0, len(plans))


def _unmeasured(plans: Iterable[Plan]) -> int:
    return sum(plan.source not in MEASURED for plan in plans)


def step(network: Trainable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """Returns the seconds of a forward and the backward of its outputs' sum."""
    network.model.zero_grad()
    started = time.perf_counter()
    results = [it for it in tree_leaves(network(*args, **kwargs)) if isinstance(it, torch.Tensor) and it.requires_grad]
    if not results:
        raise ValueError("no output has a gradient")
    torch.autograd.backward(results, [torch.ones_like(it) for it in results])
    return time.perf_counter() - started
