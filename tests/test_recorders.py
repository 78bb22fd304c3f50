"""What records a model while kernels are enabled: every graph equals the model, here and where there is no groupwise.

`torch.jit.trace` records the operators below `aten::convolution`, so a kernel that ran while it records would leave a
graph of uninitialised memory. Each recorder of PyTorch is held to the model in float64.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import groupwise
import warm
from kernels import needs_kernels

pytestmark = [needs_kernels, pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")]
needs_onnx = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("onnxscript", "onnxruntime"))), reason="the ONNX packages are missing"
)


def networks():
    """Name -> (layers of every kind that kernels take, an input)."""
    nn = torch.nn
    return {
        "1-D": (
            nn.Sequential(nn.Conv1d(8, 12, 3, groups=4), nn.ReLU(), nn.ConvTranspose1d(12, 8, 4, 2, groups=4)),
            torch.randn(2, 8, 21),
        ),
        "2-D": (
            nn.Sequential(
                nn.Conv2d(8, 12, 3, padding=1, groups=4),
                nn.BatchNorm2d(12),
                nn.ReLU(),
                nn.Conv2d(12, 12, 3, 2, groups=12, bias=False),
                nn.ConvTranspose2d(12, 8, 3, 2, 1, 1, groups=2),
            ),
            torch.randn(2, 8, 13, 14),
        ),
        "groupwise.nn": (
            nn.Sequential(
                groupwise.nn.Conv2d(8, 8, 3, padding=1, groups=4),
                nn.ReLU(),
                groupwise.nn.ConvTranspose2d(8, 8, 3, groups=8),
                nn.Flatten(2),
                groupwise.nn.Conv1d(8, 8, 5, groups=2),
                groupwise.nn.ConvTranspose1d(8, 4, 3, groups=4),
            ),
            torch.randn(1, 8, 10, 9),
        ),
    }


NETWORKS = ["1-D", "2-D", "groupwise.nn"]


@pytest.fixture(autouse=True)
def quiet():
    groupwise.disable()
    # Dynamo counts what other tests compiled before.
    torch._dynamo.reset()
    with warnings.catch_warnings():
        # Each exporter warns of others that are to replace it.
        warnings.simplefilter("ignore")
        yield
    groupwise.disable()


def network(name):
    torch.manual_seed(0)
    model, x = networks()[name]
    return model.eval(), x


def traced_without_gradients(model, x):
    with torch.no_grad():
        return torch.jit.trace(model, x)


def traced_function(model, x):
    # Its parameters become constants, which may not require gradients.
    model.requires_grad_(False)
    return torch.jit.trace(lambda t: model(t) * 2 - model(t), x)


RECORDERS = {
    "trace": torch.jit.trace,
    "trace, no_grad": traced_without_gradients,
    "trace_module": lambda model, x: torch.jit.trace_module(model, {"forward": x}),
    "trace a function": traced_function,
    "script": lambda model, x: torch.jit.script(model),
    "freeze": lambda model, x: torch.jit.freeze(torch.jit.trace(model, x)),
    "freeze a script": lambda model, x: torch.jit.freeze(torch.jit.script(model)),
    "optimize_for_inference": lambda model, x: torch.jit.optimize_for_inference(torch.jit.trace(model, x)),
    "make_fx": lambda model, x: make_fx(model)(x),
    "make_fx, fake": lambda model, x: make_fx(model, tracing_mode="fake", _allow_non_fake_inputs=True)(x),
    "functionalize": lambda model, x: make_fx(torch.func.functionalize(model))(x),
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "symbolic_trace": lambda model, x: torch.fx.symbolic_trace(model),
    "compile": lambda model, x: torch.compile(model, backend="aot_eager", fullgraph=True),
}


def close(got, exact):
    torch.testing.assert_close(got.double(), exact, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recorder", list(RECORDERS))
def test_what_is_recorded_while_enabled_is_the_model(recorder, name):
    model, x = network(name)
    exact = copy.deepcopy(model).double()(x.double())
    groupwise.enable()
    recorded = RECORDERS[recorder](model, x)
    # The second call of a script runs what its profiler has made of it.
    for _ in range(3):
        close(recorded(x), exact)
    groupwise.disable()
    close(recorded(x), exact)
    # Another input, so that no answer is a constant of the graph.
    close(recorded(-x), copy.deepcopy(model).double()(-x.double()))


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("recorder", ["trace", "script", "export", "compile"])
def test_gradients_through_what_is_recorded_while_enabled(recorder, name):
    model, x = network(name)
    twin = copy.deepcopy(model).double()
    source = x.double().requires_grad_()
    exact = torch.autograd.grad(twin(source).square().sum(), [source, *twin.parameters()])
    with groupwise.enabled():
        recorded = RECORDERS[recorder](model, x)
        for _ in range(2):
            source = x.clone().requires_grad_()
            got = torch.autograd.grad(recorded(source).square().sum(), [source, *recorded.parameters()])
            for ours, theirs in zip(got, exact, strict=True):
                torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_that_are_recorded_while_enabled(name):
    model, x = network(name)
    model.double()  # as make_fx's functions take parameters where they lie

    def gradients(source, *weights):
        inputs = [source, *weights]
        names = [key for key, _ in model.named_parameters()]
        output = torch.func.functional_call(model, dict(zip(names, weights, strict=True)), source)
        return torch.autograd.grad(output.square().sum(), inputs)

    exact = gradients(x.double().requires_grad_(), *model.parameters())
    model.float()
    arguments = [x.requires_grad_(), *model.parameters()]
    with groupwise.enabled():
        recorded = make_fx(gradients)(*arguments)
        got = recorded(*arguments)
    for ours, theirs in zip(got, exact, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-3, atol=1e-3)


def test_a_traced_backward_answers_as_pytorch_does():
    """PyTorch 2.13's tracer refuses the backward before any kernel is asked; its error stays the same."""
    model, x = network("2-D")
    x.requires_grad_()

    def traced():
        try:
            return torch.jit.trace(lambda t: torch.autograd.grad(model(t).sum(), t)[0], x)(x)
        except RuntimeError as error:
            return str(error).splitlines()[0]

    before = traced()
    with groupwise.enabled():
        after = traced()
    if isinstance(before, str):
        assert after == before
    else:
        close(after, before.double())


def test_a_backward_below_the_tracer_runs_pytorchs_kernel():
    """A caller that dispatches below the tracer's own kernel reaches the CPU's while the tracer still records.

    There a kernel of groupwise would leave `aten::empty` in the graph, which has other values at every call.
    """
    backward = torch.ops.aten.convolution_backward.default
    below = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
    torch.manual_seed(0)
    x, weight, grad = torch.randn(1, 8, 9, 9), torch.randn(8, 2, 3, 3), torch.randn(1, 8, 9, 9)
    rest = ([8], [1, 1], [1, 1], [1, 1], False, [0, 0], 4, [True, True, True])

    def graph():
        trace = torch.jit.trace(
            lambda t: backward.redispatch(below, grad, t, weight, *rest)[1] * 1, (x,), check_trace=False
        )
        return [node.kind() for node in trace.graph.nodes()], trace(x)

    expected, value = graph()
    with groupwise.enabled():
        with groupwise.record_plans() as plans:
            kinds, got = graph()
        assert not plans
        with groupwise.record_plans() as plans:
            backward(grad, x, weight, *rest)
        assert {plan.kernel for plan in plans} - {"pytorch"}, "kernels take this layer when nothing records"
    assert kinds == expected
    close(got, value.double())


def test_kernels_run_again_after_a_trace():
    model, x = network("2-D")
    with groupwise.enabled():
        torch.jit.trace(model, x, check_trace=False)
        with groupwise.record_plans() as plans:
            model(x)
    assert {plan.kernel for plan in plans} - {"pytorch"}


def test_an_error_in_a_trace_leaves_nothing_behind():
    model, x = network("2-D")

    model.requires_grad_(False)

    def broken(source):
        model(source)
        raise RuntimeError("mine")

    with groupwise.enabled():
        with pytest.raises(RuntimeError, match="mine"):
            torch.jit.trace(broken, x)
        with groupwise.record_plans() as plans:
            model(x)
    assert {plan.kernel for plan in plans} - {"pytorch"}


# Loads what was saved, in a process that never hears of groupwise.
LOADER = """
import sys, torch
folder = sys.argv[1]
inputs, answers = torch.load(f"{folder}/inputs.pt"), {}
for file in sys.argv[2:]:
    x = inputs[file.partition("@")[0]]
    if file.endswith(".pt2"):
        answers[file] = torch.export.load(f"{folder}/{file}").module()(x)
    elif file.endswith(".onnx"):
        import onnxruntime
        session = onnxruntime.InferenceSession(f"{folder}/{file}", providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        answers[file] = torch.from_numpy(answer)
    else:
        answers[file] = torch.jit.load(f"{folder}/{file}")(x)
assert not [name for name in sys.modules if name.startswith("groupwise")]
torch.save(answers, f"{folder}/answers.pt")
"""


def saved_trace(model, x, path):
    torch.jit.save(torch.jit.trace(model, x), path)


def saved_script(model, x, path):
    torch.jit.save(torch.jit.script(model), path)


def saved_frozen(model, x, path):
    torch.jit.save(torch.jit.freeze(torch.jit.trace(model, x)), path)


def saved_export(model, x, path):
    torch.export.save(torch.export.export(model, (x,)), path)


def saved_onnx_by_trace(model, x, path):
    torch.onnx.export(model, (x,), path, dynamo=False)


def saved_onnx_by_dynamo(model, x, path):
    torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)


@pytest.mark.parametrize(
    "formats",
    [
        pytest.param({"trace.pt": saved_trace, "script.pt": saved_script, "freeze.pt": saved_frozen}, id="TorchScript"),
        pytest.param({"export.pt2": saved_export}, id="export"),
        pytest.param({"trace.onnx": saved_onnx_by_trace}, id="ONNX", marks=needs_onnx),
        pytest.param({"dynamo.onnx": saved_onnx_by_dynamo}, id="dynamo ONNX", marks=needs_onnx),
    ],
)
def test_what_is_saved_while_enabled_is_the_model_in_another_process(formats, tmp_path):
    exact, files = {}, []
    models = {name.replace(".", "-"): network(name) for name in NETWORKS}
    for name, (model, x) in models.items():
        for ending, save in formats.items():
            with groupwise.enabled():
                save(model, x, str(tmp_path / f"{name}@{ending}"))
            files.append(f"{name}@{ending}")
            # From another input than the one that was recorded.
            exact[files[-1]] = copy.deepcopy(model).double()(-x.double())
    torch.save({name: -x for name, (_, x) in models.items()}, tmp_path / "inputs.pt")
    warm.run("-c", LOADER, tmp_path, *files)
    answers = torch.load(tmp_path / "answers.pt")
    for file in files:
        close(answers[file], exact[file])


@pytest.mark.parametrize("name", ["2-D"])
@pytest.mark.parametrize(("recorder", "runs"), [("trace", False), ("script", True), ("export", True)])
def test_which_graphs_reach_the_kernels(recorder, runs, name):
    """As the docs say: a traced graph calls `aten::_convolution`, which is below the operator that kernels take."""
    model, x = network(name)
    recorded = RECORDERS[recorder](model, x)
    with groupwise.enabled(), groupwise.record_plans() as plans:
        recorded(x)
    assert bool(plans) == runs
