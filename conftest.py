"""What every test starts from: fixed seeds, no measured kernels, a quiet machine, and docstrings that need the core."""

from __future__ import annotations

import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

import groupwise
from groupwise.kernels import dispatch, native, tables
from groupwise.profile import measuring

# `make test` tries the same examples on every run and machine; `make fuzz` draws new ones and tells how to repeat them.
# Neither has a deadline, which a busy machine would miss.
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("fuzz", derandomize=False, print_blob=True, deadline=None)
settings.load_profile("fixed")

# No test measures kernels unless it says so (`own_cache`), nor does a process that it starts, and none touches the
# user's own cache.
_cache = tempfile.TemporaryDirectory(prefix="groupwise-tests-")
os.environ["XDG_CACHE_HOME"] = _cache.name
os.environ["GROUPWISE_TUNE"] = "0"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give a test the same random numbers whichever tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(params=native.runnable() if native.status().problem is None else ())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Run a test with each instruction set of this machine: `pytest.mark.usefixtures("isa")`."""
    with dispatch.forced(isa=request.param):
        yield request.param


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no test see what else runs on the machine: what a busy one changes is told to the tests that ask for it."""
    monkeypatch.setattr(measuring, "reading", lambda: None)


@pytest.fixture(autouse=True)
def _policy() -> None:
    """Let the planner take the first kernel that can run, on every processor: tests give it the timings they want.

    Before each test, because one that loads the library anew gets the shipped tables again.
    """
    if native.status().problem is None:
        for isa in native.runnable():
            native.prepare(isa)
            tables.clear(native.library(), isa)


@pytest.fixture
def own_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give an empty cache, nothing enabled or said before, and no variable that tunes: `enable()` measures."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GROUPWISE_TUNE")
    monkeypatch.setattr(dispatch._switches._tuner, "_told", set())
    groupwise.disable()
    groupwise.forget()
    yield
    groupwise.disable()
    native.library().groupwise_clock(native.CLOCK())
    groupwise.forget()


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Give the function that sets the number of threads, which is what it was after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the examples that run a kernel where the native core is missing."""
    problem = native.status().problem
    if problem is None:
        return
    for item in items:
        names = ("groupwise.kernels.dispatch.enabled", "groupwise.kernels.plan.plan", "groupwise.profile.tune.tune")
        if item.name in names:
            item.add_marker(pytest.mark.skip(reason=problem))
