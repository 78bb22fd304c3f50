"""The scripts of benchmarks/, what stands beside every figure that they record, and examples run by a command."""

from __future__ import annotations

import importlib
import importlib.util
import os
import pathlib
import subprocess
import sys
from types import ModuleType

import pytest

BENCHMARKS = pathlib.Path(__file__).parent.parent / "benchmarks"
ABOUT = {
    "processor": "AMD EPYC",
    "threads": 2,
    "torch": "2.13.0",
    "groupwise": "0.1.0",
    "commit": "abc1234",
    "date": "2026-11-22",
    "dtype": "float32",
    "batch": 1,
    "repeats": 15,
}
ENOUGH = 300
# A thread of gloo that releases its last tensor after Python began to end aborts a rank so, now and then.
AT_EXIT = "terminate called without an active exception"


def load(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package: its scripts import each other as they do when they run."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)


def needs_digits(module: bool = False) -> None:
    """Skips the test, or the whole module, where scikit-learn, which has the digits of the examples, is missing."""
    if importlib.util.find_spec("sklearn") is None:
        pytest.skip("scikit-learn is not installed", allow_module_level=module)


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
