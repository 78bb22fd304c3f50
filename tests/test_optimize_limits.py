"""What `groupwise.optimize` must not take for granted: constant weights, strides, finite constants, equal arguments."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import groupwise


class Function(nn.Module):
    """A model that is a function of itself and its inputs, with a convolution, a linear layer and a parameter."""

    def __init__(self, function):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(8, 8, 1), nn.Linear(8, 8)
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.function = function

    def forward(self, *inputs):
        return self.function(self, *inputs)


def check(function, *inputs):
    model = Function(function).eval()
    fast = groupwise.optimize(model, *inputs)
    with torch.inference_mode():
        torch.testing.assert_close(fast(*inputs), model(*inputs), rtol=1e-4, atol=1e-4, equal_nan=True)
    return model, fast


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: F.linear(x[0, :, 0], m.weight, m.linear(x[0, 0, 0])),
        lambda m, x: F.linear(x[0, :, 0], x[0, :, 1]),
        lambda m, x: F.conv2d(x, (m.weight * x[0, 0, 0])[:, :, None, None]),
    ],
    ids=["bias", "weight", "modulated"],
)
def test_weights_that_depend_on_the_input(function):
    check(function, torch.randn(2, 8, 8, 8))


@pytest.mark.parametrize(
    "function",
    [
        lambda m, x: m.conv(x).as_strided((2, 8, 4), (512, 64, 1)),
        lambda m, x: torch.view_as_real(torch.view_as_complex(m.conv(x).view(2, 8, 32, 2))),
        lambda m, x: m.conv(x).view(torch.int32),
    ],
    ids=["as_strided", "complex", "dtype"],
)
def test_memory_that_is_read_as_it_lies(function):
    _, fast = check(function, torch.randn(2, 8, 8, 8))
    assert "reads memory as it lies" in str(fast.plan)


def test_division_by_zero():
    check(lambda m, x: m.conv(x) / 0.0, torch.randn(2, 8, 8, 8))


def test_a_constant_that_cancels():
    check(lambda m, x: m.conv((x - 1000.0) / 0.001), 1000 + 0.001 * torch.randn(2, 8, 8, 8))


@pytest.mark.parametrize("layer", ["conv", "linear"])
def test_a_layer_that_reads_a_constant(layer):
    """It is computed once, and again when its own weight changes."""
    shape = (1, 8, 8, 8) if layer == "conv" else (8, 8)
    table = torch.randn(shape)
    model, fast = check(
        lambda m, x: m.conv(x) + getattr(m, layer)(table).relu() + m.weight.mean(), torch.randn(2, 8, 8, 8)
    )
    assert sum(step.kind in ("convolution", "linear") for step in fast.plan.steps) == 1
    with torch.no_grad():
        getattr(model, layer).weight.mul_(3)
    x = torch.randn(2, 8, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tune", [True, False])
@pytest.mark.parametrize("images", [True, False])
def test_a_sum_with_a_constant(tune, images):
    """A residual that no input changes, such as positions that are added to one sample, stays as it is."""
    table = torch.randn((1, 8, 8, 8) if images else (1, 20, 8))
    model = Function(lambda m, x: F.relu((m.conv if images else m.linear)(x) + table)).eval()
    x = torch.randn_like(table)
    fast = groupwise.optimize(model, x, tune=tune)
    assert fast.plan.steps[-1].fused == ("sum", "relu")
    with torch.inference_mode():
        for _ in range(3):
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


def test_parts_without_autocast_and_gradients():
    """Their operators are inlined, also one inside of another."""

    def compute(m, x):
        with torch.autocast("cpu", enabled=False):
            made = m.conv(x).float() * 2
            with torch.no_grad():
                made = made.relu()
        with torch.enable_grad():
            return m.conv(made) + made

    _, fast = check(compute, torch.randn(2, 8, 8, 8))
    assert not fast.plan.left
    assert [step.fused for step in fast.plan.steps if step.kind == "convolution"] == [("scale", "relu"), ("sum",)]


def test_a_part_with_autocast():
    def compute(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return m.conv(x)

    _, fast = check(compute, torch.randn(2, 8, 8, 8))
    assert "wrap_with_autocast" in fast.plan.left[0].reason


def test_an_argument_of_another_sign():
    model, fast = check(lambda m, x, y: m.conv(x) * 0.0 + 1.0 / torch.tensor(y), torch.randn(2, 8, 8, 8), 0.0)
    with torch.inference_mode():
        x = torch.randn(2, 8, 8, 8)
        torch.testing.assert_close(fast(x, -0.0), model(x, -0.0))


def test_an_input_of_other_strides():
    model, fast = check(lambda m, x: x.contiguous(), torch.randn(2, 8, 8, 8))
    turned = torch.randn(2, 8, 8, 8).transpose(2, 3)
    with torch.inference_mode():
        made = fast(turned)
        assert made.stride() == model(turned).stride()
        assert made.data_ptr() != turned.data_ptr()


def test_a_compiled_network_runs_the_model():
    model, fast = check(lambda m, x: m.conv(x).relu(), torch.randn(2, 8, 8, 8))
    torch._dynamo.reset()
    x = torch.randn(2, 8, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(torch.compile(fast, backend="eager")(x), model(x))


def test_two_dtypes_are_refused_as_by_the_model():
    model = Function(lambda m, x: m.conv(x)).eval().bfloat16()
    x = torch.randn(2, 8, 8, 8)
    with torch.inference_mode(), pytest.raises(RuntimeError):
        model(x)
    with pytest.raises(groupwise.GroupwiseError, match=r"fails with RuntimeError.*BFloat16"):
        groupwise.optimize(model, x)
