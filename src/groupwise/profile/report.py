"""`report`: every convolution a model executes, counted and measured, as table, JSON or HTML."""

from __future__ import annotations

import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from groupwise.draw.base.folding import ratio
from groupwise.draw.html import page as html
from groupwise.draw.html import report as report_html
from groupwise.draw.text import busy
from groupwise.draw.text import faster as faster_text
from groupwise.draw.text import report as report_text
from groupwise.draw.text.table import Tabular
from groupwise.draw.views.strip import strip_svg
from groupwise.errors import GroupwiseError, check_integer
from groupwise.profile import record
from groupwise.profile.count import Keywords
from groupwise.profile.faster import Comparison, compare
from groupwise.profile.machine import device_name, machine
from groupwise.profile.measuring import UNKNOWN, Interference, Meter
from groupwise.profile.progress import Progress
from groupwise.profile.record import ConvCall
from groupwise.profile.roofline import Roofline, measure_roofline
from groupwise.profile.rows import Row, shares, sums
from groupwise.profile.timing import check_same, measure, not_measured
from groupwise.profile.verify import Agreement, Checked, check
from groupwise.profile.workload import Workload
from groupwise.rewrite import optimize as rewrite
from groupwise.web import explorer

if TYPE_CHECKING:
    from groupwise.parallel import SplitPlan


@dataclass(frozen=True, repr=False)
class Report(Tabular):
    """Every convolution that one call of a model executed, in order. `print()` it for the table.

    - `title`: the model's name; `rows`: one `Row` for each execution
    - `model_parameters`: how many the whole model has
    - `model_ms`: the median time of the whole model (forward, and backward if it ran) with nothing recorded; None for
      a model on meta tensors, which computes nothing
    - `recorded_ms`: the same while each convolution is recorded, which takes longer; shares of time refer to this one
    - `backward`: whether the gradients ran; `repeats`: how many runs each median is taken over
    - `machine`: where it was measured
    - `groupwise_model_ms`: as `model_ms`, by groupwise's kernels; `agreement`: whether the outputs are then the same
    - `not_measured`: why groupwise's kernels were not measured; None if they were
    - `split`: how the model's groups would be partitioned over several ranks, if you asked for that
    - `not_counted`: the operators whose names suggest a convolution, but whose arguments do not tell its shape, and how
      often each ran
    - `compiled`: whether `torch.compile` wraps the model or a module of it
    - `optimized`: the model beside the network that `groupwise.optimize` makes of it, if you asked for that
    - `interference`: what other processes took meanwhile; where that is much, the report says so first and claims no
      speedup
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
    not_counted: Mapping[str, int] = field(default_factory=dict)
    compiled: bool = False
    optimized: Comparison | None = None
    interference: Interference = UNKNOWN

    def __str__(self) -> str:
        facts = self._told()
        shown = report_text.table(facts)
        if self.optimized is not None:
            title, below = shown.split("\n", 1)
            optimized = faster_text.table(facts["optimized"])
            shown = f"{title}\n\n{optimized}\n\n{report_text.OF_CONVOLUTIONS}{below}"
        timed = self.rows or self.optimized is not None
        return "\n".join([*(busy.paragraph(facts["interference"]) if timed else []), shown])

    # A prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report_html.fragment(self._told(), [row.call.cost for row in self.rows])

    def to_svg(self) -> str:
        """Returns bars of parameters, MACs, bytes and times, a segment for each convolution executed."""
        return strip_svg(self.to_dict())

    def columns(self) -> tuple[list[str], list[list[Any]]]:
        """Returns the column names, and the values of each convolution executed."""
        return report_text.columns(self.to_dict()["layers"])

    def to_html(self, path: str | pathlib.Path | None = None, photo: bytes | None = None) -> str | pathlib.Path:
        """One self-contained page: the main figures, a table that sorts, and pictures of the grouped layers.

        Returns the page, or writes it to `path` and returns that. The page shows `photo`, a JPEG, as the input. The
        names of layers open the page of `groupwise.explore`, which is part of this one.
        """
        facts, costs = self._told(), [row.call.cost for row in self.rows]
        for layer, at in zip(facts["layers"], costs, strict=True):
            layer["explorer"] = explorer.fragment_of(at)
        document = report_html.page(facts, costs, photo, explorer.page())
        return html.deliver(document, path)

    def to_dict(self) -> dict[str, Any]:
        """Returns `layers` (a dict for each convolution executed, in order), `total`, and how it was measured."""
        return {
            "title": self.title,
            "backward": self.backward,
            "layers": [row.to_dict() for row in self.rows],
            "total": self.total(),
            "not_counted": dict(self.not_counted),
            "outputs": None if self.agreement is None else self.agreement.to_dict(),
            "not_measured": self.not_measured,
            "compiled": self.compiled,
            "repeats": self.repeats,
            "machine": self.machine,
            "interference": self.interference.to_dict(),
            **({} if self.split is None else {"split": self.split.to_dict()}),
            **({} if self.optimized is None else {"optimized": self.optimized.to_dict()}),
        }

    def _told(self) -> dict[str, Any]:
        """The facts to show, in which repeated layers of the split are folded like the convolutions."""
        facts = self.to_dict()
        if self.split is not None:
            facts["split"] |= {"folded": True}
        return facts

    def total(self) -> dict[str, Any]:
        """Returns sums over all rows, sums over the grouped ones (`grouped`), and the shares of the latter.

        `parameters` counts a weight that several rows share once, and one computed on the fly not at all. `macs` sums
        what each pass costs; `macs_run` sums the passes that ran (the first layer needs no grad_input). `kernels`
        counts the convolutions by the kernel of their forward, and `max_error` is the largest. The shares
        `parameters_of_model` and `time_of_model` refer to the whole model, and times to PyTorch's. A speedup is None
        where groupwise's kernels computed nothing: both sides ran PyTorch's code, and differ by noise alone.
        """
        everything, grouped = sums(self.rows), sums(row for row in self.rows if row.grouped)
        ours = any(row.ours for row in self.rows)
        grouped["share"] = {
            **shares(grouped, everything),
            "parameters_of_model": ratio(grouped["parameters"], self.model_parameters),
            "time_of_model": ratio(grouped["pytorch_ms"], self.recorded_ms),
        }
        return {
            **everything,
            "model_parameters": self.model_parameters,
            "model_ms": self.model_ms,
            "recorded_ms": self.recorded_ms,
            "groupwise_model_ms": self.groupwise_model_ms,
            "model_speedup": ratio(self.model_ms, self.groupwise_model_ms) if ours else None,
            "grouped": grouped,
        }


def report(
    model: Callable[..., Any],
    *inputs: Any,
    kwargs: Keywords = None,
    backward: bool = False,
    repeats: int = 10,
    title: str | None = None,
    progress: bool | Progress | None = None,
    ranks: int | None = None,
    optimize: bool = False,
) -> Report:
    """Count and time every convolution that `model(*inputs, **kwargs)` executes.

    groupwise runs the model as it is: in its mode (`train()` or `eval()`), on the device and dtype of its tensors. Its
    buffers, its `.grad` fields, the inputs and the random state stay as they were; other side effects of its code
    happen. With `backward`, the gradients of everything that requires one run too. Each time is the median of
    `repeats` runs after 2 warm-up runs. Convolutions are timed inside the running model; because recording takes time
    between them, the whole model is timed without it as well. Meta tensors have no times. groupwise does not see
    convolutions that a model runs in threads of its own.

    Each time is measured by PyTorch's kernels and, in turn, by groupwise's, whether these are enabled or not. Where
    PyTorch's kernel may end the process, or never end itself, groupwise's computes on both sides, and the row says so
    (`hazard`). The results are then compared, for which every convolution is computed in float64 once. Where
    groupwise's kernels cannot run, and for a model with tensors beyond the CPU, their fields are None, and the report
    says why.

    - `model`: a `torch.nn.Module` or any callable; `inputs`, `kwargs`: its arguments
    - `repeats`: 1 or more
    - `title`: what the report calls the model; its class or name if left out
    - `progress`: True shows how far it is, as the command line does; a function is called with the numbers of runs that
      are done and that there are
    - `ranks`: also say how `groupwise.parallel.split` would split the model over so many ranks, and which collectives a
      training step on this input would need
    - `optimize`: also make the network of `groupwise.optimize`, and compare it with the model, layer by layer

    Raises `GroupwiseError` for bad arguments, lazy parameters, or a `backward` with nothing to differentiate. Errors of
    the model itself come through.
    """
    repeats = check_integer("repeats", repeats, 1)
    workload = Workload(model, inputs, dict(kwargs or {}), backward)
    devices = {tensor.device for tensor in workload.tensors()}
    if optimize:
        _check_optimize(workload)
    made = Report(
        workload.title if title is None else title,
        (),
        workload.parameters,
        None,
        None,
        backward,
        repeats,
        {**machine(), "devices": sorted({device_name(device) for device in devices})},
        split=None if ranks is None else _split(workload, ranks),
        compiled=workload.is_compiled,
    )
    if workload.on_meta:
        ran, nothing = record.run(workload), "nothing is computed on meta tensors"
        rows = tuple(map(Row, ran.calls))
        return replace(made, rows=rows, repeats=0, not_measured=nothing, not_counted=ran.not_counted)
    reason = not_measured({device.type for device in devices})
    meter = Meter()
    timed = measure(workload, repeats, (False,) if reason else (False, True), progress)
    calls = [ran for one in timed.values() for ran in one.calls]
    check_same(calls)
    pytorch = timed[False]
    made = replace(
        made,
        rows=tuple(_row(runs, backward) for runs in zip(*pytorch.calls, strict=True)),
        model_ms=pytorch.model_ms,
        recorded_ms=pytorch.recorded_ms,
        not_measured=reason,
        not_counted=pytorch.runs[0].not_counted,
        optimized=_optimized(workload, repeats) if optimize else None,
    )
    interference = meter.read()
    if made.optimized is not None:
        # Both parts are trusted, or neither.
        if made.optimized.interference.busy and not interference.busy:
            interference = made.optimized.interference
        made = replace(made, optimized=replace(made.optimized, interference=interference))
    made = replace(made, interference=interference)
    if reason:
        return made
    roofline = measure_roofline(torch.get_num_threads())
    checked, agreement = check(workload)
    check_same([calls[0], [one.call for one in checked]])
    ours = zip(*timed[True].calls, strict=True)
    return replace(
        made,
        rows=tuple(_both(*facts, roofline, backward) for facts in zip(made.rows, ours, checked, strict=True)),
        machine={**made.machine, "roofline": roofline.to_dict()},
        groupwise_model_ms=timed[True].model_ms,
        agreement=agreement,
    )


def _split(workload: Workload, ranks: int) -> SplitPlan:
    """How the model would be split over so many ranks."""
    # Imported here, because most reports do without.
    from groupwise.parallel import plan_split

    if workload.module is None or workload.kwargs or [type(one) for one in workload.inputs] != [torch.Tensor]:
        raise GroupwiseError("ranks needs a torch.nn.Module that takes one tensor; leave it out for another model")
    return plan_split(workload.module, ranks, input_shape=workload.inputs[0].shape)


def _check_optimize(workload: Workload) -> None:
    if workload.module is None:
        raise GroupwiseError("optimize=True needs a torch.nn.Module; leave it out for another model")
    if workload.backward:
        raise GroupwiseError("optimize=True compares inference; leave out backward")
    if workload.on_meta:
        raise GroupwiseError("optimize=True times the model, and nothing is computed on meta tensors; leave it out")


def _optimized(workload: Workload, repeats: int) -> Comparison:
    model = workload.module
    assert model is not None
    network = rewrite(model, *workload.inputs, kwargs=workload.kwargs)
    return compare(model, network, workload.inputs, repeats, workload.kwargs, layers=True)


def _row(calls: Sequence[ConvCall], backward: bool) -> Row:
    """The row of a call, which is the same in every run."""
    forward = statistics.median(call.seconds["forward"] for call in calls) * 1e3
    back = statistics.median(call.seconds["backward"] for call in calls) * 1e3 if backward else None
    return Row(calls[0], forward, back)


def _both(row: Row, calls: Sequence[ConvCall], checked: Checked, roofline: Roofline, backward: bool) -> Row:
    """The row with what the same call took and computed by groupwise's kernels."""
    return replace(
        row,
        groupwise_ms=_row(calls, backward).pytorch_ms,
        kernels=checked.kernels,
        max_error=checked.max_error,
        hazard=checked.hazard,
        floor_ms=roofline.floor_ms(row.call.cost, len(row.call.passes)),
    )
