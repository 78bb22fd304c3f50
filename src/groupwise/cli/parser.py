"""The words of the command line: options, their values and the help."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from groupwise.cli import choose, commands, models, values
from groupwise.cli.about import SHELLS, Completion, Version
from groupwise.cli.output import FORMATS, TABLES, ending_of
from groupwise.explanation import VIEWS
from groupwise.spec.cost import DTYPE_BYTES
from groupwise.web.explorer import SCENES

TARGET = (
    "a network of groupwise (alexnet, resnext50_32x4d, ...), torchvision:NAME, timm:NAME, package.module:attribute, or "
    "file.py:Name, which runs the code in that file"
)
RANKS = "also show the split over N devices: who holds what, and what they send each other"
FFT = "let the planner choose the fft kernel for long 1-D kernels, as enable(fft=True) does"
EXAMPLES = """examples:
  groupwise explain 8 4 --groups 4 --kernel 5 --size 56
  groupwise explain resnext50_32x4d --layer layer1.0.conv2
  groupwise groups 96 64
  groupwise report resnext50_32x4d --image photo.jpg -o report.html
  groupwise optimize resnext50_32x4d                    (--train for a network that trains)

Every command has a --help of its own."""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line: what is wrong, and which help to read.

    It takes no abbreviations of options: one that works today would change its meaning with the next option.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, allow_abbrev=False)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        # argparse lists every command, and leaves it to the reader to find the one that was meant.
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            near = difflib.get_close_matches(str(value), action.choices, n=2, cutoff=0.7)
            meant = f"did you mean {' or '.join(near)}?" if near else f"the commands are: {', '.join(action.choices)}"
            raise argparse.ArgumentError(None, f"no command named {value!r}; {meant}")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the whole command line; each command leaves the function that runs it in `run`."""
    root = _Parser(
        prog="groupwise",
        description="Show what the groups of a convolution connect and cost, which kernel runs, and how fast.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument(
        "--version", action=Version, nargs=0, help="print the versions of groupwise and torch, and the instruction set"
    )
    root.add_argument(
        "--print-completion",
        action=Completion,
        choices=SHELLS,
        metavar="SHELL",
        help=f"print the script that completes groupwise in a shell: {', '.join(SHELLS)}",
    )
    kinds = root.add_subparsers(dest="command", required=True, metavar="COMMAND", title="commands")
    for add in (
        _add_explain,
        _add_comparisons,
        _add_plan_and_bench,
        _add_report,
        _add_tune,
        _add_optimize,
        _add_choose,
        _add_regroup,
        _add_explore,
        _add_doctor,
    ):
        add(kinds)
    return root


def _command(kinds: Any, name: str, help: str, usage: str | None = None) -> argparse.ArgumentParser:
    """Adds a command, whose own help opens with the line that the list of commands has."""
    made: argparse.ArgumentParser = kinds.add_parser(
        name, help=help, description=f"{help[0].upper()}{help[1:]}.", usage=usage
    )
    return made


def _add_explain(kinds: Any) -> None:
    one = _command(
        kinds,
        "explain",
        "explain one convolution: paths, shapes, cost",
        usage="groupwise explain (IN OUT | MODEL --layer NAME) [options]",
    )
    _add_layer(one, nargs="+")
    one.add_argument("--ranks", type=int, metavar="N", help=RANKS)
    one.add_argument("--view", choices=VIEWS, default="all", help="which part to show; default: all")
    one.add_argument(
        "--plans",
        action="store_true",
        help="with --size, also show the kernel of each pass; a layer of MODEL always shows it",
    )
    _add_output(one, FORMATS)
    one.set_defaults(run=commands.run_explain)


def _add_comparisons(kinds: Any) -> None:
    every = _command(kinds, "groups", "compare every valid groups value")
    some = _command(kinds, "compare", "compare the groups values that you choose")
    for command, run in ((every, commands.run_groups), (some, commands.run_compare)):
        _add_channels(command)
        if command is some:
            help = "the values, separated by commas"
            command.add_argument(
                "--groups", "-g", type=values.groups_values, required=True, metavar="1,2,32", help=help
            )
        _add_convolution(command)
        _add_output(command, TABLES)
        command.set_defaults(run=run)


def _add_plan_and_bench(kinds: Any) -> None:
    planned = _command(kinds, "plan", "show which kernel runs a convolution, its tile, and why the others do not")
    timed = _command(kinds, "bench", "time one layer with PyTorch's kernels and with groupwise's")
    for command, run in ((planned, commands.run_plan), (timed, commands.run_bench)):
        _add_channels(command)
        _add_groups(command)
        _add_convolution(command, size_required=True)
        command.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")
        _add_output(command, FORMATS[:2] if command is planned else TABLES)
        command.set_defaults(run=run)
    # The planner checks these two values: its module would take longer to load than an explanation.
    planned.add_argument(
        "--memory-format",
        metavar="FORMAT",
        default="contiguous",
        help="contiguous (default), channels_last (2-D) or channels_last_3d (3-D)",
    )
    planned.add_argument(
        "--direction", default="forward", metavar="PASS", help="forward (default), grad_input or grad_weight"
    )
    planned.add_argument("--fft", action="store_true", help=FFT)
    timed.add_argument(
        "--repeats", type=int, default=20, metavar="N", help="timed runs, of which the median is reported; default: 20"
    )
    timed.add_argument("--save", metavar="FILE", help="also write the run to FILE, an input of --compare")
    timed.add_argument("--compare", metavar="FILE", help="show what changed since the run that --save wrote to FILE")


def _add_report(kinds: Any) -> None:
    whole = _command(kinds, "report", "count and time every convolution of a model")
    whole.add_argument("target", metavar="TARGET", help=TARGET)
    source = whole.add_mutually_exclusive_group()
    source.add_argument(
        "--input-shape", type=values.shape, metavar="1,3,224,224", help="shape of a random input, batch first"
    )
    source.add_argument("--image", metavar="FILE", help="a photograph as the input, center-cropped and resized")
    whole.add_argument("--backward", action="store_true", help="run the gradients too, in training mode")
    whole.add_argument(
        "--repeats", type=int, default=10, metavar="N", help="timed runs, of which the median is reported; default: 10"
    )
    whole.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")
    whole.add_argument("--ranks", type=int, metavar="N", help=RANKS)
    whole.add_argument(
        "--optimize",
        action="store_true",
        help="also make the optimized network, and compare it with the model, whole and layer by layer",
    )
    whole.add_argument("--json", action="store_true", help="print JSON instead of the table")
    whole.add_argument(
        "--check",
        action="store_true",
        help="end with status 1 if groupwise's kernels, or the optimized network, change the outputs, or cannot run",
    )
    _add_file(whole, models.REPORTS)
    whole.set_defaults(run=models.run_report)


def _add_tune(kinds: Any) -> None:
    tuned = _command(
        kinds, "tune", "measure the kernels of a model's convolutions on this machine, and keep the result"
    )
    tuned.add_argument("target", metavar="MODEL", help=TARGET)
    tuned.add_argument(
        "--input-shape", type=values.shape, metavar="1,3,224,224", help="shape of a random input, batch first"
    )
    tuned.add_argument("--train", action="store_true", help="measure the gradients too, in training mode")
    tuned.add_argument(
        "--calls",
        type=int,
        default=20,
        metavar="N",
        help="measure each convolution for about as long as N calls of PyTorch's kernel; default: 20",
    )
    tuned.add_argument("--fft", action="store_true", help=FFT)
    tuned.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")
    _add_output(tuned, FORMATS[:2])
    tuned.set_defaults(run=models.run_tune)


def _add_optimize(kinds: Any) -> None:
    faster = _command(
        kinds, "optimize", "rewrite a network for inference, or training; show each step, and times before and after"
    )
    faster.add_argument("target", metavar="MODEL", help=TARGET)
    source = faster.add_mutually_exclusive_group()
    source.add_argument(
        "--input-shape", type=values.shape, metavar="1,3,224,224", help="shape of a random input, batch first"
    )
    source.add_argument("--image", metavar="FILE", help="a photograph as the input, center-cropped and resized")
    faster.add_argument("--train", action="store_true", help="rewrite it for training, and time training steps")
    faster.add_argument("--dtype", choices=("bfloat16",), help="compute layers in it, with float32 sums")
    tune = faster.add_mutually_exclusive_group()
    tune.add_argument("--tune", action="store_true", help="time every engine and kernel, however long that takes")
    tune.add_argument(
        "--no-tune", action="store_true", help="choose engines without timing them, the same on every run"
    )
    faster.add_argument("--save", metavar="FILE", help="write the optimized network to FILE, for torch.load")
    faster.add_argument(
        "--repeats", type=int, default=10, metavar="N", help="timed runs, of which the median is reported; default: 10"
    )
    faster.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")
    _add_output(faster, FORMATS[:2])
    faster.set_defaults(run=models.run_optimize)


def _add_choose(kinds: Any) -> None:
    swept = _command(kinds, "sweep", "measure what each layer of a model takes and loses at each groups value")
    chosen = _command(kinds, "choose", "choose groups for the layers of a model within a budget")
    for command, run, formats in (
        (swept, choose.run_sweep, choose.SWEEPS),
        (chosen, choose.run_choose, TABLES),
    ):
        command.add_argument("target", metavar="TARGET", help=TARGET)
        command.add_argument(
            "--input-shape", type=values.shape, metavar="1,3,224,224", help="shape of a random input, batch first"
        )
        command.add_argument(
            "--groups", "-g", type=values.counts, metavar="1,2,4", help="the values to try; default: 1,2,4,8,16,32"
        )
        command.add_argument(
            "--layer", action="append", metavar="NAME", help="try this layer; may be given again; default: all"
        )
        command.add_argument("--train", action="store_true", help="time the forward and all gradients")
        _add_gather(command)
        command.add_argument(
            "--repeats", type=int, default=10, metavar="N", help="runs, of which the median is taken; default: 10"
        )
        command.add_argument("--threads", type=int, metavar="N", help="default: torch.get_num_threads()")
        _add_weights(command)
        _add_data(command)
        _add_output(command, formats)
        command.set_defaults(run=run, image=None)
    budget = chosen.add_argument_group("the budget, one of these")
    amount = "such as 2500000, 3M or 2.5G"
    budget.add_argument(
        "--budget-ms", type=values.milliseconds, metavar="MS", help="milliseconds of the whole model, such as 12.5"
    )
    budget.add_argument(
        "--macs", type=values.amount, metavar="N", help=f"multiply-accumulates of its convolutions, {amount}"
    )
    budget.add_argument("--parameters", type=values.amount, metavar="N", help=f"of its convolutions, {amount}")


def _add_regroup(kinds: Any) -> None:
    made = _command(kinds, "regroup", "convert a model to other groups, and say what its layers keep")
    made.add_argument("target", metavar="TARGET", help=TARGET)
    made.add_argument(
        "choice", metavar="CHOICE", help='what choose wrote, or a file with {"layers": {"layer1.0.conv2": 4}}'
    )
    made.add_argument(
        "--input-shape", type=values.shape, metavar="1,3,224,224", help="shape of a random input, batch first"
    )
    made.add_argument("--form", choices=("block", "factored"), default="block", help="default: block")
    _add_gather(made)
    made.add_argument("--save", metavar="FILE", help="write the converted model to FILE, for torch.load")
    _add_weights(made)
    _add_data(made)
    _add_output(made, TABLES)
    made.set_defaults(run=choose.run_regroup, image=None)


def _add_weights(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--weights", metavar="FILE", help="the model's state_dict, written by torch.save; default: random weights"
    )


def _add_gather(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--gather", action="store_true", help="let layers move their channels at each call where nothing else does"
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--data",
        metavar="FILE",
        help="batches written by torch.save: inputs (a tensor, or a dict of keywords), or a tuple (inputs, targets); a "
        "list is one of batches",
    )
    command.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the search for the best order; default: 0"
    )


def _add_explore(kinds: Any) -> None:
    page = _command(
        kinds,
        "explore",
        "open an interactive page about a convolution",
        usage="groupwise explore [IN OUT | MODEL --layer NAME] [options]",
    )
    _add_layer(page, nargs="*")
    page.add_argument("--scene", choices=SCENES, default="wires", help="what it shows first; default: wires")
    page.add_argument("--output", "-o", metavar="FILE", help="write the page to FILE, an .html, and open no browser")
    page.set_defaults(run=commands.run_explore, ranks=None)


def _add_doctor(kinds: Any) -> None:
    doctor = _command(kinds, "doctor", "check whether the native kernels can run here, and say what they lack")
    _add_output(doctor, FORMATS[:2])
    doctor.set_defaults(run=commands.run_doctor)


def _add_layer(command: argparse.ArgumentParser, nargs: str) -> None:
    """Adds what says which convolution: numbers, or a layer of a model."""
    command.add_argument(
        "what", nargs=nargs, metavar="IN OUT | MODEL", help=f"two channel counts, or a model: {TARGET}"
    )
    command.add_argument("--layer", metavar="NAME", help="the layer of MODEL, such as layer1.0.conv2")
    command.add_argument(
        "--input-shape", type=values.shape, metavar="1,3,224,224", help="shape of MODEL's input, batch first"
    )
    _add_groups(command)
    _add_convolution(command)


def _add_channels(command: argparse.ArgumentParser) -> None:
    command.add_argument("in_channels", type=values.channels, metavar="IN", help="input channels")
    command.add_argument("out_channels", type=values.channels, metavar="OUT", help="output channels")


def _add_groups(command: argparse.ArgumentParser) -> None:
    command.add_argument("--groups", "-g", type=values.groups_value, default=1, metavar="1", help="default: 1")


def _add_convolution(command: argparse.ArgumentParser, size_required: bool = False) -> None:
    size = "spatial size of the input: 56 or 56x48" + ("" if size_required else "; adds MACs and bytes")
    command.add_argument("--size", type=values.extent, metavar="56", required=size_required, help=size)
    command.add_argument("--batch", type=int, metavar="N", help="default: 1")
    command.add_argument(
        "--dtype", choices=DTYPE_BYTES, metavar="DTYPE", help=f"one of {', '.join(DTYPE_BYTES)}; default: float32"
    )
    command.add_argument(
        "--kernel", "--kernel-size", "-k", type=values.extent, metavar="3", help="3 (default), 3x5 or 3,5"
    )
    command.add_argument("--stride", type=values.extent, metavar="1", help="default: 1")
    command.add_argument("--padding", type=values.padding, metavar="0", help="a number, same or valid; default: 0")
    command.add_argument("--dilation", type=values.extent, metavar="1", help="default: 1")
    command.add_argument("--transposed", action="store_true", help="a transposed convolution")
    command.add_argument(
        "--output-padding", type=values.extent, metavar="0", help="of a transposed convolution; default: 0"
    )
    command.add_argument(
        "--dims", type=int, choices=(1, 2, 3), help="spatial dimensions; default: 2, or those of --kernel"
    )
    command.add_argument("--no-bias", action="store_true", help="a layer without a bias")
    command.set_defaults(**{name: value for name, value in commands.CONVOLUTION.items() if name != "groups"})


def _add_output(command: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    command.add_argument("--format", "-f", choices=formats, help="default: text, or what the name of FILE ends in")
    _add_file(command, formats)


def _add_file(command: argparse.ArgumentParser, formats: Sequence[str]) -> None:
    endings = ", ".join(ending_of(name) for name in formats)
    command.add_argument(
        "--output",
        "-o",
        metavar="FILE",
        help=f"write to FILE instead of stdout, in the format of its ending: {endings}",
    )
