"""What each command does with its options."""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from groupwise.cli.output import FORMATS, emit, format_of, say, write
from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import layer as text
from groupwise.errors import GroupwiseError, check_integer
from groupwise.explanation import Explanation, explain
from groupwise.spec.arguments import valid_groups
from groupwise.spec.convspec import ConvSpec

if TYPE_CHECKING:
    import torch

# Options that describe a convolution, and their defaults.
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

# What the messages of torch and of models speak of where an input has the wrong shape, or is too large for the memory.
_OF_SHAPE = re.compile(r"shape|size|\bdim|channel|height|width|memory|overflow", re.IGNORECASE)


def run_explain(options: argparse.Namespace) -> None:
    """Explain one convolution, from numbers or from a model's layer."""
    # The format first: a file that cannot be written is refused before any work.
    kind = format_of(options, FORMATS)
    emit(_explanation(options), kind, options.view, options.output)


def _explanation(options: argparse.Namespace) -> Explanation:
    if len(options.what) == 2 and all(is_integer(word) for word in options.what):
        for name in ("layer", "input"):
            if getattr(options, name):
                raise GroupwiseError(
                    f"--{name} goes with a MODEL, as in: groupwise explain resnext50_32x4d --layer NAME"
                )
        in_channels, out_channels = map(int, options.what)
        return _from_numbers(in_channels, out_channels, options, groups=options.groups)
    if len(options.what) != 1 or is_integer(options.what[0]):
        raise GroupwiseError(f"{' '.join(options.what)!r} is neither IN OUT (two integers) nor MODEL with --layer NAME")
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
        raise GroupwiseError(f"--{own[0].replace('_', '-')} goes with IN OUT; a layer of a MODEL has its own")
    from groupwise.cli.targets import input_shape, load_model
    from groupwise.profile.count import count

    model = load_model(options.what[0], say).eval()
    shape = options.input or input_shape(model)
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
    """Compare every valid groups value."""
    options.groups = list(valid_groups(options.in_channels, options.out_channels))
    run_compare(options)


def run_compare(options: argparse.Namespace) -> None:
    """One line, or one JSON object, for each groups value asked for."""
    kind = format_of(options, ("text", "json"))
    spec = _from_numbers(options.in_channels, options.out_channels, options, groups=1).spec
    groups = list(dict.fromkeys(options.groups))
    shown = [_from_numbers(options.in_channels, options.out_channels, options, groups=g) for g in groups]
    if kind == "json":
        facts = [explanation.to_dict() for explanation in shown]
        write(json.dumps({"valid_groups": list(spec.valid_groups), "rows": facts}, indent=2), options.output)
        return
    at = shown[0].cost
    title = phrases.title(spec).rsplit(", ", 1)[0]
    if at:
        title += f"; {numbers.product(at.input_size)}, batch {at.batch}, {at.dtype}"
    write(f"{title}\n\n{text.groups_table(spec, groups, at)}", options.output)


def run_plan(options: argparse.Namespace) -> None:
    """Say which kernel computes a convolution, and why not the others."""
    from groupwise.kernels.plan import plan

    kind = format_of(options, ("text", "json"))
    spec, shape = _layer(options)
    made = plan(spec, shape, options.dtype, options.memory_format, options.threads, options.direction)
    write(json.dumps(made.to_dict(), indent=2) if kind == "json" else str(made), options.output)


def run_bench(options: argparse.Namespace) -> None:
    """Time one layer by PyTorch's kernels and by groupwise's."""
    kind = format_of(options, ("text", "json"))
    check_integer("repeats", options.repeats, 1)
    spec, shape = _layer(options)
    from groupwise.profile.bench import bench

    made = bench(spec, shape, options.dtype, options.threads, options.repeats)
    write(json.dumps(made.to_dict(), indent=2) if kind == "json" else str(made), options.output)


def _layer(options: argparse.Namespace) -> tuple[ConvSpec, tuple[int, ...]]:
    """The convolution, and the shape of its input."""
    shown = _from_numbers(options.in_channels, options.out_channels, options, groups=options.groups)
    return shown.spec, (shown.batch, shown.spec.in_channels, *(shown.input_size or ()))


def run_report(options: argparse.Namespace) -> int:
    """Report on a model: the table or JSON on stdout, and FILE.

    The exit status is 1 if --check finds that the outputs change by more than rounding, or has nothing to compare.
    """
    from groupwise.cli.photo import as_input, read_photo, thumbnail
    from groupwise.cli.targets import input_shape, load_model
    from groupwise.profile.report import report

    # What can be refused is refused before the model is built.
    kind = format_of(options, ("text", "json", "html"))
    check_integer("repeats", options.repeats, 1)
    photo = None if options.image is None else read_photo(options.image)
    model = load_model(options.target, say)
    model.train(options.backward)
    shape = options.input or input_shape(model)
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
        say(f"nothing was checked, as there are no outputs of groupwise's kernels: {made.not_measured}")
        return 1
    if not made.agreement.within_rounding:
        say("the outputs with groupwise's kernels are not those without, or a convolution is too far from float64")
        return 1
    return 0


@contextmanager
def _explaining_failure(
    options: argparse.Namespace, target: str, model: torch.nn.Module, shape: tuple[int, ...]
) -> Iterator[None]:
    """One line for an input that the model cannot take. What else its code raises keeps Python's traceback."""
    try:
        yield
    except GroupwiseError:
        raise
    except OSError as error:
        # An OSError of the command line's own, such as a file that cannot be written, is one line.
        raise RuntimeError(f"{target} failed on one input of shape {shape}") from error
    except Exception as error:
        if not (_is_of_shape(error) or _takes_other_arguments(error, model)):
            raise
        reason = str(error).strip().split("\n")[0].rstrip(".") or type(error).__name__
        raise GroupwiseError(
            f"{target} failed on one input of shape {shape}: {reason}; {_other_input(options)}, or call "
            f"groupwise.{'count' if options.command == 'explain' else 'report'} from Python for other arguments"
        ) from error


def _is_of_shape(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, (RuntimeError, ValueError, IndexError, AssertionError)) and bool(
        _OF_SHAPE.search(str(error))
    )


def _takes_other_arguments(error: Exception, model: torch.nn.Module) -> bool:
    """Whether one tensor is not what the model is called with."""
    if not isinstance(error, TypeError):
        return False
    try:
        inspect.signature(model.forward).bind(None)
    except TypeError:
        return True
    return False


def _other_input(options: argparse.Namespace) -> str:
    """How to have an input of another shape, by how this one was asked for."""
    if getattr(options, "image", None) is not None:
        return "give --input with another shape in place of --image"
    return f"give {'another' if options.input else 'its'} shape with --input"


def _random_input(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def run_serve(options: argparse.Namespace) -> None:
    """Serve the interactive page."""
    from groupwise.web.server import serve

    serve(options.host, options.port, say)


def run_doctor(options: argparse.Namespace) -> int:
    """Say whether the native kernels can run here; the exit status is 1 if they cannot."""
    from groupwise.kernels.doctor import diagnose

    kind = format_of(options, ("text", "json"))
    found = diagnose()
    write(json.dumps(found.to_dict(), indent=2) if kind == "json" else str(found), options.output)
    return 0 if found.ok else 1


def is_integer(word: str) -> bool:
    """Whether Python reads the word as an int."""
    try:
        int(word)
    except ValueError:
        return False
    return True
