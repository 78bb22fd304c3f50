"""The command `groupwise`. Torch is imported only where a model is needed."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from groupwise.cli.parser import parser
from groupwise.draw.base.legible import legible
from groupwise.errors import GroupwiseError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    The exit status is 0, 1 if `doctor` finds that the kernels cannot run or `report --check` that they change the
    outputs or gave none, 2 for a bad request (reason on stderr), or 130 if interrupted.
    """
    options, unknown = parser().parse_known_args(arguments)
    status = 0
    try:
        if unknown:
            raise GroupwiseError(f"{' '.join(unknown)} is not understood; see groupwise {options.command} --help")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # Arrows and crosses become question marks where the terminal or the pipe has no room for them.
            sys.stdout.reconfigure(errors="replace")
        status = options.run(options) or 0
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader (head, less) has seen enough; what Python still flushes at exit goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (GroupwiseError, OSError) as error:
        escaped = "\n".join(map(legible, str(error).split("\n")))
        print(f"groupwise {options.command}: {escaped}", file=sys.stderr)
        return 2
    return status
