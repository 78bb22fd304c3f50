"""The library is a stand-in written in C here, or text that no loader takes: nothing needs csrc to be built."""

from __future__ import annotations

import ctypes
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import threading
import warnings

import pytest
import torch

import groupwise
from groupwise import GroupwiseError, explain
from groupwise.kernels import native

ROOT = pathlib.Path(__file__).parent.parent
RECORD = {
    "torch": str(torch.__version__),
    "compiler": "GNU 12.2.0",
    "isas": ["baseline", "avx2"],
    "api": native.API_VERSION,
}
STUB = r"""
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
static int64_t fill(const char* from, char* text, int64_t size) {
  int64_t needed = (int64_t)strlen(from) + 1;
  if (needed <= size) memcpy(text, from, (size_t)needed);
  return needed;
}
#ifndef API
#define API 17
#endif
int32_t groupwise_api_version(void) { return API; }
int64_t groupwise_build(char* text, int64_t size) { return fill("{\"torch\": \"2.13.0\"}", text, size); }
int64_t groupwise_isa(char* text, int64_t size) {
  const char* asked = getenv("GROUPWISE_ISA");
  if (asked && strcmp(asked, "avx512") == 0) asked = "!GROUPWISE_ISA=avx512 cannot run here; valid: avx2";
  return fill(asked ? asked : "avx2", text, size);
}
int32_t groupwise_register(void) { return 1; }
const char* groupwise_failure(void) { return ""; }
int32_t groupwise_share(const char* isa, double products) { return isa && products; }
void groupwise_start_takes(double seconds) { (void)seconds; }
void groupwise_when_spent(void (*told)(void)) { (void)told; }
void groupwise_when_unknown(void (*told)(void)) { (void)told; }
void groupwise_dispatch(int32_t on) { (void)on; }
void groupwise_fft(int32_t allowed) { (void)allowed; }
int32_t groupwise_dispatch_thread(int32_t state) { return -state; }
const char* groupwise_force(const char* kernel) { return kernel; }
int32_t groupwise_tune(double c, double s, int32_t unknown, const char* path) { return c && s && unknown && path; }
int32_t groupwise_remember(const char* i, const char* r, const char* k, const double* s, int64_t n, int64_t t) {
  return i && r && k && s && n && t;
}
int64_t groupwise_features(const int64_t* n, const char* d, char* text, int64_t size) {
  return (void)n, (void)d, fill("{}", text, size);
}
int32_t groupwise_tables(const char* i, const char* r, const char* f, const char* k, const double* n, int64_t c) {
  return i && r && f && k && n && c;
}
int32_t groupwise_model(const char* r, const char* k, const double* n, int64_t c) { return r && k && n && c; }
int64_t groupwise_machine(char* text, int64_t size) { return fill("{}", text, size); }
int32_t groupwise_forget(void) { return 1; }
void groupwise_policy_changed(void) {}
int64_t groupwise_measured(char* text, int64_t size) { return fill("{}", text, size); }
void groupwise_clock(double (*clock)(void)) { (void)clock; }
int32_t groupwise_force_isa(const char* isa) { return isa != 0; }
const char* groupwise_forced_isa(void) { return ""; }
int64_t groupwise_plan(const int64_t* numbers, const char* dtype, char* text, int64_t size) {
  return fill(numbers[2] == -3 && strcmp(dtype, "float32") == 0 ? "é" : "wrong", text, size);
}
#ifndef NO_RECORDING
int64_t groupwise_record_start(void) { return 7; }
int64_t groupwise_record_stop(int64_t recording, char* text, int64_t size) {
  char plans[5000];
  memset(plans, recording == 7 ? 's' : 'n', sizeof plans - 1);
  plans[sizeof plans - 1] = 0;
  return fill(plans, text, size);
}
#endif
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What groupwise takes for its own folder; empty, and nothing remembered."""
    monkeypatch.setattr(groupwise, "__path__", [str(tmp_path / "sources"), str(tmp_path)])
    monkeypatch.setattr(native, "rebuild_command", lambda: "REBUILD")
    monkeypatch.delenv("GROUPWISE_ISA", raising=False)
    native._load.cache_clear()
    native._warn.cache_clear()
    yield tmp_path
    native._load.cache_clear()
    native._warn.cache_clear()


def record(folder, **changes):
    (folder / "_native.json").write_text(json.dumps({**RECORD, **changes}))


@pytest.fixture(scope="session")
def stub(tmp_path_factory):
    """A function that compiles the stand-in, with C definitions."""
    compiler = next(filter(None, map(shutil.which, ["cc", "gcc", "clang"])), None)
    if compiler is None:
        pytest.skip("no C compiler")

    def build(folder, *definitions):
        source = folder / "stub.c"
        source.write_text(STUB)
        flags = ["-shared", "-fPIC", *(f"-D{definition}" for definition in definitions)]
        subprocess.run([compiler, *flags, source, "-o", folder / "_native.so"], check=True)
        record(folder)

    return build


def refused(match):
    """Every door says the same, in one line."""
    status = native.status()
    with pytest.raises(GroupwiseError, match=match) as caught:
        native.library()
    assert str(caught.value) == f"groupwise's kernels cannot run: {status.problem}; {status.fix}"
    assert "\n" not in str(caught.value)
    return status


def test_the_signatures_are_those_of_the_header():
    types = {
        "void": None,
        "int32_t": ctypes.c_int32,
        "int64_t": ctypes.c_int64,
        "char*": ctypes.c_char_p,
        "const char*": ctypes.c_char_p,
        "const int64_t*": ctypes.POINTER(ctypes.c_int64),
        "const double*": ctypes.POINTER(ctypes.c_double),
        "double": ctypes.c_double,
        "double (*clock)()": native.CLOCK,
        "void (*told)()": native.NOTICE,
    }
    header = (ROOT / "csrc" / "binding" / "c_api.h").read_text()
    declared = {
        name: (
            types[result],
            [
                types.get(word.strip()) or types[re.sub(r" ?\w+$", "", word.strip())]
                for word in words.split(",")
                if word
            ],
        )
        for result, name, words in re.findall(r"^GROUPWISE_API ([\w ]+\*?) (\w+)\((.*?)\);", header, re.M | re.S)
    }
    assert len(declared) == header.count("\nGROUPWISE_API ")
    assert declared == native.SIGNATURES
    assert int(re.search(r"API_VERSION (\d+)", header)[1]) == native.API_VERSION


def test_importing_it_does_not_import_torch():
    code = "import sys, groupwise.kernels.native, groupwise.kernels.doctor; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_library(folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not native.available()
    status = refused("groupwise was installed without kernels, as from the wheel for every system; build it: REBUILD")
    assert (status.path, status.isa, status.cause) == (None, None, "library")


def test_a_system_it_is_not_built_on(folder, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert refused("built on Linux only").cause == "platform"


def test_what_the_build_recorded(folder):
    (folder / "_native.json").write_text('{"problem": "no working C++ compiler was found"}')
    refused("when groupwise was installed, no working C[+][+] compiler was found; fix that and build it: REBUILD")


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"torch": "2.13.0"}', json.dumps({**RECORD, "api": "one"})])
def test_a_record_that_cannot_be_read(folder, text):
    (folder / "_native.json").write_text(text)
    refused(r"_native\.json cannot be read .*; rebuild it: REBUILD")


def test_a_record_without_its_library(folder):
    record(folder)
    refused(r"_native\.so is missing; rebuild it: REBUILD")


@pytest.mark.parametrize(
    ("built", "here", "fits"),
    [
        ("2.13.0+cpu", "2.13.0+cpu", True),
        ("2.13.0+cpu", "2.13.0+cu130", True),
        ("2.13.0", "2.13.0+cu130", True),
        ("2.13.0", "2.13.1", False),
        ("2.13.0+cpu", "2.14.0+cpu", False),
        ("2.15.0a0+git1", "2.15.0a0+git2", False),
        ("2.15.0a0+git1", "2.15.0a0+git1", True),
    ],
)
def test_builds_of_one_release_share_a_library(built, here, fits):
    assert native.same_release(built, here) == fits


def test_another_torch_gets_the_kernels_alone(folder, stub):
    stub(folder)
    (folder / "_native.so").rename(folder / "_stable.so")
    (folder / "_native.so").write_text("whoever opens this fails otherwise")
    record(folder, torch="2.12.1+cpu")
    status = native.status()
    assert native.available()
    assert (status.path, status.problem) == (str(folder / "_stable.so"), None)
    assert status.operators_problem == f"the library was built for torch 2.12.1+cpu and this is torch {RECORD['torch']}"


def test_a_library_that_does_not_load_leaves_the_kernels(folder, stub):
    stub(folder)
    (folder / "_native.so").rename(folder / "_stable.so")
    (folder / "_native.so").write_text("no library")
    assert native.available()
    assert "the library cannot be loaded" in native.status().operators_problem


def test_a_library_that_was_opened_and_is_wrong_is_not_joined_by_another(folder, stub):
    stub(folder)
    (folder / "_native.so").rename(folder / "_stable.so")
    stub(folder, "API=7")
    refused("interface 7, and this one has .*; rebuild it: REBUILD")


@pytest.mark.parametrize(
    ("asked", "name", "operators"), [("stable", "_stable.so", False), ("exact", "_native.so", True)]
)
def test_the_library_asked_for(folder, stub, monkeypatch, asked, name, operators):
    stub(folder)
    shutil.copy(folder / "_native.so", folder / "_stable.so")
    monkeypatch.setenv(native.BINDING, asked)
    status = native.status()
    assert (status.path, status.operators_problem is None) == (str(folder / name), operators)


def test_the_exact_library_is_not_replaced_if_it_is_asked_for(folder, stub, monkeypatch):
    stub(folder)
    (folder / "_native.so").rename(folder / "_stable.so")
    (folder / "_native.so").write_text("no library")
    monkeypatch.setenv(native.BINDING, "exact")
    refused("the library cannot be loaded: .*; rebuild it: REBUILD")


def test_a_library_for_another_torch_is_never_opened(folder):
    record(folder, torch="2.12.1+cpu")
    (folder / "_native.so").write_text("whoever opens this fails otherwise")
    status = refused(f"for torch 2.12.1[+]cpu and this is torch {re.escape(RECORD['torch'])}; rebuild it: REBUILD")
    assert (status.torch_built, status.torch_here) == ("2.12.1+cpu", RECORD["torch"])
    with pytest.warns(RuntimeWarning, match="built for torch 2.12.1.*rebuild it: REBUILD") as caught:
        found = [native.available(), native.available()]
    assert found == [False, False]
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert str(explain(8, 4, groups=4)).startswith("conv2d 8 → 4")


def test_a_library_of_another_interface_is_never_opened(folder):
    record(folder, api=4)
    (folder / "_native.so").write_text("whoever opens this fails otherwise")
    refused("of another version of groupwise .interface 4, and this one has 17.; rebuild it: REBUILD")


def test_a_library_that_does_not_load(folder):
    record(folder)
    (folder / "_native.so").write_text("no library")
    refused("the library cannot be loaded: .*; rebuild it: REBUILD")


def test_a_torch_that_does_not_load(folder, monkeypatch):
    record(folder)
    (folder / "_native.so").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    status = refused("torch cannot be imported: import of torch halted.*; install torch again")
    assert status.cause == "torch"


def test_a_missing_torch(folder, monkeypatch):
    record(folder)
    (folder / "_native.so").touch()
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(native, "_torch_version", lambda: None)
    refused('torch cannot be imported: .*; install it: .*install "torch>=2.10"')


def test_a_library_that_loads(folder, stub):
    stub(folder)
    library, status = native.library(), native.status()
    assert native.available()
    assert status == native.Status(
        path=str(folder / "_native.so"),
        torch_built=RECORD["torch"],
        torch_here=RECORD["torch"],
        compiler="GNU 12.2.0",
        isas=("baseline", "avx2"),
        isa="avx2",
    )
    numbers = (ctypes.c_int64 * 3)(1, 2, -3)
    assert native.read_text(library.groupwise_plan, numbers, b"float32") == "é"
    assert library.groupwise_dispatch_thread(-1) == 1
    with pytest.raises(ctypes.ArgumentError):
        library.groupwise_dispatch("on")


def test_a_text_longer_than_the_buffer(folder, stub):
    stub(folder)
    library = native.library()
    assert native.read_text(library.groupwise_record_stop, library.groupwise_record_start()) == "s" * 4999


def test_a_text_that_grows_between_two_calls():
    def grows(buffer, size):
        calls.append(size)
        text = b"x" * (1500 if len(calls) == 1 else 4000)
        if size > len(text):
            buffer.value = text
        return len(text) + 1

    calls = []
    assert native.read_text(grows) == "x" * 4000
    assert calls == [1024, 1501, 4001]


def test_threads_get_the_one_library(folder, stub):
    stub(folder)
    got = []
    threads = [threading.Thread(target=lambda: got.append(native.library())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 8
    assert len(set(map(id, got))) == 1


def test_the_instruction_set_asked_for(folder, stub, monkeypatch):
    stub(folder)
    monkeypatch.setenv("GROUPWISE_ISA", "baseline")
    assert native.status().isa == "baseline"


def test_an_instruction_set_that_cannot_run(folder, stub, monkeypatch):
    stub(folder)
    monkeypatch.setenv("GROUPWISE_ISA", "avx512")
    status = refused("run: GROUPWISE_ISA=avx512 cannot run here; valid: avx2; set one of them, or unset GROUPWISE_ISA")
    assert (status.isa, status.cause) == (None, "setting")
    with pytest.warns(RuntimeWarning, match="GROUPWISE_ISA=avx512 cannot run"):
        assert not native.available()


@pytest.mark.parametrize(
    ("definition", "message"),
    [("API=7", "interface 7, and this one has 17"), ("NO_RECORDING", "cannot be loaded: .*groupwise_record_start")],
)
def test_a_library_that_is_not_what_its_record_says(folder, stub, definition, message):
    stub(folder, definition)
    refused(f"{message}.*; rebuild it: REBUILD")


def test_the_library_that_was_built():
    status = native.status()
    if status.path is None:
        pytest.skip(f"{status.problem}; {status.fix}")
    assert status.problem is None
    built = json.loads(native.read_text(native.library().groupwise_build))
    assert (built["torch"], built["compiler"]) == (status.torch_built, status.compiler)
    assert tuple(built["isas"]) == status.isas
    assert status.isa in status.isas


@pytest.mark.parametrize(
    ("asked", "status", "shown"),
    [("{plain}", 0, "; {plain} in use"), ("abacus", 1, "GROUPWISE_ISA=abacus cannot run here; valid: {plain}")],
)
def test_the_library_that_was_built_obeys(asked, status, shown):
    if native.status().path is None:
        pytest.skip("no library")
    asked, shown = (text.format(plain=native.status().isas[0]) for text in (asked, shown))
    command = [sys.executable, "-m", "groupwise", "doctor"]
    environment = {**os.environ, "GROUPWISE_ISA": asked}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (status, "")
    assert shown in ended.stdout
