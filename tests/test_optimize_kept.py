"""Submodules that stay as they are run between the rewritten operators of the model around them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import groupwise
from optimized import Both, Residual, check, kinds, layers, settle, source


def block(*middle):
    """A convolution with its BatchNorm and activation, something, and the same again."""
    first = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    last = (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    return settle(nn.Sequential(*first, *middle, *last))


FUSED = ("convolution", ("batch norm", "relu"))


def with_hook(module):
    module.register_forward_hook(lambda *_: None)
    return module


def scripted():
    return torch.jit.script(nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU()).eval())


def on_the_instance():
    module = nn.Conv2d(8, 8, 1)
    module.forward = lambda x: x * 2
    return module


KEPT = {
    "it has forward hooks": lambda: with_hook(nn.Conv2d(8, 8, 1)),
    "it is in training mode": lambda: nn.Dropout(0.0),
    "it is parametrized": lambda: nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1)),
    "its forward is set on the instance": on_the_instance,
}


@pytest.mark.parametrize("reason", KEPT)
@pytest.mark.parametrize("residual", [False, True])
def test_all_around_a_submodule_that_stays_is_fused(reason, residual):
    part = KEPT[reason]()
    model = block(part)
    part.train(reason == "it is in training mode")
    model = Residual(model, inplace=True).eval() if residual else model
    if residual:
        part.train(reason == "it is in training mode")
    fast = groupwise.optimize(model, source())
    name = "block.3" if residual else "3"
    assert [(left.name, left.reason) for left in fast.plan.left] == [(name, reason)]
    assert layers(fast) == [FUSED, ("convolution", ("batch norm", "relu", *["sum"] * residual))]
    assert kinds(fast).count("as it is") == 1
    for batch in (2, 3):
        x = source(batch)
        with torch.no_grad():
            torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    assert {plan.left for plan in fast.plans} == {fast.plan.left}


def test_hooks_run_once_a_call_and_see_what_they_see_in_the_model():
    model, seen = block(nn.Conv2d(8, 8, 1)), []
    model[3].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model[3].register_forward_hook(lambda module, args, output: seen.append(output) or output * 2)
    fast = groupwise.optimize(model, source())
    assert len(seen) == 2, "once for the example"
    x = source()
    with torch.no_grad():
        model(x), fast(x)
    theirs, ours = seen[2:4], seen[4:]
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
        assert a.stride() == b.stride()


def test_what_a_hook_keeps_is_not_written_to():
    """The network would compute the sum where the block's output is, had nobody else seen that."""

    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.seen, self.conv = with_hook(nn.Identity()), nn.Conv2d(8, 8, 1)
            self.first = nn.Conv2d(8, 8, 1)

        def forward(self, x):
            made = self.first(x)
            self.seen(made)
            return self.conv(made.relu()) + made

    model, kept = Sum().eval(), []
    model.seen.register_forward_hook(lambda module, args, output: kept.append(args[0]))
    fast = groupwise.optimize(model, source())
    kept.clear()
    x = source()
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-4)


def test_what_a_hook_keeps_changes_where_the_model_writes_to_it():
    model, kept = block(nn.Conv2d(8, 8, 1), nn.ReLU(inplace=True)), []
    model[3].register_forward_hook(lambda module, args, output: kept.append(output))
    fast = groupwise.optimize(model, source())
    kept.clear()
    x = source()
    with torch.no_grad():
        fast(x), model(x)
    assert kept[0].min() >= 0
    torch.testing.assert_close(*kept, rtol=1e-4, atol=1e-4)


def test_statistics_are_updated_once_a_call():
    model = block(nn.BatchNorm2d(8))
    model[3].train()
    twin = copy.deepcopy(model)
    x = source()
    fast = groupwise.optimize(model, x)
    twin(x)
    torch.testing.assert_close(model[3].running_mean, twin[3].running_mean)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), twin(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model[3].running_mean, twin[3].running_mean)
    assert model[3].num_batches_tracked == 2
    assert layers(fast) == [FUSED, FUSED]


def test_dropout_in_training_mode_draws_as_in_the_model():
    model, x = block(nn.Dropout(0.5)), source()
    model[3].train()
    fast = groupwise.optimize(model, x)
    with torch.no_grad():
        torch.manual_seed(3)
        made = fast(x)
        torch.manual_seed(3)
        torch.testing.assert_close(made, model(x), rtol=1e-4, atol=1e-4)


def test_a_hook_that_changes_the_shape_makes_the_model_run_in_parts():
    model = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU(), nn.Identity(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model = nn.Sequential(model, nn.Linear(8, 4)).eval()
    model[0][2].register_forward_hook(lambda module, args, output: output[:, :, 1:])
    fast = check_loosely(model, source())
    assert "" in {left.name for left in fast.plan.left}
    check_loosely(model, source(), fast)


def check_loosely(model, x, fast=None):
    fast = fast or groupwise.optimize(model, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    return fast


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_scripted_submodule():
    fast = check_loosely(block(scripted()), source())
    assert "it is scripted" in {left.reason for left in fast.plan.left}


def test_arguments_and_outputs_of_every_kind():
    class Takes(nn.Module):
        def forward(self, x, *, scale, others):
            return {"sum": x * scale + others[0], "shape": x.shape[1], "none": None}

    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.takes = nn.Conv2d(8, 8, 1), with_hook(Takes())

        def forward(self, x):
            made = self.takes(self.conv(x), scale=2.0, others=[x, 3])
            return made["sum"].relu() + made["shape"]

    fast = check_loosely(Calls().eval(), source())
    assert [left.name for left in fast.plan.left] == ["takes"]


def test_a_submodule_that_writes_to_its_input_makes_the_model_run_in_parts():
    model = block(with_hook(nn.ReLU(inplace=True)))
    fast = check_loosely(model, source())
    assert "writes to its input" in fast.plan.left[0].reason


def test_a_submodule_may_depend_on_strides():
    class Flat(nn.Module):
        def forward(self, x):
            return x.view(x.shape[0], -1) + x.stride(1)

    model = nn.Sequential(nn.Conv2d(8, 8, 3), with_hook(Flat()), nn.Linear(512, 4)).eval()
    fast = check_loosely(model, source())
    assert [left.name for left in fast.plan.left] == ["1"]


def test_images_change_their_layout_again_behind_it():
    read_twice = Both(nn.Conv2d(8, 4, 3), nn.Conv2d(8, 4, 3))
    model = settle(nn.Sequential(read_twice, with_hook(nn.Conv2d(8, 8, 1)), copy.deepcopy(read_twice)))
    assert kinds(check_loosely(model, source())).count("to_channels_last") == 2
    # A layer that reads the image alone changes it itself.
    assert "to_channels_last" not in kinds(check_loosely(block(with_hook(nn.Conv2d(8, 8, 1))), source()))


def test_a_parameter_of_it_that_changes_needs_no_new_plan():
    part = with_hook(nn.Conv2d(8, 8, 1))
    model = block(part)
    fast = check_loosely(model, source())
    before = fast.plan
    with torch.no_grad():
        part.weight.mul_(2)
    check_loosely(model, source(), fast)
    assert fast.plan is before


def test_a_shared_submodule_that_stays():
    part = with_hook(nn.Conv2d(8, 8, 1))
    fast = check_loosely(block(part, nn.Conv2d(8, 8, 1), part), source())
    assert kinds(fast).count("as it is") == 2
    assert len(fast.plan.left) == 1


def test_the_network_around_is_as_exact_as_without_it():
    check(settle(block(KEPT["it is parametrized"]())), source())
