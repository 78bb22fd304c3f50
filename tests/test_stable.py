"""The kernels by PyTorch's stable interface: a process of its own loads that library in place of the exact one."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

from groupwise.kernels import native

# Runs what it reads from its input with the library that the environment names, and prints what it finds as JSON.
SCRIPT = pathlib.Path(__file__).with_name("stable_convolutions.py")
# Functions of PyTorch that are no part of the stable interface begin with these.
CXX = re.compile(r" U (_ZN?K?(2at|3c10|5torch).*)$", re.M)


def library() -> pathlib.Path:
    path = native.status().path
    if path is None or not pathlib.Path(path).with_name("_stable.so").is_file():
        pytest.skip("the native core is not built")
    return pathlib.Path(path).with_name("_stable.so")


@pytest.fixture(scope="module")
def found():
    library()
    environment = {**os.environ, native.BINDING: "stable"}
    environment.pop("GROUPWISE_ENABLE", None)
    ran = subprocess.run([sys.executable, SCRIPT], check=False, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout.splitlines()[-1])


def test_it_is_the_stable_library(found):
    assert found["library"] == "_stable.so"
    assert found["operators_problem"] == "GROUPWISE_BINDING=stable asks for the kernels alone"


def test_every_convolution_is_right(found):
    """The error against float64, over what the products of each result can round."""
    assert len(found["errors"]) > 60
    assert {name: error for name, error in found["errors"].items() if not error < 1} == {}


def test_our_kernels_ran(found):
    # Which ones the planner chooses depends on the tables and the processor.
    assert len(set(found["kernels"]) - {"pytorch"}) > 1
    assert found["directions"] == ["forward", "grad_input", "grad_weight"]


def test_what_falls_back_is_pytorchs(found):
    assert found["fallbacks"] == dict.fromkeys(found["fallbacks"], True)
    assert {"complex128", "float64", "bfloat16", "3-D", "double backward", "bias alone"} <= found["fallbacks"].keys()


def test_pytorchs_message_reaches_the_user(found):
    assert "to have 2 channels, but got 3 channels instead" in found["message"]


def test_a_profile_shows_kernels_and_keeps_the_place_of_a_missing_bias(found):
    isa, x, weight, y = found["isa"], [1, 8, 9, 9], [8, 2, 3, 3], [1, 8, 7, 7]
    assert found["shown"] == [
        [f"groupwise::planar {isa}", [x, weight, []]],
        [f"groupwise::planar grad_input {isa}", [y, weight, []]],
        [f"groupwise::planar grad_weight {isa}", [x, y]],
    ]


def test_a_trace_records_pytorchs_kernel(found):
    assert found["traced"] == ["aten::_convolution"]


def test_networks_are_optimized_without_the_operators(found):
    assert found["optimized"] < 1e-4
    assert "asks for the kernels alone" in found["plan"]


def test_an_unknown_name_is_refused():
    library()
    code = "from groupwise.kernels import native; print(native.status().problem)"
    environment = {**os.environ, native.BINDING: "unstable"}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "GROUPWISE_BINDING=unstable is not known; valid: exact, stable"


def test_it_asks_for_nothing_but_the_stable_interface():
    path = library()
    nm = shutil.which("nm")
    if nm is None:
        pytest.skip("no nm")
    symbols = subprocess.run([nm, "-D", "--undefined-only", path], capture_output=True, text=True, check=True).stdout
    assert "aoti_torch_cpu_convolution" in symbols
    assert CXX.findall(symbols) == []
