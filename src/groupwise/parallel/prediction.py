"""How long a training step takes on many devices: a model of its arithmetic, its bytes and its exchanges."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from groupwise.errors import GroupwiseError, check_integer
from groupwise.parallel.crossing import Crossing
from groupwise.parallel.splitting import plan_split
from groupwise.parallel.work import tasks


@dataclass(frozen=True)
class Link:
    """What joins ranks: `latency` in seconds a message (alpha), and bytes a second that one rank sends (1 / beta).

    `trees`: whether sums to all may go up and down a tree instead of round a ring, as those of NCCL do, with fewer
    messages where ranks are many.
    """

    latency: float
    bandwidth: float
    trees: bool = False

    def seconds(self, crossing: Crossing, ranks: int) -> float:
        """Of one exchange among so many ranks.

        In a ring n - 1 messages of an n-th, twice as many for a sum to all; in a tree 2 log2 n messages in a row, and
        all bytes twice.
        """
        rounds = 2 if crossing.operation == "all_reduce" else 1
        ring = rounds * (ranks - 1) * self.latency + crossing.moved(ranks) / self.bandwidth
        if not self.trees or crossing.operation != "all_reduce":
            return ring
        return min(ring, 2 * math.ceil(math.log2(ranks)) * self.latency + 2 * crossing.payload / self.bandwidth)


@dataclass(frozen=True)
class Machine:
    """The devices that a step is predicted for; each is one rank.

    - `macs`: multiply-accumulates a second that its convolutions sustain; `memory`: bytes a second
    - `near`, `far`: the links between the `node` devices of a node, and between nodes
    - `launch`: seconds that an operation takes at the least
    - `overhead`: seconds that a layer takes in a step, beside its work, once its tensors are DTensors
    - `overlap`: the share of the backward during which gradients can be summed over data-parallel ranks meanwhile
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
            raise GroupwiseError(f"overlap={self.overlap} must be a share from 0 to 1")


@dataclass(frozen=True)
class Prediction:
    """A training step of `batch` samples on `groups` x `data` ranks, in seconds.

    - `compute`: forward, backward and the update of the rank that holds most
    - `exchange`: what the ranks that share the groups exchange within the network
    - `gradients`: what is left of the gradients' sum over data-parallel ranks once the backward has ended
    - `memory`: bytes of parameters, gradients and momentum that a rank holds
    """

    groups: int
    data: int
    batch: int
    compute: float
    exchange: float
    gradients: float
    memory: float

    @property
    def seconds(self) -> float:
        """The whole step."""
        return self.compute + self.exchange + self.gradients


def predict(
    model: nn.Module, input_shape: Sequence[int], machine: Machine, *, groups: int = 1, data: int = 1
) -> Prediction:
    """A training step of `model` on `groups` x `data` ranks: its groups over `groups`, the batch over `data`.

    - `input_shape`: (N, C, ...), of all samples of the step; each data-parallel replica gets an equal part
    - `machine`: the devices and links; ranks that share groups are neighbours, in one node where it has room

    A layer takes the longer of its arithmetic and its bytes; its backward as long again for each gradient. Exchanges
    within the network are waited for. Gradients are summed over the replicas while the backward runs, as far
    as `machine.overlap` allows. Reading of data is not in it, nor ranks that wait for a slow one.

    Parts that are uneven take as long as the largest, and the rows that they move are exchanges.

    Raises `GroupwiseError` where the replicas do not divide the samples, and as `plan_split` does.
    """
    groups, data = check_integer("groups", groups, 1), check_integer("data", data, 1)
    batch = check_integer("the samples of a step", input_shape[0] if len(input_shape) else 0, 1)
    if batch % data:
        valid = [count for count in range(1, min(batch, data) + 1) if batch % count == 0]
        raise GroupwiseError(f"data={data} must divide the {batch} samples of a step; the next valid: {valid[-1]}")
    steps = tasks(model, (batch // data, *input_shape[1:]), groups)
    forward, backward = (
        sum((task.gradients if back else 1) * _busy(task.macs, task.bytes, machine) for task in steps)
        for back in (False, True)
    )
    plan = plan_split(model, groups)
    held = max(plan.held)
    # Of what is trained there is a gradient to sum, a momentum to keep, and an update.
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    trained = held * sum(count for count, asks in counts if asks) / max(1, sum(count for count, _ in counts))
    spread = machine.overhead * sum(bool(choice.parameters) for choice in plan.choices) * (groups > 1)
    size = next((parameter.element_size() for parameter in model.parameters()), 4)
    # SGD with momentum reads the parameter, its gradient and its momentum, and writes the first and the last.
    update = 5 * size * trained / machine.memory
    exchange = _seconds(
        (c for task in steps for c in task.crossings), machine.near if groups <= machine.node else machine.far, groups
    )
    link = machine.near if groups * data <= machine.node else machine.far
    summed = _seconds([Crossing("", True, "all_reduce", round(size * trained))] * (data > 1), link, data)
    return Prediction(
        groups,
        data,
        batch,
        forward + backward + update + spread,
        exchange,
        max(0.0, summed - machine.overlap * backward),
        size * (held + 2 * trained),
    )


def _busy(macs: float, moved: float, machine: Machine) -> float:
    return max(macs / machine.macs, moved / machine.memory, machine.launch)


def _seconds(crossings: Iterable[Crossing], link: Link, ranks: int) -> float:
    return math.fsum(link.seconds(crossing, ranks) for crossing in crossings)
