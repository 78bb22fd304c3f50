"""`sweep`: times and weighs every groups value of every layer of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn

from groupwise.choose.assign import assign
from groupwise.choose.convert.batch_norm import check_estimable
from groupwise.choose.convert.block import Freedom, freedoms
from groupwise.choose.convert.checks import check_layers, check_model, check_numbers, convertible
from groupwise.choose.convert.data import Batch
from groupwise.choose.convert.readers import readers
from groupwise.choose.convert.regroup import regroup
from groupwise.choose.exact.coarsen import coarser
from groupwise.choose.exact.like import lossless
from groupwise.choose.measure.budget import check_reachable, read_budget
from groupwise.choose.measure.choice import Grouping
from groupwise.choose.measure.risk import Loss, Losses, batches
from groupwise.choose.measure.sweep import WEIGHT_LOST, Sweep, SweepRow
from groupwise.choose.measure.times import LayerTime, Times, layer_times, whole_times
from groupwise.errors import GroupwiseError, check_integer, list_some, name_some
from groupwise.profile import record
from groupwise.profile.machine import machine
from groupwise.profile.progress import PartProgress, shown_parts
from groupwise.profile.timing import dispatching, not_measured
from groupwise.profile.workload import Workload
from groupwise.spec.arguments import valid_groups


def sweep(
    model: nn.Module,
    *inputs: Any,
    kwargs: Mapping[str, Any] | None = None,
    groups: Sequence[int] | None = None,
    layers: Sequence[str] | None = None,
    gather: bool = False,
    train: bool = False,
    data: Any = None,
    loss: Loss | None = None,
    repeats: int = 10,
    seed: int = 0,
    progress: bool | PartProgress | None = None,
    budget: Mapping[str, float] | None = None,
) -> Sweep:
    """Measures what each convolution of a model takes and loses at each groups value that it can have.

    `model(*inputs, **kwargs)` is timed with groupwise's kernels, as under `groupwise.enable`. The model stays as it is.

    - `inputs`, `kwargs`: the model's arguments; named ones belong in `kwargs`
    - `groups`: the values to try; by default 1, 2, 4, 8, 16 and 32. `layers`: the names of layers; by default all
    - `gather`: lets layers whose order of channels cannot be folded into others move their channels at each call. Their
      times include it, and a choice of them gathers. Otherwise they can only have groups that lose nothing, or stay as
      they are
    - `train`: times a training step, the forward and all gradients, and the forward alone beside it; choices are then
      for milliseconds of a step
    - `data`: batches as for `regroup`, all with targets or none. Then each layer is converted alone, refitted, and the
      loss of the model is taken. Without data a layer's risk is the weight that it loses
    - `loss`: a function of outputs and targets, which data must then have; by default the cross-entropy for integer
      targets, else the mean square
    - `repeats`: over how many runs each median is taken
    - `progress`: True shows how far it is, as the command line does; a function is called with what is done, how much
      of it is, and how much there is
    - `budget`: what you will give to `choose`, one of `budget_ms`, `macs` and `params`, such as `{"macs": 2e9}`; one
      that no choice meets is refused at once, except milliseconds, which have to be measured

    Raises `GroupwiseError` where the kernels cannot run or `torch.fx` cannot follow the model, for a model that runs no
    convolution, for layers that do not exist, for models with quantized, complex or float16 convolutions, for data that
    the model does not take, for targets that the loss does not, for a loss without targets, and for a budget that is
    none.

    Examples:
        >>> import torch
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.Conv2d(8, 8, 3))
        >>> [row.groups for row in sweep(net, torch.randn(1, 3, 9, 9), repeats=1).rows if row.layer == "1"]
        [1, 2, 4, 8]
    """
    check_integer("repeats", repeats, 1)
    wanted = None if budget is None else read_budget(budget)
    groups, layers = _listed("groups", groups, "[2, 4]"), _listed("layers", layers, '["layer1.0.conv2"]')
    for value in groups or ():
        check_integer("groups", value, 1)
    workload = Workload(model, inputs, dict(kwargs or {}), train)
    if workload.module is None:
        raise GroupwiseError(f"{workload.title} is a function, whose layers cannot be replaced; give a torch.nn.Module")
    check_model(model)
    check_numbers(model)
    if reason := not_measured({tensor.device.type for tensor in workload.tensors()}):
        raise GroupwiseError(f"groupwise's kernels cannot be measured: {reason}")
    given = None if data is None else batches(data, loss)
    if loss is not None and (given is None or given[0].targets is None):
        has = "there is no data" if given is None else "data has no targets"
        raise GroupwiseError(f"loss takes outputs and targets, and {has}; give data as pairs (inputs, targets)")
    judge = _Judge(model, given, loss, seed) if given else None
    calls = _recorded(workload)
    if not calls:
        raise GroupwiseError(f"{workload.title} runs no convolution, so it has no groups to choose")
    work: dict[str, int] = {}
    for call in calls:
        work[call.name] = work.get(call.name, 0) + call.cost.macs.forward
    if layers is not None:
        check_layers(model, layers)
    names = [name for name in work if layers is None or name in layers]
    candidates, refused, free = _candidates(model, names, work, groups, gather)
    if wanted is not None:
        check_reachable(*wanted, calls, candidates)
    if given and any(
        lossless(model.get_submodule(name), value) is None for name in candidates for value in candidates[name]
    ):
        check_estimable(model, given)
    gathering = {name for name, one in free.items() if one.refused}
    with shown_parts(progress) as tell:
        times = layer_times(workload, candidates, repeats, gathering, partial(tell, "timing"))
        rows = list(_rows(model, times, free, judge, seed, partial(tell, "converting")))
    rows += [SweepRow(name, None, refused=reason) for name, reason in refused.items() if reason]
    return Sweep(
        title=workload.title,
        rows=tuple(rows),
        model_ms=times.model_ms,
        macs=times.macs,
        parameters=times.parameters,
        train=train,
        risk=judge.losses.name if judge else WEIGHT_LOST,
        loss=judge.loss if judge and judge.losses.with_targets else None,
        repeats=repeats,
        machine=machine(),
        interference=times.interference,
        _measure=_Measure(workload, judge, repeats, seed),
    )


def _recorded(workload: Workload) -> list[record.ConvCall]:
    """Returns the convolutions of one run. Raises `GroupwiseError` where named inputs were given as one dict."""
    try:
        with dispatching(True):
            return record.run(workload).calls
    except Exception as error:  # The model's own code raises anything.
        if len(workload.inputs) != 1 or not isinstance(workload.inputs[0], Mapping):
            raise
        names = name_some([repr(name) for name in workload.inputs[0]], _NAMES)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise GroupwiseError(
            f"{workload.title} does not take a dict ({names}) as its input: {reason}; named inputs belong in kwargs, "
            "as in sweep(model, kwargs={...})"
        ) from error


# A message lists so many names of inputs.
_NAMES = 6
# Values that kernels like, and that are tried by default.
_VALUES = (1, 2, 4, 8, 16, 32)


def _listed(name: str, given: Any, such: str) -> tuple[Any, ...] | None:
    """Returns what an argument lists. Raises `GroupwiseError` for a single value."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise GroupwiseError(f"{name}={given!r} is a {type(given).__name__}; give a list, such as {name}={such}")
    return tuple(given)


class _Judge:
    """Converts layers and takes the loss of the model with them."""

    def __init__(self, model: nn.Module, data: Sequence[Batch], loss: Loss | None, seed: int) -> None:
        self._model, self._seed = model, seed
        self._data = data
        self.losses = Losses(model, data, loss)
        self.loss, _ = self.losses.of(model)

    def converted(self, groups: Mapping[str, int] | Grouping, gather: bool = False) -> nn.Module:
        """Returns the model with these groups, refitted on the data."""
        return regroup(self._model, groups, data=self._data, gather=gather, seed=self._seed).model

    def of(self, groups: Mapping[str, int], gather: bool) -> tuple[float, float]:
        """Returns by how much the loss rises, and the error of the outputs."""
        return self.of_model(self.converted(groups, gather))

    def of_model(self, model: nn.Module) -> tuple[float, float]:
        """Returns by how much the loss of a converted model is above that of the model, and its outputs' error."""
        loss, error = self.losses.of(model)
        return loss - self.loss, error


def _candidates(
    model: nn.Module, names: Sequence[str], work: Mapping[str, int], groups: Sequence[int] | None, gather: bool
) -> tuple[dict[str, list[int]], dict[str, str], dict[str, Freedom]]:
    """Returns the groups values to try of each layer, why others have none, and what the order of channels can be.

    Whatever is chosen of them, `regroup` can convert it.
    """
    read = readers(model)
    refused = {name: reason for name, reason in convertible(model, names).items() if reason}
    layers: dict[str, Any] = {name: model.get_submodule(name) for name in names if name not in refused}
    # The layers of most work come first: where two exclude each other, the first one becomes grouped.
    by_work = sorted(layers, key=lambda name: -work[name])
    lossy = [name for name in by_work if layers[name].groups < min(layers[name].in_channels, layers[name].out_channels)]
    known = {value for it in layers.values() for value in valid_groups(it.in_channels, it.out_channels)}
    if groups and layers and known.isdisjoint(groups):
        raise GroupwiseError(
            f"groups={list(groups)}: none of them divides the channels of a layer; values that divide those of one: "
            f"{list_some(sorted(known - {1})) or 'none above 1'}"
        )
    values, exact = {}, {}
    for name, layer in layers.items():
        valid = valid_groups(layer.in_channels, layer.out_channels)
        values[name] = {value for value in groups or _VALUES if value in valid} - {layer.groups}
        exact[name] = {value for value in values[name] if lossless(layer, value) is not None}
    # What can have groups without a loss has them before any order is looked for, and the layers beside it keep theirs.
    finer = [name for name, options in exact.items() if any(layers[name].groups % value for value in options)]
    free, _ = freedoms(model, lossy, lossy if gather else (), dense=lossy, grouped=finer)
    found = {}
    for name, layer in layers.items():
        others = values[name]
        if not others:
            refused[name] = (
                f"it has groups={layer.groups}, and no other value to try divides its channels; valid groups: "
                f"{list_some(list(valid_groups(layer.in_channels, layer.out_channels)))}"
            )
            continue
        order = free[name].refused if name in free and not gather else ""
        # Exact conversions compute the same, whatever is around the layer, unless code reads its weight.
        reasons = {value: read.refusal(name, exact=value in exact[name]) for value in others}
        reasons |= {value: reason or order for value, reason in reasons.items() if value not in exact[name]}
        others = {value for value, reason in reasons.items() if not reason}
        if others:
            found[name] = sorted(others | {layer.groups})
        else:
            refused[name] = next(iter(reasons.values()))
    return found, refused, free


def _rows(
    model: nn.Module,
    times: Times,
    free: Mapping[str, Freedom],
    judge: _Judge | None,
    seed: int,
    progress: Callable[[int, int], None],
) -> Iterable[SweepRow]:
    total, done = sum(map(len, times.layers.values())), 0
    for name, options in times.layers.items():
        layer: Any = model.get_submodule(name)
        for value, time in options.items():
            yield _row(name, layer, value, time, free.get(name, Freedom()), judge, seed)
            done += 1
            progress(done, total)


def _row(
    name: str, layer: Any, groups: int, time: LayerTime, free: Freedom, judge: _Judge | None, seed: int
) -> SweepRow:
    current = groups == layer.groups
    costs = time.costs
    kept, bound, fixed = 1.0, 1.0, ""
    exact = lossless(layer, groups) is not None
    if not exact:
        fixed = free.fixed
        dense = coarser(layer.weight.detach(), layer.groups, 1)
        assignment = assign(dense, groups, transposed=layer.transposed, fixed=fixed or None, seed=seed)
        kept, bound = assignment.kept, assignment.bound
    risk, error = 1 - kept, None
    if judge is not None:
        try:
            risk, error = (0.0, 0.0) if current else judge.of({name: groups}, time.gather_ms is not None)
        except GroupwiseError as refusal:
            # Only the model's own outputs tell that code computes with a tensor of the layer.
            if not exact:
                raise
            return SweepRow(name, groups, refused=str(refusal))
    return SweepRow(
        layer=name,
        groups=groups,
        current=current,
        parameters=costs[0].spec.parameters,
        macs=sum(at.macs.forward for at in costs),
        bytes=sum(at.bytes for at in costs),
        forward_ms=time.forward_ms,
        ms=time.ms,
        kept=kept,
        bound=bound,
        error=error,
        risk=risk,
        gather_ms=time.gather_ms,
        fixed=fixed,
    )


@dataclass(frozen=True)
class _Measure:
    """Makes the networks of choices, and measures their times in turn, and their losses."""

    workload: Workload
    judge: _Judge | None
    repeats: int
    seed: int

    def __call__(self, choices: Sequence[Grouping]) -> list[Grouping]:
        module = self.workload.module
        assert module is not None
        networks = [
            self.judge.converted(choice) if self.judge else regroup(module, choice, seed=self.seed).model
            for choice in choices
        ]
        seconds, interference = whole_times(
            [replace(self.workload, model=network) for network in networks], self.repeats
        )
        found = []
        disturbed = {"interference": interference.to_dict()} if interference.busy else {}
        for choice, network, ms in zip(choices, networks, seconds, strict=True):
            risk = self.judge.of_model(network)[0] if self.judge else None
            facts = {**choice.facts, **disturbed}
            found.append(replace(choice, measured_ms=ms, measured_risk=risk, facts=facts))
        return found
