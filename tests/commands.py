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


def write_net(folder, layers):
    """A file of a user's own with a network `Net` of these layers; gives its path."""
    path = folder / "net.py"
    path.write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        f"        super().__init__({layers})\n"
    )
    return path
