"""`predict`: how long a training step takes on many devices, by a model of its arithmetic, bytes and collectives."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from groupwise.draw.base import numbers, phrases
from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.planning.plan import SplitPlan
from groupwise.parallel.planning.work import tasks
from groupwise.spec.collectives import Collective
from groupwise.spec.legible import Printed


@dataclass(frozen=True)
class Link:
    """What connects ranks.

    - `latency`: seconds per message (alpha); `bandwidth`: bytes per second that one rank sends (1 / beta)
    - `trees`: whether an all-reduce may run along a tree instead of a ring, as NCCL's do, with fewer messages where
      there are many ranks
    """

    latency: float
    bandwidth: float
    trees: bool = False

    def seconds(self, collective: Collective, ranks: int) -> float:
        """Returns how many seconds one collective takes among `ranks` ranks.

        A ring takes n - 1 messages of an n-th of the payload, and twice as many for an all-reduce. A tree takes
        2 log2 n messages in a row, and sends all bytes twice.
        """
        rounds = 2 if collective.operation == "all_reduce" else 1
        ring = rounds * (ranks - 1) * self.latency + collective.moved(ranks) / self.bandwidth
        if not self.trees or collective.operation != "all_reduce":
            return ring
        return min(ring, 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * collective.payload / self.bandwidth)


@dataclass(frozen=True)
class Machine:
    """The devices that a step is predicted for; each is one rank.

    - `macs`: multiply-accumulates per second that its convolutions sustain; `memory`: bytes per second
    - `near`, `far`: the links between the `node` devices of a node, and between nodes
    - `launch`: seconds that an operation takes at least
    - `overhead`: seconds that a layer takes in a step, beside its work, once its tensors are DTensors
    - `overlap`: the fraction of the backward, 0 to 1, during which gradients can be summed over data-parallel ranks
    """

    macs: float
    memory: float
    near: Link
    far: Link
    node: int = 8
    launch: float = 0.0
    overhead: float = 0.0
    overlap: float = 0.0

    def __post_init__(self) -> None:
        for name in ("macs", "memory"):
            if getattr(self, name) <= 0:
                raise GroupwiseError(f"{name}={getattr(self, name)} must be above 0 a second")
        if not 0 <= self.overlap <= 1:
            raise GroupwiseError(f"overlap={self.overlap} must be a fraction from 0 to 1")


@dataclass(frozen=True)
class Prediction(Printed):
    """A training step of `batch` samples on `groups` x `data` ranks, in seconds.

    - `compute`: forward, backward and update of the rank that holds most
    - `collectives`: the collectives inside the network, among the ranks that split the groups
    - `gradients`: what is left of the gradients' all-reduce over data-parallel ranks once the backward has ended
    - `memory`: bytes of parameters, gradients and momentum that a rank holds
    """

    groups: int
    data: int
    batch: int
    compute: float
    collectives: float
    gradients: float
    memory: float

    @property
    def seconds(self) -> float:
        """The seconds of the whole step."""
        return self.compute + self.collectives + self.gradients

    def to_dict(self) -> dict[str, Any]:
        """Returns the prediction as JSON values."""
        return {**asdict(self), "seconds": self.seconds}

    def __str__(self) -> str:
        times = (self.seconds, self.compute, self.collectives, self.gradients)
        step, compute, collectives, gradients = (f"{seconds * 1e3:.3g} ms" for seconds in times)
        ranks = f"{self.groups:,} x {self.data:,} rank{'s' * (self.groups * self.data > 1)}"
        return (
            f"a step of {phrases.plural(self.batch, 'sample')} on {ranks} takes {step}: "
            f"{compute} of work, {collectives} of collectives in the network, {gradients} more to sum gradients; "
            f"a rank holds {numbers.data(self.memory)} of parameters, gradients and momentum"
        )


def predict(plan: SplitPlan, machine: Machine, *, data: int = 1) -> Prediction:
    """Returns how long a training step takes: the groups over the ranks of `plan`, the batch over `data` replicas.

    - `plan`: from `plan_split(model, groups, input_shape=...)`, whose N is the number of all samples of the step; each
      data-parallel replica gets an equal number of them
    - `machine`: the devices and links; ranks that split groups are neighbours, in one node if it has enough devices

    A layer takes the longer of its arithmetic and its bytes, and its backward as long again for each gradient. The step
    waits for the collectives inside the network. Gradients are summed over the replicas while the backward runs, as far
    as `machine.overlap` allows. The prediction leaves out the reading of data and ranks that wait for a slow one.

    Uneven shards take as long as the largest, and the rows that they move count as collectives.

    Raises `GroupwiseError` if the plan has no `input_shape`, or if the replicas do not divide the samples.
    """
    data, groups = check_integer("data", data, 1), plan.ranks
    if plan.input_shape is None:
        raise GroupwiseError(
            f"the plan of {plan.model} has no input_shape, and a step depends on it; make the plan with "
            "plan_split(model, ranks, input_shape=(N, C, ...))"
        )
    batch = check_integer("the samples of a step", plan.input_shape[0] if plan.input_shape else 0, 1)
    if batch % data:
        valid = [count for count in range(1, min(batch, data) + 1) if batch % count == 0]
        raise GroupwiseError(f"data={data} must divide the {batch} samples of a step; the next valid: {valid[-1]}")
    steps = tasks(plan.decision, (batch // data, *plan.input_shape[1:]))
    forward, backward = (
        sum((task.gradients if back else 1) * _busy(task.macs, task.bytes, machine) for task in steps)
        for back in (False, True)
    )
    held = max(plan.held)
    parameters = list(plan.decision.flow.root.parameters())
    # Only a parameter that is trained has a gradient to sum, a momentum to keep, and an update.
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in parameters]
    trained = held * sum(count for count, asks in counts if asks) / max(1, sum(count for count, _ in counts))
    spread = machine.overhead * sum(bool(choice.parameters) for choice in plan.choices) * (groups > 1)
    size = next((parameter.element_size() for parameter in parameters), 4)
    # SGD with momentum reads the parameter, its gradient and its momentum, and writes the first and the last.
    update = 5 * size * trained / machine.memory
    inside = machine.near if groups <= machine.node else machine.far
    link = machine.near if groups * data <= machine.node else machine.far
    summed = _seconds([Collective("", True, "all_reduce", round(size * trained))] * (data > 1), link, data)
    return Prediction(
        groups,
        data,
        batch,
        forward + backward + update + spread,
        _seconds((collective for task in steps for collective in task.collectives), inside, groups),
        max(0.0, summed - machine.overlap * backward),
        size * (held + 2 * trained),
    )


def _busy(macs: float, moved: float, machine: Machine) -> float:
    return max(macs / machine.macs, moved / machine.memory, machine.launch)


def _seconds(collectives: Iterable[Collective], link: Link, ranks: int) -> float:
    return math.fsum(link.seconds(collective, ranks) for collective in collectives)
