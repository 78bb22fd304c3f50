"""`Trainable`: a network for training that runs a fused form of a model, and has the model's parameters and modules."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from groupwise.draw.base import phrases
from groupwise.draw.text import lines as text
from groupwise.kernels import native
from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.nn.functional import is_transformed
from groupwise.rewrite.heap import keep
from groupwise.rewrite.pickled import reduced
from groupwise.rewrite.plan import Left
from groupwise.rewrite.samples import of_samples
from groupwise.rewrite.train_fuse import Fused
from groupwise.rewrite.train_region import Region, Settings
from groupwise.spec.legible import Printed, legible


@dataclass(frozen=True)
class Timings:
    """What was measured of steps: the shortest time in each form that was tried, in ms, and of how many samples if not
    of all; and what they keep, in MiB, here and in PyTorch."""

    ms: Mapping[str, float] = field(default_factory=dict)
    samples: int | None = None
    kept_mib: tuple[float, float] | None = None


@dataclass(frozen=True)
class Kernels:
    """How many convolutions and linear layers each kernel runs, by direction, and how many of how many passes were not
    measured for want of time."""

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    unmeasured: int = 0
    passes: int = 0


@dataclass(frozen=True)
class TrainingPlan(Printed):
    """What a network for training fuses, and what it leaves. `print()` it for the table."""

    title: str
    """The class of the model."""
    fused: tuple[Fused, ...]
    """The batch normalisations that are one operator with what follows them, in order."""
    left: tuple[Left, ...]
    """The modules that stay as they are, and why."""
    memory_format: str
    """`channels_last` if images are changed to that at the input; `as given` if not."""
    ms: Mapping[str, float] = field(default_factory=dict)
    """The shortest time of a step in each memory format; empty if not measured."""
    squeezed: tuple[str, ...] = ()
    """The first layers of the squeeze and excitations that are one operator."""
    kernels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many convolutions and linear layers each kernel runs, by direction, as measured on the example; empty if none
    was measured."""
    recompute_from: int | None = 0
    """The activations of at least so many numbers a sample are computed again in the backward, and not kept: 0 for all
    that can be, None for none."""
    unmeasured: int = 0
    """How many of their passes there was no time to measure: their kernels are those that records of such processors
    expect to be the fastest."""
    passes: int = 0
    """How many passes of these layers a step ran, forward and gradients."""
    samples: int | None = None
    """How many samples the steps of `ms` had, if fewer than the example."""
    kept_mib: tuple[float, float] | None = None
    """What a forward of the example keeps for its backward beside parameters and arguments, here and in PyTorch, in
    MiB: so many times what two samples keep. None if that was not measured."""

    def __str__(self) -> str:
        activations = sum(it.activation != "none" for it in self.fused)
        sums = sum(bool(it.residual) for it in self.fused)
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.ms.items())
        samples = of_samples(self.samples)
        found = [
            f"{self.title}: {phrases.plural(len(self.fused), 'batch norm')} fused, {activations} with an activation "
            f"and {sums} with a sum; images {self.memory_format}" + (f" (a step{samples}: {times})" if times else ""),
            self._memory(),
        ]
        if self.fused:
            rows = [(legible(it.name), it.activation, legible(it.residual)) for it in self.fused]
            found += ["", *text.rows([("batch norm", "activation", "sum with"), *rows], left=(0, 1, 2))]
        elif not self.squeezed:
            whole = "no batch norm is fused" if self.left else "nothing to fuse: the network computes as the model does"
            found += ["", whole]
        if self.squeezed:
            names = ", ".join(map(legible, self.squeezed))
            found += ["", f"squeeze and excitations that are one operator, by their first layers: {names}"]
        if self.kernels:
            found += ["", "kernels of the convolutions and linear layers, as measured:"]
            for direction, counts in self.kernels.items():
                found.append(f"  {direction}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        if self.unmeasured:
            found += [
                "",
                f"not measured for want of time: {self.unmeasured} of {self.passes} passes (forward and gradients of "
                "layers); tune=True, or --tune, measures all",
            ]
        if self.left:
            found += ["", "left as they are:"]
            found += [f"  {legible(it.name) or 'the model'}: {it.reason}" for it in self.left]
        return "\n".join(found)

    def _memory(self) -> str:
        """Says what is computed again, and what a step keeps."""
        least = self.recompute_from
        found = "activations " + ("kept" if least is None else "computed again in the backward")
        if least:
            found = f"activations of at least {least} numbers a sample computed again in the backward, others kept"
        if self.kept_mib is not None:
            found += "; for its backward a step keeps {:.1f} MiB, PyTorch's {:.1f}".format(*self.kept_mib)
        return found

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        return asdict(self)


class Trainable(torch.nn.Module):
    """A network for training that `groupwise.optimize(model, example, train=True)` made of a model.

    It has the model's own modules, parameters, buffers and state_dict, and is trained as the model is. `train()` and
    `eval()` switch the model too. `print(network.plan)` says what it fuses.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        settings: Settings,
        timings: Timings | None = None,
        kernels: Kernels | None = None,
    ) -> None:
        super().__init__()
        self._adopt(model, settings, timings or Timings(), kernels or Kernels())

    def _adopt(self, model: torch.nn.Module, settings: Settings, timings: Timings, kernels: Kernels) -> None:
        own = vars(self)
        # The dictionaries are the model's own, so that names, values and what replaces them are the same in both.
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            own[name] = vars(model)[name]
        own["_model"], own["_settings"], own["_timings"], own["_kernels"] = model, settings, timings, kernels
        own["_region"] = Region(model, "", settings)
        own["training"] = model.training

    @property
    def model(self) -> torch.nn.Module:
        """The model."""
        model: torch.nn.Module = vars(self)["_model"]
        return model

    @property
    def plan(self) -> TrainingPlan:
        """What is fused in the form that ran last."""
        region: Region = vars(self)["_region"]
        notes = region.notes()
        memory_format = "channels_last" if region.settings.channels_last else "as given"
        timings, kernels = vars(self)["_timings"], vars(self)["_kernels"]
        return TrainingPlan(
            type(self.model).__name__,
            notes.fused,
            notes.left,
            memory_format,
            timings.ms,
            notes.squeezed,
            kernels.counts,
            None if math.isinf(region.settings.least) else int(region.settings.least),
            kernels.unmeasured,
            kernels.passes,
            timings.samples,
            timings.kept_mib,
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Computes what the model computes."""
        if torch.compiler.is_compiling() or is_transformed():
            return self.model(*args, **kwargs)
        if native.status().operators_problem is not None:
            return vars(self)["_region"](*args, **kwargs)
        before = switched_on()
        try:
            return vars(self)["_region"](*args, **kwargs)
        finally:
            switch_back(before)

    def train(self, mode: bool = True) -> Trainable:
        """Switches the model, and so this network, to training or evaluation."""
        self.model.train(mode)
        self.training = mode
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the model's state_dict."""
        return self.model.state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Loads a state_dict of the model."""
        return self.model.load_state_dict(state_dict, strict=strict, assign=assign)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if "_model" in vars(self):
                return getattr(self.model, name)
            raise

    # A copy traces anew when it is first called.

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return reduced(self, self.model)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_region": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._adopt(state["_model"], state["_settings"], state["_timings"], state["_kernels"])
        keep(self, largest=state["_settings"].least > 0)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainable:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def extra_repr(self) -> str:
        """Returns the summary of the plan."""
        return str(self.plan).split("\n")[0]
