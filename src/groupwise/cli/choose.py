"""The functions that run the commands about other groups of a model: `sweep`, `choose` and `regroup`."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from groupwise.cli.failures import explaining_failure
from groupwise.cli.models import check_save, model_and_input, save, threads_of
from groupwise.cli.output import TABLES, check_apart, deliver, format_of, say
from groupwise.errors import GroupwiseError, check_integer
from groupwise.spec.legible import legible

if TYPE_CHECKING:
    import torch

    from groupwise.choose.measure.sweep import Sweep

SWEEPS = ("text", "json", "csv", "markdown", "svg", "html")


def run_sweep(options: argparse.Namespace) -> None:
    """Measures every groups value of every layer of a model, and prints the table."""
    kind = format_of(options, SWEEPS)
    with _swept(options) as (made, _):
        _deliver(made, kind, options.output)


def run_choose(options: argparse.Namespace) -> None:
    """Chooses groups within a budget, and prints or writes the choice."""
    kind = format_of(options, TABLES)
    budgets = {"budget_ms": options.budget_ms, "macs": options.macs, "params": options.parameters}
    given = {name: value for name, value in budgets.items() if value is not None}
    if len(given) != 1:
        raise GroupwiseError("give one budget: --budget-ms, --macs or --parameters")
    with _swept(options, given) as (made, _):
        chosen = made.choose(**given)
        _deliver(chosen, kind, options.output)
        if options.output:
            say(chosen.summary())


def run_regroup(options: argparse.Namespace) -> None:
    """Converts a model to the groups of a choice, prints what became of each layer, and saves the model."""
    kind = format_of(options, TABLES)
    from groupwise.choose.convert.regroup import regroup
    from groupwise.choose.measure.choice import read_choice

    groups = read_choice(options.choice)
    check_apart(options, "save", "choice", "output", "weights", "data")
    check_apart(options, "output", "choice", "weights", "data")
    check_save(options)
    model, shape, make = model_and_input(options)
    _tell_of_random(options)
    data = read_data(options.data)
    with explaining_failure(options, options.target, model, shape, make):
        made = regroup(
            model.eval(),
            groups,
            form=options.form,
            data=data,
            gather=options.gather,
            seed=options.seed,
            progress=True,
        )
        if options.save:
            save(made.model, options.save)
    deliver(made, kind, options.output)


def _deliver(made: Any, kind: str, output: str | None) -> None:
    deliver(made, kind, output)
    if output:
        say(f"wrote {output}")


@contextmanager
def _swept(
    options: argparse.Namespace, budget: Mapping[str, float] | None = None
) -> Iterator[tuple[Sweep, torch.nn.Module]]:
    """Yields the sweep that the options ask for; what is measured next fails as the sweep does."""
    check_integer("repeats", options.repeats, 1)
    threads = None if options.threads is None else check_integer("threads", options.threads, 1)
    from groupwise.choose.measure.run import sweep

    check_apart(options, "output", "weights", "data")
    model, shape, make = model_and_input(options)
    _tell_of_random(options)
    model.train(options.train)
    data = read_data(options.data)
    with ExitStack() as stack:
        stack.enter_context(threads_of(threads))
        stack.enter_context(explaining_failure(options, options.target, model, shape, make))
        made = sweep(
            model,
            make(),
            groups=options.groups,
            layers=options.layer,
            gather=options.gather,
            train=options.train,
            data=data,
            repeats=options.repeats,
            seed=options.seed,
            progress=True,
            budget=budget,
        )
        yield made, model


def _tell_of_random(options: argparse.Namespace) -> None:
    """Says so where the weights are random: how much of them a layer keeps tells nothing then."""
    from groupwise.cli.targets import is_random

    if is_random(options.target) and options.weights is None:
        say(
            f"the weights of {options.target} are random, so what a layer keeps or loses is not that of a trained "
            "network; give --weights FILE, its state_dict"
        )


def read_data(file: str | None) -> list[Any] | None:
    """Reads batches that `torch.save` wrote: one of those that `regroup` takes, or a list of them.

    A tuple is one batch, as a tensor or a dict is, and a list is always one of batches. Raises `GroupwiseError` for a
    file that cannot be read, or holds anything else.
    """
    if file is None:
        return None
    import torch

    from groupwise.cli.targets import read_tensors

    fix = (
        "save by torch.save: a tensor of inputs, a dict of keyword inputs, a pair (inputs, targets) whose inputs are "
        "either, or a list of such batches; a list is always one of batches, so save one pair as a tuple"
    )
    found = read_tensors("--data", file, fix)
    if isinstance(found, (torch.Tensor, dict)) or (isinstance(found, tuple) and len(found) in (1, 2)):
        found = [found]
    if not isinstance(found, list) or not found:
        raise GroupwiseError(f"--data {legible(file)} holds a {type(found).__name__}; {fix}")
    if len(found) == 2 and all(isinstance(one, torch.Tensor) for one in found):
        say(
            f"--data {legible(file)} holds a list of two tensors, which are two batches of inputs; one pair is a "
            "tuple: (inputs, targets)"
        )
    return found
