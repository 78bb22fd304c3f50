"""Who writes to a folder of checkpoints, what is removed there, and what strangers leave there."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import warnings

import pytest

from groupwise.parallel import checkpoint, list_checkpoints, save, split
from groupwise.parallel.checkpoint import lock, saving
from ranks import ranks
from test_checkpoint_files import resum
from test_checkpoints import OTHERS, refused, small, step, told, written


def names(folder):
    return sorted(path.name for path in pathlib.Path(folder).iterdir())


def saved(mesh, folder, numbers, break_in=None):
    """What each `save` says, and the warnings of all."""
    model = split(small(), mesh)
    optimizer = OTHERS["stateful"](model)
    texts = []
    with warnings.catch_warnings(record=True) as caught, (break_in or contextlib.nullcontext)():
        warnings.simplefilter("always")
        for number in numbers:
            step(model, optimizer)
            texts.append(told(save, folder, number, model, optimizer, group=mesh.get_group()))
    return texts, [str(warning.message) for warning in caught if warning.category is RuntimeWarning]


@pytest.fixture
def elsewhere(tmp_path_factory):
    """A checkpoint in another folder."""
    return pathlib.Path(ranks.run(1, written, str(tmp_path_factory.mktemp("elsewhere")))[0][0])


def test_links_are_listed_and_stay(tmp_path, elsewhere):
    (tmp_path / "step-00000900").symlink_to(elsewhere)
    (tmp_path / "step-00000901").symlink_to("step-00000001")
    (tmp_path / "step-00000902").symlink_to("nowhere")
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000900"]
    assert ranks.run(2, saved, str(tmp_path), (1, 2, 3)) == [(["done"] * 3, [])] * 2
    kept = ["step-00000002", "step-00000003"]
    links = ["step-00000900", "step-00000901", "step-00000902"]
    assert names(tmp_path) == ["groupwise.lock", *kept, *links]
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000900", *kept]
    assert ranks.run(2, refused, str(tmp_path / "step-00000900")) == ["loaded"] * 2
    assert names(elsewhere.parent) == ["groupwise.lock", "step-00000001"]


def test_a_stranger_that_makes_the_new_one_unreadable(tmp_path, elsewhere):
    facts = elsewhere / "groupwise.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"order": 2**63 - 1}))
    resum(elsewhere)
    ranks.run(2, saved, str(tmp_path), (1,))
    (tmp_path / "step-00000900").symlink_to(elsewhere)
    for (text,), _ in ranks.run(2, saved, str(tmp_path), (2,)):
        assert text.startswith(f"checkpoint {tmp_path / 'step-00000002'} cannot be written: ")
        assert "order is 9223372036854775808 and not a whole number" in text
    assert names(tmp_path) == ["groupwise.lock", "step-00000001", "step-00000900"]


@pytest.mark.parametrize("what", ["link", "dangling", "file", "folder"])
def test_what_is_no_checkpoint_is_not_replaced(what, tmp_path, elsewhere):
    target = tmp_path / "step-00000002"
    make = {
        "link": lambda: target.symlink_to(elsewhere),
        "dangling": lambda: target.symlink_to("nowhere"),
        "file": lambda: target.write_text("mine"),
        "folder": lambda: (target / "in").mkdir(parents=True),
    }
    make[what]()
    words = {"file": "not a folder", "folder": "a folder without groupwise.json"}.get(what, "a symbolic link")
    for (first, second, third), _ in ranks.run(2, saved, str(tmp_path), (1, 2, 3)):
        assert (first, third) == ("done", "done")
        assert second == (
            f"{target} is {words}, and save replaces only checkpoints of groupwise; move it away, or give another "
            "folder"
        )
    assert names(tmp_path) == ["groupwise.lock", "step-00000001", "step-00000002", "step-00000003"]
    assert target.is_symlink() == (what in ("link", "dangling"))
    assert what != "file" or target.read_text() == "mine"
    assert what != "folder" or (target / "in").is_dir()
    assert elsewhere.is_dir()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(tmp_path):
    path = pathlib.Path(ranks.run(2, written, str(tmp_path), "stateful", (1, 2))[0][1])
    (path / "groupwise.json").write_text("{")
    assert ranks.run(2, saved, str(tmp_path), (2,)) == [(["done"], [])] * 2
    assert [found.name for found in list_checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]
    assert names(tmp_path) == ["groupwise.lock", "step-00000001", "step-00000002"]


@contextlib.contextmanager
def unremovable():
    """Every removal fails once it has begun."""
    good = shutil.rmtree

    def rmtree(path, **_):
        next(pathlib.Path(path).glob("*.distcp")).unlink()
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    saving.shutil.rmtree = rmtree
    try:
        yield
    finally:
        saving.shutil.rmtree = good


@contextlib.contextmanager
def unmovable():
    """No checkpoint loses its name."""
    good = pathlib.Path.rename

    def rename(path, target):
        if path.name.startswith("step-") and path.suffix != ".part":
            raise OSError(errno.EBUSY, "Device or resource busy", str(path))
        return good(path, target)

    pathlib.Path.rename = rename
    try:
        yield
    finally:
        pathlib.Path.rename = good


def test_what_cannot_be_removed_is_a_warning_and_no_checkpoint(tmp_path):
    first, second = ranks.run(2, saved, str(tmp_path), (1, 2, 3), unremovable)
    assert (first[0], second) == (["done"] * 3, (["done"] * 3, []))
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000002", "step-00000003"]
    (left,) = tmp_path.glob("*.part")
    assert re.fullmatch(r"step-00000001\.[0-9a-f]{8}\.part", left.name)
    assert first[1] == [f"{left} cannot be removed, and no checkpoint needs it; remove it by hand"]
    # The next one that can removes it.
    assert ranks.run(2, saved, str(tmp_path), (4,)) == [(["done"], [])] * 2
    assert names(tmp_path) == ["groupwise.lock", "step-00000003", "step-00000004"]


def test_what_cannot_be_moved_is_a_warning_and_stays_whole(tmp_path):
    (texts, warned), _ = ranks.run(2, saved, str(tmp_path), (1, 2, 3), unmovable)
    assert texts == ["done"] * 3
    assert warned == [f"{tmp_path / 'step-00000001'} cannot be removed, and no checkpoint needs it; remove it by hand"]
    assert len(list_checkpoints(tmp_path)) == 3
    assert ranks.run(2, refused, str(tmp_path / "step-00000001")) == ["loaded"] * 2


@contextlib.contextmanager
def unnamed():
    """The new checkpoint does not get its name."""
    good = pathlib.Path.rename

    def rename(path, target):
        if path.suffix == ".part" and (path / "SHA256SUMS").exists() and not rename.failed:
            rename.failed = True
            raise OSError(errno.EIO, "Input/output error", str(path))
        return good(path, target)

    rename.failed = False
    pathlib.Path.rename = rename
    try:
        yield
    finally:
        pathlib.Path.rename = good


def test_a_checkpoint_that_cannot_be_replaced_keeps_its_name(tmp_path):
    path = ranks.run(2, written, str(tmp_path))[0][0]
    for (text,), _ in ranks.run(2, saved, str(tmp_path), (1,), unnamed):
        assert text.startswith(f"checkpoint {path} cannot be written: OSError: [Errno 5] Input/output error")
    assert names(tmp_path) == ["groupwise.lock", "step-00000001"]
    assert ranks.run(2, refused, path) == ["loaded"] * 2


def leave_parts(folder):
    """What killed writers leave, of this version and the one before, and what only looks like it."""
    for name in ("step-00000007.part", "step-00000008.0123abcd.part", "step-00000009.part.mine", "step-notes.part"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__0_0.distcp").write_text("half")
    (folder / "step-00000005.part").write_text("a file")
    (folder / "step-00000006.part").symlink_to("step-notes.part")


KEPT = ["step-00000005.part", "step-00000006.part", "step-00000009.part.mine", "step-notes.part"]


def test_what_a_killed_writer_left_is_removed(tmp_path):
    leave_parts(tmp_path)
    assert ranks.run(2, saved, str(tmp_path), (1,)) == [(["done"], [])] * 2
    assert names(tmp_path) == sorted(["groupwise.lock", "step-00000001", *KEPT])
    assert names(tmp_path / "step-notes.part") == ["__0_0.distcp"]


@contextlib.contextmanager
def lockless():
    """As on a file system without locks."""
    good = lock._lock

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    lock._lock = none
    try:
        yield
    finally:
        lock._lock = good


@contextlib.contextmanager
def windows():
    lock._LOCKS = False
    try:
        yield
    finally:
        lock._LOCKS = True


@pytest.mark.parametrize("how", [lockless, windows])
def test_without_locks_another_writer_loses_nothing(how, tmp_path):
    leave_parts(tmp_path)
    parts = {path.name for path in tmp_path.glob("*.part*")}
    # The part of the same step is another writer's too.
    assert ranks.run(2, saved, str(tmp_path), (7, 8), how) == [(["done"] * 2, [])] * 2
    assert parts < set(names(tmp_path))
    assert (tmp_path / "step-00000007.part" / "__0_0.distcp").read_text() == "half"
    assert len(list_checkpoints(tmp_path)) == 2


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
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)], text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


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


FORMER = json.dumps({"pid": 4242, "host": socket.gethostname(), "since": "2020"})
# Each holds the lock and has not yet said so in the file, which names the writer before: as this groupwise locks, and
# as the one before did.
UNNAMED = """
import pathlib, sys
from groupwise.parallel.checkpoint import lock
lock._lock(lock._open(pathlib.Path(sys.argv[1])), lock._WRITER)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("code", [UNNAMED, STRANGER], ids=["this", "before"])
def test_the_writer_before_is_not_named(code, tmp_path):
    file = tmp_path / "groupwise.lock"
    file.write_text(FORMER)
    with another(code, file, ""):
        (text,) = ranks.run(1, claimed, str(tmp_path))
    assert text.startswith(f"checkpoints in {tmp_path} are being written by another process; end that process, or give")


def test_no_character_of_a_lock_file_reaches_the_terminal(tmp_path):
    with another(STRANGER, tmp_path / "groupwise.lock", '{"pid": 1, "host": "\\u001b[31mX", "since": "a\\nb"}'):
        (text,) = ranks.run(1, claimed, str(tmp_path))
    assert r"by process 1 on host \x1b[31mX since a\nb; end" in text


def refuses(folder):
    """Whether a process that comes now is refused."""
    code = WRITER.replace("sys.stdin.read()", "")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0 or "are being written by process" in done.stderr, done.stderr
    return done.returncode != 0


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


@pytest.mark.skipif(not lock._OF_OPEN_FILES, reason="locks belong to processes here")
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
