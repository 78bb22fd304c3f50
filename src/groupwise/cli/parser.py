"""The command line's words: options, their values, the help."""

from __future__ import annotations

import argparse
from typing import NoReturn

import groupwise
from groupwise.cli import commands
from groupwise.cli.output import FORMATS
from groupwise.explanation import VIEWS
from groupwise.spec.cost import DTYPE_BYTES

TARGET = (
    "one of ours (alexnet, resnext50_32x4d, ...), torchvision:NAME, timm:NAME, package.module:attribute or "
    "file.py:Name (which runs that file's code)"
)


def _groups_value(word: str) -> int | str:
    """The number, or the word as it is for `ConvSpec` to refuse together with the valid values."""
    return int(word) if commands.is_integer(word) else word


def _groups_values(word: str) -> list[int | str]:
    return [_groups_value(part) for part in word.split(",")]


def _extent(word: str) -> int | tuple[int, ...]:
    values = _integers(word, "a number or numbers such as 3, 3x5 or 3,5")
    return values[0] if len(values) == 1 else values


def _padding(word: str) -> int | tuple[int, ...] | str:
    if word in ("same", "valid"):
        return word
    values = _integers(word, "same, valid, a number or numbers such as 1, 1x2 or 1,2")
    return values[0] if len(values) == 1 else values


def _shape(word: str) -> tuple[int, ...]:
    values = _integers(word, "a shape such as 1,3,224,224")
    if min(values) < 1 or len(values) < 2:
        raise argparse.ArgumentTypeError(f"{word!r} is not a shape of positive numbers such as 1,3,224,224")
    return values


def _integers(word: str, wanted: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in word.replace("x", ",").replace("×", ",").split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not {wanted}") from None


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and how to get help."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """The whole command line; each command leaves the function that runs it in `run`."""
    root = _Parser(prog="groupwise", description="See what the groups of a convolution connect and cost.")
    root.add_argument("--version", action="version", version=f"groupwise {groupwise.__version__}")
    kinds = root.add_subparsers(dest="command", required=True, metavar="COMMAND")

    one = kinds.add_parser(
        "explain",
        help="one convolution: its paths, shapes and cost",
        usage="groupwise explain (IN OUT | MODEL --layer NAME) [options]",
    )
    one.add_argument("what", nargs="+", metavar="IN OUT | MODEL", help=f"two channel counts, or a model: {TARGET}")
    one.add_argument("--layer", metavar="NAME", help="the layer of MODEL, such as layer1.0.conv2")
    one.add_argument("--input", type=_shape, metavar="1,3,224,224", help="shape of MODEL's input")
    _add_convolution(one)
    one.add_argument("--groups", "-g", type=_groups_value, default=1, help="default 1")
    one.add_argument("--ranks", type=int, metavar="N", help="split over N devices: who holds what, what crosses")
    one.add_argument("--view", choices=VIEWS, default="all", help="default all")
    one.add_argument(
        "--plans", action="store_true", help="with --size, what would run for it too; MODEL's layer has it"
    )
    one.add_argument("--format", "-f", choices=FORMATS, help="default text, or what FILE ends in")
    _add_output(one)
    one.set_defaults(run=commands.run_explain)

    every = kinds.add_parser("groups", help="every valid groups value and what each saves")
    some = kinds.add_parser("compare", help="chosen groups values side by side")
    for command, run in ((every, commands.run_groups), (some, commands.run_compare)):
        _add_numbers(command)
        command.set_defaults(run=run)
    some.add_argument("--groups", "-g", type=_groups_values, required=True, metavar="1,2,32")

    planned = kinds.add_parser("plan", help="the kernel that computes a convolution, its tile, and why not the others")
    timed = kinds.add_parser("bench", help="one layer timed, by PyTorch's kernels and by groupwise's")
    for command, run in ((planned, commands.run_plan), (timed, commands.run_bench)):
        _add_numbers(command, size_required=True)
        command.add_argument("--groups", "-g", type=_groups_value, default=1, help="default 1")
        command.add_argument("--threads", type=int, help="default: those of torch")
        command.set_defaults(run=run)
    # What these two may be is the planner's to say: its module takes longer to load than an explanation.
    planned.add_argument("--memory-format", default="contiguous", help="contiguous (default) or channels_last")
    planned.add_argument("--direction", default="forward", help="forward (default), grad_input or grad_weight")
    timed.add_argument("--repeats", type=int, default=20, help="samples that the medians are of; default 20")

    whole = kinds.add_parser("report", help="every convolution of a model, counted and timed")
    whole.add_argument("target", metavar="TARGET", help=TARGET)
    source = whole.add_mutually_exclusive_group()
    source.add_argument("--input", type=_shape, metavar="1,3,224,224", help="shape of a random input")
    source.add_argument("--image", metavar="FILE", help="a photograph as the input")
    whole.add_argument("--backward", action="store_true", help="the gradients too, in training mode")
    whole.add_argument("--repeats", type=int, default=10, help="runs that the median is of; default 10")
    whole.add_argument("--ranks", type=int, metavar="N", help="split over N devices: who holds what, what crosses")
    whole.add_argument("--json", action="store_true", help="print JSON instead of the table")
    whole.add_argument(
        "--check",
        action="store_true",
        help="end with status 1 if groupwise's kernels change the outputs, or cannot run",
    )
    _add_output(whole)
    whole.set_defaults(run=commands.run_report)

    page = kinds.add_parser("serve", help="an interactive page, with a slider for groups")
    page.add_argument("--host", default="127.0.0.1", help="default 127.0.0.1: this machine only")
    page.add_argument("--port", type=int, default=8000, help="default 8000")
    page.set_defaults(run=commands.run_serve)

    doctor = kinds.add_parser("doctor", help="whether the native kernels can run here, and what they lack")
    doctor.add_argument("--format", "-f", choices=FORMATS[:2], help="default text, or what FILE ends in")
    _add_output(doctor)
    doctor.set_defaults(run=commands.run_doctor)
    return root


def _add_numbers(command: argparse.ArgumentParser, size_required: bool = False) -> None:
    """What a command takes that is about a convolution given by its numbers alone."""
    command.add_argument("in_channels", type=int, metavar="IN", help="input channels")
    command.add_argument("out_channels", type=int, metavar="OUT", help="output channels")
    _add_convolution(command, size_required)
    command.add_argument("--format", "-f", choices=FORMATS[:2], help="default text, or what FILE ends in")
    _add_output(command)


def _add_convolution(command: argparse.ArgumentParser, size_required: bool = False) -> None:
    command.add_argument("--kernel", "--kernel-size", "-k", type=_extent, help="3 (default), 3x5 or 3,5")
    size = "input size: 56 or 56x48" if size_required else "input size, for MACs and bytes: 56 or 56x48"
    command.add_argument("--size", type=_extent, metavar="56", required=size_required, help=size)
    command.add_argument("--stride", type=_extent, help="default 1")
    command.add_argument("--padding", type=_padding, help="a number, same or valid")
    command.add_argument("--dilation", type=_extent, help="default 1")
    command.add_argument("--output-padding", type=_extent, help="of a transposed convolution; default 0")
    command.add_argument("--dims", type=int, choices=(1, 2, 3), help="default 2")
    command.add_argument("--transposed", action="store_true", help="a transposed convolution")
    command.add_argument("--no-bias", action="store_true", help="a layer without a bias")
    command.add_argument("--batch", type=int, help="default 1")
    command.add_argument("--dtype", choices=DTYPE_BYTES, metavar="DTYPE", help="default float32")
    command.set_defaults(**{name: value for name, value in commands.CONVOLUTION.items() if name != "groups"})


def _add_output(command: argparse.ArgumentParser) -> None:
    command.add_argument("--output", "-o", metavar="FILE", help="write to FILE, in the format that it ends in")
