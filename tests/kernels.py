"""Tests with groupwise's kernels, without them, and with ones that are wrong."""

from __future__ import annotations

import contextlib
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from groupwise import ConvSpec, plan
from groupwise.kernels import dispatch, native, tables
from groupwise.kernels.plan import KERNELS
from groupwise.profile import report as reporting
from groupwise.profile import verify as checking

# The kernels of groupwise that compute float32, and the instruction sets of this machine.
OURS = [name for name in KERNELS if name not in ("pairs", "pytorch")]
# Those whose error is bounded by the sum of |x| |w| of each output, and with those that compute bfloat16 alone.
DIRECT = [name for name in OURS if name != "fft"]
DIRECT_LOW = [*DIRECT, "pairs"]
ISAS = native.runnable() if native.status().problem is None else ()
needs_kernels = pytest.mark.skipif(native.status().problem is not None, reason=str(native.status().problem))


def here():
    """The kernels that can run by the instruction set in use. brgemm uses the one that PyTorch chooses."""
    wide = plan(ConvSpec(32, 32, 3, groups=2), (1, 32, 9, 9))
    return [name for name in OURS if not (name == "brgemm" and name in wide.refused)]


@contextlib.contextmanager
def planar_is_fast(kind, most_threads=2.0**40):
    """Within the block tables of one kind of convolutions, " 3-D" say, tell that `planar` is fast, and no others do.

    They know nothing of more threads than `most_threads`.
    """
    library, isa = native.library(), native.status().isa
    limits = {"least": [0], "most": [math.log2(most_threads)]}
    # log2 of the fraction of the roofline's speed, times 100.
    found = [{"kernel": name, **limits, "trees": [[-1, leaf]]} for name, leaf in (("pytorch", 0), ("planar", 200))]
    about = {"format": 3, "class": "some-1-2", "isa": isa, "torch": "2.13", "rows": 9, "bounded": [0]}
    about |= {"margins": [0.1] * tables.FAMILIES, "caution": 0, "roofline": [1e30, 1e30, 1]}
    tables.clear(library, isa)
    tables.give(library, isa + kind, {**about, "features": ["threads"], "tables": found})
    try:
        yield
    finally:
        tables.clear(library, isa)


def without_kernels(monkeypatch):
    """As on a machine without a compiler."""
    monkeypatch.setattr(native, "status", lambda: native.Status(problem="there is none", fix="build it"))


class Stand(TorchDispatchMode):
    """A kernel behind the operator: PyTorch's in float32, and what a function makes of each of its results."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.convolution.default and result.dtype == torch.float32:
            return self.change("forward", result)
        if func is torch.ops.aten.convolution_backward.default and result[1].dtype == torch.float32:
            return tuple(g if g is None else self.change(name, g) for name, g in zip("xwb", result, strict=True))
        return result


def stand_in(monkeypatch, change=lambda name, result: result):
    """Let results that `change` makes stand for groupwise's kernels, which are not needed then.

    Returns whether dispatch was asked for, run by run.
    """
    asked = []

    @contextlib.contextmanager
    def forced(on):
        asked.append(on)
        with Stand(change) if on else contextlib.nullcontext():
            yield

    monkeypatch.setattr(native, "status", native.Status)
    monkeypatch.setattr(dispatch, "forced", forced)
    monkeypatch.setattr(dispatch, "by_pytorch", lambda: forced(False))
    monkeypatch.setattr(checking, "record_plans", lambda: contextlib.nullcontext([]))
    monkeypatch.setattr(reporting, "measure_roofline", lambda threads: reporting.Roofline(1e9, 1e9))
    return asked
