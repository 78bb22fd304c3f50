"""Inference engines in other dtypes and dimensions: what a worker is given, and which results count."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from kernels import needs_kernels
from scripts import load

shapes, engines, worker, checking = map(load, ("shapes", "engines", "engine_worker", "checking"))
LAYERS = {layer.name: layer for which in shapes.FILES for layer in shapes.read(which)}
SMALL = LAYERS["odd-width6"]
DTYPES = ("float32", "float16", "float64")


def saved(layer, dtype, folder):
    given = layer.tensors(1).to(lambda t: t.to(getattr(torch, dtype)))
    return given, engines.save(layer, given, given.forward(), folder)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_worker_has_the_layer_in_its_dtype(tmp_path, dtype):
    given, path = saved(SMALL, dtype, tmp_path)
    read = worker.Layer.read(str(path))
    for mine, its in ((given.input, read.input), (given.weight, read.weight), (given.bias, read.bias)):
        assert its.dtype == dtype
        np.testing.assert_array_equal(its, mine.numpy())


def test_a_worker_has_bfloat16(tmp_path):
    given, path = saved(SMALL, "bfloat16", tmp_path)
    with np.load(path) as arrays:
        assert arrays["input"].dtype == np.float32
        np.testing.assert_array_equal(arrays["input"], given.input.float().numpy())
    pytest.importorskip("ml_dtypes")
    read = worker.Layer.read(str(path))
    np.testing.assert_array_equal(read.input.astype(np.float32), given.input.float().numpy())


def test_results_come_back_wide():
    values = torch.tensor([1.5, -3e38, 2.0**-130, 0.0])
    bits = values.to(torch.bfloat16).view(torch.int16).numpy().view(np.float16)
    np.testing.assert_array_equal(worker.widened(bits, "bfloat16"), values.to(torch.bfloat16).float().numpy())
    for dtype, wide in (("float16", "float32"), ("float32", "float32"), ("float64", "float64")):
        assert worker.widened(np.array([1.5], dtype), dtype).dtype == wide


def test_a_layer_of_3_d_keeps_its_dimensions(tmp_path):
    layer = LAYERS["resnext3d-101-s1"]
    _, path = saved(layer, "float32", tmp_path)
    read = worker.Layer.read(str(path))
    assert (read.kernel, read.padding, read.stride) == ((3, 3, 3), (1, 1, 1), (1, 1, 1))
    assert read.output_shape == (1, 128, 8, 28, 28)
    with pytest.raises(worker.Unsupported, match="ncnn is given 2-D convolutions of float32"):
        next(worker.ncnn(read, 1))


def test_engines_of_float32_say_so(tmp_path):
    _, path = saved(SMALL, "float16", tmp_path)
    with pytest.raises(worker.Unsupported, match="MNN is given 2-D convolutions of float32"):
        next(worker.mnn(worker.Layer.read(str(path)), 1))


class Engine:
    """Stands in for an engine's process that computes in a dtype of its own, whatever it is given."""

    def __init__(self, dtype):
        self.dtype = dtype

    def ask(self, load=None, threads=None, run=None):
        if run:
            return {"seconds": [0.002] * run}
        with np.load(load) as arrays:
            x, w, b = (torch.from_numpy(arrays[name]).to(self.dtype) for name in ("input", "weight", "bias"))
            output = F.conv2d(x, w, b, padding=1, groups=4).to(torch.promote_types(self.dtype, torch.float32))
        path = pathlib.Path(load).with_name("output.npy")
        np.save(path, output.numpy())
        return {"output": str(path), "variant": "", "version": "1"}


@needs_kernels
@pytest.mark.parametrize(("dtype", "other"), [("float64", "float32"), ("float32", "bfloat16"), ("bfloat16", "float32")])
def test_an_engine_that_computes_in_less_is_not_timed(monkeypatch, dtype, other):
    monkeypatch.setattr(engines, "PAUSE", 0)
    workers = {"same": Engine(getattr(torch, dtype)), "other": Engine(getattr(torch, other))}
    *_, same, found = engines.measure(SMALL, workers, 2, dtype)
    assert same["ms"] == 2
    more = torch.finfo(getattr(torch, other)).eps <= torch.finfo(getattr(torch, dtype)).eps
    assert ("ms" in found) is more
    if not more:
        assert found["problem"].endswith(f"is timed in {dtype}")
