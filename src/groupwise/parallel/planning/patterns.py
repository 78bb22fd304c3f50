"""Which collectives a layer needs, from its style and from how its input and its output lie."""

from __future__ import annotations

from typing import NamedTuple

from torch.distributed.tensor.parallel import ParallelStyle

from groupwise.parallel.styles.dense import ColwiseParallel, RowwiseParallel
from groupwise.parallel.styles.group import GroupParallel
from groupwise.spec.collectives import VERBS


class Pattern(NamedTuple):
    """A collective in a layer's forward or `backward`, on its `end`: its input or its output, or their gradients."""

    operation: str
    backward: bool
    end: str

    def __str__(self) -> str:
        return f"{VERBS[self.operation]} {self.end}s"


def patterns(style: type[ParallelStyle], input_split: bool, output_split: bool) -> tuple[Pattern, ...]:
    """Returns the collectives of a layer of that style; `moves` has the rows that uneven shards move."""
    found = []
    if style is ColwiseParallel and input_split:
        found += [Pattern("all_gather", False, "input"), Pattern("reduce_scatter", True, "input")]
    elif style is ColwiseParallel:
        found.append(Pattern("all_reduce", True, "input"))
    if style in (GroupParallel, RowwiseParallel) and not input_split:
        found.append(Pattern("all_gather", True, "input"))
    if style is RowwiseParallel:
        found.append(Pattern("reduce_scatter" if output_split else "all_reduce", False, "output"))
    elif style in (GroupParallel, ColwiseParallel) and not output_split:
        found.append(Pattern("all_gather", False, "output"))
    return tuple(found)
