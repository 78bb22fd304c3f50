"""The command line, run in the process of the tests."""

from __future__ import annotations

from groupwise.cli import main


def run(capsys, *arguments):
    """Exit status, stdout and stderr."""
    try:
        status = main(arguments)
    except SystemExit as stop:
        status = stop.code
    shown = capsys.readouterr()
    return status, shown.out, shown.err
