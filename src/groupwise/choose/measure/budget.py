"""Budgets of a choice: milliseconds, MACs or parameters, and which of them can be met at all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from groupwise.draw.base import numbers
from groupwise.errors import GroupwiseError
from groupwise.profile.record import ConvCall

# What a choice can cost, and the unit of it.
COSTS = {"ms": "ms", "macs": "MACs", "params": "parameters"}
# How a budget is given.
_NAMES = ("budget_ms", "macs", "params")


def read_budget(budget: Any) -> tuple[str, float]:
    """Returns what a mapping of one budget is of, and how much it is, as `check_budget` does for keywords.

    Raises `GroupwiseError` for anything else.
    """
    if not isinstance(budget, Mapping):
        raise GroupwiseError(
            f"budget={budget!r} is a {type(budget).__name__}; give a mapping of one of {', '.join(_NAMES)}, such as "
            '{"macs": 2e9}'
        )
    if unknown := [name for name in budget if name not in _NAMES]:
        raise GroupwiseError(f"budget={dict(budget)!r} has {unknown[0]!r}; a budget is one of {', '.join(_NAMES)}")
    return check_budget(**budget)


def check_budget(
    *, budget_ms: float | None = None, macs: float | None = None, params: float | None = None
) -> tuple[str, float]:
    """Returns what the one budget is of, a key of `COSTS`, and how much it is.

    Raises `GroupwiseError` for none or several, and for one that is no number above 0.
    """
    given = {"ms": budget_ms, "macs": macs, "params": params}
    budgets = {name: value for name, value in given.items() if value is not None}
    if len(budgets) != 1:
        raise GroupwiseError("choose takes one budget: budget_ms, macs or params")
    ((of, budget),) = budgets.items()
    if not _is_number(budget) or not 0 < budget < math.inf:
        raise GroupwiseError(f"a budget of {budget!r} {COSTS[of]} must be a number above 0")
    return of, budget


def _is_number(value: object) -> bool:
    """Says whether something is a real number. A bool is not: it is a slip."""
    return isinstance(value, Real) and not isinstance(value, bool)


def check_reachable(of: str, budget: float, calls: Sequence[ConvCall], candidates: Mapping[str, Sequence[int]]) -> None:
    """Raises `GroupwiseError` for MACs or parameters below those of the cheapest choice, which no timing changes.

    `calls` are the convolutions that the model runs, and `candidates` the groups values that each layer can have.
    """
    if of == "ms":
        return
    now = least = 0
    weights: set[object] = set()
    for call in calls:
        own = call.cost.macs.forward if of == "macs" else call.spec.parameters
        # A weight counts once, however often it runs; one that is computed on the fly is no parameter.
        if of == "params" and (call.parameter is None or call.parameter in weights):
            continue
        weights.add(call.parameter)
        options = [call.cost.with_groups(value) for value in candidates.get(call.name, ())]
        costs = [at.macs.forward if of == "macs" else at.spec.parameters for at in options]
        now += own
        least += min([own, *costs])
    if budget < least:
        raise unreachable(of, budget, least, now)


def unreachable(of: str, budget: float, least: float, now: float) -> GroupwiseError:
    """Returns the error of a budget below the cheapest choice, which says what is reachable."""
    wanted, cheapest, model = (_shown(of, value) for value in (budget, least, now))
    needs = "is expected to need" if of == "ms" else "needs"
    return GroupwiseError(
        f"a budget of {wanted} is below the cheapest choice, which {needs} {cheapest}; the model as it is needs {model}"
    )


def _shown(of: str, value: float) -> str:
    if of == "ms":
        return f"{value:.6g} ms"
    # Every digit, so that a budget of this number is enough.
    rounded = numbers.count(value)
    return f"{value:,.0f} {COSTS[of]}" + (f" ({rounded})" if value >= 1000 else "")
