"""PyTorch's own samples of convolutions, with the kernels and without."""

import pytest
import torch

from groupwise.kernels.dispatch import forced
from kernels import needs_kernels

pytestmark = needs_kernels


@pytest.mark.parametrize(
    "name", ["conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"]
)
@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_samples(name):
    from torch.testing._internal.common_methods_invocations import op_db

    (op,) = [op for op in op_db if op.name == f"nn.functional.{name}"]
    count = 0
    for sample in op.sample_inputs("cpu", torch.float32, requires_grad=True):
        tensors = [sample.input, *(value for value in sample.args if isinstance(value, torch.Tensor))]
        with forced(False):
            theirs = op(sample.input, *sample.args, **sample.kwargs)
            grads = torch.autograd.grad(theirs.sum(), tensors, allow_unused=True)
        with forced(True):
            ours = op(sample.input, *sample.args, **sample.kwargs)
            our_grads = torch.autograd.grad(ours.sum(), tensors, allow_unused=True)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
        for ours, theirs in zip(our_grads, grads, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-3)
        count += 1
    assert count >= 4


@pytest.mark.filterwarnings("ignore")
def test_pytorchs_own_modules():
    from torch.testing._internal.common_modules import module_db

    count = 0
    for info in module_db:
        if not info.name.startswith("nn.Conv"):
            continue
        for sample in info.module_inputs_func(info, "cpu", torch.float32, requires_grad=True, training=True):
            torch.manual_seed(0)
            layer = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
            source = sample.forward_input.args[0]
            with forced(False):
                theirs = layer(source)
            with forced(True):
                ours = layer(source)
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
            count += 1
    assert count > 10
