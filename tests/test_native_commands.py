"""The command that builds the library again, for each way to have installed groupwise."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import shutil
import sys

import pytest
import torch

from groupwise.kernels import native

ROOT = pathlib.Path(__file__).parent.parent
LOUD = "GROUPWISE_REQUIRE_NATIVE=1"
OPTIONS = "--force-reinstall --no-deps --no-cache-dir"


@pytest.mark.parametrize(
    ("origin", "installer", "command"),
    [
        (None, "pip", f"{LOUD} pip install {OPTIONS} groupwise"),
        (
            {"url": "file:///a/b.whl", "archive_info": {}},
            "pip",
            f"{LOUD} pip install {OPTIONS} .  # in a clone of groupwise",
        ),
        ({"url": "file:///a/b.tar.gz", "archive_info": {}}, "pip", f"{LOUD} pip install {OPTIONS} /a/b.tar.gz"),
        ({"url": "file:///my%20code", "dir_info": {}}, "pip", f"{LOUD} pip install {OPTIONS} '/my code'"),
        (
            {"url": "file:///code", "dir_info": {"editable": True}},
            "pip",
            f"{LOUD} pip install {OPTIONS} --editable /code",
        ),
        (
            {"url": "https://a.org/g", "vcs_info": {"vcs": "git", "commit_id": "f00"}},
            "pip",
            f"{LOUD} pip install {OPTIONS} git+https://a.org/g@f00",
        ),
        (
            {"url": "file:///code", "dir_info": {}},
            "uv",
            f"{LOUD} GROUPWISE_TORCH={pathlib.Path(torch.__file__).parent} "
            "uv pip install --reinstall-package groupwise --no-deps --no-cache /code",
        ),
    ],
)
def test_the_command_that_builds_it(monkeypatch, origin, installer, command):
    class Distribution:
        def read_text(self, name):
            return {"INSTALLER": f"{installer}\n", "direct_url.json": origin and json.dumps(origin)}[name]

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    monkeypatch.setenv("PATH", str(pathlib.Path(sys.executable).parent))
    monkeypatch.setattr(shutil, "which", lambda name: str(pathlib.Path(sys.executable).parent / name))
    assert native.rebuild_command() == command


def test_the_command_names_the_python_whose_pip_is_not_first(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/elsewhere/{name}")
    monkeypatch.setattr(sys, "executable", "/my python")
    assert native.torch_command() == "'/my python' -m pip install \"torch>=2.10\""


def test_the_command_where_nothing_is_installed(monkeypatch):
    def nothing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", nothing)
    assert native.rebuild_command().endswith(f"{OPTIONS} {ROOT}")
