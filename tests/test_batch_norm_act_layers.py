"""The layers of batch normalisation with an activation, and what PyTorch does with their operator."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from groupwise import GroupwiseError
from groupwise.kernels import native
from groupwise.nn import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d
from groupwise.nn.functional import batch_norm_act
from kernels import needs_kernels
from pairs import pairwise

pytestmark = needs_kernels

KINDS = [
    (BatchNormAct1d, nn.BatchNorm1d, (6, 5)),
    (BatchNormAct1d, nn.BatchNorm1d, (4, 5, 7)),
    (BatchNormAct2d, nn.BatchNorm2d, (4, 5, 6, 7)),
    (BatchNormAct3d, nn.BatchNorm3d, (2, 5, 3, 4, 5)),
]


class Called(TorchDispatchMode):
    """The names of the operators of groupwise that are called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "groupwise":
            self.names.append(func.name().split("::")[1])
        return func(*args, **(kwargs or {}))


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(("ours", "theirs", "shape"), KINDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"momentum": None},
        {"momentum": 1.0, "eps": 1e-3},
        {"affine": False},
        {"track_running_stats": False},
        {"track_running_stats": False, "affine": False},
    ],
    ids=str,
)
def test_a_layer_trains_and_evaluates_as_pytorchs(ours, theirs, shape, options):
    layer, reference = ours(5, **options, activation="relu6"), theirs(5, **options)
    assert layer.state_dict().keys() == reference.state_dict().keys()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.uniform_(0.5, 1.5)
    layer.load_state_dict(reference.state_dict())
    for training in (True, True, True, False, True, False):
        layer.train(training), reference.train(training)
        x = torch.randn(shape, requires_grad=True) * 3 + 1
        x.retain_grad()
        with Called() as called:
            y = layer(x)
        tracks = training and options.get("track_running_stats", True)
        assert called.names == ["batch_norm_act", *["batch_norm_track"] * tracks]
        z = nn.functional.relu6(reference(x))
        close(y, z)
        close(
            torch.autograd.grad(y.square().sum(), [x, *layer.parameters()], retain_graph=True),
            torch.autograd.grad(z.square().sum(), [x, *reference.parameters()]),
        )
        for name, value in reference.state_dict().items():
            close(layer.state_dict()[name], value)


def test_a_layer_adds_a_residual():
    layer, x, r = BatchNormAct2d(5, activation="relu"), torch.randn(2, 5, 4, 4), torch.randn(2, 5, 4, 4)
    close(layer(x, r), torch.relu(nn.BatchNorm2d(5)(x) + r))


def test_a_layer_refuses_what_pytorchs_refuses():
    for layer, theirs, shape in (
        (BatchNormAct2d(5), nn.BatchNorm2d(5), (5, 4, 4)),
        (BatchNormAct1d(5), nn.BatchNorm1d(5), (2, 5, 4, 4)),
        (BatchNormAct3d(5), nn.BatchNorm3d(5), (5,)),
        (BatchNormAct2d(5), nn.BatchNorm2d(5), (1, 5, 1, 1)),
    ):
        errors = []
        for one in (layer, theirs):
            with pytest.raises(ValueError, match="xpected") as raised:
                one(torch.randn(shape))
            errors.append(str(raised.value))
        assert errors[0] == errors[1]
    with pytest.raises(GroupwiseError, match="activation='swish' is not known"):
        BatchNormAct2d(5, activation="swish")


def test_a_layer_is_copied_saved_and_shown():
    layer = BatchNormAct2d(5, activation="leaky_relu", negative_slope=0.2)
    x = torch.randn(2, 5, 4, 4)
    layer(x)
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for other in (copy.deepcopy(layer), torch.load(file, weights_only=False)):
        assert torch.equal(other.eval()(x), copy.deepcopy(layer).eval()(x))
    assert repr(layer).endswith("track_running_stats=True, activation='leaky_relu', negative_slope=0.2)")


def test_code_that_replaces_batch_normalisations_leaves_the_activation():
    model = nn.Sequential(BatchNormAct2d(5, activation="relu"), nn.BatchNorm2d(5))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert [type(layer) for layer in converted] == [BatchNormAct2d, nn.SyncBatchNorm]


# Schema, registration and fake tensors depend on what is given and kept: on nothing of an activation but whether its
# gradient needs the sum, or none at all.
@pytest.mark.parametrize(
    ("activation", "residual", "training"),
    pairwise(["relu", "silu", "none"], [False, True], [True, False])
    + [(name, True, True) for name in ("relu6", "hardswish", "sigmoid", "tanh", "leaky_relu")],
)
def test_the_operators_pass_opcheck(activation, residual, training):
    fmt = torch.channels_last if residual else torch.contiguous_format
    x = torch.randn(2, 5, 4, 4).to(memory_format=fmt).requires_grad_()
    r = torch.randn(2, 5, 4, 4, requires_grad=True) if residual else None
    weight, bias = torch.rand(5, requires_grad=True), torch.randn(5, requires_grad=True)
    args = (x, weight, bias, torch.zeros(5), torch.ones(5), r, training, 1e-5, activation, 0.1)
    opcheck(torch.ops.groupwise.batch_norm_act.default, args)
    y, mean, variance = (t.detach() for t in torch.ops.groupwise.batch_norm_act(*args))
    kept = None if r is None or activation == "none" else r if activation in ("silu", "hardswish") else y
    wanted = [True, True, False, residual]
    args = (torch.randn_like(y), x, weight, bias, mean, variance, kept, training, 1e-5, activation, 0.1, wanted)
    opcheck(torch.ops.groupwise.batch_norm_act_backward.default, args)


def test_the_operator_of_running_statistics_passes_opcheck():
    args = (torch.zeros(5), torch.ones(5), torch.randn(5), torch.rand(5), 0.1, 12)
    opcheck(torch.ops.groupwise.batch_norm_track.default, args)


@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.75, 1.0])
def test_running_statistics_are_those_of_pytorch(momentum):
    x = torch.randn(3, 7, 2, 2) * 5 + 1
    mean, var = torch.randn(14)[::2], torch.rand(14)[::2] + 0.5  # not contiguous
    exact = mean.double(), var.double()
    nn.functional.batch_norm(x.double(), *exact, training=True, momentum=momentum)
    before = mean._version, var._version
    with Called() as called:
        batch_norm_act(x, mean, var, training=True, momentum=momentum)
    assert called.names == ["batch_norm_act", "batch_norm_track"]
    torch.testing.assert_close((mean.double(), var.double()), exact, rtol=1e-6, atol=1e-6)
    assert (mean._version, var._version) == before


def test_running_statistics_settle_on_those_of_the_batches():
    batch, momentum = (torch.full((4,), 1e4), torch.full((4,), 3.0)), 1e-3
    ours, theirs = ([torch.full((4,), 1.1e4), torch.ones(4)] for _ in range(2))
    for _ in range(20_000):
        torch.ops.groupwise.batch_norm_track(*ours, *batch, momentum, 4)
        for running, value in zip(theirs, (1e4, 4.0), strict=True):
            running.copy_(running.double() * (1 - momentum) + momentum * value)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    torch.testing.assert_close(ours, [batch[0], torch.full((4,), 4.0)], rtol=1e-4, atol=0)


def test_batches_of_any_size_compile_once():
    counter = CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(BatchNormAct2d(5, activation="relu"), backend=counter, dynamic=True, fullgraph=True)
    for samples in (3, 5, 7, 9):
        x = torch.randn(samples, 5, 4, 4)
        torch._dynamo.mark_dynamic(x, 0)
        compiled(x)
    assert counter.frame_count == 1


def test_one_value_has_no_variance():
    with pytest.raises(RuntimeError, match="a batch of 1 values a channel has no variance"):
        torch.ops.groupwise.batch_norm_track(*(torch.ones(5) for _ in range(4)), 0.1, 1)


@pytest.mark.parametrize("wrong", range(4))
@pytest.mark.parametrize(
    "how", [lambda t: t[:4], lambda t: t.double(), lambda t: t[None]], ids=["short", "double", "2-D"]
)
def test_statistics_of_another_kind_are_refused(wrong, how):
    statistics = [torch.rand(5) for _ in range(4)]
    given = [how(t) if i == wrong else t for i, t in enumerate(statistics)]
    before = [t.clone() for t in statistics]
    with pytest.raises(RuntimeError, match="statistic"):
        torch.ops.groupwise.batch_norm_track(*given, 0.1, 12)
    assert all(map(torch.equal, statistics, before))


def second_order(f, inputs, grad, factors):
    inputs = [t.clone().requires_grad_() for t in inputs]
    first = torch.autograd.grad(f(*inputs), inputs, grad, create_graph=True)
    total = sum((g * k).sum() for g, k in zip(first, factors, strict=True))
    return torch.autograd.grad(total, inputs, materialize_grads=True)


@pytest.mark.parametrize(
    "activation", ["none", "relu", "relu6", "leaky_relu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh"]
)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("residual", [False, True])
def test_gradients_of_gradients(activation, training, residual):
    inputs = [torch.randn(3, 4, 5, 5), torch.rand(4) + 0.5, torch.randn(4)]
    inputs += [torch.randn(3, 4, 5, 5)] if residual else []
    mean, var = torch.randn(4), torch.rand(4) + 0.5

    def f(x, weight, bias, r=None):
        stats = mean.to(x.dtype, copy=True), var.to(x.dtype, copy=True)
        if x.dtype == torch.double and activation == "hardsigmoid":
            # PyTorch has no second derivative of it.
            z = nn.functional.batch_norm(x, *stats, weight, bias, training)
            return ((z if r is None else z + r) + 3).clamp(0, 6) / 6
        return batch_norm_act(x, *stats, weight, bias, training, activation=activation, residual=r)

    grad, factors = torch.randn(3, 4, 5, 5), [torch.randn_like(t) for t in inputs]
    with Called() as called:
        ours = second_order(f, inputs, grad, factors)
    assert "batch_norm_act" in called.names
    exact = second_order(f, [t.double() for t in inputs], grad.double(), [t.double() for t in factors])
    for got, value in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double(), value, rtol=1e-4, atol=1e-4 * value.abs().max().item() + 1e-5)


def test_the_fallback_knows_its_gradients():
    # PyTorch's own operators, in float64.
    inputs = [torch.randn(3, 2, 3, dtype=torch.double), torch.rand(2, dtype=torch.double) + 0.5]
    inputs = [t.requires_grad_() for t in (*inputs, torch.randn(2, dtype=torch.double))]
    for activation in ("none", "silu", "tanh"):

        def f(x, weight, bias, activation=activation):
            return batch_norm_act(x, None, None, weight, bias, True, activation=activation)

        assert torch.autograd.gradcheck(f, inputs)
        assert torch.autograd.gradgradcheck(f, inputs)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_torch_compile_records_the_operator(backend):
    layer = BatchNormAct2d(5, activation="relu6")
    twin = copy.deepcopy(layer)
    x, r = (torch.randn(4, 5, 6, 6, requires_grad=True) for _ in range(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(layer, backend=backend, fullgraph=True)
        for _ in range(2):
            ours, theirs = compiled(x, r), twin(x, r)
            assert torch.equal(ours, theirs)
    for got, value in zip(
        torch.autograd.grad(ours.square().sum(), [x, r, *layer.parameters()]),
        torch.autograd.grad(theirs.square().sum(), [x, r, *twin.parameters()]),
        strict=True,
    ):
        assert torch.equal(got, value)
    for name, value in twin.state_dict().items():
        assert torch.equal(layer.state_dict()[name], value)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")
def test_transforms_use_pytorchs_operators():
    x, weight = torch.randn(3, 2, 5, 4, 4), torch.rand(5)

    def f(x, weight):
        return batch_norm_act(x, None, None, weight, None, True, activation="silu")

    def plain(x, weight):
        return nn.functional.silu(nn.functional.batch_norm(x, None, None, weight, None, True))

    close(torch.func.vmap(f, (0, None))(x, weight), torch.func.vmap(plain, (0, None))(x, weight))

    def loss(g):
        return lambda x, weight: g(x, weight).square().sum()

    close(torch.func.grad(loss(f), 1)(x[0], weight), torch.func.grad(loss(plain), 1)(x[0], weight))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x[0], torch.ones_like(x[0]))
        close(forward_ad.unpack_dual(f(dual, weight)).tangent, forward_ad.unpack_dual(plain(dual, weight)).tangent)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace:DeprecationWarning")
def test_a_trace_knows_only_pytorchs_operators():
    layer = BatchNormAct2d(5, activation="relu").eval()
    x = torch.randn(2, 5, 4, 4)
    graph = torch.jit.trace(layer, x).graph
    assert "groupwise::" not in str(graph)
    assert "aten::batch_norm" in str(graph)


def test_checkpointing_gives_the_same_gradients():
    layer = BatchNormAct2d(5, activation="silu")
    grads = []
    for f in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        x = torch.arange(160.0).reshape(2, 5, 4, 4).sin().requires_grad_()
        grads.append(torch.autograd.grad(f(x).square().sum(), [x, *layer.parameters()]))
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_pytorchs_dtype(dtype):
    layer, theirs = BatchNormAct2d(5, activation="relu"), nn.BatchNorm2d(5)
    x = torch.randn(2, 5, 4, 4, dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        ours, value = layer(x), torch.relu(theirs(x))
    assert ours.dtype == value.dtype
    close(ours, value)


def test_a_shared_layer_may_fall_back_in_between():
    # The running statistics that PyTorch keeps for its backward are updated by the operator, and the graph stays good.
    layer, x = BatchNormAct2d(5, activation="relu"), torch.randn(2, 5, 4, 4, requires_grad=True)
    y = layer(x, torch.zeros(1)) + layer(x)
    (got,) = torch.autograd.grad(y.square().sum(), x)
    reference = nn.BatchNorm2d(5)
    (value,) = torch.autograd.grad((2 * torch.relu(reference(x))).square().sum(), x)
    close(got, value)


def test_a_backward_keeps_no_more_than_it_needs():
    x, r = (torch.randn(4, 8, 16, 16, requires_grad=True) for _ in range(2))
    for activation, residual, most in (
        ("silu", None, 1),
        ("relu6", None, 1),
        ("relu", r, 2),
        ("silu", r, 2),
        ("none", r, 1),
    ):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t) or t, lambda t: t):
            batch_norm_act(x, None, None, torch.ones(8), torch.zeros(8), True, activation=activation, residual=residual)
        assert sum(t.numel() == x.numel() for t in kept) == most
        assert all(t.numel() in (8, x.numel()) for t in kept)


def test_without_a_library_everything_is_pytorchs(monkeypatch):
    monkeypatch.setattr(native, "status", lambda: native.Status(problem="there is none", fix="build it"))
    layer, x = BatchNormAct2d(5, activation="relu"), torch.randn(2, 5, 4, 4)
    with Called() as called:
        y = layer(x)
    assert not called.names
    assert torch.equal(y, torch.relu(nn.BatchNorm2d(5)(x)))


@pytest.mark.parametrize("activation", ["none", "relu", "relu6", "leaky_relu", "hardsigmoid"])
def test_in_eval_mode_an_infinite_input_has_the_gradient_that_it_has_in_pytorch(activation):
    torch.manual_seed(0)
    x = torch.randn(2, 19, 5, 5)
    x[1, 3, 2, 2], x[0, 4, 1, 1] = float("inf"), float("-inf")
    mean, variance, weight, grad = torch.randn(19), torch.rand(19) + 0.5, torch.randn(19), torch.randn(2, 19, 5, 5)
    act = {
        "none": lambda z: z,
        "relu": torch.relu,
        "relu6": torch.nn.functional.relu6,
        "leaky_relu": torch.nn.functional.leaky_relu,
        "hardsigmoid": torch.nn.functional.hardsigmoid,
    }[activation]
    found = []
    for ours in (True, False):
        source = x.clone().requires_grad_()
        if ours:
            y = batch_norm_act(source, mean, variance, weight, activation=activation)
        else:
            y = act(torch.nn.functional.batch_norm(source, mean, variance, weight))
        found.append(torch.autograd.grad(y, source, grad)[0])
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)
