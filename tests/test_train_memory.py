"""The memory that a network for training keeps from step to step."""

from __future__ import annotations

import copy
import gc
import os
import threading

import pytest
import torch
from torch import nn

import groupwise
from groupwise.kernels import native

pytestmark = pytest.mark.skipif(native.status().problem is not None, reason="needs the native core")

ops = torch.ops.groupwise
LARGE = 3 << 20


@pytest.fixture
def keep():
    gc.collect()
    ops.keep_memory(True)
    yield
    ops.keep_memory(False)


def kept():
    """Returns bytes: those in use, free ones, and the most in use at once."""
    return ops.kept_memory()


def large(size=LARGE):
    return torch.empty(size, dtype=torch.uint8)


def test_a_block_is_used_again(keep):
    place = large().data_ptr()
    assert large().data_ptr() == place
    first, second = large(), large()
    assert first.data_ptr() == place != second.data_ptr()


def test_tensors_in_use_never_share_a_block(keep):
    tensors = [large().fill_(i) for i in range(8)]
    del tensors[::2]
    tensors += [large().fill_(10 + i) for i in range(6)]
    assert sorted(it[0].item() for it in tensors) == [1, 3, 5, 7, 10, 11, 12, 13, 14, 15]
    assert all((it == it[0]).all() for it in tensors)


def test_no_more_is_kept_than_was_in_use(keep):
    before = kept()
    for size in range(1, 20):
        tensors = [large(size * (1 << 20) + 5) for _ in range(2)]
        in_use, free, most = kept()
        assert in_use + free <= most
        assert most == max(before[2], in_use)
        del tensors
    assert kept()[0] == before[0]


def test_views_and_storages_hold_a_block(keep):
    view = large().fill_(7)[-4:]
    array = large().fill_(8).numpy()[-4:]
    others = [large().fill_(9) for _ in range(3)]
    assert view.tolist() == [7] * 4
    assert array.tolist() == [8] * 4
    assert len(others) == 3


def test_resized_storages_keep_their_values(keep):
    values = torch.arange(LARGE, dtype=torch.uint8)
    values.resize_(2 * LARGE)
    assert torch.equal(values[:LARGE], torch.arange(LARGE, dtype=torch.uint8))
    values.untyped_storage().resize_(0)
    assert values.untyped_storage().nbytes() == 0


def test_what_outlives_the_store_is_freed():
    gc.collect()
    before = kept()
    ops.keep_memory(True)
    tensor = large().fill_(3)
    small = torch.full((100,), 5)
    del small
    ops.keep_memory(False)
    assert tensor.sum().item() == 3 * LARGE
    held = kept()[0]
    del tensor
    assert held - kept()[0] >= LARGE
    if not before[1]:
        assert kept()[1] == 0


def test_threads_share_the_store(keep):
    wrong = []

    def work(number):
        for _ in range(50):
            one, two = large().fill_(number), large(2 * LARGE).fill_(number)
            if (one != number).any() or (two != number).any():
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_forked_child_has_memory(keep):
    tensor = large()
    tensor[0] = 4
    child = os.fork()
    if child == 0:
        # Threads that share work do not survive a fork: one number is written, not all.
        other = large()
        other[0] = 5
        os._exit(0 if other[0] == 5 and tensor[0] == 4 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


class Wide(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(3, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())


def step(net, x):
    net(x).sum().backward()


def test_a_network_keeps_memory_while_it_is_there():
    gc.collect()
    before = kept()
    x = torch.randn(2, 3, 96, 96)
    net = groupwise.optimize(Wide(), x, train=True, tune=False)
    step(net, x)
    most = kept()[2]
    step(net, x)
    assert kept()[1] >= 2 * 64 * 96 * 96 * 4
    assert kept()[2] == most
    twin = copy.deepcopy(net)
    del net
    gc.collect()
    step(twin, x)
    assert kept()[1] > 0
    del twin
    gc.collect()
    assert kept()[0] == before[0]
    if not before[1]:
        assert kept()[1] == 0


def test_the_variable_turns_it_off(monkeypatch):
    gc.collect()
    monkeypatch.setenv("GROUPWISE_KEEP_MEMORY", "0")
    before = kept()
    x = torch.randn(2, 3, 96, 96)
    net = groupwise.optimize(Wide(), x, train=True, tune=False)
    step(net, x)
    if before == [0, 0, 0]:
        assert kept() == before


def test_the_store_needs_a_holder():
    holders = 0
    with pytest.raises(RuntimeError, match="nobody holds"):  # noqa: PT012
        while True:
            ops.keep_memory(False)
            holders += 1
    for _ in range(holders):
        ops.keep_memory(True)
