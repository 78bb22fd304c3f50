"""The source distribution has every file of the repository, and the wheel built from it every file of the package."""

from __future__ import annotations

import email
import importlib.util
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import zipfile

import pytest

import groupwise

ROOT = pathlib.Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("scikit_build_core") is None, reason="needs scikit-build-core, as make test installs it"
)


def build(hook: str, source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    """Calls a hook of the build backend without a compiler, as an installer does that isolates nothing."""
    code = f"import sys, scikit_build_core.build as backend; backend.{hook}(sys.argv[1])"
    beside = pathlib.Path(sys.executable).parent  # cmake and ninja
    environment = os.environ | {
        "CXX": "/nonexistent",
        "GROUPWISE_REQUIRE_NATIVE": "",
        "PATH": f"{beside}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(target)],
        cwd=source,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("build_sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def unpacked(sdist, tmp_path_factory):
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return folder / f"groupwise-{groupwise.__version__}"


@pytest.fixture(scope="module")
def wheel(unpacked, tmp_path_factory):
    return build("build_wheel", unpacked, tmp_path_factory.mktemp("wheel"))


def files(folder: pathlib.Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_it_has_every_file_of_the_repository(unpacked):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a clone")
    tracked = {name for name in listed.stdout.splitlines() if (ROOT / name).exists()}
    assert tracked - files(unpacked) == set()


def test_it_has_nothing_that_this_machine_made(unpacked):
    made = re.compile(r"\.(so|pyc|o)$|(^|/)(__pycache__|rendered|build|site|\.venv|\.cache)/|_native\.json$")
    assert [name for name in files(unpacked) if made.search(name)] == []


def test_a_wheel_is_built_from_it(wheel, unpacked):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    assert {f"groupwise/{name}" for name in files(unpacked / "src" / "groupwise")} <= held
    extra = {name.partition("/")[2] for name in held if name.startswith("groupwise/")} - files(
        unpacked / "src" / "groupwise"
    )
    assert extra <= {"_native.json"}


def test_the_metadata_of_the_wheel(wheel):
    with zipfile.ZipFile(wheel) as archive:
        folder = f"groupwise-{groupwise.__version__}.dist-info"
        facts = email.message_from_bytes(archive.read(f"{folder}/METADATA"))
        assert f"{folder}/licenses/LICENSE" in archive.namelist()
    assert facts["Version"] == groupwise.__version__
    assert facts["Description-Content-Type"] == "text/markdown"
    assert facts.get_payload().startswith("# groupwise")


@pytest.mark.skipif(importlib.util.find_spec("twine") is None, reason="needs the extra release")
def test_an_index_accepts_both(sdist, wheel):
    command = [sys.executable, "-m", "twine", "check", "--strict", str(sdist), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
