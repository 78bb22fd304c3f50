"""What a killed writer leaves, and folders that are not the same one for each rank."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil

import pytest
import torch

import warm
from groupwise.parallel import checkpoint, list_checkpoints, load, save, split
from groupwise.parallel.checkpoint import files, recovery, saving
from groupwise.parallel.checkpoint.reading import Reader
from ranks import ranks
from scripts import needs_digits
from test_checkpoint_files import flip, made
from test_checkpoint_writers import names, saved
from test_checkpoints import OTHERS, refused, small, step, told, written
from test_parallel_split import whole


class Killed(BaseException):
    """Stands for the end of the process."""


@contextlib.contextmanager
def killed_between():
    """Ends the writer after the old checkpoint has lost its name and before the new one gets it."""
    good = pathlib.Path.rename

    def rename(path, target):
        if path.suffix == ".part":
            raise Killed
        return good(path, target)

    pathlib.Path.rename = rename
    try:
        yield
    finally:
        pathlib.Path.rename = good


@contextlib.contextmanager
def killed_writing():
    good = saving.state_dict_saver.save

    def end(*_, **__):
        raise Killed

    saving.state_dict_saver.save = end
    try:
        yield
    finally:
        saving.state_dict_saver.save = good


@contextlib.contextmanager
def killed_removing():
    """Ends the writer after an older checkpoint has lost its name and before it is removed."""
    good = shutil.rmtree

    def end(*_, **__):
        raise Killed

    saving.shutil.rmtree = end
    try:
        yield
    finally:
        saving.shutil.rmtree = good


def killed(mesh, folder, number, how):
    # Each writer has another model.
    torch.manual_seed(len(names(folder)))
    with contextlib.suppress(Killed):
        saved(mesh, folder, (number,), how)


def kinds(folder):
    return [".part" if name.endswith(".part") else name for name in names(folder)]


def weight(mesh, path):
    model = split(small(), mesh)
    load(path, model, OTHERS["stateful"](model), group=mesh.get_group())
    return whole(model[0].weight).detach()


def test_a_kill_between_the_renames_loses_no_checkpoint(tmp_path):
    ranks.run(1, killed, str(tmp_path), 1, contextlib.nullcontext)
    old = ranks.run(1, weight, str(tmp_path / "step-00000001"))[0]
    ranks.run(1, killed, str(tmp_path), 1, killed_between)
    assert kinds(tmp_path) == ["groupwise.lock", ".part", ".part"]
    # The next one is killed too, and has removed nothing but the old one of two.
    ranks.run(1, killed, str(tmp_path), 2, killed_writing)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]
    assert not torch.equal(ranks.run(1, weight, str(tmp_path / "step-00000001"))[0], old)
    assert ranks.run(1, saved, str(tmp_path), (2,)) == [(["done"], [])]
    assert names(tmp_path) == ["groupwise.lock", "step-00000001", "step-00000002"]


def test_the_old_one_gets_its_name_if_the_new_one_is_damaged(tmp_path):
    ranks.run(1, killed, str(tmp_path), 1, contextlib.nullcontext)
    old = ranks.run(1, weight, str(tmp_path / "step-00000001"))[0]
    ranks.run(1, killed, str(tmp_path), 1, killed_between)
    newest = max(tmp_path.glob("*.part"), key=lambda path: recovery.read_facts(path).order)
    flip(newest / "__0_0.distcp", 100, 0)
    ranks.run(1, claimed, str(tmp_path))
    assert kinds(tmp_path) == ["groupwise.lock", "step-00000001", ".part"]
    assert torch.equal(ranks.run(1, weight, str(tmp_path / "step-00000001"))[0], old)


def claimed(mesh, folder):
    return told(checkpoint.claim, folder, group=mesh.get_group())


def test_a_claim_gives_the_name_back(tmp_path):
    ranks.run(1, killed, str(tmp_path), 1, contextlib.nullcontext)
    ranks.run(1, killed, str(tmp_path), 1, killed_between)
    assert not list_checkpoints(tmp_path)
    assert ranks.run(2, claimed, str(tmp_path)) == ["done"] * 2
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step-00000001"]


def test_what_was_being_removed_is_not_given_back(tmp_path):
    ranks.run(1, saved, str(tmp_path), (1, 2))
    ranks.run(1, killed, str(tmp_path), 3, killed_removing)
    assert kinds(tmp_path) == ["groupwise.lock", ".part", "step-00000002", "step-00000003"]
    ranks.run(1, claimed, str(tmp_path))
    assert kinds(tmp_path) == ["groupwise.lock", ".part", "step-00000002", "step-00000003"]
    ranks.run(1, saved, str(tmp_path), (4,))
    assert names(tmp_path) == ["groupwise.lock", "step-00000003", "step-00000004"]


def test_training_resumes_after_a_kill_between_the_renames(tmp_path):
    command = ["-m", "groupwise.examples.train", "--checkpoints", tmp_path, "--batch", 700]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    needs_digits()
    warm.run(*command, "--epochs", 1, environment=environment)
    (path,) = list_checkpoints(tmp_path)
    path.rename(path.with_name(f"{path.name}.0123abcd.part"))
    out = warm.run(*command, "--epochs", 2, "--resume", environment=environment)
    assert f"resuming from {path}, step " in out


def saved_apart(mesh, folder, what):
    """Saves as if the disk of the last rank were another one, where its files are."""
    model = split(small(), mesh)
    optimizer = OTHERS["stateful"](model)
    step(model, optimizer)
    rank, last = mesh.get_local_rank(), mesh.size() - 1
    good = saving._files

    def found_in(part, pattern):
        found = good(part, pattern)
        if rank == last and pattern == f"__{last}_*":
            for name in found:
                if what == "missing":
                    (part / name).unlink()
                else:
                    (part / name).write_bytes((part / name).read_bytes()[:-1])
        return found

    saving._files = found_in
    try:
        return told(save, folder, 9, model, optimizer, group=mesh.get_group())
    finally:
        saving._files = good


@pytest.mark.parametrize("what", ["missing", "shorter"])
def test_a_rank_that_writes_to_another_disk(tmp_path, what):
    ranks.run(2, written, str(tmp_path), "stateful", (1, 2))
    for text in ranks.run(2, saved_apart, str(tmp_path), what):
        assert text.startswith(f"checkpoint {tmp_path / 'step-00000009'} cannot be written: rank 0 does not find the ")
        assert " bytes of __1_0.distcp in the folder" in text
        assert "all ranks need one folder" in text
    assert names(tmp_path) == ["groupwise.lock", "step-00000001", "step-00000002"]


def of_nodes(mesh, paths):
    """Loads as if each rank had a disk of its own."""
    return refused(mesh, paths[mesh.get_local_rank()])


@pytest.fixture
def copies(tmp_path):
    """A checkpoint on the disks of two machines."""
    path = made(tmp_path / "one")
    shutil.copytree(path.parent, tmp_path / "two")
    return [path, tmp_path / "two" / path.name]


def test_each_machine_checks_its_own_copy(copies):
    paths = [str(path) for path in copies]
    assert ranks.run(2, of_nodes, paths) == ["loaded"] * 2
    # These are the ranks that read each file.
    needs = {"__0_0.distcp": set(), "__1_0.distcp": set(), ".metadata": {0, 1}, "groupwise.json": {0, 1}}
    for rank, (_, seen) in enumerate(ranks.run(2, plan_of, paths)):
        for name in seen:
            needs[name].add(rank)
    assert all(rank in needs[f"__{rank}_0.distcp"] for rank in (0, 1))
    for rank, copy in enumerate(copies):
        for name, who in needs.items():
            flip(copy / name, (copy / name).stat().st_size // 2, 0)
            texts = ranks.run(2, of_nodes, paths)
            if rank in who:
                what = f"checkpoint {copy} is damaged: the SHA-256 of {name} is not the one in SHA256SUMS; "
                assert all(text.startswith(what) for text in texts)
            else:
                assert texts == ["loaded"] * 2
            flip(copy / name, (copy / name).stat().st_size // 2, 0)


def plan_of(mesh, paths):
    """The files that this rank reads to load."""
    good, seen = Reader.read_data, set()

    def read_data(self, plan, planner):
        seen.update(self.files_of(plan))
        return good(self, plan, planner)

    Reader.read_data = read_data
    try:
        return of_nodes(mesh, paths), seen
    finally:
        Reader.read_data = good


def test_machines_with_different_checkpoints(copies, tmp_path):
    other = pathlib.Path(ranks.run(2, written, str(tmp_path / "other"), "stateful", (1, 2))[0][1])
    for text in ranks.run(2, of_nodes, [str(copies[0]), str(other)]):
        assert text == (f"ranks 0 and 1 see different checkpoints at {copies[0]}; copy the same one to each machine")


def digested(mesh, path):
    """The files whose sums this rank checks."""
    good, seen = files.digest, []

    def digest(path):
        seen.append(path.name)
        return good(path)

    files.digest = digest
    try:
        return refused(mesh, path), seen
    finally:
        files.digest = good


def test_ranks_of_one_folder_divide_its_files(tmp_path):
    path = made(tmp_path)
    answers = ranks.run(2, digested, str(path))
    assert [text for text, _ in answers] == ["loaded"] * 2
    seen = [name for _, names in answers for name in names if name != ".metadata"]
    assert sorted(seen) == ["__0_0.distcp", "__1_0.distcp"]
