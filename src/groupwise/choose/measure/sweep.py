"""`Sweep`: what each layer of a model takes and loses at each groups value, and the choices that follow."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from groupwise.choose.measure.budget import COSTS, check_budget, unreachable
from groupwise.choose.measure.choice import Grouping
from groupwise.choose.measure.choices import Choices
from groupwise.choose.measure.knapsack import Option, pareto_front
from groupwise.draw.html import page as html
from groupwise.draw.html import sweep as sweep_html
from groupwise.draw.text import sweep as sweep_text
from groupwise.draw.text.table import Tabular
from groupwise.draw.views.front import front_svg
from groupwise.errors import GroupwiseError, check_integer
from groupwise.profile.measuring import UNKNOWN, Interference

# The fields of a choice that hold what it costs.
_FIELDS = {"ms": "ms", "macs": "macs", "params": "parameters"}
WEIGHT_LOST = "weight lost"


@dataclass(frozen=True)
class SweepRow:
    """One layer at one groups value.

    - `parameters`, `macs`, `bytes`: of the layer's forward
    - `ms`: the median time of the layer in the model; with its gradients if the sweep timed training.
      `forward_ms`: that of its forward alone
    - `kept`: the fraction of the squared weight that the best partition keeps; `bound`: no partition keeps more
    - `error`: the relative squared error of the model's outputs with this layer converted; None without data
    - `risk`: what the layer is expected to cost: the rise of the loss, or without data the weight lost
    - `gather_ms`: what gathers of its channels take of `ms`; None for a layer without
    - `fixed`: the end whose channels keep their order, `inputs` or `outputs`; empty if both may change
    - `refused`: why the layer cannot have this value; its numbers are then None
    """

    layer: str
    groups: int | None
    current: bool = False
    parameters: int | None = None
    macs: int | None = None
    bytes: int | None = None
    forward_ms: float | None = None
    ms: float | None = None
    kept: float | None = None
    bound: float | None = None
    error: float | None = None
    risk: float | None = None
    gather_ms: float | None = None
    fixed: str = ""
    refused: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Returns every field as plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class Sweep(Tabular):
    """Every layer of a model at every groups value that it can have. `print()` it for the table.

    - `title`: the model's class; `rows`: one `SweepRow` for each layer and value
    - `model_ms`: the median time of the model as it is; `macs`, `parameters`: of its convolutions, forward
    - `train`: whether times are those of a forward and all gradients
    - `risk`: what the risk of a row is: `loss rise`, `output error` or `weight lost`
    - `loss`: the model's own loss; None without targets
    - `machine`: where it was measured
    - `interference`: what other processes took meanwhile
    """

    title: str
    rows: tuple[SweepRow, ...]
    model_ms: float
    macs: int
    parameters: int
    train: bool
    risk: str
    loss: float | None
    repeats: int
    machine: dict[str, Any]
    _measure: Callable[[Sequence[Grouping]], list[Grouping]] = field(repr=False)
    interference: Interference = UNKNOWN
    _fronts: dict[Any, Any] = field(default_factory=dict, repr=False)

    def __str__(self) -> str:
        return sweep_text.table(self.to_dict())

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return sweep_html.fragment(self.to_dict())

    def predicted(self, of: str = "ms") -> Choices:
        """Returns the Pareto front of the expected cost and risk, from the cheapest choice on.

        `of` is the cost: `ms`, `macs` or `params`. Costs and risks of layers are summed, which
        `front` measures.
        """
        if of not in COSTS:
            raise GroupwiseError(f"of={of!r} is not a cost; give one of: {', '.join(COSTS)}")
        if of not in self._fronts:
            layers = self._layers()
            items = [[Option(getattr(row, _FIELDS[of]), row.risk or 0.0) for row in rows] for rows in layers]
            chosen = pareto_front(items)
            self._fronts[of] = Choices(
                self._choice([rows[place] for rows, place in zip(layers, places, strict=True)]) for places in chosen
            )
        found: Choices = self._fronts[of]
        return found

    def front(self, of: str = "ms", best: int = 10) -> Choices:
        """Returns at most `best` choices along the front, measured as whole networks, without those that another beats.

        The network of each is made and timed; with data its loss is taken too. `of` is as for `predicted`.
        """
        check_integer("best", best, 1)
        key = (of, best)
        if key not in self._fronts:
            measured = self._measure(spread(self.predicted(of), best))
            self._fronts[key] = Choices(_undominated(measured, of))
        found: Choices = self._fronts[key]
        return found

    def uniform(self) -> Choices:
        """Returns the same groups value for every layer that can have it, one choice for each value, as expected."""
        found = []
        for value in sorted({row.groups for row in self.rows if row.groups is not None and not row.refused}):
            layers = [
                next((row for row in rows if row.groups == value), next(row for row in rows if row.current))
                for rows in self._layers()
            ]
            found.append(self._choice(layers))
        return Choices(found)

    def choose(
        self, *, budget_ms: float | None = None, macs: float | None = None, params: float | None = None
    ) -> Grouping:
        """Returns the choice of the lowest risk within one budget: milliseconds, MACs or parameters.

        A choice within milliseconds is measured as a whole network, and the next cheaper one is taken while it takes
        longer. Raises `GroupwiseError` for a budget below the cheapest choice, and says what is reachable.
        """
        of, budget = check_budget(budget_ms=budget_ms, macs=macs, params=params)
        front = self.predicted(of)
        within = [choice for choice in front if getattr(choice, _FIELDS[of]) <= budget]
        if not within:
            raise unreachable(of, budget, getattr(front[0], _FIELDS[of]), self._now(of))
        if of != "ms":
            return self._measure([within[-1]])[0]
        for choice in reversed(spread(within, 10)):
            measured = self._measure([choice])[0]
            if measured.measured_ms is not None and measured.measured_ms <= budget:
                return measured
        raise GroupwiseError(
            f"no choice was measured within {budget:g} ms; the cheapest took {measured.measured_ms:.4g} ms"
        )

    def to_svg(self) -> str:
        """Returns the picture of the front: time against risk, a point for each choice, with the uniform ones."""
        return front_svg(self.to_dict())

    def to_html(self, path: str | pathlib.Path | None = None) -> str | pathlib.Path:
        """One self-contained page: the front as a picture whose points name their choices, and the table.

        Returns the page, or writes it to `path` and returns that.
        """
        return html.deliver(sweep_html.page(self.to_dict()), path)

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and the values of each row."""
        rows = [row.to_dict() for row in self.rows]
        return list(rows[0]) if rows else [], [list(row.values()) for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """Returns `rows`, the expected `front` and the `uniform` choices, and how it was measured.

        `front` has at most 40 choices. `front_risk` of a uniform one is the lowest risk of all at no more time.
        """
        measured = next((made for key, made in self._fronts.items() if isinstance(key, tuple) and key[0] == "ms"), ())
        return {
            "title": self.title,
            "rows": [row.to_dict() for row in self.rows],
            "model_ms": self.model_ms,
            "macs": self.macs,
            "parameters": self.parameters,
            "train": self.train,
            "risk": self.risk,
            "loss": self.loss,
            "repeats": self.repeats,
            "machine": self.machine,
            "interference": self.interference.to_dict(),
            "front": [choice.to_dict() for choice in spread(self.predicted(), 40)],
            "measured": [choice.to_dict() for choice in measured],
            "uniform": [{**choice.to_dict(), "front_risk": self._least(choice.ms)} for choice in self.uniform()],
        }

    def _least(self, ms: float) -> float | None:
        """Returns the lowest risk of the front at no more time, up to rounding; None if all of it takes longer."""
        within = [one.risk for one in self.predicted() if one.ms <= ms * (1 + 1e-9)]
        return min(within, default=None)

    def _layers(self) -> list[list[SweepRow]]:
        """Returns the rows of each layer that can have several values."""
        found: dict[str, list[SweepRow]] = {}
        for row in self.rows:
            if not row.refused:
                found.setdefault(row.layer, []).append(row)
        return [rows for rows in found.values() if len(rows) > 1]

    def _now(self, of: str) -> float:
        return float({"ms": self.model_ms, "macs": self.macs, "params": self.parameters}[of])

    def _choice(self, rows: Sequence[SweepRow]) -> Grouping:
        before = {row.layer: row for row in self.rows if row.current}

        def total(of: str, now: float) -> float:
            return now + float(sum(getattr(row, of) - getattr(before[row.layer], of) for row in rows))

        return Grouping(
            groups={row.layer: row.groups for row in rows if not row.current and row.groups is not None},
            ms=total("ms", self.model_ms),
            macs=int(total("macs", self.macs)),
            parameters=int(total("parameters", self.parameters)),
            risk=sum(row.risk or 0.0 for row in rows),
            gather=tuple(row.layer for row in rows if row.gather_ms is not None),
            facts={
                "risk": self.risk,
                "train": self.train,
                "machine": self.machine,
                "interference": self.interference.to_dict(),
            },
        )


def spread(choices: Sequence[Grouping], most: int) -> list[Grouping]:
    """Returns at most `most` of the choices, the first and the last among them, as equally far apart as can be."""
    if len(choices) <= most:
        return list(choices)
    last = len(choices) - 1
    places = dict.fromkeys(round(place * last / max(most - 1, 1)) for place in range(most))
    return [choices[place] for place in places]


def _undominated(choices: Sequence[Grouping], of: str) -> Iterator[Grouping]:
    """Yields the choices that no other one beats in the measured cost and risk, from the cheapest on."""

    def cost(choice: Grouping) -> float:
        return float(
            choice.measured_ms if of == "ms" and choice.measured_ms is not None else getattr(choice, _FIELDS[of])
        )

    def risk(choice: Grouping) -> float:
        return choice.risk if choice.measured_risk is None else choice.measured_risk

    least = math.inf
    for choice in sorted(choices, key=lambda one: (cost(one), risk(one))):
        if risk(choice) < least:
            least = risk(choice)
            yield choice
