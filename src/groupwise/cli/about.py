"""What the command line says of itself: its version, and how a shell completes it."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any

import groupwise

SHELLS = ("bash", "zsh", "fish", "tcsh")


class Version(argparse.Action):
    """Prints the versions of groupwise and torch and the instruction set in use, in one line, and ends the command."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Finds them out only now: torch takes a second to load."""
        print(version())
        parser.exit()


class Completion(argparse.Action):
    """Prints the script by which a shell completes the command, and ends it. It needs `groupwise[completion]`."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        """Takes the options from the parser itself."""
        try:
            library: Any = importlib.import_module("shtab")
        except ImportError:
            parser.exit(2, f'{parser.prog}: {option_string} needs shtab; pip install "groupwise[completion]"\n')
        _complete_files(parser, library.FILE)
        print(library.complete(parser, shell=values))
        parser.exit()


def version() -> str:
    """Returns `groupwise 0.1.0, torch 2.13.0, kernels avx512`; or why the kernels cannot run."""
    from groupwise.kernels import native

    status = native.status()
    kernels = f"kernels {status.isa}" if status.problem is None else f"no kernels: {status.problem}"
    return f"groupwise {groupwise.__version__}, torch {status.torch_here or 'not installed'}, {kernels}"


def _complete_files(parser: argparse.ArgumentParser, files: Any) -> None:
    """Lets the shell complete the names of files where an option takes one."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_files(command, files)
        elif action.metavar in ("FILE", "TARGET", "MODEL"):
            action.complete = files  # type: ignore[attr-defined]  # shtab's own
