"""Timing in turn, the facts that stand beside every figure, and records of one JSON line a figure."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import pathlib
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import groupwise
from groupwise.kernels import dispatch
from groupwise.profile.machine import machine

ROOT = pathlib.Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"
WARM_UP = 3


@dataclass(frozen=True)
class Case:
    """What is timed, and whether this package's kernels take it: None leaves that as it is."""

    call: Callable[[], object]
    routed: bool | None = None
    prepare: Callable[[], object] = lambda: None
    """Runs before each call, on the same route, and is not timed."""

    def route(self) -> contextlib.AbstractContextManager[None]:
        """Within it the case's calls take the route, or do not, whatever the environment says."""
        if self.routed is None:
            return contextlib.nullcontext()
        return groupwise.enabled() if self.routed else dispatch.forced(False)

    def seconds(self) -> float:
        """One call."""
        with self.route():
            self.prepare()
            start = time.perf_counter()
            self.call()
            return time.perf_counter() - start


@dataclass(frozen=True)
class Effort:
    """How often a set of cases is timed: at least `repeats` times, and on for `budget` seconds up to `most` times."""

    repeats: int = 15
    budget: float = 1.5
    most: int = 100


@functools.cache
def keep_memory() -> bool:
    """Let the C library keep what is freed, as jemalloc and a caching allocator do; whether it does.

    glibc gives it back as it sees fit, and the next output then takes a page fault for every 4 KiB: up to four times
    what a kernel takes, on both sides alike, by what ran in the process before. Above 32 MiB it always does.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 2**31 - 1))


def interleaved(cases: Mapping[Hashable, Case], effort: Effort) -> dict[Hashable, list[float]]:
    """Seconds of every case, in turn, so that a slow moment of the machine falls on all alike."""
    keep_memory()
    times: dict[Hashable, list[float]] = {key: [] for key in cases}
    for _ in range(WARM_UP):
        for case in cases.values():
            case.seconds()
    start = time.perf_counter()
    for number in range(max(effort.repeats, effort.most)):
        if number >= effort.repeats and time.perf_counter() - start > effort.budget:
            break
        for key, case in cases.items():
            times[key].append(case.seconds())
    return times


def figures(seconds: list[float]) -> dict[str, Any]:
    """The median in ms, how far it spreads, and of how many."""
    # Inclusive, as no quantile of a few samples may lie beyond them.
    fifths = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else [*seconds] * 4
    return {
        "ms": round(statistics.median(seconds) * 1e3, 6),
        "ms_20_percent": round(fifths[0] * 1e3, 6),
        "ms_80_percent": round(fifths[3] * 1e3, 6),
        "repeats": len(seconds),
    }


def about() -> dict[str, Any]:
    """Where, when (UTC) and of what this is measured."""
    now = time.gmtime()
    when = {"date": time.strftime("%Y-%m-%d", now), "time": time.strftime("%H:%M:%S", now)}
    return {**machine(), **when, "dtype": "float32", "commit": commit(), "freed_memory_kept": keep_memory()}


def busy(seconds: float = 0.2) -> float | None:
    """The share of the processors that others take while this process sleeps; None where it cannot be known.

    Beside a process that computes, threads that wait for each other take many times as long: such times say nothing.
    """

    def ticks() -> list[int]:
        with pathlib.Path("/proc/stat").open(encoding="utf-8") as file:
            return list(map(int, file.readline().split()[1:9]))

    try:
        before = ticks()
        time.sleep(seconds)
        spent = [after - start for start, after in zip(before, ticks(), strict=True)]
    except (OSError, ValueError):
        return None
    # The fourth and the fifth are idle, and idle while a disk works.
    return round(1 - sum(spent[3:5]) / max(1, sum(spent)), 3)


@functools.cache
def commit() -> str:
    """The commit that is measured, with a `+` where its code has changes that are not committed."""
    try:
        shown = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "csrc", "CMakeLists.txt")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown + "+" * bool(changed)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def read_record(path: pathlib.Path) -> list[dict[str, Any]]:
    """The rows of a record; none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def newest_machine(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """The processor and the torch of the row that was measured last; None without rows."""
    if not rows:
        return None
    return machine_of(max(reversed(rows), key=lambda row: (row["date"], row.get("time", ""))))


def machine_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """The processor and the torch: figures of another of either say nothing beside these."""
    return row["processor"], row["torch"]


def write_record(path: pathlib.Path, rows: Iterable[Mapping[str, Any]], unit: tuple[str, ...]) -> None:
    """Put rows into a record, in place of all that are of the same `unit`.

    Only times of one interleaved run may be compared, so a unit (a layer and a batch, say) is replaced as a whole.
    """
    rows = list(rows)

    def of(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in unit)

    new = {of(row) for row in rows}
    kept = [row for row in read_record(path) if of(row) not in new]
    _write(path, [*kept, *rows])


def forget(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Take the rows with all these facts out of a record."""
    _write(path, [row for row in read_record(path) if any(row.get(key) != value for key, value in facts.items())])


def _write(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
