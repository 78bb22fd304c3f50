"""The collectives that ranks run for a layer that is split, as numbers and words. torch is never imported here."""

from __future__ import annotations

from dataclasses import dataclass

from groupwise.spec.legible import Printed, legible

# What each collective does to a tensor, by the name that torch.distributed gives it.
VERBS = {"all_gather": "all-gathers", "all_reduce": "all-reduces", "reduce_scatter": "reduce-scatters"}
# What an all_to_all does to tensors whose shards are not DTensor's equal chunks.
MOVES = "moves rows"


@dataclass(frozen=True)
class Collective(Printed):
    """One collective of one layer.

    - `layer`: the name of the layer that needs it; `backward`: whether it runs in the layer's backward
    - `operation`: all_gather, all_reduce, reduce_scatter or all_to_all
    - `payload`: bytes of the whole tensor that is gathered or reduced; for an all_to_all, the bytes that a rank
      receives from other ranks (in a plan, the rank that receives most)
    """

    layer: str
    backward: bool
    operation: str
    payload: int

    def moved(self, ranks: int) -> float:
        """Returns the bytes that each of `ranks` ranks sends in a ring.

        An all-gather and a reduce-scatter send (n - 1) / n of the payload, and an all-reduce twice that.
        R. Thakur, R. Rabenseifner, W. Gropp, "Optimization of Collective Communication Operations in MPICH", 2005.

        Examples:
            >>> Collective("conv3", False, "all_gather", 900).moved(3)
            600.0
        """
        if self.operation == "all_to_all":
            return self.payload
        return (2 if self.operation == "all_reduce" else 1) * self.payload * (ranks - 1) / ranks

    def to_dict(self) -> dict[str, str | bool | int]:
        """Returns the collective as JSON values."""
        return {
            "layer": self.layer,
            "backward": self.backward,
            "operation": self.operation,
            "payload": self.payload,
        }

    def __str__(self) -> str:
        when = "backward" if self.backward else "forward"
        size = f"{self.payload:,} byte{'' if self.payload == 1 else 's'}"
        return f"{self.operation} of {size} for {legible(self.layer) or 'the model'}, {when}"
