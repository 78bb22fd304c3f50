from __future__ import annotations

import importlib.util
import json
import os
import sys

import pytest
import torch

import warm
from groupwise import GroupwiseError
from groupwise.cli.targets import import_torchvision, input_shape, load_model
from groupwise.models import others

MODEL = """
import helper_beside_it
import torch
from dataclasses import dataclass

@dataclass
class Options:
    channels: int = 4

class Net(torch.nn.Conv2d):
    def __init__(self, options=None):
        super().__init__(3, (options or Options()).channels, 3)

class Needs(Net):
    def __init__(self, width):
        super().__init__()

ready = Net()
number = 7
def wrong(): return 7
"""


@pytest.fixture
def file(tmp_path):
    (tmp_path / "helper_beside_it.py").write_text("")
    path = tmp_path / "json.py"
    path.write_text(MODEL)
    return path


def test_ours():
    assert sum(p.numel() for p in load_model("alexnet").parameters()) == 60_965_224


def test_a_file_says_that_it_runs(file):
    said = []
    assert type(load_model(f"{file}:Net", said.append)).__name__ == "Net"
    assert said == [f"running the code in {file}"]
    assert isinstance(load_model(f"{file}:ready"), torch.nn.Conv2d)


def test_a_file_does_not_take_a_packages_name(file):
    load_model(f"{file}:Net")
    assert sys.modules["json"] is json


def test_a_module_attribute():
    assert isinstance(load_model("torch.nn:Identity"), torch.nn.Identity)
    assert isinstance(load_model("torch:nn.Identity"), torch.nn.Identity)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("resnext50", "no model named 'resnext50'; nearest: resnext50_32x4d"),
        ("mobilenet_v2", "no model named 'mobilenet_v2' in groupwise; write torchvision:mobilenet_v2; or give"),
        ("MobileNetV3-Large", "write torchvision:mobilenet_v3_large"),
        ("mobilenetv4_conv_small", "write timm:mobilenetv4_conv_small"),
        ("torchvision:resnext50", "no torchvision model named 'resnext50'; nearest: resnext50_32x4d"),
        ("timm:resnext50", "no timm model named 'resnext50'; nearest: resnext50"),
        ("no.such.module:Net", "no module named 'no'"),
        ("torch.nn:Conv9d", "no attribute of torch.nn named 'Conv9d'; nearest: Conv"),
        ("torch.nn:Conv2d", "cannot be called without arguments"),
        ("torch:pi", "is a float; it must be a torch.nn.Module or make one"),
        ("nowhere.py:Net", "nowhere.py does not exist"),
        ("{file}:Needs", "cannot be called without arguments (missing a required argument: 'width')"),
        ("{file}:number", "is a int"),
        ("{file}:wrong", "made a int; it must make a torch.nn.Module"),
        ("{file}:Nett", "nearest: Net"),
    ],
)
def test_refusals(file, target, message):
    package = (
        "torchvision" if "write torchvision" in message else "timm" if "write timm" in message else target.split(":")[0]
    )
    if package in ("torchvision", "timm") and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    with pytest.raises(GroupwiseError) as caught:
        load_model(target.format(file=file))
    assert message in str(caught.value)


def test_a_module_of_the_current_folder(file, monkeypatch):
    (file.parent / "my_own_net.py").write_text(MODEL)
    monkeypatch.chdir(file.parent)
    before = list(sys.path)
    assert type(load_model("my_own_net:Net")).__name__ == "Net"
    load_model(f"{file}:Net")
    assert sys.path == before


def test_nothing_is_downloaded(monkeypatch):
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *_, **__: pytest.fail("a download"))
    models = import_torchvision()
    seen = {}
    monkeypatch.setattr(models, "get_model", lambda name, **options: seen.update(options) or torch.nn.Identity())
    load_model("torchvision:deeplabv3_resnet50")
    assert seen == {"weights": None, "weights_backbone": None}


def test_expected_input():
    model = torch.nn.Identity()
    assert input_shape(model) == (1, 3, 224, 224)
    model.default_cfg = {"input_size": (1, 64, 64)}
    assert input_shape(model) == (1, 1, 64, 64)


# A torchvision whose operators do not fit.
MISFIT = """
import torch

@torch.library.register_fake("torchvision::nms")
def nms(boxes, scores, threshold):
    return boxes
"""


def fake_torchvision(folder, source):
    for path, text in (
        ("torchvision/__init__.py", source),
        ("torchvision/models.py", "def list_models(): return []\n"),
        ("torchvision-0.1.dist-info/METADATA", "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.1\n"),
    ):
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


def in_a_new_process(code, folder):
    """What the code prints, with the folder's packages first."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    status, out, err = warm.Process("-c", code, environment=environment).finish()
    assert status == 0, err
    return out, err


def test_a_torchvision_that_does_not_fit_leaves_no_operators_behind(tmp_path):
    fake_torchvision(tmp_path, MISFIT)
    code = """
import torch
from groupwise.models.others import import_torchvision

before = torch.library.register_fake
print(import_torchvision().list_models(), torch.library.register_fake is before)
print(hasattr(torch.ops.torchvision, "nms"), torch._C._dispatch_get_registrations_for_dispatch_key("Meta").count(
    "torchvision::nms"))
"""
    assert in_a_new_process(code, tmp_path)[0].split("\n") == ["[] True", "False 0", ""]


def test_a_torchvision_that_cannot_be_imported_says_which_one_fits(tmp_path):
    fake_torchvision(tmp_path, "raise RuntimeError('operator torchvision::nms does not exist')")
    code = """
from groupwise.models.others import import_torchvision
try:
    import_torchvision()
except Exception as error:
    print(type(error).__name__, error)
"""
    said, _ = in_a_new_process(code, tmp_path)
    assert said.startswith(f"GroupwiseError torchvision 0.1 does not fit torch {torch.__version__}: operator")
    minor = int(torch.__version__.split(".")[1])
    assert f'pip install --no-deps "torchvision==0.{minor + 15}.*"' in said


def test_operators_of_others_are_described_meanwhile():
    library = torch.library.Library("groupwise_test_others", "FRAGMENT")
    library.define("twice(Tensor x) -> Tensor")
    with others._without_fakes("torchvision::"):
        torch.library.register_fake("groupwise_test_others::twice", lambda x: torch.empty(7))
        assert torch.library.register_fake("torchvision::nms")(len) is len
    assert torch.ops.groupwise_test_others.twice(torch.empty(1, device="meta")).shape == (7,)


@pytest.mark.parametrize("package", ["torchvision", "timm"])
def test_the_names_in_a_packages_source_are_those_that_it_lists(package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    listed = import_torchvision() if package == "torchvision" else importlib.import_module(package)
    assert sorted(others.names_in(package)) == sorted(listed.list_models())


def test_a_mistyped_name_imports_no_package(tmp_path):
    """Not even one that knows the name."""
    fake_torchvision(tmp_path, "raise SystemExit('imported')")
    (tmp_path / "torchvision" / "models").mkdir()
    (tmp_path / "torchvision" / "models" / "nets.py").write_text(
        '@register_model()\n@other(\n    weights=("a", 1)\n)\ndef some_net(*, weights=None):\n    pass\n\n\n'
        'def helper():\n    pass\n\n\n@register_model(name="other_net")\ndef builder(*, weights=None):\n    pass\n'
    )
    code = """
import sys
from groupwise.cli import main

assert [main(["report", name]) for name in ("SomeNet", "other_net", "builder", "alexnett")] == [2] * 4
assert not {"torchvision", "timm"} & set(sys.modules)
"""
    first, second, third, fourth = in_a_new_process(code, tmp_path)[1].splitlines()
    assert "write torchvision:some_net" in first
    assert "write torchvision:other_net" in second
    assert "write" not in third
    assert "nearest: alexnet" in fourth


def test_no_names_of_a_package_that_is_not_there():
    assert others.names_in("groupwise_no_such_package") == []
