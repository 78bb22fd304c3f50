"""`report`: every convolution a model executes, counted and measured, as table, JSON or HTML."""

from __future__ import annotations

import pathlib
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import groupwise
from groupwise import counting
from groupwise.costs import Macs
from groupwise.draw import html, report_html, report_text
from groupwise.errors import GroupwiseError, check_integer
from groupwise.recording import ConvCall

_PASSES = ("forward", "grad_input", "grad_weight")


@dataclass(frozen=True)
class Row:
    """One convolution executed: what it is, what it costs, the median time it took.

    `forward_ms` and `backward_ms` are None where nothing was measured.
    """

    call: ConvCall
    forward_ms: float | None = None
    backward_ms: float | None = None

    @property
    def pytorch_ms(self) -> float | None:
        """Forward and, if it ran, backward."""
        if self.forward_ms is None:
            return None
        return self.forward_ms + (self.backward_ms or 0.0)

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
    """

    title: str
    rows: tuple[Row, ...]
    model_parameters: int
    model_ms: float | None
    recorded_ms: float | None
    backward: bool
    repeats: int
    machine: dict[str, Any]

    def __str__(self) -> str:
        return report_text.table(self.to_dict())

    # So that a prompt shows what a notebook does.
    __repr__ = __str__

    def _repr_html_(self) -> str:
        return report_html.fragment(self.to_dict(), [row.call.cost for row in self.rows])

    def to_html(self, path: str | pathlib.Path | None = None, photo: bytes | None = None) -> str | pathlib.Path:
        """One self-contained page: table that sorts, and pictures of the grouped layers.

        As a string, or written to `path`, which it returns. `photo`, a JPEG, is shown on it as the input.
        """
        document = report_html.page(self.to_dict(), [row.call.cost for row in self.rows], photo)
        return html.deliver(document, path)

    def to_dict(self) -> dict[str, Any]:
        """`layers` (one dict for each convolution executed, in order), `total`, and how it was measured."""
        return {
            "title": self.title,
            "backward": self.backward,
            "layers": [row.to_dict() for row in self.rows],
            "total": self.total(),
            "repeats": self.repeats,
            "machine": self.machine,
        }

    def total(self) -> dict[str, Any]:
        """Sums over all rows, over the grouped ones, and the share of the latter.

        `parameters` are those of the model: a weight that several rows share counts once, one computed on the fly not
        at all. `macs` sums what each pass costs; `macs_run` what ran (the first layer needs no grad_input). The shares
        `parameters_of_model` and `time_of_model` are of the whole model.
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
) -> Report:
    """Count and time every convolution that `model(*inputs, **kwargs)` executes.

    The model runs as it is: in its mode (`train()` or `eval()`), on the device and dtype of its tensors. Its buffers,
    its `.grad` fields, the inputs and the random state stay as they were; what else its code changes when it runs, it
    does. With `backward`, the gradients of all that asks for one run too. Times are medians of `repeats` runs after 2
    that are not counted, each convolution timed inside the running model; recording takes time between them, so the
    whole model is timed without it as well. On meta tensors nothing is timed. Convolutions that a model runs in threads
    of its own are not seen.

    - `model`: a `torch.nn.Module` or any callable; `inputs`, `kwargs`: its arguments
    - `repeats`: 1 or more
    - `progress`: show a bar (needs the extra `groupwise[report]`)

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
    about = {**machine(), "devices": sorted({_device_name(tensor.device) for tensor in tensors})}
    if counting.on_meta(model, inputs, keywords):
        calls = counting.run(model, inputs, keywords, backward).calls
        return Report(title, tuple(map(Row, calls)), parameters, None, None, backward, 0, about)
    runs, whole = _measure(model, inputs, keywords, backward, repeats, progress)
    rows = tuple(_row(calls, backward) for calls in zip(*(one.calls for one in runs), strict=True))
    recorded = statistics.median(one.seconds for one in runs) * 1e3
    return Report(title, rows, parameters, statistics.median(whole) * 1e3, recorded, backward, repeats, about)


def _measure(
    model: Callable[..., Any],
    inputs: Sequence[Any],
    keywords: Mapping[str, Any],
    backward: bool,
    repeats: int,
    progress: bool,
) -> tuple[list[counting.Run], list[float]]:
    """Recorded runs, and the seconds of as many that are not, in turn."""
    runs, whole = [], []
    for number in _bar(range(-2, repeats), progress):
        recorded = counting.run(model, inputs, keywords, backward)
        seconds = counting.time_run(model, inputs, keywords, backward)
        if number >= 0:
            runs.append(recorded)
            whole.append(seconds)
    if any([call.cost for call in one.calls] != [call.cost for call in runs[0].calls] for one in runs):
        raise GroupwiseError("the model executes other convolutions from one run to the next, so it has no one report")
    return runs, whole


def _row(calls: Sequence[ConvCall], backward: bool) -> Row:
    """The same call in every run."""
    forward = statistics.median(call.seconds["forward"] for call in calls) * 1e3
    back = statistics.median(call.seconds["backward"] for call in calls) * 1e3 if backward else None
    return Row(calls[0], forward, back)


def _bar(numbers: Iterable[int], progress: bool) -> Iterable[int]:
    if not progress:
        return numbers
    try:
        from tqdm import tqdm
    except ImportError:
        return numbers
    # disable=None: no bar where stderr is no terminal.
    return tqdm(numbers, desc="measuring", unit="run", leave=False, disable=None)


def _sums(rows: Iterable[Row]) -> dict[str, Any]:
    chosen = list(rows)
    weights = {row.call.parameter: row.call.spec.parameters for row in chosen if row.call.parameter is not None}
    times = [row.pytorch_ms for row in chosen if row.pytorch_ms is not None]
    ran = {name: sum(r.call.cost.macs.forward for r in chosen if name in r.call.passes) for name in _PASSES}
    return {
        "convolutions": len(chosen),
        "parameters": sum(weights.values()),
        "macs": sum((row.call.cost.macs for row in chosen), Macs(0, 0, 0)).to_dict(),
        "macs_run": ran,
        "macs_on_padding": sum(row.call.cost.macs_on_padding for row in chosen),
        "bytes": sum(row.call.cost.bytes for row in chosen),
        "pytorch_ms": sum(times) if len(times) == len(chosen) else None,
    }


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def machine() -> dict[str, Any]:
    """Where this is measured: processor, threads, versions, date."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "groupwise": groupwise.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
