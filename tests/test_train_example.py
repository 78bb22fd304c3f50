"""The training example in processes of its own, as torchrun starts them, and what happens when one of them dies."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("sklearn")

PROGRAM = "groupwise.examples.train"
ENOUGH = 180
ALONE = {"OMP_NUM_THREADS": "1"}


def start(command, environment=None):
    return subprocess.Popen(
        command, env=os.environ | ALONE | (environment or {}), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def torchrun(*options, program=()):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", free_port()]
    return start([*launcher, *options, "-m", PROGRAM, *program])


def finish(process):
    try:
        out, err = process.communicate(timeout=ENOUGH)
    finally:
        process.kill()
    return process.returncode, out, err


def wait_for(condition, process):
    for _ in range(10 * ENOUGH):
        if found := condition():
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("nothing happened")


def options(folder, steps=2, timeout=20):
    return ("--epochs", str(steps), "--every", "4", "--checkpoints", str(folder), "--timeout", str(timeout))


def checkpoints(folder):
    return sorted(path.name for path in pathlib.Path(folder).glob("step-*") if path.suffix != ".part")


def test_a_killed_rank_is_replaced_and_nothing_but_the_steps_since_is_lost(tmp_path):
    whole = torchrun(program=options(tmp_path / "whole"))
    status, out, err = finish(whole)
    assert status == 0, err
    assert checkpoints(tmp_path / "whole") == ["step-00000040", "step-00000044"]
    last = [line for line in out.splitlines() if line.startswith("epoch  2")]

    process = torchrun("--max-restarts", "1", program=options(tmp_path / "killed"))
    wait_for(lambda: checkpoints(tmp_path / "killed"), process)
    children = pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    victims = [pid for pid in children if b"LOCAL_RANK=1" in pathlib.Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(int(victims[0]), signal.SIGKILL)
    status, out, err = finish(process)
    assert status == 0, err
    assert "going on from " in out
    assert [line for line in out.splitlines() if line.startswith("epoch  2")] == last


# The last is the one that holds the store in which ranks find each other.
@pytest.mark.parametrize(
    ("how", "victim"),
    [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGSTOP, 0)],
    ids=["killed", "hanging", "first-hanging"],
)
def test_the_others_stop_with_an_error_that_says_how_to_go_on(how, victim, tmp_path):
    timeout = 10
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
    command = [sys.executable, "-m", PROGRAM, *options(tmp_path, steps=50, timeout=timeout)]
    processes = [start(command, {**group, "RANK": str(rank)}) for rank in range(2)]
    other, stopped = processes[1 - victim], processes[victim]
    try:
        wait_for(lambda: checkpoints(tmp_path), other)
        stopped.send_signal(how)
        begun = time.monotonic()
        status, _, err = finish(other)
        took = time.monotonic() - begun
    finally:
        for process in processes:
            process.kill()
        finish(stopped)
    assert status == 1, err
    line = next(line for line in err.splitlines() if line.startswith("groupwise: "))
    stops = f"rank {1 - victim} stops, because another rank has stopped or not answered in {timeout} s; "
    assert f"{stops}the last checkpoint is {tmp_path / checkpoints(tmp_path)[-1]}; go on with --resume" in line
    # And what the end of a process takes.
    assert took < timeout + 10


def test_alone_and_resumed(tmp_path):
    status, out, err = finish(start([sys.executable, "-m", PROGRAM, *options(tmp_path, steps=1)]))
    assert status == 0, err
    status, out, err = finish(start([sys.executable, "-m", PROGRAM, *options(tmp_path, steps=2), "--resume"]))
    assert status == 0, err
    assert out.splitlines()[0] == f"going on from {tmp_path / 'step-00000022'}, step 22 of 44"
    empty = tmp_path / "empty"
    status, _, err = finish(start([sys.executable, "-m", PROGRAM, *options(empty, steps=1), "--resume"]))
    assert (status, err.strip()) == (
        2,
        f"groupwise: rank 0: --resume: no checkpoint in {empty}; leave it out to begin anew",
    )
