"""How far a measurement is: what a function is told, and what True shows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import groupwise
from groupwise.profile import progress
from kernels import needs_kernels, without_kernels

NET = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)).eval()
X = torch.randn(1, 3, 9, 9)


@pytest.fixture
def lines(monkeypatch):
    """Lets every step be told, however short it is."""
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0)


def test_a_report(monkeypatch, capsys, lines):
    without_kernels(monkeypatch)
    seen = []
    groupwise.report(NET, X, repeats=2, progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert capsys.readouterr().err == ""
    groupwise.report(NET, X, repeats=2, progress=True)
    assert capsys.readouterr().err.splitlines() == [f"groupwise: measuring: {done} of 4 runs" for done in (1, 2, 3, 4)]
    groupwise.report(NET, X, repeats=2)
    assert capsys.readouterr().err == ""


@needs_kernels
def test_a_sweep_tells_its_parts(capsys, lines):
    seen = []
    groupwise.sweep(NET, X, groups=[1, 2], layers=["1"], repeats=1, progress=lambda *counts: seen.append(counts))
    assert seen == [*(("timing", done, 3) for done in (1, 2, 3)), ("converting", 1, 2), ("converting", 2, 2)]
    groupwise.sweep(NET, X, groups=[1, 2], layers=["1"], repeats=1, progress=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"groupwise: {part}: {done} of {total} steps" for part, done, total in seen]


@pytest.mark.parametrize("form", ["block", "factored"])
def test_a_conversion_tells_how_many_layers_are_done(capsys, lines, form):
    net = nn.Sequential(*(nn.Conv2d(*ends, 1) for ends in ((3, 8), (8, 8), (8, 8), (8, 8), (8, 2)))).eval()
    groups, seen = {"1": 2, "3": 4, "4": 1}, []
    options = {"form": form, "data": torch.randn(2, 3, 4, 4)}
    groupwise.regroup(net, groups, **options, progress=lambda *counts: seen.append(counts))
    # What is exact takes no time.
    assert seen == [(part, done, 2) for part in ("converting", "fitting") for done in (1, 2)]
    groupwise.regroup(net, groups, **options, progress=True)
    shown = capsys.readouterr().err.splitlines()
    assert shown == [f"groupwise: {part}: {done} of {total} steps" for part, done, total in seen]
    groupwise.regroup(net, groups, **options)
    assert capsys.readouterr().err == ""
