"""A network for training beside hooks, checkpoints, autocast, compilation and several processes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import groupwise
from alone import in_group_of_one
from groupwise.kernels.dispatch import forced
from groupwise.rewrite.train_network import Trainable
from groupwise.rewrite.train_region import Settings
from training import assert_as_exact, randomize, step


def block(channels=8):
    first = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
    last = [nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels)]
    return nn.Sequential(first, nn.BatchNorm2d(channels), nn.SiLU(), *last)


def image(*shape):
    return torch.randn(*(shape or (2, 8, 6, 6)), generator=torch.Generator().manual_seed(4))


def trainable(model):
    return groupwise.optimize(model, image(), train=True, tune=False)


class Around(nn.Module):
    """A block whose call a function makes."""

    def __init__(self, run):
        super().__init__()
        self.block = block()
        self.run = run

    def forward(self, x):
        return self.run(self.block, x)


def branch(inner, x):
    return inner(x) if x.sum() > -1e9 else x


def without_gradient(inner, x):
    with torch.no_grad():
        y = inner(x)
    return y + x


def recomputed(inner, x):
    # PyTorch ends the second forward at the last tensor that the backward needs: here behind the last normalisation.
    return checkpoint(lambda y: inner(y).square(), x, use_reentrant=False)


def recomputed_by_entering_again(inner, x):
    return checkpoint(lambda y: inner(y).square(), x, use_reentrant=True)


def noisy(inner, x):
    return inner(x) + torch.rand(1)


def iterated(inner, x):
    if x.sum() > -1e9:
        for part in inner:
            x = part(x)
    return x


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (branch, "control flow"),
        (iterated, "control flow"),
        (without_gradient, "gradient mode"),
        (recomputed, "checkpoint"),
        (recomputed_by_entering_again, "checkpoint"),
        (noisy, "random numbers"),
    ],
)
def test_code_that_a_graph_would_forget_runs_itself(run, words):
    model = randomize(nn.Sequential(Around(run), nn.BatchNorm2d(8), nn.ReLU()))
    net = trainable(copy.deepcopy(model))
    if run is noisy:
        assert not torch.equal(net(image()), net(image()))
    else:
        assert_as_exact(net, model, image())
    assert [(it.name, words in it.reason) for it in net.plan.left] == [("0", True)]
    names = [it.name for it in net.plan.fused]
    assert names[0] == "1"
    if run not in (iterated,):
        assert names[1:] == ["0.block.1", "0.block.4"]


def test_attributes_that_a_forward_sets_are_set():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.calls = block(), 0

        def forward(self, x):
            self.calls += 1
            return self.block(x)

    model = Counting()
    net = trainable(model)
    assert model.calls == 0
    for _ in range(3):
        net(image())
    assert model.calls == net.calls == 3
    assert "sets attributes" in net.plan.left[0].reason


def test_a_form_that_a_trace_gets_wrong_is_not_used():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block()

        def forward(self, x):
            return self.block(x) if isinstance(x, torch.Tensor) else x * 0

    model = Asking()
    net = trainable(copy.deepcopy(model))
    assert_as_exact(net, model, image())
    assert "other values" in net.plan.left[0].reason
    assert [it.name for it in net.plan.fused] == ["block.1", "block.4"]


def test_plain_arguments_select_a_form():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = block()

        def forward(self, x, scale=None, *, twice=False):
            y = self.block(x) if scale is None else self.block(x) * scale
            return 2 * y if twice else y

    model = Optional().eval()
    net = trainable(model)
    x = image()
    for args, kwargs in ((), {}), ((x,), {}), ((None,), {"twice": True}), ((), {"scale": x}), ((2.0,), {}):
        torch.testing.assert_close(net(x, *args, **kwargs), model(x, *args, **kwargs), rtol=1e-4, atol=1e-4)


def test_hooks_run_and_their_modules_are_left():
    model = randomize(block())
    net, seen = trainable(model), []
    net(image())
    handle = model[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    net.register_forward_hook(lambda module, args, output: seen.append("net"))
    torch.testing.assert_close(net(image()), copy.deepcopy(model)(image()), rtol=1e-4, atol=1e-4)
    assert seen.count("net") == 1
    assert len(seen) == 3  # the copy's hook appends to the same list
    assert [it.name for it in net.plan.left] == ["1"]
    handle.remove()
    net(image())
    assert net.plan.left == ()


def test_gradients_of_gradients():
    def penalty(model):
        x = image().requires_grad_()
        grad = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)[0]
        grad.square().mean().backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    model = randomize(block())
    net = trainable(copy.deepcopy(model))
    expected = penalty(copy.deepcopy(model).double().float())
    for name, grad in penalty(net).items():
        size = float(expected[name].abs().max())
        torch.testing.assert_close(grad, expected[name], rtol=1e-2, atol=1e-3 * size + 1e-4, msg=name)


def test_functional_call_and_its_gradient():
    model = randomize(block()).eval()
    net = trainable(model)
    other = {name: torch.ones_like(p) for name, p in model.named_parameters()}
    x = image()
    expected = torch.func.functional_call(model, other, x)
    torch.testing.assert_close(torch.func.functional_call(net, other, x), expected, rtol=1e-4, atol=1e-4)
    found, truth = (
        torch.func.grad(lambda p, m=m: torch.func.functional_call(m, p, x).square().sum())(other) for m in (net, model)
    )
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-3, msg=name)


def test_autocast():
    model = randomize(block())
    net = trainable(copy.deepcopy(model))
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = step(net, image()), step(copy.deepcopy(model), image())
    for name, value in expected.items():
        size = float(value.abs().max())
        torch.testing.assert_close(found[name], value, rtol=0.1, atol=0.05 * size + 0.05, msg=name)


def test_checkpoint_of_the_network():
    model = randomize(block())
    net = trainable(copy.deepcopy(model))
    x = image().requires_grad_()
    checkpoint(net, x, use_reentrant=False).square().sum().backward()
    y = image().requires_grad_()
    checkpoint(model, y, use_reentrant=False).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-3, atol=1e-3)


def test_a_compiled_network_runs_the_model():
    model = randomize(block())
    net = trainable(copy.deepcopy(model))
    compiled = torch.compile(net, backend="aot_eager")
    torch.testing.assert_close(compiled(image()), copy.deepcopy(model)(image()), rtol=1e-4, atol=1e-4)


def test_distributed_data_parallel_of_one_process(tmp_path):
    model = randomize(block())
    expected = step(copy.deepcopy(model), image())

    def run():
        net = torch.nn.parallel.DistributedDataParallel(trainable(copy.deepcopy(model)))
        found = {name.replace("module.", ""): value for name, value in step(net, image()).items()}
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3, msg=name)
        assert list(net.state_dict()) == [f"module.{name}" for name in model.state_dict()]

    in_group_of_one(tmp_path, run)


SHARDED = {
    "network": lambda net: [net],
    "a module in it": lambda net: [net.model[0], net],
    "its model": lambda net: [net.model],
}


@pytest.mark.parametrize("which", SHARDED)
def test_fully_shard_of_one_process(tmp_path, which):
    def run():
        mesh = torch.distributed.init_device_mesh("cpu", (1,))
        model = randomize(nn.Sequential(block(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()))
        net = trainable(copy.deepcopy(model))
        for module in SHARDED[which](net):
            torch.distributed.fsdp.fully_shard(module, mesh=mesh)
        for _ in range(2):
            for network in (net, model):
                network.zero_grad()
                network(image()).square().mean().backward()
                torch.optim.SGD(network.parameters(), lr=0.1).step()
        for (name, ours), theirs in zip(net.named_parameters(), model.parameters(), strict=True):
            whole = ours.full_tensor() if hasattr(ours, "full_tensor") else ours
            torch.testing.assert_close(whole, theirs, rtol=1e-3, atol=1e-3, msg=name)
        fused = [it.name for it in net.plan.fused]
        assert fused == {"network": ["0.1", "0.4", "2"], "a module in it": ["2"], "its model": []}[which]

    in_group_of_one(tmp_path, run)


def test_dispatch_is_on_for_the_network_alone():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU())
    net = Trainable(model, Settings(), {})
    x = image(2, 32, 16, 16).requires_grad_()
    with groupwise.record_plans() as plans:
        y = net(x)
        model(x)
        y.sum().backward()
    assert [plan.direction for plan in plans] == ["forward", "grad_input", "grad_weight"]
    with groupwise.record_plans() as plans, forced(False):
        net(x).sum().backward()
    assert len(plans) == 0


def test_a_backward_that_fails_leaves_dispatch_as_it_was():
    model = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU())
    net = Trainable(model, Settings(), {})
    x = image(2, 32, 16, 16).requires_grad_()
    y = net(x)
    with torch.no_grad():
        model[0].weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    with groupwise.record_plans() as plans:
        model(x).sum().backward()
    assert len(plans) == 0


class Written(nn.Module):
    """Writes to a residual after the sum: itself, or through a view or another name."""

    def __init__(self, activation, write):
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.norm, self.activation, self.write = nn.BatchNorm2d(8), activation, write

    def forward(self, x):
        skip = self.first(x)
        y = self.activation(self.norm(self.second(x)) + skip)
        return y * self.write(skip).flatten(1).mean(1)[:, None, None, None]


WRITES = {
    "method": lambda skip: skip.mul_(2),
    "view": lambda skip: skip.view(skip.shape[0], -1).add_(1),
    "activation": nn.ReLU(inplace=True),
    "function": lambda skip: torch.relu_(skip.flatten(1)),
}


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Hardswish, nn.Hardsigmoid])
@pytest.mark.parametrize("write", WRITES)
def test_a_residual_may_be_written_after_the_sum(activation, write):
    model = randomize(Written(activation(), WRITES[write]))
    net = trainable(copy.deepcopy(model))
    found, expected = step(net, image()), step(copy.deepcopy(model), image())
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-3, msg=name)


def test_a_residual_that_nothing_writes_to_stays_fused():
    model = Written(nn.SiLU(), lambda skip: torch.relu_(skip * 2))
    assert [(it.activation, bool(it.residual)) for it in trainable(model).plan.fused] == [("silu", True)]
