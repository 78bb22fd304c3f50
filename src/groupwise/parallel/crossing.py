"""What ranks exchange for a layer that is split: which tensor, when, and by which collective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch.distributed.tensor.parallel import ParallelStyle

from groupwise.draw.text.split import VERBS
from groupwise.parallel.styles import ChannelParallel, GroupParallel, SumParallel


@dataclass(frozen=True)
class Crossing:
    """One exchange.

    - `layer`: the name of the layer that asks for it; `backward`: whether in its backward
    - `operation`: all_gather, all_reduce, reduce_scatter or all_to_all
    - `payload`: bytes of the whole tensor that is gathered or reduced; of an all_to_all, those that a rank receives
      from others (in a plan the rank that receives most)
    """

    layer: str
    backward: bool
    operation: str
    payload: int

    def moved(self, ranks: int) -> float:
        """Bytes that each of so many ranks sends where they stand in a ring: (n - 1) / n of it, twice for a sum to all.

        R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.
        """
        if self.operation == "all_to_all":
            return self.payload
        return (2 if self.operation == "all_reduce" else 1) * self.payload * (ranks - 1) / ranks


class Meeting(NamedTuple):
    """A collective of a layer, in its forward or its backward, of its `input` or its `output` or their gradients."""

    operation: str
    backward: bool
    end: str

    def __str__(self) -> str:
        """What it does to the tensor, in words."""
        return f"{VERBS[self.operation]} {self.end}s"


def meetings(style: type[ParallelStyle], input_split: bool, output_split: bool) -> tuple[Meeting, ...]:
    """The collectives of a layer of that style, by how its ends lie; `moves` has the rows of uneven parts."""
    found = []
    if style is ChannelParallel and input_split:
        found += [Meeting("all_gather", False, "input"), Meeting("reduce_scatter", True, "input")]
    elif style is ChannelParallel:
        found.append(Meeting("all_reduce", True, "input"))
    if style in (GroupParallel, SumParallel) and not input_split:
        found.append(Meeting("all_gather", True, "input"))
    if style is SumParallel:
        found.append(Meeting("reduce_scatter" if output_split else "all_reduce", False, "output"))
    elif style in (GroupParallel, ChannelParallel) and not output_split:
        found.append(Meeting("all_gather", False, "output"))
    return tuple(found)
