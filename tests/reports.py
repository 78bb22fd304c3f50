"""Reports with times that are known, of a small model, on a machine that does not exist."""

from __future__ import annotations

import torch
from torch import nn

from groupwise.profile import record as recording
from kernels import stand_in, without_kernels

HERE = {"processor": "a processor", "threads": 2, "torch": "2.0", "groupwise": "0", "date": "2000-01-01"}


def small_model():
    """Four convolutions: dense, two grouped and a transposed depthwise one."""
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16), nn.ReLU())  # noqa: E731
    # Pooling keeps the shares of MACs and of parameters apart.
    first = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.MaxPool2d(2))
    return nn.Sequential(first, block(), block(), nn.ConvTranspose2d(16, 16, 2, 2, groups=16))


def canned(monkeypatch, seconds, ours=()):
    """Let every recorded run take times that are known: `seconds` for each forward, ten times that for the backward.

    `ours` has those of the runs with groupwise's kernels, which are stood in for; without any there are none.
    """
    if ours:
        asked = stand_in(monkeypatch)
    else:
        asked = [False]
        without_kernels(monkeypatch)
    turn = {False: iter(seconds), True: iter(ours)}
    real = recording.run

    def timed(workload):
        one, now = real(workload), next(turn[asked[-1]])
        for place, call in enumerate(one.calls, 1):
            call.seconds = {"forward": now * place, "backward": 10 * now * place}
        return recording.Run(one.calls, {}, 100 * now)

    monkeypatch.setattr(recording, "run", timed)
    monkeypatch.setattr(recording, "time_run", lambda *_: 0.25 if asked[-1] else 0.5)
