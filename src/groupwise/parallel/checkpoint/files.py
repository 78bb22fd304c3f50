"""Reads and checks the files of a checkpoint: sizes, SHA-256, and that each is an ordinary file."""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import socket
import stat
from collections.abc import Iterable, Mapping

from groupwise.errors import GroupwiseError

SUMS = "SHA256SUMS"
# A name has no separator, line break or blank: sha256sum would escape some of them.
PLAIN = re.compile(r"[A-Za-z0-9_.-]+")
_LINE = re.compile(rf"([0-9a-f]{{64}})  ({PLAIN.pattern})\n")
_CHUNK = 2**20
# The limit is far above what the names of a model take, and low enough to be held in memory.
_MOST = 2**28


def read_file(path: pathlib.Path) -> bytes:
    """Returns the content of a small file. Raises `OSError` or `GroupwiseError` if it is not a file or not small."""
    size = _size(path)
    if size > _MOST:
        raise GroupwiseError(f"{path.name} has {size:,} bytes, and at most {_MOST:,} are read")
    return path.read_bytes()


def write_file(path: pathlib.Path, text: str) -> None:
    """Writes a file and waits until the disk holds it, so that it is there before the checkpoint gets its name."""
    with path.open("w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    _size(path)
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def read_sums(path: pathlib.Path) -> dict[str, str]:
    """Returns the SHA-256 of each file that the SHA256SUMS of a checkpoint lists."""
    try:
        content = read_file(path / SUMS)
        # Every byte is checked: a line that sha256sum would skip counts as damage here.
        lines = content.decode("ascii").splitlines(keepends=True)
        found = [_LINE.fullmatch(line) for line in lines]
        if None in found:
            raise GroupwiseError(f"line {found.index(None) + 1} of {SUMS} is not a SHA-256, two blanks and a file name")
        sums = {match[2]: match[1] for match in found if match}
        if len(sums) < len(found):
            raise GroupwiseError(f"{SUMS} lists a file twice")
    except FileNotFoundError as error:
        raise GroupwiseError(
            f"checkpoint {path} has no {SUMS}: an earlier groupwise wrote it, or a copy of it was interrupted; resume "
            "from another one, or load it with the groupwise that wrote it and save it anew"
        ) from error
    except (OSError, ValueError) as error:
        raise damaged(path, f"{error}") from error
    return sums


def sums_text(sums: Mapping[str, str]) -> str:
    """Returns `sums` as `sha256sum --check` reads them."""
    return "".join(f"{sums[name]}  {name}\n" for name in sorted(sums))


def check_sizes(path: pathlib.Path, files: Mapping[str, int]) -> None:
    """Refuses a checkpoint that lacks a file, or has one of another size."""
    for name, size in files.items():
        try:
            there = _size(path / name)
        except FileNotFoundError:
            what = "is missing"
        except (OSError, GroupwiseError) as error:
            raise damaged(path, f"{error}") from error
        else:
            if there == size:
                continue
            what = f"has {there:,} of its {size:,} bytes"
        raise GroupwiseError(f"checkpoint {path} is truncated: {name} {what}; resume from an older one")


def check_sums(path: pathlib.Path, sums: Mapping[str, str], names: Iterable[str]) -> None:
    """Refuses a checkpoint if one of the files `names` holds other bytes than were written."""
    for name in names:
        check_sum(path, name, digest(path / name), sums[name])


def check_sum(path: pathlib.Path, name: str, there: str, written: str) -> None:
    """Refuses a file whose SHA-256 is not the one that was written down."""
    if there != written:
        raise damaged(path, f"the SHA-256 of {name} is not the one in {SUMS}")


def place_of(path: pathlib.Path) -> str:
    """Returns a text that is equal where two processes of one machine see the same folder.

    A path may lead to another folder on each machine; and one that machines have in common has a text for each of them.
    """
    try:
        # Containers of one machine may have different host names.
        host = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        host = socket.gethostname()
    status = path.stat()
    return f"{host} {status.st_dev} {status.st_ino}"


def damaged(path: pathlib.Path, what: str) -> GroupwiseError:
    """Returns the error for a checkpoint that does not hold what was written."""
    return GroupwiseError(f"checkpoint {path} is damaged: {what}; resume from an older one")


def _size(path: pathlib.Path) -> int:
    """Returns the size of a file. It refuses anything else unopened: a FIFO would wait, a device may do anything."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device, a pipe or a socket"
        raise GroupwiseError(f"{path.name} is {what} and not a file")
    return status.st_size
