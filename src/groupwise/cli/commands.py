"""The functions that run the commands."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from groupwise.cli.output import FORMATS, TABLES, emit, format_of, say, write
from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import table
from groupwise.draw.text.comparison import groups_table, groups_values
from groupwise.errors import GroupwiseError, check_integer
from groupwise.explanation import Explanation, explain
from groupwise.spec.arguments import valid_groups
from groupwise.spec.convspec import ConvSpec

if TYPE_CHECKING:
    import torch

# The options that describe a convolution, with their defaults.
CONVOLUTION: dict[str, Any] = {
    "groups": 1,
    "kernel": 3,
    "size": None,
    "stride": 1,
    "padding": 0,
    "dilation": 1,
    "output_padding": 0,
    "dims": None,
    "transposed": False,
    "no_bias": False,
    "batch": 1,
    "dtype": "float32",
}

# Words in the messages of PyTorch and of models that refuse an input for its shape, or that run out of memory.
_OF_SHAPE = re.compile(r"shape|size|\bdim|channel|height|width|memory|overflow", re.IGNORECASE)


def run_explain(options: argparse.Namespace) -> None:
    """Explains one convolution, from numbers or from a layer of a model."""
    # The format comes first, so that a file that cannot be written is refused before any work.
    kind = format_of(options, FORMATS)
    emit(_explanation(options), kind, options.view, options.output)


def _explanation(options: argparse.Namespace) -> Explanation:
    if len(options.what) == 2 and all(is_integer(word) for word in options.what):
        for name in ("layer", "input_shape"):
            if getattr(options, name):
                raise GroupwiseError(
                    f"--{name.replace('_', '-')} goes with a MODEL; write: groupwise explain MODEL --layer NAME"
                )
        in_channels, out_channels = map(int, options.what)
        return _from_numbers(in_channels, out_channels, options, groups=options.groups)
    if len(options.what) != 1 or is_integer(options.what[0]):
        raise GroupwiseError(
            f"{' '.join(options.what)!r} is neither IN OUT (two integers) nor a MODEL; write: groupwise explain 8 4, "
            "or: groupwise explain resnext50_32x4d --layer layer1.0.conv2"
        )
    return _from_model(options)


def _from_numbers(in_channels: int, out_channels: int, options: argparse.Namespace, groups: Any) -> Explanation:
    return explain(
        in_channels,
        out_channels,
        options.kernel,
        size=options.size,
        batch=options.batch,
        dtype=options.dtype,
        groups=groups,
        stride=options.stride,
        padding=options.padding,
        dilation=options.dilation,
        output_padding=options.output_padding,
        transposed=options.transposed,
        bias=not options.no_bias,
        dims=options.dims,
        ranks=getattr(options, "ranks", None),
        plans=getattr(options, "plans", False),
    )


def _from_model(options: argparse.Namespace) -> Explanation:
    own = [name for name, default in CONVOLUTION.items() if getattr(options, name) != default]
    if own:
        raise GroupwiseError(
            f"--{own[0].replace('_', '-')} goes with IN OUT; a layer of a MODEL has its own, so leave it out"
        )
    from groupwise.cli.targets import input_shape, load_model
    from groupwise.profile.count import count

    model = load_model(options.what[0], say).eval()
    shape = options.input_shape or input_shape(model)
    with _explaining_failure(options, options.what[0], model, shape):
        calls = count(model, _random_input(shape))
    named = {call.name: call for call in calls}
    if options.layer not in named:
        wrong = f"no convolution named {options.layer!r} in" if options.layer else "--layer NAME is needed with"
        raise GroupwiseError(f"{wrong} {options.what[0]}; its convolutions: {', '.join(named) or 'none was seen'}")
    at = named[options.layer].cost
    return explain(
        at.spec, size=at.input_size, batch=at.batch, dtype=at.dtype, name=options.layer, ranks=options.ranks, plans=True
    )


def run_groups(options: argparse.Namespace) -> None:
    """Compares every valid groups value."""
    options.groups = list(valid_groups(options.in_channels, options.out_channels))
    run_compare(options)


def run_compare(options: argparse.Namespace) -> None:
    """Writes one row for each groups value, in the order given."""
    kind = format_of(options, TABLES)
    spec = _from_numbers(options.in_channels, options.out_channels, options, groups=1).spec
    groups = list(dict.fromkeys(options.groups))
    shown = [_from_numbers(options.in_channels, options.out_channels, options, groups=g) for g in groups]
    if kind == "json":
        facts = [explanation.to_dict() for explanation in shown]
        write(json.dumps({"valid_groups": list(spec.valid_groups), "rows": facts}, indent=2), options.output)
        return
    at = shown[0].cost
    if kind != "text":
        write({"csv": table.csv, "markdown": table.markdown}[kind](*groups_values(spec, groups, at)), options.output)
        return
    title = phrases.title(spec).rsplit(", ", 1)[0]
    if at:
        title += f"; {numbers.product(at.input_size)}, batch {at.batch}, {at.dtype}"
    write(f"{title}\n\n{groups_table(spec, groups, at)}", options.output)


def run_plan(options: argparse.Namespace) -> None:
    """Says which kernel computes a convolution, and why the others do not."""
    from groupwise.kernels.plan import plan

    kind = format_of(options, ("text", "json"))
    spec, shape = _layer(options)
    made = plan(
        spec,
        input_shape=shape,
        dtype=options.dtype,
        memory_format=options.memory_format,
        threads=options.threads,
        direction=options.direction,
    )
    write(json.dumps(made.to_dict(), indent=2) if kind == "json" else str(made), options.output)


def run_bench(options: argparse.Namespace) -> None:
    """Times one layer with PyTorch's kernels and with groupwise's."""
    kind = format_of(options, ("text", "json"))
    check_integer("repeats", options.repeats, 1)
    spec, shape = _layer(options)
    from groupwise.profile.bench import bench

    made = bench(spec, input_shape=shape, dtype=options.dtype, threads=options.threads, repeats=options.repeats)
    write(json.dumps(made.to_dict(), indent=2) if kind == "json" else str(made), options.output)


def _layer(options: argparse.Namespace) -> tuple[ConvSpec, tuple[int, ...]]:
    """Returns the convolution and the shape of its input."""
    shown = _from_numbers(options.in_channels, options.out_channels, options, groups=options.groups)
    return shown.spec, (shown.batch, shown.spec.in_channels, *(shown.input_size or ()))


def run_report(options: argparse.Namespace) -> int:
    """Reports on a model: prints the table or JSON, and writes FILE.

    Returns 1 if --check finds that the outputs change by more than rounding, or that there is nothing to compare.
    """
    from groupwise.cli.photo import as_input, read_photo, thumbnail
    from groupwise.cli.targets import input_shape, load_model
    from groupwise.profile.report import report

    # Bad options are refused before the model is built, which may take long.
    kind = format_of(options, ("text", "json", "html"))
    check_integer("repeats", options.repeats, 1)
    photo = None if options.image is None else read_photo(options.image)
    model = load_model(options.target, say)
    model.train(options.backward)
    shape = options.input_shape or input_shape(model)
    with _explaining_failure(options, options.target, model, shape):
        batch = _random_input(shape) if photo is None else as_input(photo, (shape[-2], shape[-1]))
        made = report(
            model,
            batch,
            backward=options.backward,
            repeats=options.repeats,
            title=options.target,
            progress=True,
            ranks=options.ranks,
        )
    facts = json.dumps(made.to_dict(), indent=2)
    print(facts if options.json else made)
    if options.output:
        if kind == "html":
            made.to_html(options.output, None if photo is None else thumbnail(photo))
        else:
            write({"json": facts, "text": str(made)}[kind], options.output)
        say(f"wrote {options.output}")
    if not options.check:
        return 0
    if made.agreement is None:
        say(f"nothing was checked, because groupwise's kernels did not run: {made.not_measured}")
        return 1
    if not made.agreement.within_rounding:
        say("groupwise's kernels change the model's outputs, or a convolution is too far from its float64 result")
        return 1
    return 0


def run_tune(options: argparse.Namespace) -> None:
    """Measures the kernels of a model's convolutions, and prints what they choose."""
    from groupwise.cli.output import told
    from groupwise.cli.targets import input_shape, load_model

    kind = format_of(options, ("text", "json"))
    check_integer("calls", options.calls, 1)
    threads = None if options.threads is None else check_integer("threads", options.threads, 1)
    import torch

    from groupwise.profile.tune import tune

    model = load_model(options.target, say).train(options.train)
    shape = options.input_shape or input_shape(model)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        with _explaining_failure(options, options.target, model, shape), told("measuring", "convolution") as progress:
            made = tune(model, _random_input(shape), train=options.train, calls=options.calls, progress=progress)
    finally:
        torch.set_num_threads(before)
    write(json.dumps(made.to_dict(), indent=2) if kind == "json" else str(made), options.output)


def run_optimize(options: argparse.Namespace) -> None:
    """Optimizes a model, and prints the plan and the times before and after."""
    from groupwise.cli.targets import input_shape, load_model

    kind = format_of(options, ("text", "json"))
    check_integer("repeats", options.repeats, 1)
    threads = None if options.threads is None else check_integer("threads", options.threads, 1)
    import torch

    from groupwise.profile.faster import compare
    from groupwise.rewrite import optimize

    model = load_model(options.target, say).eval()
    shape = options.input_shape or input_shape(model)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads or before)
        with _explaining_failure(options, options.target, model, shape):
            batch = _random_input(shape)
            network = optimize(model, batch, dtype=options.dtype and getattr(torch, options.dtype))
            made = compare(model, network, (batch,), options.repeats)
    finally:
        torch.set_num_threads(before)
    facts = {"plan": network.plan.to_dict(), "comparison": made.to_dict()}
    write(json.dumps(facts, indent=2) if kind == "json" else f"{network.plan}\n\n{made}", options.output)


@contextmanager
def _explaining_failure(
    options: argparse.Namespace, target: str, model: torch.nn.Module, shape: tuple[int, ...]
) -> Iterator[None]:
    """Turns an error about the input's shape into one line. Any other error of the model keeps Python's traceback."""
    try:
        yield
    except GroupwiseError:
        raise
    except OSError as error:
        # `main` shows an OSError in one line, as for a file that it cannot write. This one is the model's.
        raise RuntimeError(f"{target} failed on one input of shape {shape}") from error
    except Exception as error:
        if not (_is_of_shape(error) or _takes_other_arguments(error, model)):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise GroupwiseError(
            f"{target} failed on one input of shape {shape}: {reason}; {_other_input(options)}, or call "
            f"groupwise.{'count' if options.command == 'explain' else options.command} in Python, which takes any "
            "arguments"
        ) from error


def _is_of_shape(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, ValueError, IndexError, AssertionError)) and bool(
        _OF_SHAPE.search(str(error))
    )


def _takes_other_arguments(error: Exception, model: torch.nn.Module) -> bool:
    """Returns whether the model cannot be called with a single tensor."""
    if not isinstance(error, TypeError):
        return False
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError:
        return True
    return False


def _other_input(options: argparse.Namespace) -> str:
    """Returns how to give an input of another shape, by the option that gave this one."""
    if getattr(options, "image", None) is not None:
        return "give --input-shape in place of --image"
    return f"give {'another' if options.input_shape else 'its'} shape with --input-shape"


def _random_input(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def run_serve(options: argparse.Namespace) -> None:
    """Serves the interactive page."""
    from groupwise.web.server import serve

    serve(options.host, options.port, say)


def run_doctor(options: argparse.Namespace) -> int:
    """Says whether the native kernels can run here, and returns 1 if they cannot."""
    from groupwise.kernels.doctor import diagnose

    kind = format_of(options, ("text", "json"))
    found = diagnose()
    write(json.dumps(found.to_dict(), indent=2) if kind == "json" else str(found), options.output)
    return 0 if found.ok else 1


def is_integer(word: str) -> bool:
    """Returns whether Python reads the word as an int."""
    try:
        int(word)
    except ValueError:
        return False
    return True
