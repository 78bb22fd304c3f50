"""The functions that run the commands."""

from __future__ import annotations

import argparse
import json
from typing import Any

from groupwise.cli.output import (
    FORMATS,
    TABLES,
    allowing_fft,
    check_apart,
    check_place,
    deliver,
    emit,
    format_of,
    say,
    write,
)
from groupwise.cli.values import is_integer
from groupwise.draw.base import numbers, phrases
from groupwise.draw.text import table
from groupwise.draw.text.comparison import groups_table, groups_values
from groupwise.errors import GroupwiseError, check_integer
from groupwise.explanation import Explanation, explain
from groupwise.spec.arguments import valid_groups
from groupwise.spec.convspec import ConvSpec
from groupwise.spec.cost import cost

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
    from groupwise.cli.failures import explaining_failure
    from groupwise.cli.models import random_input
    from groupwise.cli.targets import input_shape, load_model
    from groupwise.profile.count import count

    model = load_model(options.what[0], say).eval()
    shape = options.input_shape or input_shape(model)
    with explaining_failure(options, options.what[0], model, shape, lambda: random_input(shape)):
        calls = count(model, random_input(shape))
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
    with allowing_fft(options.fft):
        made = plan(
            spec,
            input_shape=shape,
            dtype=options.dtype,
            memory_format=options.memory_format,
            threads=options.threads,
            direction=options.direction,
        )
    deliver(made, kind, options.output)


def run_bench(options: argparse.Namespace) -> None:
    """Times one layer with PyTorch's kernels and with groupwise's."""
    kind = format_of(options, TABLES)
    check_integer("repeats", options.repeats, 1)
    check_place("--save", options.save)
    check_apart(options, "output", "save", "compare")
    spec, shape = _layer(options)
    import torch

    from groupwise.kernels.processor import processor_name
    from groupwise.profile.bench import bench
    from groupwise.profile.bench_change import check_comparable, read_bench

    before = read_bench(options.compare) if options.compare else None
    if before:
        # What cannot be compared is refused before it is timed.
        at = cost(spec, spec.check_input(shape), batch=shape[0], dtype=options.dtype)
        check_comparable(before, at, options.threads or torch.get_num_threads(), processor_name())
    made = bench(spec, input_shape=shape, dtype=options.dtype, threads=options.threads, repeats=options.repeats)
    if options.save:
        made.save(options.save)
        say(f"wrote {options.save}")
    deliver(made.compare(before) if before else made, kind, options.output)


def _layer(options: argparse.Namespace) -> tuple[ConvSpec, tuple[int, ...]]:
    """Returns the convolution and the shape of its input."""
    shown = _from_numbers(options.in_channels, options.out_channels, options, groups=options.groups)
    return shown.spec, (shown.batch, shown.spec.in_channels, *(shown.input_size or ()))


def run_explore(options: argparse.Namespace) -> None:
    """Opens the interactive page, or writes it to a file."""
    from groupwise.web.explorer import explore, explorer_of

    format_of(options, ("html",))
    page = explorer_of(_explanation(options), options.scene) if options.what else explore(scene=options.scene)
    if options.output:
        page.to_html(options.output)
    else:
        say(f"opened {page.open()}")


def run_doctor(options: argparse.Namespace) -> int:
    """Says whether the native kernels can run here, and returns 1 if they cannot."""
    from groupwise.kernels.doctor import diagnose

    kind = format_of(options, ("text", "json"))
    found = diagnose()
    deliver(found, kind, options.output)
    return 0 if found.ok else 1
