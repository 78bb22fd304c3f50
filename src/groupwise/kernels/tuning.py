"""Tuning: whether the native core measures the kernels of a convolution that it meets first, and what it knows already.

The core measures, and adds what it measured to a file of the user's (`cache`). This module reads that file and tells
the core what is in it. What is in force for the process is decided here, under the lock of `dispatch`.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import pathlib
import warnings
from dataclasses import dataclass
from typing import Any

from groupwise.errors import GroupwiseError, check_integer
from groupwise.kernels import cache, native
from groupwise.kernels.plan import KERNELS
from groupwise.kernels.tables import table_path

VARIABLE = "GROUPWISE_TUNE"
# Measuring a request takes about as long as so many calls of PyTorch's kernel.
CALLS, MOST_CALLS = 20, 100_000
# A process measures for so many seconds in all: a program whose shapes change all the time would measure all the time.
SECONDS = 120.0

# What the core was told of measuring: calls, seconds, only what no table knows, and the file.
_NOTHING: tuple[int, float, bool, str] = (0, 0.0, False, "")

_log = logging.getLogger("groupwise")


@dataclass(frozen=True)
class Wish:
    """What a call of `enable` or `enabled` asks for: to measure and to use FFTs, not to, or (None) the default."""

    tune: bool | None = None
    calls: int = CALLS
    seconds: float = SECONDS
    fft: bool | None = None
    quiet: bool = False
    """Whether the caller tells the user what there was no time for."""


# Measures nothing, whatever was asked for elsewhere. What was measured before counts.
ONLY_READS = Wish(calls=0)


def cache_path() -> pathlib.Path | None:
    """Returns the file of this processor, torch and groupwise; None where there is no home or no torch."""
    where, version = cache.folder(), native.status().torch_here
    if where is None or version is None:
        return None
    return where / cache.file_name(cache.key(version, native.digest()))


def saved() -> cache.Measurements:
    """Returns what the file holds now."""
    path = cache_path()
    return cache.Measurements() if path is None else cache.read(path, KERNELS)


def measured(library: ctypes.CDLL | None = None) -> dict[str, Any]:
    """Returns how many requests this process measured, in how many seconds, how many of these count against the limit,
    and how many results it could not keep."""
    facts: dict[str, Any] = json.loads(native.read_text((library or native.library()).groupwise_measured))
    return facts


class Tuner:
    """What of tuning is in force in the core. `apply` runs under a lock that a fork waits for: it imports nothing."""

    def __init__(self) -> None:
        self._library: ctypes.CDLL | None = None
        self._facts: dict[str, str] = {}
        self._isa = ""
        self._loaded: pathlib.Path | bool | None = False  # False: the core knows of no file's measurements
        self._written = _NOTHING
        self._found = False
        self._path: pathlib.Path | None = None
        self._requests = 0
        self._unkept: str | None = None
        self._met, self._spent = native.NOTICE(self._meets), native.NOTICE(self._ends)
        self._quiet = False
        self.kept_in: pathlib.Path | None = None
        self._to_tell: list[str] = []
        self._told: set[str] = set()

    def prepare(self, library: ctypes.CDLL) -> None:
        """Finds out what `apply` needs and may not find out itself."""
        if self._library is library:
            return
        state = native.status()
        self._facts, self._isa = cache.key(str(state.torch_here), native.digest()), str(state.isa)
        # Reads the processor's class.
        table_path(self._isa)
        self._loaded, self._written = False, _NOTHING
        library.groupwise_when_spent(self._spent)
        library.groupwise_when_unknown(self._met)
        self._library = library

    def apply(self, library: ctypes.CDLL, wish: Wish | None) -> None:
        """Makes the core measure and use what `wish` asks for; with None, which is no wish to dispatch, only use."""
        where = cache.folder()
        path = None if where is None else where / cache.file_name(self._facts)
        tune = _environment() if wish is None or wish.tune is None else wish.tune
        unread = self._load(library, path, uses=tune is not False)
        calls, seconds = (0, 0.0) if wish is None or tune is False else (wish.calls, wish.seconds)
        self._quiet = wish is not None and wish.quiet
        self._measure(library, path, calls, seconds, unknown=tune is None)
        # One warning is enough where both have one cause.
        if problem := self._unkept or unread:
            self._tell(f"groupwise {problem}")

    def forget(self, library: ctypes.CDLL) -> None:
        """Lets the core forget all measurements, and deletes the files. Raises an `OSError` where that fails."""
        where = cache.folder()
        if where is not None:
            cache.remove(where)
        library.groupwise_forget()
        library.groupwise_policy_changed()
        self._found = False
        # A process that measures needs its file again.
        (calls, seconds, unknown, _), self._written = self._written, _NOTHING
        path = None if where is None else where / cache.file_name(self._facts)
        self._measure(library, path, calls, seconds, unknown)
        if self._unkept:
            self._tell(f"groupwise {self._unkept}")

    def tell(self) -> None:
        """Warns of what came up in `apply`: of each once, and under no lock."""
        value = os.environ.get(VARIABLE, "")
        if value not in ("", "0", "1"):
            self._tell(f"{VARIABLE}={value} is not known; use 1 or 0")
        waiting, self._to_tell = self._to_tell, []
        for message in waiting:
            warnings.warn(message, RuntimeWarning, stacklevel=4)  # tell, tell of dispatch, enable

    def _load(self, library: ctypes.CDLL, path: pathlib.Path | None, uses: bool) -> str | None:
        wanted, problem = path if uses else False, None
        if self._loaded == wanted:
            return None
        if self._loaded is not False:
            library.groupwise_forget()
        self._loaded = wanted
        if path is not None and uses:
            found = cache.read(path, KERNELS)
            self._found = bool(found.seconds)
            for (isa, request), seconds in found.seconds.items():
                remember(library, isa, request, seconds, found.tries[isa, request])
            problem = found.problem
        library.groupwise_policy_changed()
        return problem

    def _measure(
        self, library: ctypes.CDLL, path: pathlib.Path | None, calls: int, seconds: float, unknown: bool
    ) -> None:
        """Lets the core measure, and only what no table knows if `unknown`."""
        if self._written == (calls, seconds, unknown, str(path)):
            return
        self._written = (calls, seconds, unknown, str(path))
        # Other threads measure as soon as the core may. What nobody asked for has its file when that begins (`_meets`).
        self._path, self._unkept = path, self._prepared(path) if calls and not unknown else None
        self.kept_in = path if calls and self._unkept is None else None
        # Threads that planned while others measured plan anew by what is known now.
        if (requests := measured(library)["requests"]) != self._requests:
            self._requests = requests
            library.groupwise_policy_changed()
        library.groupwise_tune(calls, seconds, unknown, b"" if self.kept_in is None else os.fsencode(self.kept_in))

    def _prepared(self, path: pathlib.Path | None) -> str | None:
        """Makes the file. Returns why lines cannot be added to it, or None."""
        return _NOWHERE if path is None else cache.prepare(path, self._facts)

    def _tell(self, message: str) -> None:
        if message not in self._told:
            self._told.add(message)
            self._to_tell.append(message)

    def _meets(self) -> None:
        # The core calls this in the thread that measures, before a convolution that no table knows.
        problem = self._prepared(self._path)
        message = f"groupwise met a convolution that its tables do not know ({table_path(self._isa).stem}): {_MEASURES}"
        message += f"; it {problem}" if problem else ", and keeps the result"
        if message not in self._told:
            self._told.add(message)
            # A user sees a warning. Where something was measured before, one was seen.
            _log.log(logging.INFO if self._found else logging.WARNING, f"{message}; {VARIABLE}=0 turns that off")

    def _ends(self) -> None:
        # The core calls this in the thread that measured, after which no request is measured.
        if not self._quiet:
            _log.warning(
                "groupwise has measured kernels for as long as it may: from now on it runs what was measured or is "
                "expected to be the fastest; enable(seconds=...) lets it measure for longer, and tune=False not at all"
            )


def remember(library: ctypes.CDLL, isa: str, request: str, seconds: dict[str, float], tries: int = 1) -> None:
    """Tells the core the seconds of kernels for a request, which plans made from now on use."""
    times = (ctypes.c_double * len(seconds))(*seconds.values())
    library.groupwise_remember(isa.encode(), request.encode(), ",".join(seconds).encode(), times, len(seconds), tries)


def check_wish(tune: object, calls: object, seconds: object, fft: object) -> Wish:
    """Returns the arguments of `enable` as a wish. Raises `GroupwiseError` for other types and values."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not seconds > 0:
        raise GroupwiseError(f"seconds={seconds!r} is no time; give a number above 0, or math.inf for no limit")
    return Wish(
        _switch("tune", tune), check_integer("calls", calls, 1, MOST_CALLS), float(seconds), _switch("fft", fft)
    )


def _switch(name: str, value: object) -> bool | None:
    if value is not None and not isinstance(value, bool):
        raise GroupwiseError(f"{name}={value!r} is a {type(value).__name__}; give True, False or None")
    return value


def _environment() -> bool | None:
    return {"1": True, "0": False}.get(os.environ.get(VARIABLE, ""))


_NOWHERE = (
    "cannot keep its measurements, as neither XDG_CACHE_HOME nor HOME names a folder: every process measures anew"
)
_MEASURES = "it measures the kernels of each such convolution when it first meets it"
