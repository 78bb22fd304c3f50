"""`layer_times`: what each layer of a model takes at each groups value, timed inside the whole model."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from groupwise.choose.convert.gather import GatheredConv, GatherTime, gather_seconds
from groupwise.choose.exact.like import lossless, set_groups
from groupwise.profile import record
from groupwise.profile.measuring import Interference, Meter
from groupwise.profile.timing import dispatching
from groupwise.profile.workload import Workload
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import Cost

# Runs that warm up and do not count.
_WARM = 2


@dataclass(frozen=True)
class LayerTime:
    """One layer at one groups value: the cost of its forward, and its time in milliseconds, summed over its calls.

    `forward_ms` is the forward's part of `ms`. `gather_ms` is what gathers of its channels take of `ms`; None for a
    layer without.
    """

    costs: tuple[Cost, ...]
    ms: float
    forward_ms: float
    gather_ms: float | None = None


@dataclass(frozen=True)
class Times:
    """What a model and its layers take.

    - `layers`: by layer and groups value; the model's own value is among them
    - `model_ms`: the whole model as it is, with nothing recorded
    - `macs`, `parameters`: of all convolutions that the model runs, forward
    - `interference`: what other processes took meanwhile
    """

    layers: Mapping[str, Mapping[int, LayerTime]]
    model_ms: float
    macs: int
    parameters: int
    interference: Interference


def layer_times(
    workload: Workload,
    candidates: Mapping[str, Sequence[int]],
    repeats: int,
    gathering: Collection[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Times:
    """Times every candidate groups value of every layer, with groupwise's kernels, as under `groupwise.enable`.

    For each value one copy of the model has it in every layer that can have it, and every layer is timed where it runs:
    with the caches and the memory format that it has there. Copies run in turn, so that a slow moment of the machine
    affects all alike. Weights of other shapes are random, which changes no time. The layers of `gathering` have gathers
    around them at values at which they would lose a part of their weight; those are timed alone, on what they move.
    """
    assert workload.module is not None
    values = sorted({value for options in candidates.values() for value in options})
    twins = {0: workload}
    for value in values:
        wanted = {name: value for name, options in candidates.items() if value in options}
        twins[value] = replace(workload, model=with_groups(workload.module, wanted, gathering))
    runs: dict[int, list[record.Run]] = {value: [] for value in twins}
    whole: list[float] = []
    meter = Meter()
    with dispatching(True):
        for number in range(-_WARM, repeats):
            for value, twin in twins.items():
                run = record.run(twin)
                if number >= 0:
                    runs[value].append(run)
            seconds = record.time_run(workload)
            if number >= 0:
                whole.append(seconds)
            if progress is not None:
                progress(number + _WARM + 1, repeats + _WARM)
        gathers = {value: _gathers(twin, repeats) for value, twin in twins.items()}
    interference = meter.read()
    layers = {
        name: {
            value: _layer(runs, gathers, 0 if value == _groups(workload.module, name) else value, name)
            for value in sorted(options)
        }
        for name, options in candidates.items()
    }
    calls = runs[0][0].calls
    weights = {call.parameter: call.spec.parameters for call in calls if call.parameter is not None}
    return Times(
        layers=layers,
        model_ms=statistics.median(whole) * 1e3,
        macs=sum(call.cost.macs.forward for call in calls),
        parameters=sum(weights.values()),
        interference=interference,
    )


def with_groups(model: nn.Module, groups: Mapping[str, int], gathering: Collection[str] = ()) -> nn.Module:
    """Returns a copy of a model whose layers have other groups, and random weights where these have other shapes.

    The layers of `gathering` move their channels in a random order, unless their own weight has these groups.
    """
    twin = copy.deepcopy(model)
    for name, value in groups.items():
        layer: Any = twin.get_submodule(name)
        spec = ConvSpec.from_module(layer)
        if spec.groups == value:
            continue
        old: torch.Tensor = layer.weight
        weight = torch.randn(spec.with_groups(value).weight_shape, dtype=old.dtype, device=old.device)
        # The scale of the products stays.
        weight *= old.detach().float().std().nan_to_num(1.0).item() * (value / spec.groups) ** 0.5
        gathers = name in gathering and lossless(layer, value) is None
        set_groups(layer, value, weight)
        if gathers:
            inputs = torch.randperm(spec.in_channels, device=old.device)
            outputs = torch.randperm(spec.out_channels, device=old.device)
            parent, _, child = name.rpartition(".")
            setattr(twin.get_submodule(parent), child, GatheredConv(layer, inputs, outputs))
    return twin


def _gathers(workload: Workload, repeats: int) -> dict[str, GatherTime]:
    """Returns the median time of the gathers of each layer that has some, summed over its calls."""
    assert workload.module is not None
    layers = {name: one for name, one in workload.module.named_modules() if isinstance(one, GatheredConv)}
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in layers}
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: seen[name].append(given[0].detach().clone()))
        for name, layer in layers.items()
    ]
    try:
        if layers:
            record.time_run(workload)
    finally:
        for hook in hooks:
            hook.remove()
    return {
        name: _sum([gather_seconds(layers[name], x, repeats, workload.backward) for x in inputs])
        for name, inputs in seen.items()
    }


def _sum(times: Sequence[GatherTime]) -> GatherTime:
    return GatherTime(sum(one.forward for one in times), sum(one.whole for one in times))


def _groups(model: nn.Module, name: str) -> int:
    return int(model.get_submodule(name).groups)  # type: ignore[arg-type]


def _layer(
    runs: Mapping[int, Sequence[record.Run]], gathers: Mapping[int, Mapping[str, GatherTime]], twin: int, name: str
) -> LayerTime:
    """Returns the medians over the runs of a twin of the times of one layer, with those of its gathers."""
    gather = gathers[twin].get(name)
    inner = name if gather is None else f"{name}.conv"
    calls = [list(_calls(run, inner)) for run in runs[twin]]
    forward = statistics.median(sum(call.seconds["forward"] for call in of_run) for of_run in calls)
    whole = statistics.median(sum(sum(call.seconds.values()) for call in of_run) for of_run in calls)
    moved = gather or GatherTime(0.0, 0.0)
    return LayerTime(
        costs=tuple(call.cost for call in calls[0]),
        ms=(whole + moved.whole) * 1e3,
        forward_ms=(forward + moved.forward) * 1e3,
        gather_ms=None if gather is None else gather.whole * 1e3,
    )


def _calls(run: record.Run, name: str) -> Iterator[record.ConvCall]:
    return (call for call in run.calls if call.name == name)


def whole_times(workloads: Sequence[Workload], repeats: int) -> tuple[list[float], Interference]:
    """Returns the median time of each of several models in milliseconds, and what other processes took meanwhile.

    The models run in turn, with groupwise's kernels.
    """
    found: list[list[float]] = [[] for _ in workloads]
    meter = Meter()
    with dispatching(True):
        for number in range(-_WARM, repeats):
            for workload, seconds in zip(workloads, found, strict=True):
                taken = record.time_run(workload)
                if number >= 0:
                    seconds.append(taken)
    interference = meter.read()
    return [statistics.median(seconds) * 1e3 for seconds in found], interference
