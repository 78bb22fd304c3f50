"""`assign`: against enumeration, scipy's transport and weights whose blocks are known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

import groupwise
from groupwise import GroupwiseError
from groupwise.choose.assign import assign
from groupwise.choose.assign.alternate import climb, improve
from groupwise.choose.assign.bound import upper_bound
from groupwise.choose.assign.enumerate import best_of_all, partitions
from groupwise.choose.assign.planted import planted
from groupwise.choose.assign.starts import starts
from groupwise.choose.assign.transport import transport


def kept(weight: torch.Tensor, found) -> float:
    """The fraction of the squared weight in the blocks, from the definition."""
    ordered = weight.double()[list(found.outputs)][:, list(found.inputs)]
    rows, columns = len(ordered) // found.groups, ordered.shape[1] // found.groups
    blocks = [
        ordered[t * rows : (t + 1) * rows, t * columns : (t + 1) * columns].square().sum() for t in range(found.groups)
    ]
    return float(sum(blocks) / ordered.square().sum())


def partitions_of(channels: list[int], groups: int):
    """Every balanced partition, as lists of lists."""
    if groups == 1:
        yield [channels]
        return
    first, *rest = channels
    for others in itertools.combinations(rest, len(channels) // groups - 1):
        left = [channel for channel in rest if channel not in others]
        for more in partitions_of(left, groups - 1):
            yield [[first, *others], *more]


def best(energy: np.ndarray, groups: int) -> float:
    """The most that blocks can hold: all partitions of the outputs, all permutations of those of the inputs."""
    most = 0.0
    for outputs in partitions_of(list(range(len(energy))), groups):
        scores = np.array([energy[rows].sum(axis=0) for rows in outputs])
        for inputs in partitions_of(list(range(energy.shape[1])), groups):
            for order in itertools.permutations(range(groups)):
                most = max(most, sum(scores[t][inputs[order[t]]].sum() for t in range(groups)))
    return float(most)


def blocks(generator, outputs: int, inputs: int, groups: int, noise: float = 0.0) -> torch.Tensor:
    """A weight of scrambled blocks; `noise` is the energy of the noise, relative to that of the blocks."""
    weight = np.zeros((groups, outputs // groups, groups, inputs // groups))
    for t in range(groups):
        weight[t, :, t] = generator.standard_normal((outputs // groups, inputs // groups))
    weight = weight.reshape(outputs, inputs)
    rest = generator.standard_normal(weight.shape)
    weight = weight + rest * np.sqrt(noise * np.square(weight).sum() / np.square(rest).sum())
    return torch.from_numpy(weight[generator.permutation(outputs)][:, generator.permutation(inputs)])


@pytest.mark.parametrize("ties", [False, True])
def test_transport_is_that_of_scipy(ties):
    optimize = pytest.importorskip("scipy.optimize")
    generator = np.random.default_rng(0)
    for _ in range(150):
        bins, size = generator.integers(1, 9), generator.integers(1, 7)
        shape = (bins, bins * size)
        scores = generator.integers(0, 3, shape).astype(float) if ties else generator.standard_normal(shape)
        labels = transport(scores)
        assert (np.bincount(labels, minlength=bins) == size).all()
        wide = np.repeat(scores, size, axis=0)
        expected = wide[optimize.linear_sum_assignment(wide, maximize=True)].sum()
        assert scores[labels, np.arange(shape[1])].sum() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_transport_is_the_best_of_all_orders():
    generator = np.random.default_rng(1)
    for _ in range(20):
        scores = generator.standard_normal((3, 6)) * 10.0 ** generator.integers(-200, 200)
        every = set(itertools.permutations([0, 0, 1, 1, 2, 2]))
        expected = max(sum(scores[t, i] for i, t in enumerate(order)) for order in every)
        assert scores[transport(scores), np.arange(6)].sum() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("seed", range(100))
def test_planted_blocks_are_recovered(seed):
    generator = np.random.default_rng(seed)
    groups = 2 ** int(generator.integers(1, 6))
    outputs, inputs = (groups * int(generator.integers(1, 256 // groups + 1)) for _ in range(2))
    found = assign(blocks(generator, outputs, inputs, groups), groups)
    assert (found.kept, found.bound, found.exact) == (1.0, 1.0, True)


def test_planted_blocks_are_recovered_from_noise():
    generator = np.random.default_rng(0)
    recovered = 0
    for _ in range(30):
        groups = 2 ** int(generator.integers(1, 4))
        weight = blocks(generator, 8 * groups, 12 * groups, groups, noise=0.01)
        recovered += assign(weight, groups).kept > 0.99
    assert recovered >= 29


def test_widest_planted_blocks_are_recovered_from_noise():
    assert assign(blocks(np.random.default_rng(0), 256, 256, 32, noise=0.01), 32).kept > 0.99


def test_parts_smaller_than_a_group_are_packed():
    # Only 1x2 with 3x2 channels and 2x1 with 2x3 ones fill groups of 4x4.
    energy = np.zeros((8, 8))
    row = column = 0
    for rows, columns in ((1, 2), (2, 1), (3, 2), (2, 3)):
        energy[row : row + rows, column : column + columns] = 1.0
        row, column = row + rows, column + columns
    outputs, inputs = planted(energy, 2)
    assert sorted(np.bincount(outputs)) == sorted(np.bincount(inputs)) == [4, 4]
    assert energy[outputs[:, None] == inputs].sum() == energy.sum()


def test_enumeration_is_that_of_plain_loops():
    generator = np.random.default_rng(2)
    for outputs, inputs, groups in ((6, 4, 2), (4, 6, 2), (6, 6, 3), (8, 4, 2)):
        energy = generator.standard_normal((outputs, inputs)) ** 2
        rows, columns = best_of_all(energy, groups)
        assert energy[rows[:, None] == columns].sum() == pytest.approx(best(energy, groups), rel=1e-12)
        found = assign(torch.from_numpy(np.sqrt(energy)), groups)
        assert found.exact
        assert found.kept * energy.sum() == pytest.approx(best(energy, groups), rel=1e-12)
    assert [partitions(8, 2), partitions(16, 2), partitions(12, 3)] == [35, 6435, 5775]


def test_the_search_finds_what_enumeration_finds():
    generator = np.random.default_rng(3)
    equal = 0
    for number in range(200):
        groups = (2, 3)[number % 2]
        energy = generator.standard_normal((4 * groups, 3 * groups)) ** 2
        rows, columns = best_of_all(energy, groups)
        climbs = (improve(energy, groups, climb(energy, groups, start)) for start in starts(energy, groups, 8, number))
        most = max(found.held for found in climbs)
        expected = energy[rows[:, None] == columns].sum()
        assert most <= expected * (1 + 1e-12)
        equal += most >= expected * (1 - 1e-12)
    assert equal >= 190


@pytest.mark.parametrize("seed", range(10))
def test_kept_lies_between_the_stored_order_and_the_bound(seed):
    generator = np.random.default_rng(seed)
    groups = int(generator.choice([2, 3, 4, 6, 8]))
    shape = (groups * int(generator.integers(1, 9)), groups * int(generator.integers(1, 9)), 3, 3)
    weight = torch.from_numpy(generator.standard_normal(shape) * generator.random(shape[1])[:, None, None])
    found = assign(weight, groups)
    stored = groupwise.choose.assign.Assignment(
        tuple(range(shape[0])), tuple(range(shape[1])), groups, 0.0, 0.0, 1.0, False
    )
    assert found.kept == pytest.approx(kept(weight, found), rel=1e-12)
    assert found.stored == pytest.approx(kept(weight, stored), rel=1e-12)
    assert found.stored <= found.kept <= found.bound <= 1.0
    assert sorted(found.outputs) == list(range(shape[0]))
    assert sorted(found.inputs) == list(range(shape[1]))
    for order, count in ((found.outputs, shape[0]), (found.inputs, shape[1])):
        for first in range(0, count, count // groups):
            assert list(order[first : first + count // groups]) == sorted(order[first : first + count // groups])


@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(8, 8, 2), (6, 9, 3)])
def test_no_partition_exceeds_the_bound(outputs, inputs, groups):
    generator = np.random.default_rng(5)
    for scale in (1.0, 3.0):
        energy = np.exp(scale * generator.standard_normal((outputs, inputs)))
        assert best(energy, groups) <= upper_bound(energy, groups) * (1 + 1e-12)


@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(8, 8, 2), (6, 12, 3), (12, 6, 3)])
def test_the_bound_of_equal_entries_is_what_all_partitions_hold(outputs, inputs, groups):
    # All three limits are tight here, so one that is too low shows.
    expected = outputs * inputs / groups
    assert upper_bound(np.ones((outputs, inputs)), groups) == pytest.approx(expected, rel=1e-6)
    assert upper_bound(np.ones((outputs, inputs)), groups) >= expected * (1 - 1e-12)


def test_a_transposed_weight_gives_the_same():
    weight = torch.randn(12, 8, 3, generator=torch.Generator().manual_seed(0))
    found, other = assign(weight, 4), assign(weight.transpose(0, 1), 4, transposed=True)
    assert (found.outputs, found.inputs, found.kept) == (other.outputs, other.inputs, other.kept)


def test_moments_weigh_the_kernels():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(8, 8, 3, generator=generator, dtype=torch.float64)
    root = torch.randn(8, 3, 3, generator=generator, dtype=torch.float64)
    moments = root @ root.mT
    found = assign(weight, 2, moments=moments)
    energy = np.array(
        [[float(weight[o, i] @ moments[i] @ weight[o, i]) for i in range(8)] for o in range(8)]
    )  # By the definition, one kernel at a time.
    assert found.exact
    assert found.kept == pytest.approx(best(energy, 2) / energy.sum(), rel=1e-9)


def test_equal_seeds_give_equal_results():
    weight = torch.randn(48, 48, generator=torch.Generator().manual_seed(0))
    assert assign(weight, 4, seed=3) == assign(weight, 4, seed=3)


@pytest.mark.parametrize("value", [0.0, 1e-200, 1e200])
def test_any_scale_is_taken(value):
    weight = torch.full((8, 8), value, dtype=torch.float64)
    found = assign(weight, 2)
    assert found.kept == (0.5 if value else 1.0)
    assert found.outputs == tuple(range(8))


def test_one_channel_a_group_is_one_exact_transport():
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    squares = weight.square().numpy()
    most = max(sum(squares[o, i] for o, i in enumerate(order)) for order in itertools.permutations(range(5)))
    found = assign(weight, 5)
    assert found.exact
    assert found.kept == pytest.approx(most / squares.sum(), rel=1e-12)


def test_it_prints_itself():
    found = groupwise.assign(torch.eye(4), 2)
    assert str(found) == (
        "2 groups of 2x2 channels (outputs x inputs) keep 100.0 % of the squared weight: the most possible, and the "
        "stored order keeps 100.0 %"
    )
    assert str(found) in found._repr_html_()
    assert found.to_dict()["outputs"] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("weight", "groups", "options", "message"),
    [
        (torch.zeros(6, 4), 3, {}, "groups=3 must divide in_channels=4 and out_channels=6; valid groups: 1, 2"),
        (torch.zeros(6), 1, {}, r"weight has shape \(6,\); it must have an output and an input dimension"),
        (torch.tensor([[1.0, float("nan")]]), 1, {}, "weight has 1 values that are NaN or infinite"),
        (torch.tensor([[1.0, float("inf")]]), 1, {}, "weight has 1 values that are NaN or infinite"),
        (torch.zeros(0, 4), 1, {}, "it must have values"),
        (torch.zeros(4, 4, device="meta"), 1, {}, "meta, quantized or sparse"),
        (torch.ones(4, 4).half(), 2, {}, r"weight is float16, which no layer converts from; pass \.float\(\)"),
        (torch.ones(4, 4) * 1j, 2, {}, "weight is complex64, which no layer converts from; pass real values"),
        ([[1.0]], 1, {}, "is a list; it must be a tensor"),
        (torch.zeros(4, 4), 2, {"seed": -1}, "seed=-1 is too small"),
        (torch.ones(4, 4), 2, {"moments": torch.zeros(4, 2, 2)}, r"this weight needs \(4, 1, 1\)"),
        (torch.ones(4, 4), 2, {"moments": -torch.ones(4, 1, 1)}, "negative energy"),
    ],
)
def test_refusals(weight, groups, options, message):
    with pytest.raises(GroupwiseError, match=message):
        assign(weight, groups, **options)


@pytest.mark.parametrize("fixed", ["inputs", "outputs"])
@pytest.mark.parametrize(("outputs", "inputs", "groups"), [(6, 9, 3), (8, 4, 2), (4, 8, 4)])
def test_with_one_side_as_stored_the_other_is_the_best_of_all_partitions(fixed, outputs, inputs, groups):
    energy = np.exp(np.random.default_rng(0).standard_normal((outputs, inputs)))
    found = assign(torch.from_numpy(np.sqrt(energy)), groups, fixed=fixed)
    own, other = (inputs, outputs) if fixed == "inputs" else (outputs, inputs)
    sums = energy if fixed == "inputs" else energy.T
    scores = sums.reshape(other, groups, own // groups).sum(2)
    most = 0.0
    for parts in partitions_of(list(range(other)), groups):
        for order in itertools.permutations(range(groups)):
            most = max(most, sum(scores[part, t].sum() for part, t in zip(parts, order, strict=True)))
    assert found.kept == found.bound == pytest.approx(most / energy.sum(), rel=1e-12)
    assert found.kept == pytest.approx(kept(torch.from_numpy(np.sqrt(energy)), found), rel=1e-12)
    assert (found.exact, found.fixed) == (True, fixed)
    assert getattr(found, fixed) == tuple(range(own))
    assert f"the most possible with {fixed} as stored" in str(found)
    transposed = assign(torch.from_numpy(np.sqrt(energy)).T, groups, fixed=fixed, transposed=True)
    assert (transposed.outputs, transposed.inputs) == (found.outputs, found.inputs)


def test_another_side_is_refused():
    with pytest.raises(GroupwiseError, match="fixed='rows' is not known; choose one of: inputs, outputs"):
        assign(torch.ones(4, 4), 2, fixed="rows")
