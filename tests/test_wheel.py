"""The wheel, in an environment without a compiler: of what was built here, so that nothing is compiled anew."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import venv
import zipfile

import pytest
import torch

from groupwise.kernels import native

ROOT = pathlib.Path(__file__).parent.parent
CHECK = pathlib.Path(__file__).with_name("wheel_check.py")


def run(*command: str | pathlib.Path, **environment: str) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"HOME": os.environ.get("HOME", "/"), "PATH": "/nonexistent", "CXX": "/nonexistent", **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel without a core, as every system can build it, and with the libraries that were built here added."""
    pytest.importorskip("scikit_build_core")
    if native.status().path is None:
        pytest.skip("the native core is not built")
    folder = tmp_path_factory.mktemp("wheel")
    code = "import sys, scikit_build_core.build as backend; backend.build_wheel(sys.argv[1], {'wheel.cmake': 'false'})"
    subprocess.run([sys.executable, "-c", code, folder], cwd=ROOT, check=True, capture_output=True)
    (made,) = folder.iterdir()
    built = pathlib.Path(str(native.status().path)).parent
    with zipfile.ZipFile(made, "a") as archive:
        for name in ("_native.so", "_stable.so", "_native.json"):
            archive.write(built / name, f"groupwise/{name}")
    return made


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The Python of an environment that has the wheel, and takes torch and numpy from here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(packages)
    here = pathlib.Path(torch.__file__).parent.parent
    for package in here.iterdir():
        if (
            package.name != "groupwise"
            and not package.name.startswith(("groupwise-", "__", "_groupwise"))
            and (package.is_dir() or package.suffix in (".py", ".so"))
        ):
            (packages / package.name).symlink_to(package)
    return folder / "bin" / "python"


@pytest.mark.parametrize(("binding", "operators"), [("exact", True), ("stable", False)])
def test_the_wheel_without_a_compiler(python, binding, operators):
    facts = json.loads(run(python, CHECK, GROUPWISE_BINDING=binding).splitlines()[-1])
    assert (facts["operators"], facts["torch"]) == (operators, torch.__version__)


def test_its_command_runs(python):
    assert "8 → 4" in run(python, "-m", "groupwise", "explain", "8", "4", "-g", "4")


def test_without_a_core_it_explains_and_says_why_there_are_no_kernels(python, tmp_path):
    (packages,) = python.parent.parent.glob("lib/python*/site-packages")
    names = ["_native.so", "_stable.so", "_native.json"]
    for name in names:
        (packages / "groupwise" / name).rename(tmp_path / name)
    try:
        assert "8 → 4" in run(python, "-m", "groupwise", "explain", "8", "4", "-g", "4")
        code = "from groupwise.kernels import native; print(native.status().problem)"
        assert "installed without kernels, as from the wheel for every system" in run(python, "-c", code)
    finally:
        for name in names:
            (tmp_path / name).rename(packages / "groupwise" / name)
