"""`optimize(model, example, dtype=torch.bfloat16)`: layers compute in bfloat16, with float32 sums."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import groupwise
from commands import run
from groupwise import GroupwiseError
from groupwise.profile.faster import compare
from groupwise.rewrite import choose, precision, region
from optimized import Both, Excite, Residual, Shuffle, exact, settle, source

needs_bfloat16 = pytest.mark.skipif(
    precision.bfloat16_problem() is not None, reason="the processor has no bfloat16 products"
)


@pytest.fixture
def bfloat16_wins(monkeypatch):
    """Programs in bfloat16 run, whatever they take."""
    monkeypatch.setattr(region, "fastest", lambda seconds: "bfloat16")


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.project, self.out = nn.LayerNorm(16), nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        q, k, v = self.project(self.norm(x)).chunk(3, -1)
        return x + self.out(torch.softmax(q @ k.transpose(-1, -2) / 4, -1) @ v)


def conv_norm(inputs, outputs, act=None, **options):
    parts = [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False, **options), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*parts, *([act] if act else []))


MODELS = {
    "residual": lambda: nn.Sequential(conv_norm(8, 64, nn.ReLU6()), Residual(conv_norm(64, 64), True, nn.ReLU())),
    "depthwise": lambda: nn.Sequential(conv_norm(8, 8, nn.SiLU(), groups=8), Excite(8, nn.Sigmoid()), conv_norm(8, 40)),
    "grouped": lambda: nn.Sequential(nn.Conv2d(8, 64, 1), conv_norm(64, 64, nn.Hardswish(), groups=16), Shuffle(4)),
    "branches": lambda: nn.Sequential(Both(nn.Conv2d(8, 24, 1), conv_norm(8, 8, nn.GELU())), nn.MaxPool2d(2)),
    "classifier": lambda: nn.Sequential(
        conv_norm(8, 32, nn.ReLU()),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(),
        nn.Linear(32, 10),
        nn.Softmax(1),
    ),
    "norms": lambda: nn.Sequential(nn.Conv2d(8, 32, 3), nn.GroupNorm(4, 32), nn.ReLU(), nn.BatchNorm2d(32)),
    "upsampled": lambda: nn.Sequential(conv_norm(8, 16), nn.Upsample(scale_factor=2), nn.ConvTranspose2d(16, 8, 2, 2)),
}


def error(made, true):
    return ((made.double() - true).norm() / true.norm()).item()


def as_exact_as_autocast(model, x, **options):
    """The error is at most twice that of autocast, and that of the model in bfloat16. Returns the network."""
    fast = groupwise.optimize(model, x, dtype=torch.bfloat16, **options)
    true = exact(model, x)
    with torch.inference_mode():
        low = copy.deepcopy(model).to(torch.bfloat16)(x.to(torch.bfloat16))
        with torch.autocast("cpu", torch.bfloat16):
            auto = model(x)
        made, eager = fast(x), model(x)
    assert (made.dtype, made.shape, made.stride()) == (eager.dtype, eager.shape, eager.stride())
    assert error(made, true) <= 2 * min(error(low, true), error(auto, true)) + 1e-4
    return fast


@needs_bfloat16
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("tune", [False, True])
def test_the_error_is_that_of_bfloat16(name, tune, bfloat16_wins):
    torch.manual_seed(0)
    fast = as_exact_as_autocast(settle(MODELS[name]()), source(), tune=tune)
    assert "to_float32" in [step.kind for step in fast.plan.steps]
    assert not any(step.refused.get("onednn", "").startswith("it fails") for step in fast.plan.steps)


@needs_bfloat16
@pytest.mark.parametrize(("size", "stride"), [((9, 12), 2), ((7, 7), (1, 3)), ((8, 5), (3, 2))])
def test_products_with_a_stride(size, stride, monkeypatch, bfloat16_wins):
    ours = "groupwise bfloat16"  # which the same network in float32 has not
    monkeypatch.setattr(choose, "fastest", lambda seconds: ours if ours in seconds else "pytorch")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 24, 1, stride=1), nn.Conv2d(24, 40, 1, stride=stride), nn.ReLU()).eval()
    fast = as_exact_as_autocast(model, torch.randn(2, 8, *size), tune=True)
    kernels = [step.kernel for step in fast.plan.steps if step.kind == "convolution"]
    assert kernels[1] == "bfloat16"


@needs_bfloat16
def test_attention_keeps_softmax_in_float32():
    torch.manual_seed(0)
    fast = as_exact_as_autocast(nn.Sequential(nn.Linear(16, 16), Attention()).eval(), torch.randn(2, 9, 16), tune=False)
    kinds = [step.kind for step in fast.plan.steps]
    assert kinds[kinds.index("softmax") - 1] == "to_float32"


@needs_bfloat16
def test_what_a_model_says_about_dtypes_holds():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 1)
            self.register_buffer("scale", torch.full((8, 1, 1), 3.0))

        def forward(self, x):
            made = self.conv(x)
            return (
                made,
                made.double() * 2,
                made.mean((2, 3), dtype=torch.float32),
                (made > 0).sum(),
                x,
                made * self.scale,
            )

    model, x = Mixed().eval(), source()
    with torch.no_grad():
        outputs, theirs = groupwise.optimize(model, x, tune=False, dtype=torch.bfloat16)(x), model(x)
    assert [made.dtype for made in outputs] == [made.dtype for made in theirs]
    for made, eager in zip(outputs, theirs, strict=True):
        torch.testing.assert_close(
            made.double(), eager.double(), rtol=0.02, atol=0.02 * eager.double().abs().max().item()
        )
    outputs[0].zero_()


@needs_bfloat16
def test_a_copy_and_changed_weights():
    torch.manual_seed(0)
    model, x = settle(MODELS["residual"]()), source()
    fast = groupwise.optimize(model, x, tune=False, dtype=torch.bfloat16)
    twin = copy.deepcopy(fast)
    with torch.no_grad():
        before = fast(x)
        assert torch.equal(twin(x), before)
        model[0][0].weight.mul_(2)
        assert error(fast(x), exact(model, x)) < 0.02
    assert error(before, exact(model, x)) > 0.1


@needs_bfloat16
def test_layers_in_other_dtypes_stay():
    for dtype in (torch.float64, torch.bfloat16):
        model, x = settle(MODELS["residual"]()).to(dtype), source().to(dtype)
        fast = groupwise.optimize(model, x, tune=False, dtype=torch.bfloat16)
        assert "to_bfloat16" not in [step.kind for step in fast.plan.steps]
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=0.05, atol=0.05)


def test_refusals(monkeypatch):
    model, x = settle(MODELS["residual"]()), source()
    with pytest.raises(GroupwiseError, match=r"^dtype=torch.float16 is not known; choose one of: torch.bfloat16"):
        groupwise.optimize(model, x, dtype=torch.float16)
    with pytest.raises(GroupwiseError, match=r"dtype is for inference|dtype=torch.bfloat16 is not for this machine"):
        groupwise.optimize(model, x, dtype=torch.bfloat16, train=True)
    monkeypatch.setattr(precision, "bfloat16_problem", lambda: "this processor has no bfloat16 products")
    with pytest.raises(GroupwiseError, match=r"^dtype=torch.bfloat16 is not for this machine: this processor has no"):
        groupwise.optimize(model, x, dtype=torch.bfloat16)


@needs_bfloat16
def test_float32_runs_where_it_is_faster(monkeypatch):
    seen = []

    def wins(seconds):
        seen.append(dict(seconds))
        return "float32"

    monkeypatch.setattr(region, "fastest", wins)
    model, x = settle(MODELS["residual"]()), source()
    fast = groupwise.optimize(model, x, tune=True, dtype=torch.bfloat16)
    assert [list(seconds) for seconds in seen] == [["bfloat16", "float32"]]
    assert not {"to_bfloat16", "to_float32"}.intersection(step.kind for step in fast.plan.steps)
    (widened,) = fast.plan.widened
    assert widened.name == ""
    assert "computed in float32, which is faster:\n  the model: " in str(fast.plan)
    assert ", bfloat16 " in widened.reason
    assert compare(model, fast, (x,), repeats=1).dtype == "float32", "what it computes, and not what was asked for"
    with torch.no_grad():
        assert error(fast(x), exact(model, x)) < 1e-5
        model[0][0].weight.mul_(2)
        assert error(fast(x), exact(model, x)) < 1e-5, "it packs float32 again"
    assert not groupwise.optimize(model, x, tune=False, dtype=torch.bfloat16).plan.widened
    assert len(seen) == 1, "without tuning nothing is timed"


@needs_bfloat16
def test_the_command(capsys, bfloat16_wins):
    status, out, _ = run(capsys, "optimize", "resnext50_32x4d", "--input-shape", "1,3,32,32", "--dtype", "bfloat16")
    assert status == 0
    assert "to_float32" in out
    assert "the outputs agree" in out
