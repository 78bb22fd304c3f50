"""Locks a folder for one writer: the system releases the lock when the process ends, whatever ends it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
from dataclasses import dataclass
from datetime import datetime

from torch import distributed

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.together import alike

try:
    from fcntl import LOCK_EX, LOCK_NB, lockf

    _LOCKS = True
except ImportError:  # Windows
    _LOCKS = False

LOCK = "groupwise.lock"
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@dataclass
class _Held:
    # A forked child inherits its parent's table, but none of its locks.
    process: int
    file: int


# The keys are the device and the inode of a folder, which may have many names. Each lock file is open once in its
# process: closing any descriptor of it, even one that only read it, would release the lock.
_held: dict[tuple[int, int], _Held] = {}


def claim(folder: str | pathlib.Path, *, group: distributed.ProcessGroup | None = None) -> None:
    """Makes the first rank of `group` the only writer of checkpoints in `folder`, until it ends or calls `release`.

    Every rank of `group` (None: the default group) calls it. `save` calls it too, and a second call changes nothing. If
    another process writes to the folder, every rank raises a `GroupwiseError` with that process, its host and the time
    at which it began. The lock is on `folder`/groupwise.lock. The system releases it when the process ends, and the
    content of the file has no meaning then. On a file system without locks nobody is refused.
    """
    folder = pathlib.Path(folder)
    with alike(group):
        if distributed.get_rank(group) == 0:
            try:
                take(folder)
            except OSError as error:
                raise GroupwiseError(
                    f"no checkpoint can be written to {folder} ({error}); mend that, or give another folder"
                ) from error


def release(folder: str | pathlib.Path) -> None:
    """Lets another process write to `folder`: the opposite of `claim`. Does nothing without the lock."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        held = _held.pop(_place(pathlib.Path(folder)), None)
        if held is not None and held.process == os.getpid():
            os.close(held.file)


def take(folder: pathlib.Path) -> bool:
    """Creates `folder` and makes this process its one writer. Returns False if the file system has no locks."""
    folder.mkdir(parents=True, exist_ok=True)
    if not _LOCKS:
        return False
    path, place = folder / LOCK, _place(folder)
    if _holds(place, path):
        return True
    file = _open(path)
    try:
        lockf(file, LOCK_EX | LOCK_NB)
    except OSError as error:
        other = _holder(file)
        os.close(file)
        if error.errno in _HELD_BY_ANOTHER:
            raise GroupwiseError(
                f"checkpoints in {folder} are being written by {other}; end that process, or give another folder"
            ) from error
        if error.errno in _NO_LOCKS:
            return False
        raise
    _held[place] = _Held(os.getpid(), file)
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    text = json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since})
    # The lock holds even if a full disk cannot take the text.
    with contextlib.suppress(OSError):
        os.ftruncate(file, 0)
        os.pwrite(file, text.encode(), 0)
    return True


def _place(folder: pathlib.Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _holds(place: tuple[int, int], path: pathlib.Path) -> bool:
    """Says whether this process holds the lock on the file that is at `path` now."""
    held = _held.get(place)
    if held is None:
        return False
    if held.process == os.getpid():
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(held.file), path.lstat()):
                return True
        # Someone has removed the file, so that the lock on it stops nobody.
        os.close(held.file)
    del _held[place]
    return False


def _open(path: pathlib.Path) -> int:
    """Opens or creates the lock file. It follows no link, and does not wait for the other end of a pipe."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise GroupwiseError(f"{path} is not a file that groupwise could lock; remove it, or give another folder")
    return file


def _holder(file: int) -> str:
    """Says who holds the lock, as that process wrote it; the text may be unfinished or forged."""
    try:
        known = json.loads(os.pread(file, 4096, 0))
        return f"process {int(known['pid'])} on host {known['host']!s:.100} since {known['since']!s:.40}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"
