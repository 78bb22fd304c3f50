"""This machine's processor: its name, its class and its flags, as the system reports them."""

from __future__ import annotations

import pathlib
import platform
import re

CPUINFO = pathlib.Path("/proc/cpuinfo")
VENDORS = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}


def processor_name() -> str:
    """Returns the processor's own name, or else Python's name for it."""
    return _first("model name") or platform.processor() or platform.machine()


def processor_class() -> str:
    """Returns the vendor, the family and the model as `amd-26-2`, or `unknown`.

    Processors of one class have the same cores and caches, so that kernels' times relative to each other are alike.
    """
    vendor = _first("vendor_id")
    if vendor:
        names = (VENDORS.get(vendor, vendor), _first("cpu family"), _first("model"))
    else:
        names = (_first("CPU implementer"), _first("CPU variant"), _first("CPU part"))
    # The class becomes a file's name.
    return re.sub(r"[^a-z0-9]+", "-", "-".join(filter(None, names)).lower()).strip("-") or "unknown"


def processor_flags() -> set[str]:
    """Returns the processor's features by Linux's names; empty on other systems."""
    return set(_first("flags").split())


def _first(name: str) -> str:
    """Returns the first value of that name, or an empty text."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
