"""`Trainable`: a network for training that runs a fused form of a model, and has the model's parameters and modules."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

from groupwise.draw.base import phrases
from groupwise.draw.text import lines as text
from groupwise.kernels import dispatch, native, tuning
from groupwise.kernels.dispatch import switch_back, switched_on
from groupwise.kernels.plan import record_plans
from groupwise.nn.functional import is_transformed
from groupwise.rewrite.example import refused
from groupwise.rewrite.heap import keep, kept, mapped, release
from groupwise.rewrite.pickled import reduced
from groupwise.rewrite.plan import Left
from groupwise.rewrite.train_fuse import Fused
from groupwise.rewrite.train_region import Region, Settings
from groupwise.rewrite.train_switch import run_backward
from groupwise.rewrite.train_trace import quietly
from groupwise.spec.legible import Printed, legible

# How often a step is timed in each memory format.
ROUNDS = 3
# Activations are computed again by default if a step takes at most so many times as long.
MOST_SLOWER = 1.02
# To measure the kernels of a convolution takes about as long as so many calls of PyTorch's.
CALLS = 10
# The most steps until no convolution is met that was not measured.
MOST_STEPS = 3

# How many convolutions and linear layers each kernel runs, by direction.
Kernels = Mapping[str, Mapping[str, int]]


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
    """The shortest time of a step in each memory format, and with activations kept and computed again; empty if not
    measured."""
    squeezed: tuple[str, ...] = ()
    """The first layers of the squeeze and excitations that are one operator."""
    kernels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many convolutions and linear layers each kernel runs, by direction, as measured on the example; empty if none
    was measured."""
    recompute: bool = True
    """Whether activations are computed again in the backward, and not kept."""

    def __str__(self) -> str:
        activations = sum(it.activation != "none" for it in self.fused)
        sums = sum(bool(it.residual) for it in self.fused)
        times = ", ".join(f"{name} {ms:.1f} ms" for name, ms in self.ms.items())
        found = [
            f"{self.title}: {phrases.plural(len(self.fused), 'batch norm')} fused, {activations} with an activation "
            f"and {sums} with a sum; images {self.memory_format}, activations "
            f"{'computed again' if self.recompute else 'kept'}" + (f" (a step: {times})" if times else "")
        ]
        if self.fused:
            rows = [(legible(it.name), it.activation, legible(it.residual)) for it in self.fused]
            found += ["", *text.rows([("batch norm", "activation", "sum with"), *rows], left=(0, 1, 2))]
        elif not self.squeezed:
            found += ["", "nothing to fuse: the network computes as the model does"]
        if self.squeezed:
            names = ", ".join(map(legible, self.squeezed))
            found += ["", f"squeeze and excitations that are one operator, by their first layers: {names}"]
        if self.kernels:
            found += ["", "kernels of the convolutions and linear layers, as measured:"]
            for direction, counts in self.kernels.items():
                found.append(f"  {direction}: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
        if self.left:
            found += ["", "left as they are:"]
            found += [f"  {legible(it.name) or 'the model'}: {it.reason}" for it in self.left]
        return "\n".join(found)

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        return asdict(self)


class Trainable(torch.nn.Module):
    """A network for training that `groupwise.optimize(model, example, train=True)` made of a model.

    It has the model's own modules, parameters, buffers and state_dict, and is trained as the model is. `train()` and
    `eval()` switch the model too. `print(network.plan)` says what it fuses.
    """

    def __init__(
        self, model: torch.nn.Module, settings: Settings, ms: Mapping[str, float], kernels: Kernels | None = None
    ) -> None:
        super().__init__()
        self._adopt(model, settings, ms, kernels or {})

    def _adopt(self, model: torch.nn.Module, settings: Settings, ms: Mapping[str, float], kernels: Kernels) -> None:
        own = vars(self)
        # The dictionaries are the model's own, so that names, values and what replaces them are the same in both.
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            own[name] = vars(model)[name]
        own["_model"], own["_settings"], own["_ms"], own["_kernels"] = model, settings, dict(ms), kernels
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
        return TrainingPlan(
            type(self.model).__name__,
            notes.fused,
            notes.left,
            memory_format,
            vars(self)["_ms"],
            notes.squeezed,
            vars(self)["_kernels"],
            region.settings.recompute,
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
        self._adopt(state["_model"], state["_settings"], state["_ms"], state["_kernels"])
        keep(self, largest=not state["_settings"].recompute)

    def __deepcopy__(self, memo: dict[int, Any]) -> Trainable:
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return made

    def extra_repr(self) -> str:
        """Returns the summary of the plan."""
        return str(self.plan).split("\n")[0]


def for_training(
    model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], measure: bool, recompute: bool | None
) -> Trainable:
    """Returns a `Trainable`, in the memory format that is faster on the example if it may measure that.

    `recompute` None computes activations again if that costs little, or if nothing may be measured.
    """
    settings, ms = Settings(recompute=recompute is not False), {}
    kernels: Kernels = {}
    if (twin := _copied(model)) is not None:
        # Steps update statistics and draw random numbers: the model must not see them.
        with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
            with mapped():
                settings.distrusted = _disagreement(twin, args, kwargs)
            if measure and not settings.distrusted:
                any_format = Region(twin, "", Settings()).prepare(args, kwargs)
                ms = _choose(settings, twin.train(), args, kwargs, any_format, recompute)
            if ms:
                with kept(largest=not settings.recompute):
                    kernels = _measured(Trainable(twin, settings, ms), args, kwargs)
        # The copy, its gradients and its activations are no longer needed.
        del twin
        release()
    network = Trainable(model, settings, ms, kernels)
    keep(network, largest=not settings.recompute)
    vars(network)["_region"].prepare(args, kwargs)
    return network


def _copied(model: torch.nn.Module) -> torch.nn.Module | None:
    """Returns a copy to try steps on; None where there can be none."""
    try:
        return copy.deepcopy(model)
    except Exception:
        return None


def _disagreement(model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    """Says how the traced form differs from the model on the example; empty if it does not.

    Raises `RefusedExample` if the model fails on it.

    A condition on an argument's type, say, is decided by the trace and not by the argument.
    """
    twin = copy.deepcopy(model)
    state = torch.get_rng_state()
    args, kwargs = tree_map(_leaf, (args, kwargs))
    try:
        with quietly(), dispatch.by_pytorch():
            expected = tree_leaves(model(*args, **kwargs))
    except Exception as error:
        raise refused(error, args, kwargs, "groupwise.optimize(model, x, train=True)") from error
    try:
        gradients = _gradients(model, expected)
    except Exception:
        gradients = None
    torch.set_rng_state(state)
    try:
        with quietly(), dispatch.by_pytorch():
            found = tree_leaves(Region(twin, "", Settings())(*args, **kwargs))
            same = len(expected) == len(found) and all(map(_close, expected, found))
            if not same:
                return "its traced form gives other values"
            ours = None if gradients is None else _gradients(twin, found)
    except Exception as error:
        return f"its traced form fails: {(str(error).splitlines() or [type(error).__name__])[0][:120]}"
    if gradients is None or ours is None or _alike(gradients, ours):
        return ""
    # A network may turn the last digit of its input into other gradients.
    with quietly(), dispatch.by_pytorch():
        torch.set_rng_state(state)
        nearby = _gradients(model, tree_leaves(model(*tree_map(_neighbour, args), **tree_map(_neighbour, kwargs))))
    return "" if _alike(gradients, ours, nearby) else "its traced form gives other gradients"


def _neighbour(value: Any) -> Any:
    return value * (1 + 1e-6) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _gradients(model: torch.nn.Module, results: list[Any]) -> list[torch.Tensor]:
    """Returns the gradients of the parameters, for gradients of the results that no normalisation takes to zero."""
    model.zero_grad()
    wanted = [it for it in results if isinstance(it, torch.Tensor) and it.requires_grad]
    generator = torch.Generator().manual_seed(0)
    if wanted:
        run_backward(wanted, [torch.randn(it.shape, dtype=it.dtype, generator=generator) for it in wanted])
    found = [torch.zeros(1) if p.grad is None else p.grad.to_dense() for p in model.parameters()]
    model.zero_grad()
    return [it.nan_to_num(0, 0, 0) for it in found]


def _alike(expected: list[torch.Tensor], found: list[torch.Tensor], nearby: list[torch.Tensor] | None = None) -> bool:
    """Tells whether gradients differ by roundings alone, which are large in deep networks with few samples."""
    if not expected:
        return not found
    # A gradient that is zero, as that of a bias before a normalisation, consists of roundings.
    floor = 1e-3 * max(it.norm().item() for it in expected)
    for one, other, third in zip(expected, found, nearby or expected, strict=True):
        allowed = 0.05 * one.norm().item() + floor + 3 * (one - third).norm().item()
        if (one - other).norm().item() > allowed:
            return False
    return True


def _leaf(value: Any) -> Any:
    """Returns a tensor whose gradient does not reach the user's."""
    wants = isinstance(value, torch.Tensor) and value.requires_grad
    return value.detach().requires_grad_() if wants else value


def _close(a: Any, b: Any) -> bool:
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return type(a) is type(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    finite = a[a.isfinite()]
    largest = finite.abs().max().item() if finite.numel() else 0.0
    return torch.allclose(a, b, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)


def _choose(
    settings: Settings,
    model: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    any_format: bool,
    recompute: bool | None,
) -> dict[str, float]:
    """Chooses the memory format by time, then whether activations are computed again, unless the user did.

    Returns the times.
    """
    forms = {"as given": replace(settings)}
    if any_format:
        forms["channels_last"] = replace(settings, channels_last=True)
    ms = _times(forms, model, args, kwargs)
    if not ms:
        return {}
    settings.channels_last = "channels_last" in ms and ms["channels_last"] < ms["as given"]
    if recompute is None:
        both = {"computed again": replace(settings, recompute=True), "kept": replace(settings, recompute=False)}
        found = _times(both, model, args, kwargs)
        settings.recompute = not found or found["computed again"] <= MOST_SLOWER * found["kept"]
        ms |= found
    return ms


def _times(
    forms: Mapping[str, Settings], model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, float]:
    """Returns the shortest time of a step of each form, in ms, taken in turn; nothing where a step fails."""
    networks = {name: Trainable(model, settings, {}) for name, settings in forms.items()}
    ms = dict.fromkeys(networks, float("inf"))
    try:
        for turn in range(ROUNDS + 1):
            for name, network in networks.items():
                # The first step traces and plans: what it makes lives on. The others are timed, and mapping takes time.
                with kept(largest=not forms[name].recompute) if turn else mapped():
                    seconds = _step(network, args, kwargs)
                if turn:
                    ms[name] = min(ms[name], seconds * 1e3)
    except Exception:
        return {}
    return ms


def _measured(network: Trainable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Kernels:
    """Measures the kernels of each convolution and linear layer, in each direction; returns how many each kernel runs.

    The planner knows from now on what was measured. It is kept for later processes as `groupwise.tune` keeps it.
    """
    if native.status().operators_problem is not None:
        return {}
    counts: dict[str, dict[str, int]] = {}
    with dispatch.enabled(tune=True, calls=CALLS, seconds=math.inf):
        for _ in range(MOST_STEPS):
            seen = tuning.measured()["requests"]
            with record_plans() as plans:
                _step(network, args, kwargs)
            if tuning.measured()["requests"] == seen:
                break
    for plan in plans:
        of_direction = counts.setdefault(plan.direction, {})
        of_direction[plan.kernel] = of_direction.get(plan.kernel, 0) + 1
    return counts


def _step(network: Trainable, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    network.model.zero_grad()
    started = time.perf_counter()
    results = [it for it in tree_leaves(network(*args, **kwargs)) if isinstance(it, torch.Tensor) and it.requires_grad]
    if not results:
        raise ValueError("no output has a gradient")
    torch.autograd.backward(results, [torch.ones_like(it) for it in results])
    return time.perf_counter() - started
