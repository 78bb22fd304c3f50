"""The functions that run the commands about a whole model: `report`, `tune` and `optimize`."""

from __future__ import annotations

import argparse
import json
import pathlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from groupwise.cli.failures import explaining_failure
from groupwise.cli.output import allowing_fft, check_place, deliver, format_of, say, tell_if_busy, write
from groupwise.errors import GroupwiseError, check_integer

if TYPE_CHECKING:
    import torch
    from PIL import Image

# What `report` writes: its tables have a row for each convolution, and its picture shows where the work is.
REPORTS = ("text", "json", "csv", "markdown", "html", "svg")


def run_report(options: argparse.Namespace) -> int:
    """Reports on a model: prints the table or JSON, and writes FILE.

    Returns 1 if --check finds that the outputs change by more than rounding, or that there is nothing to compare.
    """
    from groupwise.cli.photo import thumbnail
    from groupwise.profile.report import report

    # Bad options are refused before the model is built, which may take long.
    kind = format_of(options, REPORTS)
    check_integer("repeats", options.repeats, 1)
    threads = None if options.threads is None else check_integer("threads", options.threads, 1)
    if options.optimize and options.backward:
        raise GroupwiseError("--optimize compares inference; leave out --backward, or run optimize --train")
    photo = _photo(options)
    model, shape, make = model_and_input(options, photo)
    model.train(options.backward)
    with threads_of(threads), explaining_failure(options, options.target, model, shape, make):
        made = report(
            model,
            make(),
            backward=options.backward,
            repeats=options.repeats,
            title=options.target,
            progress=True,
            ranks=options.ranks,
            optimize=options.optimize,
        )
    deliver(made, "json" if options.json else "text", None)
    if options.output:
        if kind == "html" and photo is not None:
            made.to_html(options.output, thumbnail(photo))
        else:
            deliver(made, kind, options.output)
        say(f"wrote {options.output}")
    if not options.check:
        return 0
    if made.optimized is not None and made.optimized.agrees is False:
        say("the optimized network changes the model's outputs by more than rounding")
        return 1
    if made.agreement is None:
        say(f"nothing was checked, because groupwise's kernels did not run: {made.not_measured}")
        return 1
    if not made.agreement.within_rounding:
        say("groupwise's kernels change the model's outputs, or a convolution is too far from its float64 result")
        return 1
    return 0


def run_tune(options: argparse.Namespace) -> None:
    """Measures the kernels of a model's convolutions, and prints what they choose."""
    kind = format_of(options, ("text", "json"))
    check_integer("calls", options.calls, 1)
    threads = None if options.threads is None else check_integer("threads", options.threads, 1)

    from groupwise.profile.tune import tune

    model, shape, make = model_and_input(options)
    model.train(options.train)
    with (
        threads_of(threads),
        explaining_failure(options, options.target, model, shape, make),
        allowing_fft(options.fft),
    ):
        made = tune(model, make(), train=options.train, calls=options.calls, progress=True)
    deliver(made, kind, options.output)


def run_optimize(options: argparse.Namespace) -> None:
    """Optimizes a model, and prints the plan and the times before and after."""
    kind = format_of(options, ("text", "json"))
    check_integer("repeats", options.repeats, 1)
    threads = None if options.threads is None else check_integer("threads", options.threads, 1)
    check_save(options)
    photo = _photo(options)

    import torch

    from groupwise import rewrite
    from groupwise.draw.text import busy, faster
    from groupwise.profile.faster import compare

    model, shape, make = model_and_input(options, photo)
    model.train(options.train)
    wishes: dict[str, Any] = {"tune": options.tune} if options.tune or options.no_tune else {}
    if options.train:
        wishes["train"] = True
    if options.dtype:
        wishes["dtype"] = getattr(torch, options.dtype)
    with threads_of(threads), explaining_failure(options, options.target, model, shape, make):
        batch = make()
        network = rewrite.optimize(model, batch, **wishes)
        if options.save:
            # Training steps, which are timed next, change running statistics.
            save(network, options.save)
        made = compare(model, network, (batch,), options.repeats, train=options.train)
    facts = {"plan": network.plan.to_dict(), "comparison": made.to_dict()}
    if kind == "json" or options.output:
        tell_if_busy(facts["comparison"])
    if kind == "json":
        write(json.dumps(facts, indent=2), options.output)
    else:
        warning = busy.paragraph(facts["comparison"]["interference"])
        shown = f"{network.plan}\n\n{faster.table(facts['comparison'])}"
        write("\n".join([*warning, shown]), options.output)


def model_and_input(
    options: argparse.Namespace, photo: Image.Image | None = None
) -> tuple[torch.nn.Module, tuple[int, ...], Callable[[], torch.Tensor]]:
    """Returns the model, the shape of its input, and what makes its input: the photograph, or random numbers."""
    from groupwise.cli.photo import as_input
    from groupwise.cli.targets import input_shape, load_model, load_weights

    model = load_model(options.target, say)
    if getattr(options, "weights", None):
        load_weights(model, options.weights)
    shape = options.input_shape or input_shape(model)

    def make() -> torch.Tensor:
        return random_input(shape) if photo is None else as_input(photo, (shape[-2], shape[-1]))

    return model, shape, make


def _photo(options: argparse.Namespace) -> Image.Image | None:
    from groupwise.cli.photo import read_photo

    return None if options.image is None else read_photo(options.image)


@contextmanager
def threads_of(number: int | None) -> Iterator[None]:
    """Gives PyTorch so many threads within the block; None leaves them as they are."""
    import torch

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)


def check_save(options: argparse.Namespace) -> None:
    """Refuses a file that cannot be written, or that no other process could read, before any work."""
    check_place("--save", options.save)
    if options.save is None:
        return
    source = options.target.rpartition(":")[0]
    if source.endswith(".py"):
        module = pathlib.Path(source).stem
        raise GroupwiseError(
            f"--save: torch.load could not import the classes of {source}; put the file where Python finds it, and "
            f"give {module}:{options.target.rpartition(':')[2]}; Python finds it from its own folder"
        )


def save(network: torch.nn.Module, file: str) -> None:
    """Writes a network for `torch.load`, at once or not at all."""
    import pickle

    import torch

    path = pathlib.Path(file)
    partial = path.with_name(f"{path.name}.partial")
    try:
        torch.save(network, partial)
        partial.replace(path)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise GroupwiseError(
            f"--save: the network cannot be pickled: {reason}; a class or function of the model must have a name in "
            "its module"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    say(f"wrote {file}; read it with torch.load({file!r}, weights_only=False)")


def random_input(shape: tuple[int, ...]) -> torch.Tensor:
    """Returns the same random numbers in every process."""
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))
