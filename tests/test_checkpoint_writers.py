"""Who writes to a folder of checkpoints, what is removed there, and what strangers leave there."""

from __future__ import annotations

import contextlib
import errno
import json
import pathlib
import re
import shutil
import warnings

import pytest

from groupwise.parallel import list_checkpoints, save, split
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
