"""Locks a folder for one writer: the system releases the lock when the process ends, whatever ends it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import socket
import stat
import struct
import sys
from dataclasses import dataclass
from datetime import datetime

from torch import distributed

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.recovery import recover
from groupwise.parallel.checkpoint.together import alike
from groupwise.spec.legible import legible

try:
    import fcntl

    _LOCKS = True
except ImportError:  # Windows
    _LOCKS = False

LOCK = "groupwise.lock"
_HELD_BY_ANOTHER = {errno.EACCES, errno.EAGAIN}
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
# The first byte of the file is locked by its writer, and the third one too once the file says who the writer is:
# until then the text is that of the writer before. The bytes are not adjacent, so that no system merges the locks.
_WRITER, _NAMED = 0, 2
# struct flock on Linux with 64 bits: the kind, whence, the first byte, the number of bytes, and the process.
_FLOCK = "hhqqi0q"
# A lock of an open file is not lost if the process closes another descriptor of that file, as shutil.copytree does.
_OF_OPEN_FILES = _LOCKS and sys.platform == "linux" and sys.maxsize > 2**32 and hasattr(fcntl, "F_OFD_SETLK")


@dataclass
class _Held:
    file: int
    text: bytes


# The keys are the device and the inode of a folder, which may have many names.
_held: dict[tuple[int, int], _Held] = {}


def _leave_to_parent() -> None:
    """Closes the lock files in a forked child, which would otherwise hold the locks for as long as it runs."""
    for held in _held.values():
        os.close(held.file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def claim(folder: str | pathlib.Path, *, group: distributed.ProcessGroup | None = None) -> None:
    """Makes the first rank of `group` the only writer of checkpoints in `folder`, until it ends or calls `release`.

    Every rank of `group` (None: the default group) calls it. `save` calls it too, and so takes the lock again where it
    was lost. If another process writes to the folder, every rank raises a `GroupwiseError` with that process, its host
    and the time at which it began. The lock is on `folder`/groupwise.lock. The system releases it when the process
    ends, and the content of the file has no meaning then. On a file system without locks nobody is refused.
    `claim` also gives a checkpoint its name back if its writer was killed while it renamed it.
    """
    folder = pathlib.Path(folder)
    with alike(group):
        if distributed.get_rank(group) == 0:
            try:
                if take(folder):
                    recover(folder)
            except OSError as error:
                raise GroupwiseError(
                    f"no checkpoint can be written to {folder} ({error}); mend that, or give another folder"
                ) from error


def release(folder: str | pathlib.Path) -> None:
    """Lets another process write to `folder`: the opposite of `claim`. Does nothing without the lock."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        if (held := _held.pop(_place(pathlib.Path(folder)), None)) is not None:
            os.close(held.file)


def take(folder: pathlib.Path) -> bool:
    """Creates `folder` and makes this process its one writer. Returns False if the file system has no locks.

    If this process is the writer already, the lock is taken again: where locks belong to processes and not to open
    files, the system may have released it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not _LOCKS:
        return False
    path, place = folder / LOCK, _place(folder)
    held = _held.pop(place, None)
    if held is not None and not _is_at(held.file, path):
        # Someone has removed the file, so that the lock on it stops nobody.
        os.close(held.file)
        held = None
    held = held or _Held(_open(path), _name())
    try:
        _lock(held.file, _WRITER)
    except OSError as error:
        other = _holder(held.file)
        os.close(held.file)
        if error.errno in _HELD_BY_ANOTHER:
            raise GroupwiseError(
                f"checkpoints in {folder} are being written by {other}; end that process, or give another folder"
            ) from error
        if error.errno in _NO_LOCKS:
            return False
        raise
    _held[place] = held
    # The lock holds even if a full disk cannot take the text.
    with contextlib.suppress(OSError):
        os.pwrite(held.file, held.text, 0)
        os.ftruncate(held.file, len(held.text))
        _lock(held.file, _NAMED)
    return True


def _lock(file: int, byte: int) -> None:
    """Locks one byte of a file. Raises `OSError` if another process holds it."""
    if _OF_OPEN_FILES:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            return
        except OSError as error:
            if error.errno != errno.EINVAL:  # Linux before 3.15 has no such lock.
                raise
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)


def _name() -> bytes:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}).encode()


def _place(folder: pathlib.Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_at(file: int, path: pathlib.Path) -> bool:
    """Says whether an open file is the one that is at `path` now."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
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
    unknown = "another process"
    try:
        # This comes first: whoever holds the byte now has written the text that is read after it.
        named, pid = _named(file)
        known = json.loads(os.pread(file, 4096, 0))
        if not named or (pid > 0 and pid != known["pid"]):
            return unknown
        text = f"process {int(known['pid'])} on host {known['host']!s:.100} since {known['since']!s:.40}"
        return legible(text)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return unknown


def _named(file: int) -> tuple[bool, int]:
    """Says whether the writer has said who it is, and gives its process where the system knows it (else 0 or less)."""
    if sys.platform == "linux" and sys.maxsize > 2**32:
        flock = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, _NAMED, 1, 0)
        kind, *_, pid = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, flock))
        return kind != fcntl.F_UNLCK, pid
    try:
        # Closing the file releases this lock.
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, _NAMED)
    except OSError:
        return True, 0
    return False, 0
