"""This machine's processor, by the name and the flags that the system tells."""

from __future__ import annotations

import pathlib
import platform

CPUINFO = pathlib.Path("/proc/cpuinfo")


def processor_name() -> str:
    """As the processor calls itself, else as Python knows it."""
    return _first("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """What it can do, in Linux's words; empty on other systems."""
    return set(_first("flags").split())


def _first(name: str) -> str:
    """The first value of that name; empty where there is none."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
