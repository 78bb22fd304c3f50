"""The examples that need ranks, started by torchrun as their docstrings say."""

from __future__ import annotations

import pathlib
import re
import sys

import pytest

import scripts
import warm

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
COMMANDS = {
    path.stem: found
    for path in sorted(EXAMPLES.glob("*.py"))
    if (found := re.findall(r"^ *torchrun --nproc-per-node (\d+) examples/(.*)$", path.read_text("utf-8"), re.M))
}
MOVED = "split_and_move"
# What each tells, in any run of it.
WORDS = {
    "split_by_hand": ["8 groups: the ranks hold 4 and 4", "5 groups: the ranks hold 3 and 2", "'all_reduce': 1}"],
    "split_with_ddp": ["rank 0 holds (16, 4, 3, 3) of the grouped weight's (32, 4, 3, 3)", "in one process"],
    "split_with_fsdp": ["rank 0 holds (8, 4, 3, 3) of the grouped weight's (32, 4, 3, 3)", "in one process"],
}


def torchrun(ranks, script, folder):
    """What a script prints on so many ranks."""
    status, out, err = warm.torchrun(ranks, script, folder=folder).finish()
    assert status == 0, err
    return out


def test_each_says_how_it_is_started():
    assert set(COMMANDS) == {*WORDS, MOVED}
    for name, commands in COMMANDS.items():
        assert {script for _, script in commands} == {f"{name}.py"}


@pytest.mark.parametrize("name", WORDS)
def test_examples_of_ranks_run(name, tmp_path):
    ((ranks, _),) = COMMANDS[name]
    out = torchrun(ranks, EXAMPLES / f"{name}.py", tmp_path)
    assert all(words in out for words in WORDS[name]), out


def test_the_script_on_the_page_runs(tmp_path):
    page = (EXAMPLES.parent / "docs" / "parallel.md").read_text("utf-8")
    script, ranks, said = re.search(
        r"```\n(# split\.py\n.*?)```.*?\$ torchrun --nproc-per-node (\d) split\.py\n(.*?)\n", page, re.S
    ).groups()
    (tmp_path / "split.py").write_text(script, "utf-8")
    # As on the page, with interpreters of their own.
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", ranks]
    printed = scripts.run([*launcher, "--master-port", warm.free_port(), "split.py"], tmp_path)
    assert re.sub(r"loss [\d.]+", "loss", printed.strip()) == re.sub(r"loss [\d.]+", "loss", said)


def test_a_checkpoint_of_two_ranks_moves_to_others(tmp_path):
    assert [int(ranks) for ranks, _ in COMMANDS[MOVED]] == [2, 3]
    path = "split-checkpoint/step-00000005"
    written = torchrun(2, EXAMPLES / f"{MOVED}.py", tmp_path)
    assert written.startswith(f"{path} written on 2 ranks; ")
    for ranks in (1, 3):
        loaded = torchrun(ranks, EXAMPLES / f"{MOVED}.py", tmp_path)
        assert loaded.startswith(f"{path} of 2 ranks loaded on {ranks}; ")
        assert loaded.partition("; ")[2] == written.partition("; ")[2]
