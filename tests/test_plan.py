"""`plan`: what it takes, and what it tells."""

from __future__ import annotations

import pytest
import torch

from groupwise import ConvSpec, GroupwiseError, plan
from groupwise.kernels import native
from groupwise.kernels.dispatch import forced
from kernels import needs_kernels

pytestmark = needs_kernels


def test_a_plan_refuses_a_memory_format_that_the_convolution_cannot_have():
    with pytest.raises(GroupwiseError, match="channels_last' is for 2-D convolutions, and this one is 1-D; give 'cont"):
        plan(ConvSpec(8, 8, 3, groups=8, dims=1), (1, 8, 20), memory_format="channels_last")


def test_a_plan_tells_of_the_threads_that_compute():
    spec = ConvSpec(8, 8, 3, groups=8)
    assert plan(spec, (1, 8, 10, 10), threads=2).threads == 2, "without data all threads share all work"
    assert native.library().groupwise_share(native.status().isa.encode(), 1000.0)
    small, large = (plan(spec, (1, 8, size, size), threads=2) for size in (10, 200))
    assert (small.threads, large.threads, large.sharing) == (1, 2, "")
    # 8 channels, 9 taps and 8 x 8 outputs, and each lane of each thread.
    lanes = {"baseline": 4, "neon": 4, "avx2": 8, "avx512": 16}[small.isa]
    words = f"4608 products are too few for 2 threads, which share work from {2000 * lanes} on"
    assert small.sharing == words
    assert f"\n  {words}\n" in str(small)
    assert small.to_dict()["sharing"] == words
    assert plan(spec, (1, 8, 200, 200), threads=1000).threads == 1, "each thread needs its own"
    assert plan(spec, (1, 8, 10, 10), threads=1).sharing == ""
    with forced(kernel="pytorch"):
        # PyTorch has its own mind.
        assert plan(spec, (1, 8, 10, 10), threads=2).threads == 2


def test_the_plan_of_a_layer_has_its_dtype_and_takes_a_tensor():
    layer, source = torch.nn.Conv2d(32, 32, 3, groups=8), torch.randn(1, 32, 9, 9)
    assert plan(layer, source) == plan(ConvSpec(32, 32, 3, groups=8), source.shape)
    assert plan(layer.double(), source).kernel == "pytorch"
    assert plan(layer, source, "float32").kernel != "pytorch"
