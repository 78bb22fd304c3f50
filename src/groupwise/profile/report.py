"""`report`: every convolution a model executes, counted and measured, as table, JSON or HTML."""

from __future__ import annotations

import pathlib
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

import groupwise
from groupwise.draw.html import page as html
from groupwise.draw.html import report as report_html
from groupwise.draw.text import report as report_text
from groupwise.errors import GroupwiseError, check_integer
from groupwise.kernels.plan import DIRECTIONS
from groupwise.kernels.processor import processor_name
from groupwise.profile import count as counting
from groupwise.profile.record import ConvCall
from groupwise.profile.roofline import Roofline, measure_roofline
from groupwise.profile.timing import check_same, measure, not_measured
from groupwise.profile.verify import Agreement, Checked, check
from groupwise.spec.cost import Macs

if TYPE_CHECKING:
    from groupwise.parallel import SplitPlan


@dataclass(frozen=True)
class Row:
    """One convolution executed: what it is, what it costs, the median times it took.

    - `forward_ms`, `backward_ms`: by PyTorch's own kernels; None where nothing was measured
    - `groupwise_ms`: by groupwise's, forward and, if it ran, backward; None where they were not measured, as the rest
    - `kernels`: the kernel that each pass took then
    - `max_error`: the largest absolute difference of the output (and of the gradients of input and weight, if they ran)
      from the same convolution in float64, relative to the largest absolute value of that
    - `bound_ms`: the least time that the machine allows: see `groupwise.roofline`
    """

    call: ConvCall
    forward_ms: float | None = None
    backward_ms: float | None = None
    groupwise_ms: float | None = None
    kernels: Mapping[str, str] = field(default_factory=dict)
    max_error: float | None = None
    bound_ms: float | None = None

    @property
    def pytorch_ms(self) -> float | None:
        """Forward and, if it ran, backward."""
        if self.forward_ms is None:
            return None
        return self.forward_ms + (self.backward_ms or 0.0)

    @property
    def speedup(self) -> float | None:
        """PyTorch's time over groupwise's."""
        return _ratio(self.pytorch_ms, self.groupwise_ms)

    @property
    def kernel(self) -> str | None:
        """The kernel of the forward, or of the first pass that ran."""
        return next(iter(self.kernels.values()), None)

    @property
    def roofline(self) -> float | None:
        """The share of the bound that groupwise's time reaches."""
        return _ratio(self.bound_ms, self.groupwise_ms)

    @property
    def grouped(self) -> bool:
        """Whether it has more than one group (depthwise included)."""
        return self.call.spec.groups > 1

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types. `macs` is what each pass costs; `passes` says which ran."""
        return {
            "name": self.call.name,
            **self.call.spec.to_dict(),
            **self.call.cost.to_dict(),
            "passes": list(self.call.passes),
            "pytorch_ms": self.pytorch_ms,
            "forward_ms": self.forward_ms,
            "backward_ms": self.backward_ms,
            "groupwise_ms": self.groupwise_ms,
            "speedup": self.speedup,
            "kernel": self.kernel,
            "kernels": dict(self.kernels),
            "max_error": self.max_error,
            "roofline": self.roofline,
        }


@dataclass(frozen=True, repr=False)
class Report:
    """Every convolution that one call of a model executed, in order. `print()` it for the table.

    - `title`: the model; `rows`: one `Row` for each execution
    - `model_parameters`: of the whole model
    - `model_ms`: median time of the whole model (forward, and backward if it ran), with nothing recorded; None on
      a model that computes nothing (meta tensors)
    - `recorded_ms`: the same while each convolution is recorded, which takes longer; shares of time are of this one
    - `backward`: whether the gradients ran; `repeats`: how many runs the medians are of
    - `machine`: where it was measured
    - `groupwise_model_ms`: as `model_ms`, by groupwise's kernels; `agreement`: whether the outputs are the same then
    - `not_measured`: why groupwise's kernels were not measured; None if they were
    - `split`: how the model's groups would lie on several ranks, where that was asked for
    """

    title: str
    rows: tuple[Row, ...]
    model_parameters: int
    model_ms: float | None
    recorded_ms: float | None
    backward: bool
    repeats: int
    machine: dict[str, Any]
    groupwise_model_ms: float | None = None
    agreement: Agreement | None = None
    not_measured: str | None = None
    split: SplitPlan | None = None

    def __str__(self) -> str:
        return report_text.table(self._told())

    # So that a prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report_html.fragment(self._told(), [row.call.cost for row in self.rows])

    def to_html(self, path: str | pathlib.Path | None = None, photo: bytes | None = None) -> str | pathlib.Path:
        """One self-contained page: table that sorts, and pictures of the grouped layers.

        As a string, or written to `path`, which it returns. `photo`, a JPEG, is shown on it as the input.
        """
        document = report_html.page(self._told(), [row.call.cost for row in self.rows], photo)
        return html.deliver(document, path)

    def to_dict(self) -> dict[str, Any]:
        """`layers` (one dict for each convolution executed, in order), `total`, and how it was measured."""
        return {
            "title": self.title,
            "backward": self.backward,
            "layers": [row.to_dict() for row in self.rows],
            "total": self.total(),
            "outputs": None if self.agreement is None else self.agreement.to_dict(),
            "not_measured": self.not_measured,
            "repeats": self.repeats,
            "machine": self.machine,
            **({} if self.split is None else {"split": self.split.to_dict()}),
        }

    def _told(self) -> dict[str, Any]:
        """What is shown: as the convolutions, the layers of the split are folded where they repeat."""
        facts = self.to_dict()
        if self.split is not None:
            facts["split"] |= {"folded": True}
        return facts

    def total(self) -> dict[str, Any]:
        """Sums over all rows, over the grouped ones, and the share of the latter.

        `parameters` are those of the model: a weight that several rows share counts once, one computed on the fly not
        at all. `macs` sums what each pass costs; `macs_run` what ran (the first layer needs no grad_input). `kernels`
        counts the convolutions by the kernel of their forward, and `max_error` is the largest. The shares
        `parameters_of_model` and `time_of_model` are of the whole model, and of PyTorch's times.
        """
        everything, grouped = _sums(self.rows), _sums(row for row in self.rows if row.grouped)
        grouped["share"] = {
            key: _ratio(part, whole)
            for key, part, whole in (
                ("convolutions", grouped["convolutions"], everything["convolutions"]),
                ("parameters", grouped["parameters"], everything["parameters"]),
                ("macs", grouped["macs"]["forward"], everything["macs"]["forward"]),
                ("time", grouped["pytorch_ms"], everything["pytorch_ms"]),
            )
        }
        grouped["share"]["parameters_of_model"] = _ratio(grouped["parameters"], self.model_parameters)
        grouped["share"]["time_of_model"] = _ratio(grouped["pytorch_ms"], self.recorded_ms)
        return {
            **everything,
            "model_parameters": self.model_parameters,
            "model_ms": self.model_ms,
            "recorded_ms": self.recorded_ms,
            "groupwise_model_ms": self.groupwise_model_ms,
            "model_speedup": _ratio(self.model_ms, self.groupwise_model_ms),
            "grouped": grouped,
        }


def report(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: counting.Keywords = None,
    backward: bool = False,
    repeats: int = 10,
    title: str | None = None,
    progress: bool = False,
    ranks: int | None = None,
) -> Report:
    """Count and time every convolution that `model(*inputs, **kwargs)` executes.

    The model runs as it is: in its mode (`train()` or `eval()`), on the device and dtype of its tensors. Its buffers,
    its `.grad` fields, the inputs and the random state stay as they were; what else its code changes when it runs, it
    does. With `backward`, the gradients of all that asks for one run too. Times are medians of `repeats` runs after 2
    that are not counted, each convolution timed inside the running model; recording takes time between them, so the
    whole model is timed without it as well. On meta tensors nothing is timed. Convolutions that a model runs in threads
    of its own are not seen.

    It is measured by PyTorch's own kernels and, in turn, by groupwise's, whether these are enabled or not. Then their
    results are compared, for which every convolution is computed in float64, once. Where groupwise's kernels cannot
    run, and for a model with tensors beyond the CPU, their fields are None, and the report says why.

    - `model`: a `torch.nn.Module` or any callable; `inputs`, `kwargs`: its arguments
    - `repeats`: 1 or more
    - `progress`: show a bar (needs the extra `groupwise[report]`)
    - `ranks`: say too how `groupwise.parallel.split` would spread the model over so many, and what would cross in a
      training step on this input

    Raises `GroupwiseError` for bad arguments, lazy parameters, or a `backward` with nothing to differentiate; what the
    model itself raises comes through.
    """
    repeats = check_integer("repeats", repeats, 1)
    counting.check_model(model)
    if title is None:
        title = type(model).__name__ if isinstance(model, torch.nn.Module) else str(getattr(model, "__name__", "model"))
    keywords = dict(kwargs or {})
    tensors = list(counting.tensors_of(model, inputs, keywords))
    parameters = sum(p.numel() for p in model.parameters()) if isinstance(model, torch.nn.Module) else 0
    planned = None if ranks is None else _split(model, inputs, keywords, ranks)
    about = {**machine(), "devices": sorted({_device_name(tensor.device) for tensor in tensors})}
    if counting.on_meta(model, inputs, keywords):
        calls = counting.run(model, inputs, keywords, backward).calls
        nothing = "nothing is computed on meta tensors"
        return Report(
            title, tuple(map(Row, calls)), parameters, None, None, backward, 0, about, None, None, nothing, planned
        )
    reason = not_measured({tensor.device.type for tensor in tensors})
    timed = measure(model, inputs, keywords, backward, repeats, (False,) if reason else (False, True), progress)
    ran = [calls for one in timed.values() for calls in one.calls]
    check_same(ran)
    rows = tuple(_row(calls, backward) for calls in zip(*timed[False].calls, strict=True))
    made = Report(
        title,
        rows,
        parameters,
        timed[False].model_ms,
        timed[False].recorded_ms,
        backward,
        repeats,
        about,
        not_measured=reason,
        split=planned,
    )
    if reason:
        return made
    roofline = measure_roofline(torch.get_num_threads())
    checked, agreement = check(model, inputs, keywords, backward)
    check_same([ran[0], [one.call for one in checked]])
    routed = zip(*timed[True].calls, strict=True)
    return replace(
        made,
        rows=tuple(_routed(*facts, roofline, backward) for facts in zip(rows, routed, checked, strict=True)),
        machine={**about, "roofline": roofline.to_dict()},
        groupwise_model_ms=timed[True].model_ms,
        agreement=agreement,
    )


def _split(model: Callable[..., Any], inputs: Sequence[Any], keywords: Mapping[str, Any], ranks: int) -> SplitPlan:
    """How the model would be spread over so many ranks. Imported here, as most reports do without."""
    from groupwise.parallel import plan_split

    if not isinstance(model, torch.nn.Module) or keywords or [type(one) for one in inputs] != [torch.Tensor]:
        raise GroupwiseError("ranks needs a torch.nn.Module that takes one tensor; leave it out for another model")
    return plan_split(model, ranks, input_shape=inputs[0].shape)


def _row(calls: Sequence[ConvCall], backward: bool) -> Row:
    """The same call in every run."""
    forward = statistics.median(call.seconds["forward"] for call in calls) * 1e3
    back = statistics.median(call.seconds["backward"] for call in calls) * 1e3 if backward else None
    return Row(calls[0], forward, back)


def _routed(row: Row, calls: Sequence[ConvCall], checked: Checked, roofline: Roofline, backward: bool) -> Row:
    """The row, and the same call in every run with groupwise's kernels."""
    return replace(
        row,
        groupwise_ms=_row(calls, backward).pytorch_ms,
        kernels=checked.kernels,
        max_error=checked.max_error,
        bound_ms=roofline.bound_ms(row.call.cost, len(row.call.passes)),
    )


def _sums(rows: Iterable[Row]) -> dict[str, Any]:
    chosen = list(rows)
    weights = {row.call.parameter: row.call.spec.parameters for row in chosen if row.call.parameter is not None}
    ran = {name: sum(r.call.cost.macs.forward for r in chosen if name in r.call.passes) for name in DIRECTIONS}
    pytorch = _sum(row.pytorch_ms for row in chosen)
    routed = _sum(row.groupwise_ms for row in chosen)
    bounded = [row for row in chosen if row.bound_ms is not None]
    return {
        "convolutions": len(chosen),
        "parameters": sum(weights.values()),
        "macs": sum((row.call.cost.macs for row in chosen), Macs(0, 0, 0)).to_dict(),
        "macs_run": ran,
        "macs_on_padding": sum(row.call.cost.macs_on_padding for row in chosen),
        "bytes": sum(row.call.cost.bytes for row in chosen),
        "pytorch_ms": pytorch,
        "groupwise_ms": routed,
        "speedup": _ratio(pytorch, routed),
        "kernels": dict(Counter(row.kernel for row in chosen if row.kernel is not None)),
        "max_error": max((row.max_error for row in chosen if row.max_error is not None), default=None),
        "roofline": _ratio(_sum(row.bound_ms for row in bounded), _sum(row.groupwise_ms for row in bounded)),
    }


def _sum(values: Iterable[float | None]) -> float | None:
    """The sum, or None where one of them is not known."""
    given = list(values)
    known = [value for value in given if value is not None]
    return sum(known) if len(known) == len(given) else None


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def machine() -> dict[str, Any]:
    """Where this is measured: processor, threads, versions, date."""
    return {
        "processor": processor_name(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "groupwise": groupwise.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
