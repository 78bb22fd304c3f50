"""Shell completion: the script that the command prints, sourced by bash."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from commands import run
from groupwise.cli.about import SHELLS
from groupwise.explanation import VIEWS

BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Returns what bash offers for the last of some words."""
    pytest.importorskip("shtab")
    if BASH is None:
        pytest.skip("there is no bash")
    command = [sys.executable, "-m", "groupwise", "--print-completion", "bash"]
    script = tmp_path_factory.mktemp("shell") / "groupwise.sh"
    script.write_text(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    asked = (
        f'source {script}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); '
        '"$(complete -p groupwise | sed "s/.*-F \\([^ ]*\\).*/\\1/")" groupwise "${@: -1}" "${@: -2:1}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )

    def offered(*words):
        made = subprocess.run([BASH, "-c", asked, "bash", *words], capture_output=True, text=True, check=True)
        return made.stdout.split()

    return offered


def test_bash_completes_commands_options_and_choices(complete):
    assert complete("groupwise", "ex") == ["explain", "explore"]
    assert {"--optimize", "--output", "--check"} <= set(complete("groupwise", "report", "--"))
    assert complete("groupwise", "bench", "--comp") == ["--compare"]
    assert complete("groupwise", "explain", "8", "4", "--view", "") == list(VIEWS)


@pytest.mark.parametrize("option", ["-o", "--image"])
def test_bash_completes_the_names_of_files(complete, tmp_path, option):
    (tmp_path / "photo.jpg").touch()
    assert complete("groupwise", "report", option, f"{tmp_path}/ph") == [f"{tmp_path}/photo.jpg"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script(capsys, shell):
    pytest.importorskip("shtab")
    status, out, _ = run(capsys, "--print-completion", shell)
    assert status == 0
    assert "groupwise" in out
    assert "optimize" in out


def test_without_shtab_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    message = 'groupwise: --print-completion needs shtab; pip install "groupwise[completion]"\n'
    assert run(capsys, "--print-completion", "bash") == (2, "", message)


def test_another_shell_is_refused(capsys):
    status, out, err = run(capsys, "--print-completion", "elvish")
    assert (status, out) == (2, "")
    assert "invalid choice: 'elvish'" in err
