"""The networks, against their papers' numbers, torchvision, and reference code in torch.nn.functional."""

from __future__ import annotations

import copy
import importlib.util
import math

import pytest
import torch
from torch.nn import functional as F

from groupwise import GroupwiseError, models, nn
from groupwise.cli.targets import import_torchvision
from groupwise.models.alexnet import LocalResponseNorm

COUNTS = {
    "alexnet": 60_965_224,
    "alexnet_towers": 60_965_224,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x8d": 88_791_336,
    "resnext101_64x4d": 83_455_272,
}
RESNEXTS = [name for name in COUNTS if name.startswith("resnext")]


@pytest.fixture(scope="module")
def torchvision():
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    return import_torchvision()


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts_and_shapes(name):
    assert set(models.MODELS) == set(COUNTS)
    with torch.device("meta"):
        model = models.MODELS[name]()
        assert count(model) == COUNTS[name]
        assert model(torch.empty(2, 3, 224, 224)).shape == (2, 1000)
        assert models.MODELS[name](num_classes=7)(torch.empty(1, 3, 224, 224)).shape == (1, 7)
    with pytest.raises(GroupwiseError, match="num_classes=0 is too small"):
        models.MODELS[name](num_classes=0)


# AlexNet


def normalise_by_loops(x: torch.Tensor) -> torch.Tensor:
    """Section 3.3, channel by channel: n=5 neighbours, the sum of whose squares is not divided by n."""
    channels = x.shape[1]
    out = torch.empty_like(x)
    for i in range(channels):
        squares = torch.zeros_like(x[:, 0])
        for j in range(max(0, i - 2), min(channels - 1, i + 2) + 1):
            squares += x[:, j] ** 2
        out[:, i] = x[:, i] / (2 + 1e-4 * squares) ** 0.75
    return out


def reference_alexnet(state: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    """The published network on two GPUs, from the grouped parameters."""

    def conv(x, name, **options):
        return torch.relu(F.conv2d(x, state[f"{name}.weight"], state[f"{name}.bias"], **options))

    def norm(x):
        return torch.cat([normalise_by_loops(half) for half in x.chunk(2, 1)], 1)

    def pool(x):
        return F.max_pool2d(x, 3, 2)

    x = pool(norm(conv(x, "conv1", stride=4, padding=2)))
    assert x.shape[1:] == (96, 27, 27)
    x = pool(norm(conv(x, "conv2", padding=2, groups=2)))
    x = conv(x, "conv3", padding=1)
    x = conv(x, "conv4", padding=1, groups=2)
    x = pool(conv(x, "conv5", padding=1, groups=2)).flatten(1)
    for name in ("fc6", "fc7"):
        x = torch.relu(F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"]))
    return F.linear(x, state["fc8.weight"], state["fc8.bias"])


@pytest.fixture(scope="module")
def alexnet():
    """In float64, with weights that keep the signal's size, so that a difference shows in the output."""
    torch.manual_seed(0)
    model = models.alexnet(num_classes=5).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=math.sqrt(2 / parameter[0].numel()) if parameter.ndim > 1 else 0.1)
    return model.double()


@pytest.fixture(scope="module")
def photo():
    return 50 * torch.randn(2, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def towers(alexnet):
    return models.AlexNetTowers.from_grouped(alexnet)


def test_local_response_norm_is_the_papers():
    x = 100 * torch.randn(2, 12, 3, 4, dtype=torch.float64)
    torch.testing.assert_close(LocalResponseNorm()(x), normalise_by_loops(x), rtol=1e-12, atol=0)
    halves = torch.cat([normalise_by_loops(x[:, :6]), normalise_by_loops(x[:, 6:])], 1)
    layer = LocalResponseNorm(towers=2)
    torch.testing.assert_close(layer(x), halves, rtol=1e-12, atol=0)
    torch.testing.assert_close(layer(x.to(memory_format=torch.channels_last)), halves, rtol=1e-12, atol=0)


def test_alexnet_is_the_papers(alexnet, photo):
    with torch.no_grad():
        expected = reference_alexnet(alexnet.state_dict(), photo)
        assert expected.std() > 0.1
        torch.testing.assert_close(alexnet(photo), expected, rtol=1e-10, atol=1e-10)
        assert alexnet.conv1(photo).shape == (2, 96, 55, 55)


def test_towers_are_equal(alexnet, towers, photo):
    assert count(towers) == count(alexnet)
    assert {layer.groups for layer in towers.modules() if isinstance(layer, torch.nn.Conv2d)} == {1}
    assert not towers.training
    with torch.no_grad():
        torch.testing.assert_close(towers(photo), alexnet(photo), rtol=1e-10, atol=1e-10)
    back = towers.to_grouped()
    assert not back.training
    assert back.state_dict().keys() == alexnet.state_dict().keys()
    for name, tensor in alexnet.state_dict().items():
        assert torch.equal(back.state_dict()[name], tensor)
        assert back.state_dict()[name].data_ptr() != tensor.data_ptr()


def test_towers_meet_where_the_paper_says(alexnet, towers, photo):
    """Of the grouped network: what half of a stage's outputs takes from the halves of its input."""

    def reads(stage, inputs):
        inputs = inputs.detach().requires_grad_()
        out = stage(inputs)
        out[:, : out.shape[1] // 2].sum().backward()
        return [bool(half.any()) for half in inputs.grad.chunk(2, 1)]

    one = photo[:1]
    first = torch.relu(alexnet.conv1(one))
    second = torch.relu(alexnet.conv2(alexnet.pool(alexnet.norm(first))))
    early = alexnet.early(one)
    assert reads(alexnet.norm, first) == [True, False]
    assert reads(alexnet.conv2, first) == [True, False]
    assert reads(alexnet.norm, second) == [True, False]
    assert reads(alexnet.conv3, early) == [True, True]
    assert reads(alexnet.conv4, alexnet.conv3(early)) == [True, False]
    assert reads(alexnet.conv5, alexnet.conv3(early)) == [True, False]
    assert reads(alexnet.hidden6, alexnet.late(early).flatten(1)) == [True, True]
    for half, tower in enumerate(towers.towers):
        with torch.no_grad():
            torch.testing.assert_close(tower.early(one), early.chunk(2, 1)[half], rtol=1e-10, atol=1e-10)


def test_alexnet_starts_as_the_paper_says():
    for model in (models.alexnet(2), models.alexnet_towers(2)):
        for name, parameter in model.named_parameters():
            layer, kind = name.split(".")[-2:]
            if kind == "weight":
                assert parameter.std().item() == pytest.approx(0.01, rel=0.05)
                assert abs(parameter.mean().item()) < 0.01 * 6 / math.sqrt(parameter.numel())
            else:
                assert (parameter == float(layer in ("conv2", "conv4", "conv5", "fc6", "fc7"))).all(), name


def test_dropout_of_the_hidden_layers():
    """Half of the outputs of fc6 and fc7, and nothing else."""
    model = models.Tower(towers=2)
    torch.nn.init.zeros_(model.fc6.weight)
    torch.nn.init.zeros_(model.fc7.weight)
    for bias in (model.fc6.bias, model.fc7.bias):
        torch.nn.init.ones_(bias)
    for stage, width in ((model.hidden6, 9216), (model.hidden7, 4096)):
        out = stage(torch.zeros(4, width))
        assert set(out.unique().tolist()) == {0.0, 2.0}
        assert (out == 0).float().mean().item() == pytest.approx(0.5, abs=0.03)
    x = torch.randn(1, 256, 13, 13)
    torch.testing.assert_close(model.late(x), copy.deepcopy(model).eval().late(x))


# ResNeXt


@pytest.mark.parametrize("name", RESNEXTS)
def test_state_dicts_are_torchvisions(name, torchvision):
    with torch.device("meta"):
        ours, theirs = models.MODELS[name](), getattr(torchvision, name)()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        assert ours.state_dict()[key].shape == tensor.shape
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    theirs.load_state_dict(ours.state_dict(), strict=True, assign=True)
    assert all(isinstance(layer, nn.Conv2d) for layer in ours.modules() if isinstance(layer, torch.nn.Conv2d))


@pytest.mark.parametrize("name", ["resnext50_32x4d", "resnext101_64x4d"])  # the third is the second, only slower
def test_outputs_are_torchvisions(name, torchvision):
    torch.manual_seed(0)
    theirs = getattr(torchvision, name)(num_classes=10)
    torch.nn.init.normal_(theirs.fc.weight)
    with torch.device("meta"):
        ours = models.MODELS[name](num_classes=10)
    ours.load_state_dict(copy.deepcopy(theirs.state_dict()), strict=True, assign=True)
    # In training two samples of a few positions make batch norms that multiply rounding a thousandfold.
    theirs, ours = theirs.double(), ours.double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        for training in (True, False):  # training first: it fills the running statistics
            expected = theirs.train(training)(x)
            assert expected.std() > 0.5
            torch.testing.assert_close(ours.train(training)(x), expected, rtol=1e-4, atol=1e-4)
    for key, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[key], tensor)


def test_resnext_starts_from_true_fans():
    model = models.resnext50_32x4d()
    for name, outputs_per_group in (("layer1.0", 4), ("layer4.2", 32)):
        block = model.get_submodule(name)
        assert block.conv2.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * outputs_per_group)), rel=0.05)
        out_channels = block.conv3.out_channels
        assert block.conv3.weight.std().item() == pytest.approx(math.sqrt(2 / out_channels), rel=0.05)


# The three forms of figure 3


def reference_bottleneck(state: dict[str, torch.Tensor], x: torch.Tensor, groups: int, stride: int) -> torch.Tensor:
    """Form (c) in training mode."""

    def norm(x, name):
        return F.batch_norm(x, None, None, state[f"{name}.weight"], state[f"{name}.bias"], training=True)

    out = torch.relu(norm(F.conv2d(x, state["conv1.weight"]), "bn1"))
    out = torch.relu(norm(F.conv2d(out, state["conv2.weight"], stride=stride, padding=1, groups=groups), "bn2"))
    out = norm(F.conv2d(out, state["conv3.weight"]), "bn3")
    if "downsample.0.weight" in state:
        x = norm(F.conv2d(x, state["downsample.0.weight"], stride=stride), "downsample.1")
    return torch.relu(out + x)


# (in, out, width, groups, stride): the shortcut is the input, a wider one, a strided one; the last is depthwise.
BLOCKS = [(32, 32, 16, 8, 1), (16, 32, 16, 4, 1), (32, 32, 12, 3, 2), (8, 16, 8, 8, 2)]


def make_block(arguments: tuple[int, ...]) -> models.Bottleneck:
    """With random batch norms, since those of a new block are all alike."""
    torch.manual_seed(0)
    block = models.Bottleneck(*arguments).double()
    for layer in block.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return block


@pytest.mark.parametrize("arguments", BLOCKS)
def test_bottleneck_is_the_papers(arguments):
    block = make_block(arguments)
    x = torch.randn(3, arguments[0], 7, 6, dtype=torch.float64)
    expected = reference_bottleneck(dict(block.named_parameters()), x, *arguments[3:])
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("arguments", BLOCKS)
@pytest.mark.parametrize("form", [models.BranchBottleneck, models.ConcatBottleneck])
@pytest.mark.parametrize("training", [True, False])
def test_forms_are_equal(arguments, form, training):
    block = make_block(arguments).train(training)
    block.bn1.eps, block.bn2.momentum = 1e-3, 0.3
    twin = form.from_grouped(block)
    assert twin.training == training
    assert count(twin) == count(block)
    assert len(twin.branches) == arguments[3]
    assert {layer.groups for layer in twin.modules() if isinstance(layer, torch.nn.Conv2d)} == {1}

    x = torch.randn(3, arguments[0], 7, 6, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    expected, result = block(x), twin(y)
    close = {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(result, expected, **close)
    weights = torch.randn_like(expected)
    (expected * weights).sum().backward()
    (result * weights).sum().backward()
    torch.testing.assert_close(y.grad, x.grad, **close)
    gradients = twin.to_grouped_gradients()
    assert gradients.keys() == dict(block.named_parameters()).keys()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, **close)

    state = twin.to_grouped_state_dict()  # with the running statistics after this step
    for name, tensor in block.state_dict().items():
        torch.testing.assert_close(state[name], tensor, **close)
    models.Bottleneck(*arguments).load_state_dict(state, strict=True)


@pytest.mark.parametrize("form", [models.BranchBottleneck, models.ConcatBottleneck])
def test_forms_own_their_tensors(form):
    block = make_block((8, 8, 4, 2, 1))
    before = {name: tensor.clone() for name, tensor in block.state_dict().items()}
    twin = form.from_grouped(block)
    for tensor in [*twin.state_dict().values(), *twin.to_grouped_state_dict().values()]:
        tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in block.state_dict().items())
    with pytest.raises(GroupwiseError, match="has no gradient; call backward"):
        twin.to_grouped_gradients()
    with pytest.raises(GroupwiseError, match="groups=3 must divide"):
        form(8, 8, 4, groups=3)
