"""The file of measurements: whatever happens to it, nothing fails, and what is wrong is told once."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import shutil
import subprocess
import sys
import warnings

import pytest
import torch

import groupwise
from groupwise import GroupwiseError, record_plans
from groupwise.kernels import cache, dispatch, native, tuning
from groupwise.kernels.plan import KERNELS
from kernels import needs_kernels, planar_is_fast
from tuned import lines, requests

GOOD = {"isa": "avx2", "request": "0 1 -2", "seconds": {"pytorch": 1e-3, "planar": 2e-3}}
KEY = {"processor": "A (R) CPU/7 ∞", "torch": "2.13.0+cpu", "groupwise": "0.1.0"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A cache of its own, and nothing said before. `enable()` measures, as the tests clear all tables."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GROUPWISE_TUNE")
    monkeypatch.setattr(dispatch._switches._tuner, "_told", set())
    groupwise.disable()
    yield tmp_path
    groupwise.disable()
    monkeypatch.setenv("GROUPWISE_TUNE", "0")
    if native.status().problem is None:
        groupwise.kernels.dispatch.load_measurements()


def convolve():
    """The source of the plan of one convolution."""
    with torch.no_grad(), record_plans() as plans:
        torch.nn.Conv2d(16, 16, 3, groups=4)(torch.ones(2, 16, 12, 12))
    return plans[0].source


def test_a_file_a_key(home):
    name = cache.file_name(KEY)
    assert name.startswith("a-r-cpu-7-torch-2.13.0-cpu-groupwise-0.1.0-")
    assert name.endswith(".jsonl")
    assert len({cache.file_name({**KEY, changed: "2"}) for changed in KEY} | {name}) == 4
    assert len(cache.file_name({**KEY, "processor": "x" * 500})) < 200
    assert cache.folder() == home / "groupwise" / "tuning"


def test_where_it_is(monkeypatch):
    monkeypatch.setenv("HOME", "/home/a")
    for value in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache.folder() == pathlib.Path("/home/a/.cache/groupwise/tuning")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    assert cache.folder() is None


def test_what_was_prepared_and_read(home):
    path = home / "a" / "b.jsonl"
    assert cache.read(path, KERNELS) == cache.Measurements()
    assert cache.prepare(path, KEY) is None
    assert cache.prepare(path, KEY) is None
    assert [json.loads(line) for line in path.read_text().splitlines()] == [KEY]
    later = {**GOOD, "seconds": {"pytorch": 5e-3}}
    with path.open("a") as file:
        file.write(f"\n{json.dumps(GOOD)}\n\n{json.dumps({**GOOD, 'isa': 'baseline'})}\n\n{json.dumps(later)}\n")
    found = cache.read(path, KERNELS)
    assert found.problem is None
    assert found.seconds == {("avx2", "0 1 -2"): {"pytorch": 5e-3}, ("baseline", "0 1 -2"): GOOD["seconds"]}


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"isa": "avx2", "reque', "no JSON"),
        (b"\x80\xff\x00", "no JSON"),
        (b"[" * 100_000, None),
        (b"[1, 2]", "no measurement"),
        (b"null", "no measurement"),
        ({"isa": 2}, "its instruction set is none"),
        ({"isa": "a,b\x00"}, "its instruction set is none"),
        ({"request": ["0"]}, "its request is none"),
        ({"request": "0 1 x"}, "its request is none"),
        ({"seconds": [1]}, "PyTorch's kernel was not measured"),
        ({"seconds": {"planar": 1e-3}}, "PyTorch's kernel was not measured"),
        ({"seconds": {"pytorch": 1e-3, "quantum": 1e-3}}, "there is no kernel 'quantum'"),
        ({"seconds": {"pytorch": "1e-3"}}, "the time of pytorch is no number"),
        ({"seconds": {"pytorch": True}}, "the time of pytorch is no number"),
        ({"seconds": {"pytorch": None}}, "the time of pytorch is no number"),
        ({"seconds": {"pytorch": 0}}, "pytorch cannot have taken 0.0 seconds"),
        ({"seconds": {"pytorch": -1e-3}}, "pytorch cannot have taken -0.001 seconds"),
        ({"seconds": {"pytorch": 1e-3, "planar": float("nan")}}, "planar cannot have taken nan seconds"),
        ({"seconds": {"pytorch": float("inf")}}, "pytorch cannot have taken inf seconds"),
        ({"seconds": {"pytorch": 1e9}}, "pytorch cannot have taken 1000000000.0 seconds"),
        ({"seconds": {"pytorch": 10**400}}, "too large"),
        (b'{"isa": ' + b"9" * 5000 + b"}", None),
    ],
)
def test_a_bad_line_is_left_out(home, line, reason):
    path = home / "a.jsonl"
    bad = line if isinstance(line, bytes) else json.dumps({**GOOD, **line}).encode()
    path.write_bytes(json.dumps(KEY).encode() + b"\n" + bad + b"\n" + json.dumps(GOOD).encode() + b"\n")
    found = cache.read(path, KERNELS)
    assert found.seconds == {("avx2", "0 1 -2"): GOOD["seconds"]}
    assert found.problem.startswith(f"leaves out 1 line of its measurements in {path} (line 2: ")
    assert reason is None or reason in found.problem
    path.write_bytes(bad)
    assert not cache.read(path, KERNELS).seconds


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_file(home, kind):
    path = home / "a.jsonl"
    {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path), "device": lambda: path.symlink_to(os.devnull)}[kind]()
    found = cache.read(path, KERNELS)
    assert not found.seconds
    assert found.problem.startswith(f"cannot read its measurements in {path} (")
    assert cache.prepare(path, KEY).startswith(f"cannot keep its measurements in {path} (")


def test_bytes_of_all_kinds(home):
    """Whatever a disk makes of the file, what it still says is used."""
    path, line = home / "a.jsonl", json.dumps(GOOD).encode()
    for position in range(len(line)):
        for byte in (0, 10, 34, 92, 128, 255):
            path.write_bytes(line[:position] + bytes([byte]) + line[position + 1 :] + b"\n" + line)
            assert ("avx2", "0 1 -2") in cache.read(path, KERNELS).seconds


@needs_kernels
def test_a_line_that_was_cut_off_stays_alone():
    """As after a crash or on a full disk: what is added next begins a line of its own."""
    path = tuning.cache_path()
    assert cache.prepare(path, KEY) is None
    with path.open("a") as file:
        file.write('{"isa": "avx2", "requ')
    with pytest.warns(RuntimeWarning, match="leaves out 1 line") as told, groupwise.enabled(tune=True):
        assert convolve() == "measured"
    assert len(told) == 1
    assert len(cache.read(path, KERNELS).seconds) == 1


def refuse(number):
    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    return refused


@needs_kernels
@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("where", ["mkdir", "open"])
def test_a_folder_that_takes_no_file(monkeypatch, where, number):
    owner = pathlib.Path if where == "mkdir" else cache.os
    path = tuning.cache_path()
    message = f"groupwise cannot keep its measurements in {path} ({os.strerror(number)}): every process measures anew"
    with monkeypatch.context() as patch:
        patch.setattr(owner, where, refuse(number))
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            groupwise.enable(tune=True)
            assert convolve() == "measured"
            assert convolve() == "measured"
            groupwise.enable(tune=True, calls=7)
    assert [str(warning.message) for warning in told] == [message]
    assert not path.exists()


@needs_kernels
def test_a_file_where_a_folder_should_be(home):
    (home / "groupwise").touch()
    with pytest.warns(RuntimeWarning, match="cannot keep") as told, groupwise.enabled(tune=True):
        assert convolve() == "measured"
    assert "Not a directory" in str(told[-1].message)


@needs_kernels
def test_no_home(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    with pytest.warns(RuntimeWarning, match="neither XDG_CACHE_HOME nor HOME"), groupwise.enabled(tune=True):
        assert convolve() == "measured"
    with groupwise.enabled(tune=False):
        assert convolve() != "measured"


@needs_kernels
def test_what_tables_know_leaves_no_file():
    path = tuning.cache_path()
    with planar_is_fast(""), groupwise.enabled():
        assert convolve() == "table"
    assert not path.parent.exists()
    with groupwise.enabled():
        assert convolve() == "measured"
    assert "processor" in json.loads(path.read_text().splitlines()[0])
    assert len(lines()) == 1


@needs_kernels
@pytest.mark.parametrize("tune", [True, None])
def test_a_folder_that_was_deleted_is_made_again(tune):
    path = tuning.cache_path()
    for channels in (16, 32):
        with groupwise.enabled(tune=tune), torch.no_grad():
            torch.nn.Conv2d(16, channels, 3, groups=4)(torch.ones(2, 16, 12, 12))
        assert len(lines()) == 1
        shutil.rmtree(path.parent)


@needs_kernels
def test_who_did_not_ask_to_measure_hears_of_no_home_where_that_is_done(monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    with planar_is_fast(""), groupwise.enabled():
        assert convolve() == "table"
    assert not caplog.records
    with groupwise.enabled():
        assert convolve() == "measured"
    (record,) = caplog.records
    assert "it cannot keep its measurements, as neither XDG_CACHE_HOME nor HOME" in record.getMessage()


@needs_kernels
@pytest.mark.skipif(not pathlib.Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up(monkeypatch):
    path = tuning.cache_path()
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/full")
    monkeypatch.setattr(cache, "prepare", lambda path, facts: None)
    monkeypatch.setattr(cache, "read", lambda path, kernels: cache.Measurements())
    before = tuning.measured()["lost"]
    made = groupwise.tune(torch.nn.Conv2d(16, 16, 3, groups=4), torch.ones(2, 16, 12, 12))
    assert (made.plans[0].source, made.path) == ("measured", None)
    assert tuning.measured()["lost"] == before + 1
    assert "end with this process" in str(made)


@needs_kernels
def test_a_warning_that_is_an_error_leaves_nothing_open(home):
    (home / "groupwise").touch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning), groupwise.enabled(tune=True):
            pass
    with record_plans() as plans:
        torch.nn.Conv2d(16, 16, 3, groups=4)(torch.ones(2, 16, 12, 12))
    assert not plans


@needs_kernels
def test_a_file_that_cannot_be_deleted():
    cache.prepare(tuning.cache_path(), KEY)
    path = tuning.cache_path()
    path.unlink()
    path.mkdir()
    with pytest.raises(GroupwiseError, match=f"cannot delete {path}"):
        groupwise.forget()


@needs_kernels
def test_processes_that_add_lines_at_once():
    code = """
import sys, torch, groupwise
torch.set_num_threads(1)
groupwise.enable(tune=True, calls=1)
print("ready", flush=True)
sys.stdin.readline()
for height in range(60):
    torch.nn.functional.conv2d(torch.ones(1, 8, 5 + height, 9 + int(sys.argv[1])), torch.ones(8, 2, 3, 3), groups=4)
"""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    for process in started:
        process.stdout.readline()
    for process in started:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in started:
        process.communicate(timeout=120)
        assert process.returncode == 0
    assert len(lines()) == len({line["request"] for line in lines()}) == 180
    before = requests()
    assert tuning.saved().problem is None
    assert len(tuning.saved().seconds) == 180
    assert requests() == before
