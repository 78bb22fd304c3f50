"""The file of a user's measurements: one line of JSON a request, which the native core adds by one write each.

A process that finds a request in the file does not measure it again, so that a request has a second line only where two
processes met it at once. The file is therefore never rewritten, which no two processes could do without losing lines.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import stat
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import groupwise
from groupwise.kernels.processor import processor_name

PYTORCH = "pytorch"
# No convolution takes an hour.
_MOST_SECONDS = 3600.0
_ISA = re.compile(r"[a-z0-9_]+")
_REQUEST = re.compile(r"-?\d+( -?\d+)*", re.ASCII)


@dataclass
class Measurements:
    """What a file holds by instruction set and request, and what is wrong with it."""

    seconds: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)
    """The seconds of each kernel."""
    tries: dict[tuple[str, str], int] = field(default_factory=dict)
    """How often that was measured."""
    problem: str | None = None


def folder() -> pathlib.Path | None:
    """Returns the folder of the files; None where the environment names no home."""
    # A relative path does not count, as the XDG base directory specification says.
    base = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if base.is_absolute():
        return base / "groupwise" / "tuning"
    home = os.environ.get("HOME", "")
    return pathlib.Path(home, ".cache", "groupwise", "tuning") if home else None


@cache
def key(torch_version: str, build: str) -> dict[str, str]:
    """Returns what the measurements of one file have in common."""
    return {"processor": processor_name(), "torch": torch_version, "groupwise": groupwise.__version__, "build": build}


def file_name(facts: dict[str, str]) -> str:
    """Returns the name of the file for a key: legible, and unlike that of any other key."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:8]
    words = [facts["processor"], f"torch-{facts['torch']}", f"groupwise-{facts['groupwise']}"]
    slug = "-".join(re.sub(r"[^a-z0-9.]+", "-", word.lower()).strip("-.")[:60] for word in words)
    return f"{slug}-{digest}.jsonl"


def read(path: pathlib.Path, kernels: Collection[str]) -> Measurements:
    """Returns what the file holds of these kernels; of two lines for one request the later counts.

    A file that is missing holds nothing. It raises nothing: `problem` says in one sentence what was left out.
    """
    found = Measurements()
    try:
        content = _content(path)
    except (FileNotFoundError, NotADirectoryError):
        return found
    except OSError as error:
        found.problem = f"cannot read its measurements in {path} ({_reason(error)}): none of them is used"
        return found
    bad: list[str] = []
    for number, line in enumerate(content.split(b"\n"), 1):
        try:
            if line.strip():
                seconds, tries = _parsed(line, kernels)
                found.seconds.update(seconds)
                found.tries.update(tries)
        except (ValueError, OverflowError, RecursionError) as error:
            bad.append(f"line {number}: {_one_line(error)}")
    if bad:
        count = "1 line" if len(bad) == 1 else f"{len(bad)} lines"
        found.problem = (
            f"leaves out {count} of its measurements in {path} ({bad[0]}): the others are used, and "
            "groupwise.forget() deletes the file"
        )
    return found


def prepare(path: pathlib.Path, facts: dict[str, str]) -> str | None:
    """Makes the file, whose first line tells its key. Returns why lines cannot be added to it, or None."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _FLAGS, 0o600)
        try:
            if _check_regular(descriptor).st_size == 0:
                os.write(descriptor, json.dumps(facts).encode() + b"\n")
        finally:
            os.close(descriptor)
    except OSError as error:
        return f"cannot keep its measurements in {path} ({_reason(error)}): every process measures anew"
    return None


def remove(where: pathlib.Path) -> None:
    """Deletes the files of all keys. Raises an `OSError` where that fails."""
    for path in where.glob("*.jsonl"):
        path.unlink(missing_ok=True)


# A pipe in the file's place would block.
_FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)


def _content(path: pathlib.Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | _FLAGS)
    try:
        parts = []
        _check_regular(descriptor)
        while part := os.read(descriptor, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)


def _check_regular(descriptor: int) -> os.stat_result:
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        raise OSError("it is no regular file")
    return found


def _parsed(
    line: bytes, kernels: Collection[str]
) -> tuple[dict[tuple[str, str], dict[str, float]], dict[tuple[str, str], int]]:
    """Returns the seconds and the tries in a line, and nothing of the line that tells the key. Raises `ValueError`."""
    facts: Any = json.loads(line)
    if not isinstance(facts, dict):
        raise ValueError("it is no measurement")
    if "processor" in facts:
        return {}, {}
    isa, request, seconds = facts.get("isa"), facts.get("request"), facts.get("seconds")
    if not (isinstance(isa, str) and _ISA.fullmatch(isa)):
        raise ValueError("its instruction set is none")
    if not (isinstance(request, str) and _REQUEST.fullmatch(request)):
        raise ValueError("its request is none")
    if not (isinstance(seconds, dict) and PYTORCH in seconds):
        raise ValueError("PyTorch's kernel was not measured")
    for kernel, time in seconds.items():
        if kernel not in kernels:
            raise ValueError(f"there is no kernel {kernel[:40]!r}")
        if isinstance(time, bool) or not isinstance(time, int | float):
            raise ValueError(f"the time of {kernel} is no number")
        if not (0 < time < _MOST_SECONDS):
            raise ValueError(f"{kernel} cannot have taken {float(time)} seconds")
    tries = facts.get("tries", 1)
    if isinstance(tries, bool) or not isinstance(tries, int) or not 0 < tries < 1000:
        raise ValueError("it cannot have been measured so often")
    return {(isa, request): {kernel: float(time) for kernel, time in seconds.items()}}, {(isa, request): tries}


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _one_line(error: Exception) -> str:
    return "it is no JSON" if not str(error) or isinstance(error, json.JSONDecodeError | UnicodeError) else str(error)
