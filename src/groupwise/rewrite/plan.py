"""`Plan`: the steps of an optimized network, what was fused into each, which engine runs it and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from groupwise.draw.base import phrases
from groupwise.draw.text import lines as text
from groupwise.spec.legible import Printed, legible

# The end of the reason of a layer that nothing timed, because the time for measuring was over.
NO_TIME = "no time was left to time it"


@dataclass(frozen=True)
class Step:
    """One operator call of an optimized network."""

    name: str
    """The module that the step computes, or the operator's node in the graph."""
    kind: str
    """`convolution`, `linear`, `chain`, or PyTorch's operator."""
    engine: str
    """`onednn`, `groupwise`, `matmul` or `pytorch`."""
    fused: tuple[str, ...] = ()
    """What the step computes beside the layer, in order."""
    input_shape: tuple[int, ...] = ()
    """The shape of what it reads first."""
    output_shape: tuple[int, ...] = ()
    """The shape of what it writes; empty for several tensors."""
    groups: int | None = None
    """The groups of a convolution."""
    reason: str = ""
    """Why this engine runs it."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why an engine cannot run it, by its name."""
    ms: Mapping[str, float] = field(default_factory=dict)
    """The shortest time of each engine that was measured; of groupwise's kernels, by their names, too."""
    kernel: str = ""
    """The kernel of groupwise that runs a layer, or those of a chain; empty for another engine."""
    layers: tuple[str, ...] = ()
    """The modules of the layers that are one step, in order, such as those of a chain; empty for a layer by itself."""


@dataclass(frozen=True)
class Left:
    """A module that stays as it is."""

    name: str
    reason: str


class Plans(tuple["Plan", ...], Printed):
    """Plans in order. `print()` it for all of their tables."""

    __slots__ = ()

    def __str__(self) -> str:
        return "\n\n".join(map(str, self)) or "no plans"


@dataclass(frozen=True)
class Plan(Printed):
    """How an optimized network runs on inputs of one kind. `print()` it for the table."""

    title: str
    """The class of the model."""
    steps: tuple[Step, ...]
    """The operator calls, in order. Parts of a model that stay as they are make no steps."""
    left: tuple[Left, ...]
    """The modules that stay as they are, and why."""
    input_shapes: tuple[tuple[int, ...], ...]
    """The shapes of the inputs."""
    threads: int
    """The number of threads for which the engines were chosen."""
    seconds: float
    """How long making the plan took."""
    interpreted: tuple[Left, ...] = ()
    """The parts whose steps Python runs, and not the native core, and why."""
    inputs: tuple[str, ...] = ()
    """The inputs that it is for: shape and dtype of a tensor, and any other value."""
    widened: tuple[Left, ...] = ()
    """The parts that compute float32, although bfloat16 was asked for, because that takes longer, and both times."""

    @property
    def engines(self) -> dict[str, int]:
        """How many convolutions and linear layers each engine runs, without those inside of squeeze and excitation."""
        found: Counter[str] = Counter()
        for step in self.steps:
            found[step.engine] += len(step.layers) if step.kind == "chain" else step.kind in ("convolution", "linear")
        return dict(+found)

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + "s" * (self.threads != 1)
        inputs = f" on {', '.join(self.inputs)}" if self.inputs else ""
        found = [f"{self.title}{inputs}, {threads}: {self._summary()}"]
        if untimed := sum(step.reason.endswith(NO_TIME) for step in self.steps):
            found += [f"No time was left to time {phrases.plural(untimed, 'step')}; tune=True times all."]
        if self.steps:
            # Two tables with the same steps: one would be too wide for most terminals.
            what = [("step", "kind", "groups", "output", "fused"), *map(_what, self.steps)]
            who = [("step", "engine", "why"), *map(_who, self.steps)]
            found += ["", *text.folded(what, left=(0, 1, 4)), "", *text.folded(who, left=(0, 1, 2))]
        if not self.engines and not self.left:
            found += ["", "The model has no convolution and no linear layer to rewrite."]
        if self.left:
            found += ["", "left as they are:"]
            found += list(map(_reason, self.left))
        if self.widened:
            found += ["", "computed in float32, which is faster:", *map(_reason, self.widened)]
        if self.interpreted:
            found += ["", "run step by step in Python:", *map(_reason, self.interpreted)]
        return "\n".join(found)

    def _summary(self) -> str:
        engines = ", ".join(f"{count} by {name}" for name, count in sorted(self.engines.items())) or "none"
        return f"{phrases.plural(len(self.steps), 'step')}; layers: {engines}; planned in {self.seconds:.1f} s"

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        return asdict(self)


def _what(step: Step) -> tuple[str, ...]:
    groups = "" if step.groups is None else str(step.groups)
    shape = "×".join(map(str, step.output_shape))
    return (text.shorten(step.name), step.kind, groups, shape, " + ".join(map(legible, step.fused)))


def _who(step: Step) -> tuple[str, ...]:
    return (text.shorten(step.name), f"{step.engine} {step.kernel}".rstrip(), _why(step))


def _reason(left: Left) -> str:
    return f"  {legible(left.name) or 'the model'}: {left.reason}"


def _why(step: Step) -> str:
    reasons = [step.reason] if step.reason else []
    reasons += [f"not {name}: {why}" for name, why in step.refused.items()]
    return "; ".join(reasons)
