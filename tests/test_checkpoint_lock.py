"""The lock of a folder of checkpoints: one process writes there, and another learns which one."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import shutil
import signal
import socket
import sys

import pytest

import warm
from groupwise.parallel import checkpoint, list_checkpoints
from groupwise.parallel.checkpoint import lock
from ranks import ranks
from test_checkpoint_writers import KEPT, leave_parts, names, saved
from test_checkpoints import told

# Takes the lock with nothing of groupwise.
STRANGER = """
import fcntl, os, sys
file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.write(file, sys.argv[2].encode())
print("held", flush=True)
sys.stdin.read()
"""
WRITER = """
import pathlib, sys
from groupwise.parallel.checkpoint.lock import take
print("held" if take(pathlib.Path(sys.argv[1])) else "free", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def another(code, *arguments):
    """A process that has begun to write."""
    with warm.Process("-c", code, *arguments) as process:
        assert process.first_line() == "held"
        yield process


def claimed(mesh, folder):
    return told(checkpoint.claim, folder, group=mesh.get_group())


def test_a_second_writer_is_refused_by_name_until_the_first_is_gone(tmp_path):
    leave_parts(tmp_path)
    before = names(tmp_path)
    with another(WRITER, tmp_path) as process:
        known = json.loads((tmp_path / "groupwise.lock").read_text())
        assert known["pid"] == process.pid
        words = (
            f"checkpoints in {tmp_path} are being written by process {process.pid} on host {socket.gethostname()} "
            f"since {known['since']}; end that process, or give another folder"
        )
        assert ranks.run(2, claimed, str(tmp_path)) == [words] * 2
        assert ranks.run(3, saved, str(tmp_path), (1,)) == [([words], [])] * 3
        assert names(tmp_path) == sorted(["groupwise.lock", *before])
        process.send_signal(signal.SIGKILL)
        process.wait()
        # What the file says of a process that is no more means nothing.
        assert ranks.run(2, saved, str(tmp_path), (1,)) == [(["done"], [])] * 2
    assert names(tmp_path) == sorted(["groupwise.lock", "step-00000001", *KEPT])


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 9000, '{"pid": "x"}', '{"pid": 7}', '{"pid": null}'])
def test_a_writer_that_has_not_said_who_it_is(content, tmp_path):
    with another(STRANGER, tmp_path / "groupwise.lock", content):
        (text,) = ranks.run(1, claimed, str(tmp_path))
    assert text.startswith(f"checkpoints in {tmp_path} are being written by another process; end that process, or give")


# Each holds the lock and has not yet said so in the file, which names the writer before: as this groupwise locks, and
# as the one before did.
UNNAMED = """
import pathlib, sys
from groupwise.parallel.checkpoint import lock
lock._lock(lock._open(pathlib.Path(sys.argv[1])), lock._WRITER)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("host", [socket.gethostname(), "elsewhere"])
# Only Linux is asked which process holds a lock, which an earlier groupwise does not say otherwise.
@pytest.mark.parametrize("code", [UNNAMED, *[STRANGER] * lock._OF_OPEN_FILES])
def test_the_writer_before_is_not_named(code, host, tmp_path):
    file = tmp_path / "groupwise.lock"
    file.write_text(json.dumps({"pid": 4242, "host": host, "since": "2020"}))
    with another(code, file, ""):
        (text,) = ranks.run(1, claimed, str(tmp_path))
    assert text.startswith(f"checkpoints in {tmp_path} are being written by another process; end that process, or give")


def test_no_character_of_a_lock_file_reaches_the_terminal(tmp_path):
    code = STRANGER.replace("sys.argv[2]", "sys.argv[2].replace('PID', str(os.getpid()))")
    content = r'{"pid": PID, "host": "\u001b[31mX", "since": "a\nb"}'
    with another(code, tmp_path / "groupwise.lock", content) as process:
        (text,) = ranks.run(1, claimed, str(tmp_path))
    assert rf"by process {process.pid} on host \x1b[31mX since a\nb; end" in text


def refuses(folder):
    """Whether a process that comes now is refused."""
    code = WRITER.replace("sys.stdin.read()", "")
    status, _, err = warm.Process("-c", code, folder).finish()
    assert status == 0 or "are being written by process" in err, err
    return status != 0


def through_links(mesh, folder, link):
    """One process writes to a folder by all its names; gives the descriptors of the lock file."""
    paths = [folder, link, f"{folder}/../{pathlib.Path(folder).name}"]
    texts = [told(checkpoint.claim, path, group=mesh.get_group()) for path in paths]
    texts.append(saved(mesh, link, (1, 2))[0])
    places = []
    for file in pathlib.Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            places.append(str(file.readlink()))
    return texts, places.count(f"{folder}/groupwise.lock")


def released(mesh, folder):
    checkpoint.release(folder)
    checkpoint.release(folder)
    checkpoint.release(f"{folder}/nowhere")


def test_one_writer_holds_the_folder_by_all_its_names_until_it_lets_go(tmp_path):
    folder, link = tmp_path.resolve() / "folder", tmp_path / "link"
    link.symlink_to(folder)
    assert ranks.run(1, through_links, str(folder), str(link)) == [(["done"] * 3 + [["done"] * 2], 1)]
    assert refuses(folder)
    ranks.run(1, released, str(link))
    assert not refuses(folder)


def forked(mesh, folder):
    """What a forked child of the writer is told, and whether the lock is there when it has ended."""
    claimed(mesh, folder)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            lock.take(pathlib.Path(folder))
            text = "taken"
        except BaseException as error:
            text = str(error)
        os.write(write, text.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return os.getpid(), pipe.read(), refuses(folder)


def test_a_forked_child_is_another_process(tmp_path):
    ((pid, text, held),) = ranks.run(1, forked, str(tmp_path))
    assert f"are being written by process {pid} on host " in text
    assert held


def forgotten(mesh, folder):
    """Whether the folder is free once its writer has let go, while a forked child of it still runs."""
    claimed(mesh, folder)
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    checkpoint.release(folder)
    free = not refuses(folder)
    os.close(write)
    os.close(read)
    os.waitpid(child, 0)
    return free


def test_a_forked_child_holds_no_lock_of_its_parent(tmp_path):
    assert ranks.run(1, forgotten, str(tmp_path)) == [True]


def copied(mesh, folder, of_files):
    """Whether another writer is refused after the first has copied its folder, and once it has saved again.

    Closing the copy's descriptor releases a lock that belongs to the process; then another may take it.
    """
    good = lock._OF_OPEN_FILES
    lock._OF_OPEN_FILES = good and of_files
    try:
        claimed(mesh, folder)
        shutil.copytree(folder, f"{folder}-copy")
        kept = refuses(folder)
        texts = saved(mesh, folder, (1,))[0]
        regained = refuses(folder)
        shutil.copytree(folder, f"{folder}-copy", dirs_exist_ok=True)
        if kept:
            return kept, regained, texts
        with another(WRITER, folder) as process:
            return kept, regained, texts + saved(mesh, folder, (2,))[0], process.pid
    finally:
        lock._OF_OPEN_FILES = good


@pytest.mark.skipif(sys.platform != "linux", reason="locks belong to processes here")
def test_a_writer_that_copies_its_folder_keeps_it(tmp_path):
    assert ranks.run(1, copied, str(tmp_path), True) == [(True, True, ["done"])]


def test_a_lock_that_the_system_released_is_taken_again(tmp_path):
    ((kept, regained, texts, process),) = ranks.run(1, copied, str(tmp_path), False)
    assert (kept, regained, texts[0]) == (False, True, "done")
    assert f"are being written by process {process} on host " in texts[1]
    assert len(list_checkpoints(tmp_path)) == 1


def test_a_lock_file_that_someone_removes_is_made_again(tmp_path):
    ranks.run(1, saved, str(tmp_path), (1,))
    (tmp_path / "groupwise.lock").unlink()
    assert ranks.run(1, saved, str(tmp_path), (2,)) == [(["done"], [])]
    assert refuses(tmp_path)
    # And so is one that another process has made in its place.
    (tmp_path / "groupwise.lock").unlink()
    with another(WRITER, tmp_path) as process:
        (((text,), _),) = ranks.run(1, saved, str(tmp_path), (3,))
        assert f"are being written by process {process.pid} on host " in text


@pytest.mark.parametrize("what", ["pipe", "link", "folder"])
def test_a_lock_that_is_no_file(what, tmp_path):
    path, other = tmp_path / "groupwise.lock", tmp_path / "other"
    other.write_text("mine")
    {"pipe": os.mkfifo, "link": lambda path: path.symlink_to(other), "folder": pathlib.Path.mkdir}[what](path)
    for ((text,), _), claim in zip(
        ranks.run(2, saved, str(tmp_path), (1,)), ranks.run(2, claimed, str(tmp_path)), strict=True
    ):
        for said in (text, claim):
            assert str(path) in said
            assert said.endswith("or give another folder")
    assert names(tmp_path) == ["groupwise.lock", "other"]
    assert other.read_text() == "mine"


def test_a_folder_that_cannot_be_claimed(tmp_path):
    (tmp_path / "file").touch()
    for text in ranks.run(2, claimed, str(tmp_path / "file" / "in")):
        assert text.startswith(
            f"no checkpoint can be written to {tmp_path / 'file' / 'in'} ([Errno 20] Not a directory"
        )
