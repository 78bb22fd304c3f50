"""The command `groupwise`. Torch is imported only where a model is needed."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import groupwise
from groupwise.arguments import valid_groups
from groupwise.costs import DTYPE_BYTES, cost
from groupwise.draw import text
from groupwise.errors import GroupwiseError
from groupwise.explanation import VIEWS, Explanation, explain

if TYPE_CHECKING:
    import torch

FORMATS = ("text", "json", "svg", "png", "html")
_TARGET = (
    "one of ours (alexnet, resnext50_32x4d, ...), torchvision:NAME, timm:NAME, package.module:attribute or "
    "file.py:Name (which runs that file's code)"
)
# Options that describe a convolution, and their defaults.
_CONVOLUTION: dict[str, Any] = {
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status is 0, 2 for a bad request (reason on stderr), or 130 if interrupted."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what Python still flushes at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (GroupwiseError, OSError) as error:
        print(f"groupwise {options.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _explain(options: argparse.Namespace) -> None:
    _emit(_explanation(options), options)


def _explanation(options: argparse.Namespace) -> Explanation:
    if len(options.what) == 2 and all(_is_integer(word) for word in options.what):
        if options.layer:
            raise GroupwiseError("--layer goes with a MODEL, as in: groupwise explain resnext50_32x4d --layer NAME")
        in_channels, out_channels = map(int, options.what)
        return _from_numbers(in_channels, out_channels, options, groups=options.groups)
    if len(options.what) != 1 or _is_integer(options.what[0]):
        raise GroupwiseError(
            f"{' '.join(options.what)!r} is neither IN OUT (two channel counts) nor MODEL with --layer NAME"
        )
    return _from_model(options)


def _from_numbers(in_channels: int, out_channels: int, options: argparse.Namespace, groups: int) -> Explanation:
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
    )


def _from_model(options: argparse.Namespace) -> Explanation:
    own = [name for name, default in _CONVOLUTION.items() if getattr(options, name) != default]
    if own:
        raise GroupwiseError(f"--{own[0].replace('_', '-')} goes with IN OUT; a layer of a MODEL has its own")
    from groupwise.counting import count
    from groupwise.targets import input_shape, load_model

    model = load_model(options.what[0], _say).eval()
    calls = count(model, _random_input(options.input or input_shape(model)))
    named = {call.name: call for call in calls}
    if options.layer not in named:
        wrong = f"no convolution named {options.layer!r} in" if options.layer else "--layer NAME is needed with"
        raise GroupwiseError(f"{wrong} {options.what[0]}; its convolutions: {', '.join(named)}")
    at = named[options.layer].cost
    return explain(at.spec, size=at.input_size, batch=at.batch, dtype=at.dtype, name=options.layer)


def _groups(options: argparse.Namespace) -> None:
    options.groups = list(valid_groups(options.in_channels, options.out_channels))
    _compare(options)


def _compare(options: argparse.Namespace) -> None:
    spec = _from_numbers(options.in_channels, options.out_channels, options, groups=1).spec
    shown = [_from_numbers(options.in_channels, options.out_channels, options, groups=g) for g in options.groups]
    at = None if options.size is None else cost(spec, options.size, options.batch, options.dtype)
    if options.format == "json":
        facts = [explanation.to_dict() for explanation in shown]
        _write(json.dumps({"valid_groups": list(spec.valid_groups), "rows": facts}, indent=2), options.output)
        return
    title = text.heading(spec).split("\n")[0].rsplit(", ", 1)[0]
    if at:
        title += f", {'×'.join(map(str, at.input_size))}, batch {at.batch}, {at.dtype}"
    _write(f"{title}\n\n{text.groups_table(spec, options.groups, at, most=len(options.groups))}", options.output)


def _report(options: argparse.Namespace) -> None:
    from groupwise.photo import as_input, read_photo, thumbnail
    from groupwise.reporting import report
    from groupwise.targets import input_shape, load_model

    # What can be refused is refused before the model is built.
    if options.output and _format_of(options.output) != "html":
        raise GroupwiseError(f"-o {options.output}: the report is written as HTML; name a file that ends in .html")
    photo = None if options.image is None else read_photo(options.image)
    model = load_model(options.target, _say)
    model.train(options.backward)
    shape = options.input or input_shape(model)
    made = report(
        model,
        _random_input(shape) if photo is None else as_input(photo, (shape[-2], shape[-1])),
        backward=options.backward,
        repeats=options.repeats,
        title=options.target,
        progress=True,
    )
    if options.output:
        made.to_html(options.output, None if photo is None else thumbnail(photo))
    print(json.dumps(made.to_dict(), indent=2) if options.json else made)
    if options.output:
        _say(f"wrote {options.output}")


def _random_input(shape: tuple[int, ...]) -> torch.Tensor:
    import torch

    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _serve(options: argparse.Namespace) -> None:
    from groupwise.web.server import serve

    _say(f"open http://{options.host}:{options.port} in a browser; stop with Ctrl-C")
    serve(options.host, options.port)


def _emit(explanation: Explanation, options: argparse.Namespace) -> None:
    kind = options.format or _format_of(options.output)
    if kind == "png":
        _emit_png(explanation, options)
    elif kind == "json":
        _write(json.dumps(explanation.to_dict(), indent=2), options.output)
    elif kind == "svg":
        _write(explanation.to_svg(options.view), options.output)
    elif kind == "html":
        _write(explanation.to_html(view=options.view), options.output)
    else:
        _write(explanation.to_text(options.view), options.output)


def _emit_png(explanation: Explanation, options: argparse.Namespace) -> None:
    from groupwise.draw.png import png_bytes

    if options.output:
        explanation.to_png(options.output, options.view)
    elif sys.stdout.isatty():
        raise GroupwiseError("a PNG is not for the terminal; name a file with -o FILE.png or redirect")
    else:
        sys.stdout.buffer.write(png_bytes(explanation.to_svg(options.view)))


def _format_of(output: str | None) -> str:
    if output is None:
        return "text"
    suffix = pathlib.Path(output).suffix.lower().lstrip(".")
    known = {"txt": "text", "htm": "html", **{name: name for name in FORMATS}}
    if suffix not in known:
        raise GroupwiseError(
            f"-o {output}: no format ends in {suffix!r}; use one of {', '.join(FORMATS)} (or --format)"
        )
    return known[suffix]


def _write(document: str, output: str | None) -> None:
    document = document.rstrip("\n") + "\n"
    if output is None:
        sys.stdout.write(document)
    else:
        pathlib.Path(output).write_text(document, encoding="utf-8")


def _say(message: str) -> None:
    print(f"groupwise: {message}", file=sys.stderr)


def _is_integer(word: str) -> bool:
    return word.lstrip("+-").isdigit()


def _extent(word: str) -> int | tuple[int, ...]:
    values = _integers(word.replace("x", ",").replace("×", ","))
    return values[0] if len(values) == 1 else values


def _padding(word: str) -> int | tuple[int, ...] | str:
    return word if word in ("same", "valid") else _extent(word)


def _integers(word: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in word.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number or numbers such as 3, 3x5 or 3,5") from None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and how to get help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="groupwise", description="See what the groups of a convolution connect and cost.")
    parser.add_argument("--version", action="version", version=f"groupwise {groupwise.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = commands.add_parser("explain", help="one convolution: its paths, shapes and cost")
    one.add_argument("what", nargs="+", metavar="IN OUT | MODEL", help=f"two channel counts, or a model: {_TARGET}")
    one.add_argument("--layer", metavar="NAME", help="the layer of MODEL, such as layer1.0.conv2")
    one.add_argument("--input", type=_integers, metavar="1,3,224,224", help="shape of MODEL's input")
    one.add_argument("--groups", "-g", type=int, default=1, help="default 1")
    _add_convolution(one)
    one.add_argument("--view", choices=VIEWS, default="all", help="default all")
    one.add_argument("--format", "-f", choices=FORMATS, help="default text, or what FILE ends in")
    _add_output(one)
    one.set_defaults(run=_explain)

    every = commands.add_parser("groups", help="every valid groups value and what each saves")
    some = commands.add_parser("compare", help="chosen groups values side by side")
    for command, run in ((every, _groups), (some, _compare)):
        command.add_argument("in_channels", type=int, metavar="IN")
        command.add_argument("out_channels", type=int, metavar="OUT")
        _add_convolution(command)
        command.add_argument("--format", "-f", choices=FORMATS[:2], default="text", help="default text")
        _add_output(command)
        command.set_defaults(run=run)
    some.add_argument("--groups", "-g", type=_integers, required=True, metavar="1,2,32")

    whole = commands.add_parser("report", help="every convolution of a model, counted and timed")
    whole.add_argument("target", metavar="TARGET", help=_TARGET)
    source = whole.add_mutually_exclusive_group()
    source.add_argument("--input", type=_integers, metavar="1,3,224,224", help="shape of a random input")
    source.add_argument("--image", metavar="FILE", help="a photograph as the input")
    whole.add_argument("--backward", action="store_true", help="the gradients too, in training mode")
    whole.add_argument("--repeats", type=int, default=10, help="runs that the median is of; default 10")
    whole.add_argument("--json", action="store_true", help="print JSON instead of the table")
    _add_output(whole)
    whole.set_defaults(run=_report)

    page = commands.add_parser("serve", help="an interactive page, with a slider for groups")
    page.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    page.add_argument("--port", type=int, default=8000, help="default 8000")
    page.set_defaults(run=_serve)
    return parser


def _add_convolution(command: argparse.ArgumentParser) -> None:
    command.add_argument("--kernel", "--kernel-size", "-k", type=_extent, help="3 (default), 3x5 or 3,5")
    command.add_argument("--size", type=_extent, metavar="56", help="input size, for MACs and bytes: 56 or 56x48")
    command.add_argument("--stride", type=_extent)
    command.add_argument("--padding", type=_padding, help="a number, same or valid")
    command.add_argument("--dilation", type=_extent)
    command.add_argument("--output-padding", type=_extent)
    command.add_argument("--dims", type=int, choices=(1, 2, 3), help="default 2")
    command.add_argument("--transposed", action="store_true", help="a transposed convolution")
    command.add_argument("--no-bias", action="store_true")
    command.add_argument("--batch", type=int, help="default 1")
    command.add_argument("--dtype", choices=DTYPE_BYTES, metavar="DTYPE", help="default float32")
    command.set_defaults(**_CONVOLUTION)


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", "-o", metavar="FILE", help="write to FILE")


if __name__ == "__main__":
    sys.exit(main())
