"""Scripts of the examples, run as a user runs them."""

from __future__ import annotations

import os
import subprocess

ENOUGH = 300
# A thread of gloo that releases its last tensor after Python began to end aborts a rank so, now and then.
AT_EXIT = "terminate called without an active exception"


def run(command, folder, again=True) -> str:
    """What a command prints, which must end well."""
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=ENOUGH)
    finally:
        # torchrun ends its ranks if it may, but not if it is killed.
        process.terminate()
        process.wait()
    if again and AT_EXIT in err:
        return run(command, folder, again=False)
    assert process.returncode == 0, err
    return out
