"""The training example in processes of its own, as torchrun starts them, and what happens when one of them dies."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import pathlib
import signal
import time

import pytest
import torch

import warm
from groupwise.examples import train
from groupwise.examples.digits import digits
from scripts import needs_digits
from test_checkpoint_lock import WRITER, another, refuses

needs_digits(module=True)

PROGRAM = "groupwise.examples.train"
ENOUGH = 180


def torchrun(*options, program=()):
    return warm.torchrun(2, *options, "-m", PROGRAM, *program)


def wait_for(condition, process):
    for _ in range(10 * ENOUGH):
        if found := condition():
            return found
        assert process.poll() is None, process.finish()
        time.sleep(0.1)
    raise AssertionError("nothing happened")


def options(folder, steps=2, timeout=20):
    return ("--epochs", str(steps), "--every", "11", "--checkpoints", str(folder), "--timeout", str(timeout))


def checkpoints(folder):
    return sorted(path.name for path in pathlib.Path(folder).glob("step-*") if path.suffix != ".part")


def test_a_killed_rank_is_replaced_and_nothing_but_the_steps_since_is_lost(tmp_path):
    status, out, err = torchrun(program=options(tmp_path / "whole")).finish()
    assert status == 0, err
    assert checkpoints(tmp_path / "whole") == ["step-00000033", "step-00000044"]
    last = [line for line in out.splitlines() if line.startswith("epoch  2")]

    process = torchrun("--max-restarts", 1, program=options(tmp_path / "killed"))
    wait_for(lambda: checkpoints(tmp_path / "killed"), process)
    # The first rank holds the lock.
    first = json.loads((tmp_path / "killed" / "groupwise.lock").read_text())["pid"]
    (other,) = {*children(process.pid)} - {first}
    os.kill(other, signal.SIGKILL)
    status, out, err = process.finish()
    assert status == 0, err
    assert "resuming from " in out
    assert [line for line in out.splitlines() if line.startswith("epoch  2")] == last


def children(pid):
    return [int(word) for word in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_gone(pid):
    """Tells whether a process has ended, and its locks with it, though its parent may not have asked how."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "XZ"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_workers_that_outlive_their_torchrun_are_named(tmp_path):
    process = torchrun(program=options(tmp_path, steps=500))
    workers = []
    try:
        wait_for(lambda: checkpoints(tmp_path), process)
        workers = children(process.pid)
        process.kill()
        status, out, err = torchrun(program=(*options(tmp_path, steps=500), "--resume")).finish()
        holder = json.loads((tmp_path / "groupwise.lock").read_text())
    finally:
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.close()
    assert status != 0
    assert "resuming from" not in out
    assert holder["pid"] in workers
    words = f"groupwise: checkpoints in {tmp_path} are being written by process {holder['pid']} on host "
    assert sum(line.startswith(words) for line in err.splitlines()) == 1, err
    # What they hold goes with them, and the next run clears away what they left.
    end = time.monotonic() + 60
    while not all(map(is_gone, workers)):
        assert time.monotonic() < end, "a killed worker is still there"
        time.sleep(0.01)
    (tmp_path / "step-00000999.part").mkdir()
    newest = int(checkpoints(tmp_path)[-1].removeprefix("step-"))
    again = torchrun(program=(*options(tmp_path, steps=-(-newest // 22) + 1), "--resume"))
    status, out, err = again.finish()
    assert status == 0, err
    assert f"resuming from {tmp_path}" in out
    assert not list(tmp_path.glob("*.part"))


# The last is the one that holds the store in which ranks find each other.
@pytest.mark.parametrize(
    ("how", "victim"),
    [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGSTOP, 0)],
    ids=["killed", "hanging", "first-hanging"],
)
def test_the_others_stop_with_an_error_that_says_how_to_go_on(how, victim, tmp_path):
    timeout = 6
    group = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": warm.free_port(), "WORLD_SIZE": "2"}
    command = ["-m", PROGRAM, *options(tmp_path, steps=50, timeout=timeout)]
    processes = [warm.Process(*command, environment={**group, "RANK": rank}) for rank in range(2)]
    other, stopped = processes[1 - victim], processes[victim]
    try:
        wait_for(lambda: checkpoints(tmp_path), other)
        stopped.send_signal(how)
        begun = time.monotonic()
        status, _, err = other.finish()
        took = time.monotonic() - begun
    finally:
        for process in processes:
            process.close()
    assert status == 1, err
    line = next(line for line in err.splitlines() if line.startswith("groupwise: "))
    stops = f"rank {1 - victim} stops, because another rank has stopped or not answered in {timeout} s; "
    assert f"{stops}the last checkpoint is {tmp_path / checkpoints(tmp_path)[-1]}; continue with --resume" in line
    # And what the end of a process takes.
    assert took < timeout + 10


REFUSED = "holds checkpoints of another run, the newest {}, which this one would replace; continue with --resume, or"


def test_a_run_that_is_refused_is_not_begun_by_a_restart(alone, tmp_path):
    """And each rank stops at once, of which one says why."""
    alone(tmp_path, "--every", "1")
    before = checkpoints(tmp_path)
    assert before == ["step-00000001", "step-00000002"]
    status, out, err = torchrun("--max-restarts", 1, program=options(tmp_path)).finish()
    assert status != 0, out
    lines = [line for line in err.splitlines() if line.startswith("groupwise: ")]
    words = f"groupwise: --checkpoints {tmp_path} {REFUSED.format(tmp_path / before[-1])} "
    # At first, and as it is started again.
    assert [line.startswith(words) for line in lines] == [True, True], err
    assert "epoch" not in out
    assert checkpoints(tmp_path) == before


@pytest.fixture
def alone(capsys):
    """Trains 2 steps an epoch in this process; gives the exit status and the lines of both outputs."""

    def run(folder, *more, epochs=1):
        # The steps are so small that threads wait for one another.
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        command = ["--epochs", str(epochs), "--batch", "700", "--checkpoints", str(folder), *more]
        try:
            status = train.main(command)
        finally:
            torch.set_num_threads(threads)
            if torch.distributed.is_initialized():
                # As in alone.py.
                gc.collect()
                torch.distributed.destroy_process_group()
        said = capsys.readouterr()
        return status, said.out.splitlines(), said.err.splitlines()

    return run


def test_alone_and_resumed(alone, tmp_path):
    status, out, _ = alone(tmp_path)
    first = tmp_path / "step-00000002"
    assert (status, out[1:]) == (0, [f"the checkpoint is {first}"])
    status, out, _ = alone(tmp_path, "--resume", epochs=2)
    assert (status, out[0]) == (0, f"resuming from {first}, step 2 of 4")
    assert out[1].startswith("epoch  2 of 2: ")
    empty = tmp_path / "empty"
    message = f"groupwise: --resume: no checkpoint in {empty}; leave it out to start a new run"
    assert alone(empty, "--resume") == (2, [], [message])
    assert not empty.exists()


def test_one_run_in_a_folder(alone, tmp_path, monkeypatch):
    with another(WRITER, tmp_path) as process, monkeypatch.context() as patch:
        # It is refused before it trains.
        patch.setattr(train.Run, "learn", None)
        status, out, (line,) = alone(tmp_path)
    assert (status, out) == (2, [])
    assert line.startswith(f"groupwise: checkpoints in {tmp_path} are being written by process {process.pid} on host ")
    assert alone(tmp_path)[0] == 0
    assert not refuses(tmp_path)


def test_a_run_that_would_replace_another_is_refused(alone, tmp_path):
    alone(tmp_path / "one")
    alone(tmp_path / "two")
    newest = tmp_path / "one" / "step-00000002"
    for more in ((), ("--resume", str(tmp_path / "two" / "step-00000002"))):
        status, _, (line,) = alone(tmp_path / "one", *more)
        assert status == 2
        assert REFUSED.format(newest) in line
        assert line.endswith("or give another --checkpoints folder")


def test_what_is_resumed_has_to_be_of_this_run(alone, tmp_path):
    _, (*_, result, _), _ = alone(tmp_path, epochs=3)
    path = tmp_path / "step-00000006"
    message = f"groupwise: {path} is at step 6, and --epochs 2 ends at step 4; give at least --epochs 3"
    assert alone(tmp_path, "--resume", epochs=2) == (2, [], [message])
    message = f"groupwise: {path} counts its steps by --batch 700, and --batch is 70 now; give --batch 700"
    assert alone(tmp_path, "--resume", "--batch", "70", epochs=9) == (2, [], [message])
    status, out, _ = alone(tmp_path, "--resume", epochs=3)
    accuracy = result.partition(": ")[2]
    assert (status, out[1:]) == (0, [f"nothing is left to train: {accuracy}", f"the checkpoint is {path}"])


def test_the_rate_of_a_resumed_run_is_its_own(alone, tmp_path, monkeypatch):
    alone(tmp_path)
    rates = set()
    step = torch.optim.SGD.step
    monkeypatch.setattr(
        torch.optim.SGD,
        "step",
        lambda self, *args, **names: (rates.update(g["lr"] for g in self.param_groups), step(self, *args, **names))[1],
    )
    assert alone(tmp_path, "--resume", "--lr", "1e-6", epochs=2)[0] == 0
    assert max(rates) <= 1e-6


def test_going_on_from_an_older_checkpoint(alone, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    alone(one, "--every", "1", epochs=2)
    # As a copy leaves it that was broken off.
    (one / "step-00000099").mkdir()
    older, newest = one / "step-00000003", one / "step-00000004"
    part = next(newest.glob("*.distcp"))
    part.write_bytes(part.read_bytes()[:-1])
    status, _, (line,) = alone(one, "--resume", epochs=2)
    assert status == 2
    assert line.startswith(f"groupwise: checkpoint {newest} is truncated: {part.name} has ")
    assert line.endswith(f"; resume from an older one (the one before it: --resume {older})")
    status, out, _ = alone(two, "--resume", str(older), epochs=2)
    assert (status, out[0]) == (0, f"resuming from {older}, step 3 of 4")
    assert checkpoints(two) == [older.name, newest.name]
    # What a run goes on from is written again: a restart is to find it, and not what it was chosen over.
    assert alone(one, "--resume", str(older), epochs=3)[0] == 0
    assert checkpoints(one) == [older.name, "step-00000006", "step-00000099"]


def test_options_that_cannot_be(alone, tmp_path):
    (tmp_path / "file").touch()
    for folder, more, words in (
        (tmp_path, ("--batch", "1438"), "--batch 1438 is more than the 1437 pictures to train on; give at most 1437"),
        (tmp_path / "file" / "in", (), f"--checkpoints {tmp_path / 'file' / 'in'} cannot be written ([Errno 20] Not a"),
        # It is there, and takes no file from anyone.
        ("/proc", (), "--checkpoints /proc cannot be written ("),
    ):
        status, _, (line,) = alone(folder, *more)
        assert status == 2
        assert line.startswith(f"groupwise: {words}")
    assert not checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        *((name, ("0", "-3", "x"), "whole number from 1 up") for name in ("--epochs", "--batch", "--every")),
        *((name, ("0", "-1", "nan", "inf", "x"), "number above 0 and up to 1e9") for name in ("--lr", "--timeout")),
    ],
)
def test_numbers_that_cannot_be(name, values, kind, alone, tmp_path, capsys):
    for value in values:
        with pytest.raises(SystemExit):
            alone(tmp_path, f"{name}={value}")
        assert capsys.readouterr().err.endswith(f"error: argument {name}: {value} must be a {kind}\n")


def test_the_help_tells_each_option_and_its_default(alone, tmp_path, capsys):
    with pytest.raises(SystemExit):
        alone(tmp_path, "--help")
    options = " ".join(capsys.readouterr().out.split()).partition("options: ")[2].split(" --")[2:]
    assert len(options) == 10
    assert all("default" in option for option in options)


def test_only_what_a_lost_rank_leaves_is_taken_for_one():
    lost = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234"
    assert train._is_of_the_group(RuntimeError(lost))
    assert train._is_of_the_group(torch.distributed.DistStoreError("wait timeout"))
    for text in (
        "the weights could not be restored",
        "mat1 and mat2 timed out",
        "[enforce fail at gloo/x.cc:1] 8 vs 4",
    ):
        assert not train._is_of_the_group(RuntimeError(text))


def test_the_digits_are_those_of_the_repository():
    pictures, labels, more, others = digits()
    assert (pictures.shape, more.shape) == ((1437, 1, 8, 8), (360, 1, 8, 8))
    # As UCI's description of the file counts them.
    counts = torch.cat([labels, others]).bincount()
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert (pictures.min(), pictures.max()) == (0, 1)
    # Ink is in the middle: pixels were not taken in another order.
    assert pictures[..., 2:6].mean() > 2 * pictures[..., [0, 1, 6, 7]].mean()
