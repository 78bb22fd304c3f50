"""The scripts of benchmarks/, and what stands beside every figure that they record."""

from __future__ import annotations

import importlib
import pathlib
import sys
from types import ModuleType

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


def load(name: str) -> ModuleType:
    """A script of benchmarks/, which is no package: its scripts import each other as they do when they run."""
    if str(BENCHMARKS) not in sys.path:
        sys.path.insert(0, str(BENCHMARKS))
    return importlib.import_module(name)
