"""The command `groupwise`. It imports torch only for commands that need a model or the kernels."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from groupwise.cli.parser import parser
from groupwise.errors import GroupwiseError
from groupwise.spec.legible import legible


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line, whose words are `arguments` (those of the process if None), and returns its exit status.

    - 0: done
    - 1: `doctor` finds that the kernels cannot run, or `report --check` finds that they change the outputs or that
      there is nothing to compare
    - 2: a bad request; the reason is one line on stderr
    - 130: interrupted
    """
    try:
        options, unknown = _parsed(arguments)
    except BrokenPipeError:
        return _closed()
    status = 0
    try:
        if unknown:
            raise GroupwiseError(f"{' '.join(unknown)}: no such option; see groupwise {options.command} --help")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal or a pipe may not encode arrows and crosses; they become question marks there.
            sys.stdout.reconfigure(errors="replace")
        status = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        return _closed()
    except KeyboardInterrupt:
        return 130
    except (GroupwiseError, OSError) as error:
        escaped = "\n".join(map(legible, str(error).split("\n")))
        print(f"groupwise {options.command}: {escaped}", file=sys.stderr)
        return 2
    return status


def _parsed(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """Returns the options and the words that are none. --help, --version and --print-completion print, and end here."""
    try:
        return parser().parse_known_args(arguments)
    finally:
        sys.stdout.flush()


def _closed() -> int:
    """Ends a command whose reader (head, less) has closed the pipe, and lets what Python flushes at exit go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
