from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import groupwise
from groupwise.cli import main
from groupwise.kernels import doctor as diagnosis
from groupwise.kernels import native, processor, tables, tuning
from groupwise.profile import report as reporting

ROOT = pathlib.Path(__file__).parent.parent
GOOD = native.Status(
    path="/lib/_native.so",
    torch_built="2.13.0",
    torch_here="2.13.0",
    compiler="GNU 12.2.0",
    isas=("baseline", "avx2"),
    isa="avx2",
)
NONE = native.Status(torch_here="2.13.0", problem="there is none", fix="build it", cause="library")


@pytest.fixture
def machine(monkeypatch):
    """A function that sets what is found: the library, the compiler, the tools on the PATH, the variables."""
    for name in ("CXX", "CONDA_PREFIX", *diagnosis.SETTINGS):
        monkeypatch.delenv(name, raising=False)

    def found(library, compiler="g++ 12.2.0 (/usr/bin/g++)", tools=(), **variables):
        monkeypatch.setattr(native, "status", lambda: library)
        monkeypatch.setattr(native, "rebuild_command", lambda: "REBUILD")
        monkeypatch.setattr(native, "torch_command", lambda: "TORCH")
        monkeypatch.setattr(diagnosis, "find_compiler", lambda: compiler)
        monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}" if name in tools else None)
        monkeypatch.setattr(diagnosis.os, "geteuid", lambda: 1000, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return found


def test_kernels_that_can_run(machine, capsys, monkeypatch, tmp_path):
    machine(GOOD, GROUPWISE_ISA="avx2")
    facts = {"model name": "Some CPU", "flags": "fpu avx2 fma"}
    monkeypatch.setattr(processor, "_first", lambda name: facts.get(name, ""))
    monkeypatch.setattr(tables, "_class", lambda: "some-1-2")
    monkeypatch.setattr(tuning, "cache_path", lambda: tmp_path / "a.jsonl")
    line = {"isa": "avx2", "request": "0 1", "seconds": {"pytorch": 1e-3}}
    (tmp_path / "a.jsonl").write_text(json.dumps(line))
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"groupwise  {groupwise.__version__}, Python {sys.version.split()[0]}"
    assert lines[3:] == [
        "processor  Some CPU (baseline, avx2)",
        f"threads    {torch.get_num_threads()}",
        "compiler   g++ 12.2.0 (/usr/bin/g++)",
        "library    built by GNU 12.2.0 for torch 2.13.0, with baseline and avx2; avx2 in use",
        f"tuning     no table for this processor; 1 request measured, in {tmp_path / 'a.jsonl'}",
        "settings   GROUPWISE_ISA=avx2",
        "",
        "The kernels can run.",
    ]


@pytest.mark.parametrize(
    ("library", "found", "commands"),
    [
        (NONE, {}, ["REBUILD"]),
        (NONE, {"compiler": None, "tools": ["apt-get"]}, ["apt-get install g++", "REBUILD"]),
        (NONE, {"compiler": None, "tools": ["dnf", "sudo"]}, ["sudo dnf install gcc-c++", "REBUILD"]),
        (
            NONE,
            {"compiler": None, "tools": ["apt-get", "conda"], "CONDA_PREFIX": "/conda"},
            ["conda install -c conda-forge cxx-compiler", "REBUILD"],
        ),
        (NONE, {"compiler": None}, ["(install a compiler for C++20, such as g++ or clang++)", "REBUILD"]),
        (NONE, {"compiler": None, "CXX": "no++"}, ["unset CXX  # it names no compiler that works", "REBUILD"]),
        (replace(NONE, torch_here=None), {}, ["TORCH", "REBUILD"]),
        (replace(GOOD, torch_built="2.12.1", isa=None, problem="of another torch", cause="library"), {}, ["REBUILD"]),
    ],
)
def test_what_is_missing_and_what_brings_it(machine, capsys, library, found, commands):
    machine(library, **found)
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    text = "".join(f"  {command}\n" for command in commands)
    assert shown.startswith(f"The kernels cannot run: {library.problem}.\nTo install them:\n{text}\ngroupwise  ")
    # Whether a table covers the processor depends on the instruction set that the kernels would use.
    assert "no table" not in shown
    assert "\ntuning     not known while the kernels cannot run; " in shown


@pytest.mark.parametrize(
    ("cause", "fix"), [("platform", "use Linux"), ("setting", "unset it"), ("torch", "install torch again")]
)
def test_what_no_command_brings(machine, capsys, cause, fix):
    machine(replace(GOOD, isa=None, problem="it is so", fix=fix, cause=cause))
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.startswith(f"The kernels cannot run: it is so.\nTo fix it: {fix}.\n\ngroupwise  ")


def test_no_torch_and_a_broken_one(machine, capsys, monkeypatch):
    monkeypatch.setattr(native, "torch_problem", lambda: "libc10.so is missing")
    machine(replace(NONE, torch_here=None))
    main(["doctor"])
    assert "\ntorch      not installed\n" in capsys.readouterr().out
    machine(NONE)
    main(["doctor"])
    assert "\ntorch      2.13.0, which cannot be imported: libc10.so is missing\n" in capsys.readouterr().out


def test_settings(machine, capsys):
    machine(GOOD, GROUPWISE_ENABLE="yes")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "\nsettings   GROUPWISE_ENABLE=yes\n" in shown
    assert "\nGROUPWISE_ENABLE='yes' is not understood; set it to one of: 0, 1.\n" in shown


def test_tables_and_measurements(machine, capsys, monkeypatch, tmp_path):
    machine(GOOD)
    monkeypatch.setattr(tables, "_class", lambda: "some-1-2")
    monkeypatch.setattr(tables, "table_path", lambda isa: tmp_path / f"some-1-2-{isa}.json")
    monkeypatch.setattr(tuning, "cache_path", lambda: None)
    for suffix in ("", "-3d-float64", "-bfloat16"):
        (tmp_path / f"some-1-2-avx2{suffix}.json").touch()
    main(["doctor"])
    told = "tables for some-1-2-avx2 of float32, bfloat16, float64 3-D"
    assert f"\ntuning     {told}; no folder for measurements\n" in capsys.readouterr().out
    (tmp_path / "a.jsonl").write_text("{")
    monkeypatch.setattr(tuning, "cache_path", lambda: tmp_path / "a.jsonl")
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert f"; 0 requests measured, in {tmp_path / 'a.jsonl'}\n" in shown
    assert "\ngroupwise leaves out 1 line of its measurements in " in shown


def test_json_and_a_file(machine, capsys, tmp_path):
    machine(NONE, compiler=None, tools=["apk"])
    assert main(["doctor", "--format", "json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["ok"], facts["compiler"], facts["library"]["cause"]) == (False, None, "library")
    assert facts["commands"] == ["apk add g++", "REBUILD"]
    assert main(["doctor", "-o", str(tmp_path / "a.json")]) == 1
    assert json.loads((tmp_path / "a.json").read_text()) == facts
    assert main(["doctor", "-o", "a.svg"]) == 2


def test_a_record_that_may_not_be_read(tmp_path, monkeypatch):
    def refuse(path, **_):
        raise PermissionError(13, "Permission denied", str(path))

    record = tmp_path / "_native.json"
    record.touch()
    monkeypatch.setattr(groupwise, "__path__", [str(tmp_path)])
    monkeypatch.setattr(type(record), "read_text", refuse)
    found = native._found().status
    assert found.problem.startswith(f"{record} cannot be read (PermissionError: [Errno 13] Permission denied")
    assert found.cause == "library"


@pytest.mark.parametrize(
    ("url", "source"),
    [
        ("file:///a/groupwise-0.1.0-py3-none-linux_x86_64.whl", ".  # in a clone of groupwise"),
        ("https://a.org/groupwise-0.1.0-py3-none-linux_x86_64.whl", ".  # in a clone of groupwise"),
        ("https://a.org/groupwise-0.1.0.tar.gz", "https://a.org/groupwise-0.1.0.tar.gz"),
    ],
)
def test_what_was_not_installed_from_an_index_is_not_sought_in_one(monkeypatch, url, source):
    class Distribution:
        def read_text(self, name):
            return {"INSTALLER": "pip\n", "direct_url.json": json.dumps({"url": url, "archive_info": {}})}[name]

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    assert native.rebuild_command().endswith(f"pip install --force-reinstall --no-deps --no-cache-dir {source}")


def test_the_processor(monkeypatch, tmp_path):
    (tmp_path / "cpuinfo").write_bytes(
        b"processor\t: 0\nmodel name\t: A \xff CPU\nflags\t\t: fma avx2\nmodel name\t: B\n"
    )
    # These are asked once a process.
    monkeypatch.setattr(tables, "_class", lambda: "some-1-2")
    monkeypatch.setattr(tuning, "cache_path", lambda: None)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")
    assert diagnosis.diagnose().processor == reporting.machine()["processor"] == "A \N{REPLACEMENT CHARACTER} CPU"
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert diagnosis.diagnose().isas == ("baseline", "avx2")
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert diagnosis.diagnose().isas == ("baseline",)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert diagnosis.diagnose().isas == ("neon",)
    assert diagnosis.diagnose().processor == reporting.machine()["processor"] != ""


def test_this_machine(monkeypatch):
    for name in ("GROUPWISE_ENABLE", "GROUPWISE_ISA"):
        monkeypatch.delenv(name, raising=False)
    found = diagnosis.diagnose()
    assert found.torch == torch.__version__
    assert found.ok == (native.status().problem is None)
    assert found.processor
    assert found.isas[0] == diagnosis.PLAIN_ISAS.get(platform.machine(), "baseline")
    # PyTorch finds out by cpuid.
    assert ("avx2" in found.isas) == (torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"))


def test_where_torch_is_missing():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from groupwise.cli import main\n"
        "sys.exit(main(['doctor', '--format', 'json']))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stderr) == (1, "")
    assert json.loads(shown.stdout)["torch_problem"].startswith("import of torch halted")


@pytest.mark.skipif(sys.platform == "win32", reason="a script stands in for the compiler")
def test_the_compiler_is_searched_where_cmake_does(tmp_path, monkeypatch):
    def tool(name, code):
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert diagnosis.find_compiler() is None
    tool("clang++", "echo clang version 16\necho more")
    assert diagnosis.find_compiler() == f"clang version 16 ({tmp_path / 'clang++'})"
    tool("c++", "exit 1")
    assert diagnosis.find_compiler() == f"clang version 16 ({tmp_path / 'clang++'})"
    tool("my++", "echo mine")
    monkeypatch.setenv("CXX", "my++ -m64")
    assert diagnosis.find_compiler() == f"mine ({tmp_path / 'my++'} -m64)"
    tool("cache", '[ $# = 1 ] && echo cache 4 || "$@"')
    monkeypatch.setenv("CXX", "cache my++")
    assert diagnosis.find_compiler() == f"mine ({tmp_path / 'cache'} my++)", "the version is not the cache's"
    for nothing in ("/nonexistent", " ", '"'):
        monkeypatch.setenv("CXX", nothing)
        assert diagnosis.find_compiler() is None


CMAKE = shutil.which("cmake", path=str(pathlib.Path(sys.executable).parent)) or shutil.which("cmake")


@pytest.mark.skipif(CMAKE is None, reason="no cmake")
@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"CXX": "/nonexistent"}, "no working C++ compiler was found"),
        ({"GROUPWISE_TORCH": '{tmp}/no"where\\'}, '{tmp}/no"where\\ is no folder of the torch package'),
        ({"GROUPWISE_TORCH": "{tmp}"}, "torch 2.9.1+cpu in {tmp} is too old; groupwise needs 2.10"),
    ],
)
def test_a_build_that_lacks_something_says_what(tmp_path, monkeypatch, machine, variables, problem):
    if "GROUPWISE_TORCH" in variables and diagnosis.find_compiler() is None:
        pytest.skip("no compiler")
    (tmp_path / "version.py").write_text("__version__ = '2.9.1+cpu'\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value.replace("{tmp}", str(tmp_path)))
    command = [CMAKE, "-S", ROOT, "-B", tmp_path / "build", f"-DPython_EXECUTABLE={sys.executable}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    recorded = json.loads((tmp_path / "build" / "_native.json").read_text())
    assert list(recorded) == ["problem"]
    assert recorded["problem"].startswith(problem.replace("{tmp}", str(tmp_path)))
    monkeypatch.setenv("GROUPWISE_REQUIRE_NATIVE", "1")
    failed = subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert failed.returncode
    assert "GROUPWISE_REQUIRE_NATIVE is set" in " ".join(failed.stderr.split())


def test_the_instruction_sets_are_those_of_the_build():
    rows = re.findall(r"^ *instruction_set\((\w+)", (ROOT / "CMakeLists.txt").read_text(), re.M)
    assert rows == [*dict.fromkeys(diagnosis.PLAIN_ISAS.values()), "baseline", *diagnosis.ISA_FLAGS]
