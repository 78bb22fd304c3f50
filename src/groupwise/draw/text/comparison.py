"""The groups values of one convolution side by side: as a text table, and as raw values for other formats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from groupwise.draw.base import numbers
from groupwise.draw.text.lines import rows
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost


def groups_table(spec: ConvSpec, values: Sequence[int], at: Cost | None) -> str:
    """Returns a line for each groups value: inputs of a filter, weight, parameters, MACs and bytes of a forward."""
    head = ["groups", "kind", "inputs/filter", "weight", "parameters", "saves"]
    table = [(*head, "MACs", "bytes", "FLOP/B") if at else tuple(head)]
    for groups in values:
        one = spec.with_groups(groups)
        row = [
            str(groups),
            one.kind,
            str(one.inputs_per_filter),
            numbers.product(one.weight_shape),
            numbers.count(one.parameters),
            numbers.percent(spec.dense().parameters - one.parameters, spec.dense().parameters),
        ]
        if at:
            here = at.with_groups(groups)
            row += [numbers.count(here.macs.forward), numbers.data(here.bytes), f"{here.intensity:.3g}"]
        table.append(tuple(row))
    return "\n".join(rows(table))


def groups_values(spec: ConvSpec, values: Sequence[int], at: Cost | None) -> tuple[list[str], list[list[Any]]]:
    """Returns the same table as column names and raw values: counts, bytes, and FLOP per byte of a forward."""
    head = ["groups", "kind", "inputs_per_filter", "weight_shape", "parameters"]
    body = []
    for groups in values:
        one = spec.with_groups(groups)
        row = [groups, one.kind, one.inputs_per_filter, numbers.product(one.weight_shape), one.parameters]
        if at:
            here = at.with_groups(groups)
            row += [here.macs.forward, here.bytes, here.intensity]
        body.append(row)
    return [*head, *(("macs", "bytes", "intensity") if at else ())], body
