"""The steps of an optimized network in the native core: as Python runs them, bit for bit, in memory that is planned."""

from __future__ import annotations

import gc
import threading
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

import groupwise
from groupwise.rewrite import compiled
from optimized import network, settle, source
from test_optimize_random import CHANNELS, Grammar

LINE = 64  # bytes


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def ready(fast):
    """The compiled steps of the newest program."""
    return vars(fast)["_region"].programs()[-1][1].tape


def same(ours, theirs):
    leaves = zip(*map(torch.utils._pytree.tree_leaves, (ours, theirs)), strict=True)
    return all(
        a == b
        if not isinstance(a, torch.Tensor)
        else a.dtype == b.dtype and a.stride() == b.stride() and torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        for a, b in leaves
    )


def agree(fast, *inputs, calls=3):
    """Compares calls in the core to a run in Python, and destroys all that the core keeps between them."""
    steps = ready(fast)
    assert isinstance(steps, compiled.Compiled), fast.plan.interpreted
    with torch.inference_mode():
        theirs = steps.tape.run(inputs)
        for _ in range(calls):
            assert same(fast(*inputs), theirs)
            steps.program.poison()
    with torch.no_grad():
        assert same(fast(*inputs), theirs)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 6), st.integers(1, 700)), max_size=14),
)
def test_values_that_live_at_once_do_not_overlap(spans):
    first = [start for start, _, _ in spans]
    last = [start + length for start, length, _ in spans]
    sizes = [size for *_, size in spans]
    *offsets, total = torch.classes.groupwise.Program.offsets(first, last, sizes)
    assert all(offset % LINE == 0 and offset + size <= total for offset, size in zip(offsets, sizes, strict=True))
    for step in range(20):
        taken = set()
        for start, end, offset, size in zip(first, last, offsets, sizes, strict=True):
            if start <= step <= end:
                mine = set(range(offset, offset + size))
                assert not taken & mine
                taken |= mine
    assert total <= sum((size + LINE - 1) // LINE * LINE for size in sizes)


@settings(max_examples=20)
@given(st.data(), st.sampled_from([1, 2, 2]), st.booleans(), st.integers(1, 2))
def test_random_networks_are_the_same_in_the_core(data, dims, last, batch):
    torch.manual_seed(batch)
    model = data.draw(Grammar(dims).networks())
    x = torch.randn(batch, CHANNELS, *(7, 6)[:dims])
    x = x.contiguous(memory_format=torch.channels_last) if last and dims == 2 else x
    fast = groupwise.optimize(settle(model), x, tune=False)
    # A model that writes to its input is none to rewrite, and a module with hooks runs in Python.
    assume(not fast.plan.left)
    agree(fast, x)


def choices(x):
    """Operators with arguments of many kinds, and with several results."""
    first, second, third = x.split([1, 2, 5], 1)
    best, where = third.max(1, keepdim=True)
    y = torch.cat([first * 2, second.sub(1, alpha=0.5), best], 1)
    y = torch.nn.functional.pad(y, (1, 0, 2, 1), value=0.25)
    y = torch.nn.functional.interpolate(y, scale_factor=2, mode="nearest")
    z = y[:, [3, 0, 1, 2]] + y[:, :, None, ::2, 1].mean((2, 3), dtype=torch.float32, keepdim=True)
    w = torch.where(z > 0, z, 3).to(torch.float64).clone(memory_format=torch.contiguous_format)
    k = torch.full_like(z, 2, device="cpu") + torch.ones(4, dtype=torch.float32, device="cpu").sum()
    return {"w": w, "k": torch.einsum("nchw,nc->nhw", z, z.amax((2, 3))), "where": where, "both": (k, 5, "text")}


def views(x):
    """Views of values, of views and of the input, and results that overwrite them."""
    a = x * 3
    b, c = (a.view(2, 4, 20, 10) + 1).chunk(2, 1)
    d = b.transpose(2, 3)[..., 1:].relu() - c.transpose(2, 3)[..., 1:]
    d = d.flatten(1).sigmoid().unsqueeze(-1)
    return d + x.flatten(2)[0, 0, :1], x[0].T, a


@pytest.mark.parametrize("function", [choices, views], ids=lambda function: function.__name__)
@pytest.mark.filterwarnings("ignore:The use of `x.T`")
def test_operators(function):
    x = source()
    fast = groupwise.optimize(Function(function).eval(), x)
    assert not fast.plan.left, fast.plan
    agree(fast, x)
    with torch.inference_mode():
        for made, wanted in zip(*map(torch.utils._pytree.tree_leaves, (fast(x), function(x))), strict=True):
            if isinstance(made, torch.Tensor):
                torch.testing.assert_close(made, wanted)
            else:
                assert made == wanted


@pytest.mark.parametrize("make", [network, lambda: Function(lambda x: (x * 2).relu() + x).eval()])
def test_outputs_are_memory_of_their_own(make):
    x, other = source(), source()
    fast = groupwise.optimize(make(), x)
    with torch.inference_mode():
        first = fast(x)
        kept, wanted = first.clone(), fast(other)
        assert torch.equal(first, kept)
        first.fill_(torch.nan)
        assert torch.equal(fast(other), wanted)
        assert torch.equal(fast(x), kept)


def test_threads_share_no_frame():
    inputs = [source() for _ in range(4)]
    fast = groupwise.optimize(network(), inputs[0])
    with torch.inference_mode():
        wanted = [fast(x) for x in inputs]

    @torch.inference_mode()
    def run(number):
        return all(torch.equal(fast(inputs[number]), wanted[number]) for _ in range(30))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(run, range(4)))
    assert 1 <= ready(fast).program.frames() <= 5


def allocations(fast, x):
    """The bytes of each allocation of a call."""
    with torch.inference_mode(), torch.profiler.profile(profile_memory=True) as profile:
        made = fast(x)
    sizes = [event.nbytes() for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    # Each time, PyTorch converts the number of a tensor times a number.
    return made, [size for size in sizes if size > 8]


def test_later_calls_allocate_their_outputs_only():
    def forward(x):
        a = torch.relu(x * 2)
        b = torch.cat([a, a + x], 1)
        return (b.mean((2, 3), keepdim=True) * b).sigmoid()

    x = source()
    fast = groupwise.optimize(Function(forward).eval(), x)
    with torch.inference_mode():
        for _ in range(3):
            fast(x)
    made, sizes = allocations(fast, x)
    assert sizes == [made.nbytes]
    # Two values of the size of the input and two of that of the output live at most at once.
    assert 0 < ready(fast).program.arena_bytes() < 4 * made.nbytes


def test_an_error_of_an_operator_is_the_same_and_does_no_harm():
    fast = groupwise.optimize(nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3)).eval(), torch.tensor([[0, 4]]))
    good, bad = torch.tensor([[1, 2]]), torch.tensor([[1, 9]])
    agree(fast, good)
    with torch.inference_mode():
        wanted = fast(good)
        for run in (fast, lambda x: ready(fast).tape.run([x])):
            with pytest.raises(IndexError, match="out of range"):
                run(bad)
        assert torch.equal(fast(good), wanted)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
def test_outputs_are_of_the_mode_of_their_call(mode):
    x = source()
    fast = groupwise.optimize(network(), x)
    other = torch.no_grad if mode is torch.inference_mode else torch.inference_mode
    with other():
        assert fast(x).is_inference() == fast(x).is_inference() == (other is torch.inference_mode)
    with mode():
        assert fast(x).is_inference() == (mode is torch.inference_mode)


def test_a_write_to_an_output_that_is_a_view_of_the_input_counts_for_both():
    x = source()
    fast = groupwise.optimize(Function(lambda x: (x.flatten(1), x + 1)).eval(), x)
    with torch.no_grad():
        view, _ = fast(x)
        before = x._version
        view.zero_()
    assert x._version > before
    assert not x.any()


def test_times_are_those_of_the_steps():
    x = source()
    fast = groupwise.optimize(network(), x)
    with torch.inference_mode():
        assert len(ready(fast).time([x])) == len(ready(fast).tape.time([x])) == len(ready(fast).tape.steps)
        assert min(ready(fast).time([x])) >= 0


def test_python_runs_what_the_core_cannot(monkeypatch):
    problem = types.SimpleNamespace(
        status=lambda: types.SimpleNamespace(problem="it is not there", operators_problem="it is not there")
    )
    monkeypatch.setattr(compiled, "native", problem)
    x = source()
    fast = groupwise.optimize(network(), x)
    assert [left.reason for left in fast.plan.interpreted] == ["it is not there"]
    assert "run step by step in Python:\n  the model: it is not there" in str(fast.plan)
    assert not isinstance(ready(fast), compiled.Compiled)
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), fast.model(x), rtol=1e-4, atol=1e-5)


def test_a_program_goes_with_its_network():
    x = source()
    fast = groupwise.optimize(network(), x)
    with torch.inference_mode():
        fast(x)
    program = weakref.ref(ready(fast))
    del fast
    gc.collect()
    assert program() is None


def test_a_call_beside_another_has_an_arena_of_its_own():
    """While another thread holds the frames, a call allocates an arena and its output, and not each value by itself."""
    x = torch.randn(1, 8, 256, 256)
    fast = groupwise.optimize(Function(lambda x: torch.cat([(x * 2).sigmoid(), x], 1).relu().sum(1)).eval(), x)
    with torch.inference_mode():
        for _ in range(3):
            fast(x)
    program, stopped = ready(fast).program, threading.Event()

    def hold():
        while not stopped.is_set():
            program.poison()

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(hold)
        try:
            sizes = [size for _ in range(30) for size in allocations(fast, x)[1]]
        finally:
            stopped.set()
        held.result()
    assert set(sizes) <= {program.arena_bytes(), x[:, 0].nbytes}


@pytest.mark.parametrize("constant", [True, False])
def test_a_view_that_begins_where_a_tensor_says_is_made_at_each_call(constant):
    """aten::narrow.Tensor looks at the value of its third argument."""
    program = torch.classes.groupwise.Program(6, [0, 1], [5], False)
    if constant:
        program.constant(2, torch.arange(8))
    else:
        program.operator("aten::mul", "Tensor", "out", [0, 1], (None, 1), [0, -1, 0], 2, 0)
    program.operator("aten::add", "Tensor", "out", [0, 1], (None, 0), [0, -1, 1], 3, 0)
    program.operator("aten::narrow", "Tensor", None, [0, 1, 2, 3], (None, 0, None, 2), [0, -1, 2, 2, -1, 3], 4, 0)
    program.operator("aten::mul", "Tensor", "out", [0, 1], (None, 10), [0, -1, 4], 5, 0)
    numbers = torch.arange(8)
    for start in (1, 4, 6, 0):
        (made,) = program.run([numbers, torch.tensor(start)])
        assert made.tolist() == [10 * start, 10 * start + 10]
        program.poison()
