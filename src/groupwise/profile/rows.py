"""A report's rows, one for each convolution executed, and the sums over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from groupwise.draw.base.folding import known_sum, ratio
from groupwise.kernels.plan import DIRECTIONS
from groupwise.profile.record import ConvCall
from groupwise.spec.cost import Macs


@dataclass(frozen=True)
class Row:
    """One convolution executed: what it is, what it costs, the median times it took in ms.

    - `forward_ms`, `backward_ms`: by PyTorch's kernels; None where nothing was measured
    - `hazard`: what PyTorch's kernel may do to the process. A kernel of groupwise then computed a pass on PyTorch's
      side too: the two times are of that side, and there is no `pytorch_ms` and no speedup
    - `groupwise_ms`: by groupwise's, forward and, if it ran, backward; None, like all below, where groupwise's kernels
      were not measured
    - `kernels`: the kernel of each pass
    - `max_error`: the largest absolute difference of the output (and of the gradients of input and weight, if they ran)
      from the same convolution in float64, relative to the largest absolute value of that
    - `floor_ms`: the roofline floor of the passes that ran: see `groupwise.profile.roofline`
    """

    call: ConvCall
    forward_ms: float | None = None
    backward_ms: float | None = None
    groupwise_ms: float | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    max_error: float | None = None
    floor_ms: float | None = None
    hazard: str = ""

    @property
    def before_ms(self) -> float | None:
        """The time of PyTorch's side: of the forward and, if it ran, the backward."""
        if self.forward_ms is None:
            return None
        return self.forward_ms + (self.backward_ms or 0.0)

    @property
    def pytorch_ms(self) -> float | None:
        """That time, if PyTorch's kernels computed it."""
        return None if self.hazard else self.before_ms

    @property
    def ours(self) -> bool:
        """Whether a kernel of groupwise computed a pass of it where PyTorch's side ran PyTorch's."""
        return bool(set(self.kernels.values()) - {"pytorch"}) and not self.hazard

    @property
    def speedup(self) -> float | None:
        """PyTorch's time over groupwise's; None where both ran PyTorch's code, which differ by noise alone."""
        return ratio(self.pytorch_ms, self.groupwise_ms) if self.ours else None

    @property
    def kernel(self) -> str | None:
        """The kernel of the forward, or of the first pass that ran."""
        return next(iter(self.kernels.values()), None)

    @property
    def roofline(self) -> float | None:
        """The fraction of peak that groupwise's time reaches: the roofline floor over it."""
        return ratio(self.floor_ms, self.groupwise_ms)

    @property
    def grouped(self) -> bool:
        """Whether it has more than one group (depthwise included)."""
        return self.call.spec.groups > 1

    def to_dict(self) -> dict[str, Any]:
        """Returns plain JSON types. `macs` is what each pass costs; `passes` says which ran."""
        return {
            **self.call.to_dict(),
            "pytorch_ms": self.pytorch_ms,
            "forward_ms": None if self.hazard else self.forward_ms,
            "backward_ms": None if self.hazard else self.backward_ms,
            "groupwise_ms": self.groupwise_ms,
            "speedup": self.speedup,
            "kernel": self.kernel,
            "kernels": dict(self.kernels),
            "max_error": self.max_error,
            "roofline": self.roofline,
            "hazard": self.hazard,
        }


def sums(rows: Iterable[Row]) -> dict[str, Any]:
    """Counts, parameters, MACs, bytes and times of some rows together; None for times of which one is not known."""
    chosen = list(rows)
    weights = {row.call.parameter: row.call.spec.parameters for row in chosen if row.call.parameter is not None}
    ran = {name: sum(r.call.cost.macs.forward for r in chosen if name in r.call.passes) for name in DIRECTIONS}
    # Both sides count what groupwise computed on both.
    pytorch = known_sum(row.before_ms for row in chosen)
    ours = known_sum(row.groupwise_ms for row in chosen)
    with_floor = [row for row in chosen if row.floor_ms is not None]
    return {
        "convolutions": len(chosen),
        "parameters": sum(weights.values()),
        "macs": sum((row.call.cost.macs for row in chosen), Macs(0, 0, 0)).to_dict(),
        "macs_run": ran,
        "macs_on_padding": sum(row.call.cost.macs_on_padding for row in chosen),
        "bytes": sum(row.call.cost.bytes for row in chosen),
        "pytorch_ms": pytorch,
        "groupwise_ms": ours,
        "speedup": ratio(pytorch, ours) if any(row.ours for row in chosen) else None,
        "kernels": dict(Counter(row.kernel for row in chosen if row.kernel is not None)),
        "max_error": max((row.max_error for row in chosen if row.max_error is not None), default=None),
        "roofline": ratio(
            known_sum(row.floor_ms for row in with_floor), known_sum(row.groupwise_ms for row in with_floor)
        ),
    }


def shares(grouped: Mapping[str, Any], everything: Mapping[str, Any]) -> dict[str, float | None]:
    """What fraction of the sums over all rows the grouped ones have."""
    return {
        key: ratio(part, whole)
        for key, part, whole in (
            ("convolutions", grouped["convolutions"], everything["convolutions"]),
            ("parameters", grouped["parameters"], everything["parameters"]),
            ("macs", grouped["macs"]["forward"], everything["macs"]["forward"]),
            ("time", grouped["pytorch_ms"], everything["pytorch_ms"]),
        )
    }
