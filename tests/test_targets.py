from __future__ import annotations

import importlib.util
import json
import sys

import pytest
import torch

from groupwise import GroupwiseError
from groupwise.cli.targets import import_torchvision, input_shape, load_model

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
