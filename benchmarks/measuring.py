"""Interleaved timing, the facts recorded with every figure, and records of one JSON line a figure."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import json
import math
import pathlib
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import groupwise
from groupwise.kernels import dispatch
from groupwise.profile.machine import machine
from groupwise.profile.measuring import Meter

ROOT = pathlib.Path(__file__).parent.parent
RECORDS = ROOT / "benchmarks" / "records"
# What the processors of a class are called, as several report the same name.
GENERATIONS = {"amd-25-1": "Zen 3", "amd-25-17": "Zen 4", "amd-26-2": "Zen 5", "intel-6-207": "Emerald Rapids"}
WARM_UP = 3
# A call of so many seconds needs none before it.
LONG = 0.1
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Case:
    """A call to time, and by whose kernels: True groupwise's, False PyTorch's, None whatever is enabled."""

    call: Callable[[], Any]
    ours: bool | None = None
    prepare: Callable[[], object] = lambda: None
    """Runs before each call, by the same kernels, and is not timed."""

    def dispatching(self) -> contextlib.AbstractContextManager[None]:
        """Within the block the case's calls dispatch to those kernels, whatever the environment says."""
        if self.ours is None:
            return contextlib.nullcontext()
        return groupwise.enabled() if self.ours else dispatch.forced(False)

    def seconds(self, prepared: bool = True) -> float:
        """Times one call."""
        with self.dispatching():
            if prepared:
                self.prepare()
            start = time.perf_counter()
            self.call()
            return time.perf_counter() - start


@dataclass(frozen=True)
class Forced(Case):
    """A case that one kernel computes."""

    kernel: str = ""

    def dispatching(self) -> contextlib.AbstractContextManager[None]:
        """Within the block calls dispatch to that kernel."""
        return dispatch.forced(True, self.kernel)


def takes(call: Callable[[], object], kernel: str) -> groupwise.Plan | None:
    """Returns the plan of a kernel if it runs when it is forced."""
    with dispatch.forced(True, kernel), groupwise.record_plans() as plans:
        call()
    return plans[0] if [plan.kernel for plan in plans] == [kernel] else None


@dataclass(frozen=True)
class Effort:
    """How often cases are timed: `repeats` times, then on for `budget` seconds, up to `most` times.

    A case that takes more than `slow` seconds in all is timed less often: then it is left out of most rounds, and one
    whose first call alone takes as long has that time only.
    """

    repeats: int = 15
    budget: float = 1.5
    most: int = 100
    slow: float = float("inf")

    def share(self, visits: int) -> Effort:
        """Returns the effort of each of some visits, which are as many times in all, or a few more."""
        counts = [math.ceil(count / visits) for count in (self.repeats, self.most)]
        return Effort(counts[0], self.budget / visits, counts[1], self.slow / visits)


@functools.cache
def keep_memory() -> bool:
    """Makes the C library keep freed memory, as jemalloc and a caching allocator do; returns whether it does.

    By default glibc may return freed memory to the system, and the next output then takes a page fault for every 4 KiB.
    That takes up to four times as long as a kernel, on both sides alike, and depends on what ran in the process before.
    Blocks above 32 MiB are always returned.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    trim_threshold, mmap_threshold = -1, -3
    return bool(mallopt(mmap_threshold, 32 << 20)) and bool(mallopt(trim_threshold, 2**31 - 1))


def in_turn(keys: Iterable[Key], number: int) -> list[Key]:
    """Returns the keys in the order of a round.

    Every other round is in reverse, and each two begin with another key, so that no case always finds the caches as the
    same other one left them.
    """
    order = list(keys)[:: -1 if number % 2 else 1]
    turned = number // 2 % len(order)
    return order[turned:] + order[:turned]


def interleaved(cases: Mapping[Hashable, Case], effort: Effort) -> dict[Hashable, list[float]]:
    """Times every case in turn, so that a slow moment of the machine affects all alike; returns seconds."""
    keep_memory()
    first = {key: case.seconds(prepared=False) for key, case in cases.items()}
    times: dict[Hashable, list[float]] = {key: [once] if once > effort.slow else [] for key, once in first.items()}
    # A call that takes long fills the caches itself, and a call before it would cost as much again.
    prepared = {key: once < LONG for key, once in first.items()}
    for _ in range(WARM_UP - 1):
        for key, case in cases.items():
            if WARM_UP * first[key] < effort.slow:
                case.seconds(prepared[key])
    start = time.perf_counter()
    for number in range(max(effort.repeats, effort.most)):
        if number >= effort.repeats and time.perf_counter() - start > effort.budget:
            break
        allowed = effort.slow * min(1, (number + 1) / effort.repeats)
        for key in in_turn(cases, number):
            if not times[key] or sum(times[key]) < allowed:
                times[key].append(cases[key].seconds(prepared[key]))
    return times


def figures(seconds: list[float]) -> dict[str, Any]:
    """Returns the median in ms, its 20 and 80 percent quantiles, and the number of samples."""
    # The inclusive method keeps the quantiles of a few samples within them.
    fifths = statistics.quantiles(seconds, n=5, method="inclusive") if len(seconds) > 1 else [*seconds] * 4
    return {
        "ms": round(statistics.median(seconds) * 1e3, 6),
        "ms_20_percent": round(fifths[0] * 1e3, 6),
        "ms_80_percent": round(fifths[3] * 1e3, 6),
        "repeats": len(seconds),
    }


def about(dtype: str = "float32") -> dict[str, Any]:
    """Returns the facts of a measurement: machine, versions, time (UTC), dtype and commit."""
    now = time.gmtime()
    when = {"date": time.strftime("%Y-%m-%d", now), "time": time.strftime("%H:%M:%S", now)}
    return {**machine(), **when, "dtype": dtype, "commit": commit(), "freed_memory_kept": keep_memory()}


def busy(seconds: float = 0.2) -> float | None:
    """Returns the fraction of the processors that others use while this process sleeps, or None if it is unknown.

    Beside a process that computes, threads that wait for each other take many times as long, so such times are useless.
    """

    meter = Meter()
    time.sleep(seconds)
    fraction = meter.read().fraction
    return fraction if fraction is None else round(fraction, 3)


@functools.cache
def commit() -> str:
    """Returns the commit that is measured, with a `+` if its code has uncommitted changes."""
    try:
        shown = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "src", "csrc", "CMakeLists.txt")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown + "+" * bool(changed)


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def read_record(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads the rows of a record; returns none if there is no such file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def records_of(folder: pathlib.Path, record: str) -> list[list[dict[str, Any]]]:
    """Returns the rows of each record in the folders of processors, by the folders' names.

    They have the class and the instruction set that the folder is named after.
    """
    found = []
    for path in sorted(folder.glob(f"*/{record}")):
        kind, _, isa = path.parent.name.rpartition("-")
        found.append([{**row, "class": kind, "isa": isa} for row in read_record(path)])
    return found


def record_name(record: str, dtype: str) -> str:
    """Returns the name of a dtype's record."""
    return f"{record}.jsonl" if dtype == "float32" else f"{record}-{dtype}.jsonl"


def newest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the rows that share the machine and the torch of the newest."""
    machine = newest_machine(rows)
    return [row for row in rows if machine_of(row) == machine]


def newest_machine(rows: Sequence[Mapping[str, Any]]) -> tuple[str, str] | None:
    """Returns the processor and the torch of the row that was measured last, or None without rows."""
    if not rows:
        return None
    return machine_of(max(reversed(rows), key=lambda row: (row["date"], row.get("time", ""))))


def machine_of(row: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the processor and the torch; only figures that share both can be compared."""
    return row["processor"], row["torch"]


def name_of(row: Mapping[str, Any]) -> str:
    """Returns the processor's name and, as far as they are known, what its class is called and the instruction set."""
    kind = ", ".join(filter(None, (GENERATIONS.get(row.get("class", "")), row.get("isa"))))
    name = row["processor"].replace("(R)", "").removesuffix(" Processor")
    return f"{name} ({kind})" if kind else name


def payoffs(rows: Sequence[Mapping[str, Any]], implementation: str = "pytorch") -> list[dict[str, Any]]:
    """Returns the rows of `groups.py` of one implementation; rows that name none are PyTorch's."""
    ours = [row for row in rows if row["benchmark"] == "groups"]
    return [dict(row) for row in ours if row.get("implementation", "pytorch") == implementation]


def write_record(path: pathlib.Path, rows: Iterable[Mapping[str, Any]], unit: tuple[str, ...]) -> None:
    """Writes rows into a record, in place of all rows of the same `unit`.

    Only times of one interleaved run can be compared, so a unit (a layer and a batch, say) is replaced as a whole.
    """
    rows = list(rows)

    def of(row: Mapping[str, Any]) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in unit)

    new = {of(row) for row in rows}
    kept = [row for row in read_record(path) if of(row) not in new]
    _write(path, [*kept, *rows])


def block_of(record: str) -> re.Pattern[str]:
    """Returns the pattern of what a page shows of a record, between two comments: the first, the block, the second."""
    return re.compile(rf"(<!-- from {re.escape(record)} -->\n)(.*?)(<!-- end -->)", re.S)


def with_block(text: str, record: str, said: str) -> str:
    """Returns a page with the block between its two comments replaced."""
    return block_of(record).sub(lambda found: f"{found[1]}{said}{chr(10) * bool(said)}{found[3]}", text)


def show_record(page: pathlib.Path, record: str, said: str) -> None:
    """Writes what a page shows of a record into it."""
    page.write_text(with_block(page.read_text(encoding="utf-8"), record, said), encoding="utf-8")


def by_machine(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Returns the rows of each processor, instruction set, number of threads and torch."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in ("processor", "isa", "threads", "torch")), []).append(dict(row))
    return found


def forget(path: pathlib.Path, facts: Mapping[str, Any]) -> None:
    """Removes the rows with all these facts from a record."""
    _write(path, [row for row in read_record(path) if any(row.get(key) != value for key, value in facts.items())])


def _write(path: pathlib.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
