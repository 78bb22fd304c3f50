"""This machine's processor: its name and its flags, as the system reports them."""

from __future__ import annotations

import pathlib
import platform

CPUINFO = pathlib.Path("/proc/cpuinfo")


def processor_name() -> str:
    """Returns the processor's own name, or else Python's name for it."""
    return _first("model name") or platform.processor() or platform.machine()


def processor_flags() -> set[str]:
    """Returns the processor's features by Linux's names; empty on other systems."""
    return set(_first("flags").split())


def processor_class() -> str:
    """Returns the processor's maker, family and model, such as `amd-26-2`: kernels run alike on all of one class."""
    vendor = _first("vendor_id")
    maker = {"AuthenticAMD": "amd", "GenuineIntel": "intel"}.get(vendor, vendor.lower()) or platform.machine().lower()
    return "-".join(word for word in (maker, _first("cpu family"), _first("model")) if word)


def _first(name: str) -> str:
    """Returns the first value of that name, or an empty text."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for key, _, value in pairs if key.strip() == name), "")
