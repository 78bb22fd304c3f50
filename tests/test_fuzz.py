"""The fuzzer of convolutions: a fixed number of its cases, and faults that it must find."""

from __future__ import annotations

import shlex
import subprocess
import sys

import pytest

import fuzzing
from kernels import needs_kernels

pytestmark = needs_kernels

CASES = 60


@pytest.fixture(scope="module")
def cases():
    pairs = fuzzing.supported()
    assert {dtype for dtype, _ in pairs} == set(fuzzing.DTYPES)
    assert {dims for _, dims in pairs} == {1, 2, 3}
    return [fuzzing.draw(0, number, pairs) for number in range(CASES)]


def test_random_cases_agree_with_float64(cases):
    for case in cases:
        assert fuzzing.failure(case) is None, case.command()


def test_cases_are_of_every_kind(cases):
    assert {layout for case in cases for layout in case.layouts} == set(fuzzing.LAYOUTS)
    assert {case.transposed for case in cases} == {case.bias for case in cases} == {False, True}
    assert {case.threads for case in cases} == {1, 2, 3}
    assert {case.kernel for case in cases} >= set(fuzzing.DIRECT)
    assert {case.dtype for case in cases} == set(fuzzing.DTYPES)
    assert {len(case.size) for case in cases} == {1, 2, 3}
    some = fuzzing.draw(0, 3, fuzzing.supported(), "planar")
    assert some.kernel == "planar"


def spoiled(name):
    """The step with one element of a value wrong, if there are several groups."""

    def compute(case, *given):
        found = fuzzing.step(case, *given)
        if case.groups > 1:
            found[name].view(-1)[0] += 1e-2 * found[name].abs().max() + 1e-3
        return found

    return compute


@pytest.mark.parametrize("name", ["output", "grad_input", "grad_weight"])
def test_a_wrong_value_is_found_and_its_case_made_small(cases, name):
    def fails(case):
        return fuzzing.failure(case, spoiled(name))

    # `planar` computes layers of any size, so that they can get small.
    case = next(case for case in cases if case.kernel == "planar" and case.groups > 1 and fails(case))
    assert fails(case).startswith(f"{name}[")
    small = fuzzing.shrunk(case, fails)
    assert (small.groups, small.batch, small.inputs, small.outputs) == (2, 1, 1, 1)
    assert set(small.layouts) == {"plain"}
    assert fails(fuzzing.Case.of(shlex.split(small.command())[-1])) == fails(small)


def test_a_value_that_was_not_written_is_found(cases):
    def compute(case, *given):
        found = fuzzing.step(case, *given)
        found["output"].view(-1)[-1] = float("nan")
        return found

    assert "is nan" in fuzzing.failure(cases[0], compute)


@pytest.mark.parametrize(("at", "name"), [(0, "input"), (1, "weight"), (3, "gradient of the output")])
def test_memory_of_a_tensor_that_changes_is_found_also_beside_its_elements(cases, at, name):
    def compute(case, *given):
        found = fuzzing.step(case, *given)
        fuzzing.whole_of(given[at])[-1] += 1
        return found

    assert fuzzing.failure(cases[0], compute) == f"memory of the {name} changed"


def test_the_command_repeats_a_case(cases):
    command = shlex.split(cases[2].command())
    assert fuzzing.Case.of(command[-1]) == cases[2]
    script = fuzzing.__file__
    done = subprocess.run([sys.executable, script, *command[2:]], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "right\n"), done.stderr
