"""Work in a process of its own, for calls that may never return: then the process is killed, and another begins.

oneDNN in PyTorch 2.13 does not end compiling some convolutions of 16 bits, and ends the process for others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any


@dataclass(frozen=True)
class Trying:
    """What the work yields before a call that may never return: the next message must follow it in time."""

    key: tuple[str, ...]


@dataclass(frozen=True)
class Returned:
    """What the work yields after such a call, where more work follows that takes its time."""


class Stuck(Exception):
    """Raised where nothing followed a `Trying` in time, or where the process ended. `key` names the call."""

    def __init__(self, key: tuple[str, ...], why: str) -> None:
        super().__init__(why)
        self.key = key


class Watched:
    """A process that runs a generator for each question, and sends what it yields."""

    def __init__(self, work: Callable[..., Iterator[Any]], patience: float) -> None:
        self.work, self.patience = work, patience

    def __enter__(self) -> Watched:
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_answer, args=(self.work, there), daemon=True)
        self.process.start()
        there.close()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def ask(self, *question: Any) -> Iterator[Any]:
        """Yields what the work yields. Raises what it raises, and `Stuck`, after which the next question may follow."""
        self.pipe.send(question)
        trying: Trying | None = None
        while True:
            if not self.pipe.poll(self.patience if trying else None):
                assert trying is not None
                self._begin_anew()
                raise Stuck(trying.key, f"the first call takes more than {self.patience:g} s")
            try:
                kind, message = self.pipe.recv()
            except EOFError:
                self._begin_anew()
                raise Stuck(trying.key if trying else (), "a call ended the process") from None
            if kind == "raise":
                raise message
            if kind == "end":
                return
            trying = message if isinstance(message, Trying) else None
            yield message

    def _begin_anew(self) -> None:
        self.__exit__()
        self.__enter__()


def _answer(work: Callable[..., Iterator[Any]], pipe: connection.Connection) -> None:
    """Answers until the other side closes the pipe."""
    with contextlib.suppress(EOFError):
        while True:
            question = pipe.recv()
            try:
                for message in work(*question):
                    pipe.send(("message", message))
            except Exception as error:
                pipe.send(("raise", error))
            else:
                pipe.send(("end", None))
