"""Dispatch: what turns it on and off, and that everything around PyTorch's operators works with it as without."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import threading
import warnings

import pytest
import torch
from torch.nn import functional as F

import groupwise
from alone import in_group_of_one
from groupwise import GroupwiseError, nn, record_plans
from groupwise.kernels import dispatch, native
from kernels import here, needs_kernels

pytestmark = needs_kernels


@pytest.fixture(autouse=True)
def off():
    groupwise.disable()
    yield
    groupwise.disable()


def layer(**options):
    torch.manual_seed(0)
    return torch.nn.Conv2d(16, 16, 3, padding=1, groups=4, **options)


def source(**options):
    return torch.randn(2, 16, 12, 12, **options)


def kernels(plans):
    return [plan.kernel for plan in plans]


def dispatched(model=None):
    """Whether a convolution is dispatched now."""
    with torch.no_grad(), record_plans() as plans:
        (model or layer())(source())
    return bool(plans)


def test_enable_and_disable():
    assert not dispatched()
    groupwise.enable()
    groupwise.enable()
    assert dispatched()
    groupwise.disable()
    assert not dispatched()


def test_blocks_nest_and_end_with_an_error():
    with groupwise.enabled():
        with pytest.raises(RuntimeError, match="mine"), groupwise.enabled():
            raise RuntimeError("mine")
        assert dispatched()
        groupwise.disable()
        assert dispatched()
    assert not dispatched()
    groupwise.enable()
    with groupwise.enabled():
        pass
    assert dispatched()


def test_a_block_of_one_thread_ends_without_another_s():
    entered, leave = threading.Event(), threading.Event()

    def other():
        with groupwise.enabled():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    thread.start()
    entered.wait(10)
    with groupwise.enabled():
        pass
    assert dispatched()
    leave.set()
    thread.join()
    assert not dispatched()


def test_a_thread_can_be_excluded():
    groupwise.enable()
    with dispatch.forced(False):
        assert not dispatched()
    assert dispatched()


@pytest.mark.parametrize(("value", "on"), [("1", True), ("0", False), ("", False)])
def test_the_environment_enables(value, on):
    code = (
        "import groupwise, torch\n"
        "with groupwise.record_plans() as plans:\n"
        "    torch.nn.Conv2d(8, 8, 3, groups=8)(torch.randn(1, 8, 9, 9))\n"
        "print(len(plans))"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    run = subprocess.run(
        command, env={**os.environ, "GROUPWISE_ENABLE": value}, capture_output=True, text=True, check=True
    )
    assert int(run.stdout) == on


def test_an_unknown_value_of_the_environment_is_told(monkeypatch):
    monkeypatch.setenv("GROUPWISE_ENABLE", "yes")
    with pytest.warns(RuntimeWarning, match="GROUPWISE_ENABLE=yes is not known; use 1 or 0"):
        dispatch.enable_from_environment()


def test_without_kernels_enable_says_why_and_the_environment_warns(monkeypatch):
    def missing():
        raise GroupwiseError("groupwise's kernels cannot run: there are none; build them")

    monkeypatch.setattr(native, "library", missing)
    with pytest.raises(GroupwiseError, match="there are none; build them"):
        groupwise.enable()
    with pytest.raises(GroupwiseError, match="build them"), groupwise.enabled():
        pass
    groupwise.disable()
    monkeypatch.setenv("GROUPWISE_ENABLE", "1")
    with pytest.warns(RuntimeWarning, match="build them"):
        dispatch.enable_from_environment()


CALLS = {
    "float64": lambda: layer(dtype=torch.float64)(source(dtype=torch.float64)),
    "bfloat16": lambda: layer(dtype=torch.bfloat16)(source(dtype=torch.bfloat16)),
    "empty batch": lambda: layer()(torch.randn(0, 16, 12, 12)),
    "meta": lambda: layer(device="meta")(source(device="meta")),
    "float64 weight": lambda: F.conv2d(source(), torch.randn(16, 4, 3, 3).double(), groups=4),
    "wrong channels": lambda: F.conv2d(source(), torch.randn(16, 5, 3, 3), groups=4),
    "no output": lambda: F.conv2d(torch.randn(1, 4, 2, 2), torch.randn(4, 1, 3, 3), groups=4),
    "negative padding": lambda: F.conv2d(source(), torch.randn(16, 4, 3, 3), padding=-1, groups=4),
    "wrong bias": lambda: F.conv2d(source(), torch.randn(16, 4, 3, 3), torch.randn(5), groups=4),
    "output padding": lambda: F.conv_transpose2d(
        source(), torch.randn(16, 4, 3, 3), output_padding=1, stride=1, groups=4
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_unsupported_cases_fall_back(name):
    """With dispatch on the answer, or the error word for word, is that of PyTorch."""

    def run():
        torch.manual_seed(0)
        try:
            return CALLS[name]()
        except (RuntimeError, ValueError) as error:
            return str(error)

    before = run()
    with groupwise.enabled(), record_plans() as plans:
        after = run()
    assert set(kernels(plans)) <= {"pytorch"}
    if isinstance(before, str):
        assert after == before
    else:
        assert after.shape == before.shape
        assert after.device == before.device
        if after.device.type != "meta":
            assert torch.equal(after, before)


def test_complex_convolutions_are_three_real_ones():
    x, weight = torch.randn(1, 4, 9, 9, dtype=torch.cfloat), torch.randn(4, 1, 3, 3, dtype=torch.cfloat)
    expected = F.conv2d(x, weight, groups=4)
    with groupwise.enabled(), record_plans() as plans:
        torch.testing.assert_close(F.conv2d(x, weight, groups=4), expected, rtol=1e-5, atol=1e-5)
    assert kernels(plans) == ["planar"] * 3


def test_gradients_by_finite_differences():
    """In float32, so that kernels run: a convolution is linear in each argument, so a large step is exact."""
    inputs = [torch.randn(2, 4, 5, 6), torch.randn(4, 2, 3, 3), torch.randn(4)]
    inputs = [tensor.requires_grad_() for tensor in inputs]

    def convolve(*tensors):
        return F.conv2d(*tensors, stride=(1, 2), padding=1, groups=2)

    with groupwise.enabled(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Input #", category=UserWarning)
        with record_plans() as plans:
            assert torch.autograd.gradcheck(convolve, inputs, eps=0.5, atol=1e-3, rtol=1e-3)
        assert "planar" in kernels(plans)
        assert torch.autograd.gradgradcheck(convolve, inputs, eps=0.5, atol=1e-2, rtol=1e-2)


# Forward mode builds its formulas with torch.jit.script, which torch itself calls deprecated.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_and_function_transforms():
    x, weight = torch.randn(2, 8, 9, 9), torch.randn(8, 1, 3, 3)

    def loss(weight, x):
        return (F.conv2d(x, weight, padding=1, groups=8) ** 2).sum()

    def all_of_them():
        return [
            torch.func.grad(loss)(weight, x),
            torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weight, x[:, None]),
            torch.func.vmap(loss, in_dims=(0, 0))(torch.stack([weight, 2 * weight]), x[:, None]),
            torch.func.jvp(lambda w: loss(w, x), (weight,), (weight,))[1],
            torch.func.jacrev(lambda w: F.conv2d(x, w, groups=8).sum((0, 2, 3)))(weight),
        ]

    theirs = all_of_them()
    with groupwise.enabled(), record_plans() as plans:
        ours = all_of_them()
    assert plans
    assert "pytorch" not in kernels(plans)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_model_is_dispatched(backend):
    model = torch.nn.Sequential(layer(), torch.nn.ReLU(), layer())
    x = source()
    expected = model(x)
    expected.sum().backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    with groupwise.enabled(), record_plans() as plans, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = torch.compile(model, backend=backend)(x)
        got.sum().backward()
    assert {plan.direction for plan in plans if plan.kernel != "pytorch"} == {
        "forward",
        "grad_input",
        "grad_weight",
    }
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    for p, grad in zip(model.parameters(), grads, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-3)


def test_an_exported_program_is_pytorchs_and_is_dispatched():
    model, x = nn.Conv2d(16, 16, 3, padding=1, groups=4), source()
    program = torch.export.export(model, (x,))
    assert "torch.ops.aten.conv2d.default" in program.graph_module.code
    with groupwise.enabled(), record_plans() as plans:
        torch.testing.assert_close(program.module()(x), model(x), rtol=1e-5, atol=1e-5)
    assert kernels(plans) == ["planar", "planar"]


def test_inference_mode_autocast_and_deterministic_algorithms():
    model, x = layer(), source()
    expected = model(x)
    with groupwise.enabled():
        with torch.inference_mode(), record_plans() as plans:
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        assert kernels(plans) == ["planar"]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert model(x).dtype == torch.bfloat16
        torch.use_deterministic_algorithms(True)
        try:
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
        finally:
            torch.use_deterministic_algorithms(False)


def test_two_threads_at_once():
    """Each thread has its own scratch, and runs training steps beside those of the other."""
    model, x = layer(), source()
    expected = model(x)
    wrong = []

    def work():
        for _ in range(30):
            mine = copy.deepcopy(model)
            got = mine(x)
            got.sum().backward()
            if not torch.allclose(got, expected, atol=1e-5):
                wrong.append(got)

    with groupwise.enabled():
        workers = [threading.Thread(target=work) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert not wrong


def test_data_parallel(tmp_path):
    model, x = layer(), source()
    model(x).sum().backward()
    expected = model.weight.grad.clone()
    model.zero_grad()

    def run():
        with groupwise.enabled(), record_plans() as plans:
            torch.nn.parallel.DistributedDataParallel(model)(x).sum().backward()
        assert "planar" in kernels(plans)

    in_group_of_one(tmp_path, run)
    torch.testing.assert_close(model.weight.grad, expected, rtol=1e-5, atol=1e-4)


def test_a_forced_kernel_is_that_of_the_innermost_block():
    depthwise = torch.nn.Conv2d(16, 16, 3, groups=16)
    with record_plans() as plans, dispatch.forced(True, "planar"):
        with dispatch.forced(True, "narrow"):
            depthwise(source())
        depthwise(source())
    assert kernels(plans) == ["narrow", "planar"]


@pytest.mark.parametrize("name", ["plannar", "Planar", " ", "group", None, 3])
def test_an_unknown_kernel_is_refused(name):
    known = "planar, narrow, groups, dots, pixels, gemm, brgemm, stem, pairs, fft, pytorch"
    message = f"kernel=.* is not known; choose one of: {known}"
    with pytest.raises(GroupwiseError, match=message), dispatch.forced(True, name):
        pytest.fail("the block ran")
    assert not dispatched(), "an error leaves nothing forced"


def test_every_kernel_can_be_forced():
    depthwise, wide = (
        torch.nn.Conv2d(16, 16, 3, groups=groups).to(memory_format=torch.channels_last) for groups in (16, 1)
    )
    point = torch.nn.Conv2d(16, 16, 1).to(memory_format=torch.channels_last)
    long, first = torch.nn.Conv1d(4, 4, 64, groups=4), torch.nn.Conv1d(4, 16, 3)
    layers = {**dict.fromkeys(("groups", "dots", "brgemm"), wide), "gemm": point, "fft": long, "stem": first}
    layers["pairs"] = copy.deepcopy(depthwise).bfloat16()
    for name in dispatch.KERNELS:
        layer = layers.get(name, depthwise)
        given = source().to(layer.weight.dtype) if isinstance(layer, torch.nn.Conv2d) else torch.randn(1, 4, 90)
        with record_plans() as plans, dispatch.forced(True, name):
            layer(given.requires_grad_()).sum().backward()
        assert name in kernels(plans) or (name == "brgemm" and name not in here())


LAYERS = [
    (nn.Conv1d, (2, 8, 20)),
    (nn.Conv2d, (2, 8, 9, 9)),
    (nn.Conv2d, (8, 9, 9)),
    (nn.ConvTranspose1d, (2, 8, 20)),
    (nn.ConvTranspose2d, (2, 8, 9, 9)),
]


@pytest.mark.parametrize(("kind", "shape"), LAYERS)
def test_layers_of_groupwise_are_dispatched_as_pytorchs_are(kind, shape):
    own = kind(8, 8, 3, groups=4)
    base = next(cls for cls in kind.__mro__ if cls.__module__ == "torch.nn.modules.conv")
    theirs = base(8, 8, 3, groups=4)
    theirs.load_state_dict(own.state_dict())
    x = torch.randn(shape)
    for switch, made in ((contextlib.nullcontext, 0), (groupwise.enabled, 3)):
        results = []
        for model in (own, theirs):
            given = x.clone().requires_grad_()
            with switch(), record_plans() as plans:
                output = model(given)
                results.append([output, *torch.autograd.grad(output.square().sum(), [given, *model.parameters()])])
            assert len(plans) == made
            assert "pytorch" not in kernels(plans)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
