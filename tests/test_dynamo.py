"""`torch.compile(model, backend="groupwise")`."""

from __future__ import annotations

import copy
import gc
import importlib.metadata
import logging
import pathlib

import pytest
import torch
from torch import nn

import groupwise
from groupwise import GroupwiseError, compiled_plans
from optimized import Both, Excite, Refusing, Residual, check, exact, network, settle, source

POINT = importlib.metadata.EntryPoint("groupwise", "groupwise.rewrite.dynamo:backend", "torch_dynamo_backends")


@pytest.fixture(autouse=True)
def fresh():
    """Registers the backend where the installed package is older than its entry point."""
    if "groupwise" not in torch._dynamo.list_backends():
        torch._dynamo.register_backend(POINT.load(), name="groupwise")
    torch._dynamo.reset()
    gc.collect()
    yield
    torch._dynamo.reset()


def compiled(model, **options):
    return torch.compile(model, backend="groupwise", options={"tune": False}, **options)


def plan():
    return compiled_plans()[-1]


def test_the_entry_point():
    text = (pathlib.Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert f'[project.entry-points.{POINT.group}]\n{POINT.name} = "{POINT.value}"' in text


MODELS = {
    "network": network,
    "branches": lambda: settle(
        nn.Sequential(Both(nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)), nn.BatchNorm2d(8))
    ),
    "in place": lambda: settle(
        nn.Sequential(Residual(nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8)), True, nn.ReLU(True)))
    ),
    "linear": lambda: settle(
        nn.Sequential(nn.Conv2d(8, 8, 1), nn.Flatten(), nn.Dropout(), nn.Linear(800, 3), nn.SiLU())
    ),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_inference(name, fullgraph):
    torch.manual_seed(0)
    model = MODELS[name]()
    check(model, source(), fast=compiled(model, fullgraph=fullgraph))
    assert not plan().left
    assert plan().engines


def test_the_plan_names_modules_and_what_was_fused():
    fast = compiled(network())
    with torch.no_grad():
        fast(source())
    assert {step.name: step.fused for step in plan().steps if step.kind == "convolution"}["0.0"] == (
        "batch norm",
        "relu",
    )
    assert plan().input_shapes == ((2, 8, 10, 10),)


def test_plans_print_as_tables():
    fast = compiled(network())
    with torch.no_grad():
        fast(source())
        fast(source(3))
    plans = compiled_plans()
    assert len(plans) >= 2
    assert str(plans) == "\n\n".join(map(str, plans))
    assert plans == tuple(plans)
    torch._dynamo.reset()


def test_options_are_refused_by_name():
    for arguments, words in [
        ({"mode": "max-autotune"}, r"mode='max-autotune' is not for backend='groupwise'"),
        ({"options": {"triton.cudagraphs": True}}, r"'triton.cudagraphs': True.* the one option is .tune"),
        ({"options": {"tune": 3}}, r"tune=3 is not known"),
    ]:
        torch._dynamo.reset()
        fast = torch.compile(network(), backend="groupwise", **arguments)
        with torch.no_grad(), pytest.raises(RuntimeError, match=words):
            fast(source())


def load(model):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state["0.0.weight"] += 1
    model.load_state_dict(state)


def step(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)


def replace(model):
    model[0][0].weight = nn.Parameter(torch.randn(8, 2, 3, 3))


def batch_norm(model):
    model.train()
    with torch.no_grad():
        model(source() + 3)
    model.eval()


@pytest.mark.parametrize("change", [load, step, replace, batch_norm])
def test_changes_of_parameters_are_noticed(change):
    torch.manual_seed(0)
    model, x = network(), source()
    fast = compiled(model)
    check(model, x, fast=fast)
    for _ in range(3):
        before = exact(model, x)
        change(model)
        assert not torch.allclose(before, exact(model, x), rtol=1e-3)
        for _ in range(3):
            check(model, x, fast=fast)


def test_weights_that_change_at_every_call_are_not_packed(monkeypatch):
    from groupwise.rewrite.program import Program

    packed = []
    pack = Program.pack
    monkeypatch.setattr(Program, "pack", lambda *args: packed.append(1) or pack(*args))
    model, x = network(), source()
    fast = compiled(model)
    for _ in range(5):
        check(model, x, fast=fast)
        step(model)
    assert len(packed) == 1
    for _ in range(3):
        check(model, x, fast=fast)
    assert len(packed) == 2


def test_batches_of_many_sizes(caplog):
    model = network()
    fast = compiled(model)
    with caplog.at_level(logging.WARNING, "groupwise"):
        for batch in range(1, 16):
            check(model, source(batch), fast=fast)
    # Dynamo makes a graph for one batch, and one for all others, which keeps eight plans.
    told = [record.getMessage() for record in caplog.records if record.name == "groupwise"]
    assert len(told) == 1
    assert "plans no more" in told[0]
    assert len({shown.title for shown in compiled_plans()}) <= 3


def test_pieces_between_graph_breaks():
    model = settle(Refusing(network(), nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())))
    check(model, source(), fast=compiled(model))
    assert sum(bool(shown.steps) for shown in compiled_plans()) >= 2


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8)

    def forward(self, x):
        return torch.relu(self.norm(self.conv(x)))


def test_two_models_of_one_class():
    """Dynamo runs the graph of one with the parameters of the other."""
    first, second = settle(Twice()), settle(Twice())
    one, two = compiled(first), compiled(second)
    x = source()
    for _ in range(3):
        check(first, x, fast=one)
        check(second, x, fast=two)
    del second, two
    gc.collect()
    third = settle(Twice())
    for _ in range(3):
        check(third, x, fast=compiled(third))


class WritesBuffer(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen.add_(1)
        return self.conv(x) * self.seen


def test_what_cannot_be_rewritten_runs_as_it_is(caplog):
    model, x = WritesBuffer().eval(), source()
    twin, fast = copy.deepcopy(model), compiled(model)
    with torch.no_grad(), caplog.at_level(logging.WARNING, "groupwise"):
        for _ in range(3):
            torch.testing.assert_close(fast(x), twin(x))
    told = [record.getMessage() for record in caplog.records if record.name == "groupwise"]
    assert len(told) == 1
    assert "writes to its parameter or buffer" in told[0]
    assert plan().left[0].reason in told[0]
    assert not plan().steps


def test_autocast_runs_as_it_is():
    model, x = network(), source()
    fast = compiled(model)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(fast(x), model(x), rtol=0.05, atol=0.05)


# An activation, and what `batch_norm_act` calls it.
ACTIVATIONS = [
    (nn.ReLU(), "relu"),
    (nn.ReLU(inplace=True), "relu"),
    (nn.ReLU6(), "relu6"),
    (nn.Hardtanh(0, 5), None),
    (nn.SiLU(inplace=True), "silu"),
    (nn.Hardswish(), "hardswish"),
    (nn.LeakyReLU(0.2), "leaky_relu"),
    (nn.Sigmoid(), "sigmoid"),
    (nn.GELU(), None),
]


@pytest.mark.parametrize(("act", "word"), ACTIVATIONS, ids=str)
def test_training(act, word):
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False), nn.BatchNorm2d(8))
    model = nn.Sequential(
        *(*block, act),
        Residual(copy.deepcopy(block), after=act),
        Residual(copy.deepcopy(block), inplace=True, after=act),
        Excite(8, nn.Hardsigmoid()),
    )
    settle(model).train()
    eager, true = copy.deepcopy(model), copy.deepcopy(model).double()
    fast, x = compiled(model, fullgraph=True), source()
    for _ in range(2):
        outputs = [fast(x), eager(x), true(x.double())]
        for output in outputs:
            output.square().mean().backward()
    for name, made, theirs, best in _all(outputs, model, eager, true):
        size = best.abs().max().item()
        error, allowed = ((each.double() - best).abs().max().item() for each in (made, theirs))
        assert error <= 2 * allowed + 1e-5 * size, (name, error, allowed, size)
    assert plan().title.endswith("for training")
    after = () if word is None else (word,)
    assert [step.fused for step in plan().steps] == [after, ("sum", *after), ("sum", *after)]


def _all(outputs, *models):
    """(name, value in each model) of outputs, gradients and buffers."""
    yield "output", *outputs
    for named in zip(*(model.named_parameters() for model in models), strict=True):
        yield named[0][0], *(parameter.grad for _, parameter in named)
    for named in zip(*(model.named_buffers() for model in models), strict=True):
        yield named[0][0], *(buffer.float() for _, buffer in named)


def test_training_and_eval_in_turn():
    torch.manual_seed(0)
    model, x = network(), source()
    fast = compiled(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        model.train()
        fast(x).square().mean().backward()
        optimizer.step()
        model.eval()
        for _ in range(2):
            check(model, x, fast=fast)


class Reused(nn.Module):
    """A BatchNorm whose output is read twice, and one that is read once."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.BatchNorm2d(8), nn.BatchNorm2d(8)

    def forward(self, x):
        made = self.first(x)
        return torch.relu(made) + made + torch.relu(self.second(x)).view(x.shape)


def test_a_norm_that_is_read_twice():
    model, x = settle(Reused()).train(), source()
    eager, fast = copy.deepcopy(model), compiled(model)
    torch.testing.assert_close(fast(x), eager(x))
    assert [step.fused for step in plan().steps] == [(), ("relu",)]


def test_compiled_and_optimized():
    model, x = network(), source()
    fast = groupwise.optimize(model, x, tune=False)
    for backend in ("eager", "groupwise"):
        torch._dynamo.reset()
        check(model, x, fast=torch.compile(fast, backend=backend))
    with pytest.raises(GroupwiseError, match=r"compiled by torch.compile; give the model that it was made of"):
        groupwise.optimize(torch.compile(model, backend="eager"), x)


def test_the_backward_is_dispatched_too():
    fast = compiled(settle(Twice()).train())
    with groupwise.record_plans() as plans:
        fast(source().requires_grad_()).square().mean().backward()
    assert [made.direction for made in plans] == ["forward", "grad_input", "grad_weight"]
    with groupwise.record_plans() as plans:
        settle(Twice()).train()(source().requires_grad_()).square().mean().backward()
    assert not plans
