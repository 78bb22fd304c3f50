"""Whole networks over several processes, against the same network in one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groupwise.examples.digits import DigitsResNeXt
from groupwise.models.alexnet import LocalResponseNorm
from groupwise.parallel import split
from ranks import ranks

STEPS = 10


class Towers(torch.nn.Module):
    """AlexNet in small: (N, 3, 12, 12) to (N, 5)."""

    def __init__(self, groups=2):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.norm = LocalResponseNorm(groups)
        self.conv2 = torch.nn.Conv2d(8, 12, 3, padding=1, groups=groups)
        self.conv3 = torch.nn.Conv2d(12, 16, 3, padding=1)
        self.conv4 = torch.nn.Conv2d(16, 12, 3, padding=1, groups=groups)
        self.pool = torch.nn.MaxPool2d(3, stride=2)
        self.dropout = torch.nn.Dropout(0.5)
        self.fc5 = torch.nn.Linear(12 * 4, 20)
        self.fc6 = torch.nn.Linear(20, 20)
        self.fc7 = torch.nn.Linear(20, 5)

    def forward(self, x):
        x = self.pool(self.norm(torch.relu(self.conv1(x))))
        x = self.norm(torch.relu(self.conv2(x)))
        x = torch.relu(self.conv4(torch.relu(self.conv3(x))))
        x = self.pool(x).flatten(1)
        x = self.dropout(torch.relu(self.fc5(x)))
        return self.fc7(self.dropout(torch.relu(self.fc6(x))))


class Mobile(torch.nn.Module):
    """An inverted residual with squeeze-and-excitation, and a shuffle that mixes channels."""

    def __init__(self):
        super().__init__()
        self.expand = torch.nn.Conv2d(3, 24, 1)
        self.norm = torch.nn.GroupNorm(8, 24)
        self.depthwise = torch.nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.squeeze = torch.nn.Conv2d(24, 6, 1)
        self.excite = torch.nn.Conv2d(6, 24, 1)
        self.project = torch.nn.Conv2d(24, 9, 1)
        self.alone = torch.nn.Conv2d(9, 6, 3, groups=3)
        self.shuffle = torch.nn.ChannelShuffle(2)
        self.scale = torch.nn.Parameter(torch.ones(6, 1, 1))
        self.fc = torch.nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu6(self.norm(self.expand(x)))
        x = F.silu(self.depthwise(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        x = self.shuffle(self.alone(self.project(x * gate))) * self.scale
        return self.fc(x.mean((2, 3)))


NETWORKS = {
    "resnext": (DigitsResNeXt, (1, 8, 8)),
    "towers": (Towers, (3, 12, 12)),
    "mobile": (Mobile, (3, 7, 5)),
}


def data(name, dtype):
    generator = torch.Generator().manual_seed(1)
    shape = NETWORKS[name][1]
    return [torch.randn(4, *shape, generator=generator).to(dtype) for _ in range(STEPS)]


def learn(model, batches, optimizer):
    """Outputs of ten steps, and the gradients of the first by name."""
    outputs, gradients = [], {}
    torch.manual_seed(7)
    for batch in batches:
        out = model(batch)
        optimizer.zero_grad()
        out.square().mean().backward()
        if not gradients:
            gradients = {name: p.grad for name, p in model.named_parameters()}
            gradients = {name: whole(g).clone() for name, g in gradients.items()}
        optimizer.step()
        outputs.append(out.detach())
    return outputs, gradients


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def make(name, dtype):
    torch.manual_seed(0)
    return NETWORKS[name][0]().to(dtype)


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "adam": lambda p: torch.optim.AdamW(p, lr=1e-3),
}


def on_rank(mesh, name, dtype, optimizer):
    model = make(name, dtype)
    if mesh.get_local_rank():
        # The first rank's values count.
        for parameter in model.parameters():
            torch.nn.init.zeros_(parameter)
    split(model, mesh)
    outputs, gradients = learn(model, data(name, dtype), OPTIMIZERS[optimizer](model.parameters()))
    state = {key: whole(value).detach() for key, value in model.state_dict().items()}
    return outputs, gradients, state


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("dtype", "optimizer"), [(torch.float64, "sgd"), (torch.float32, "adam")])
def test_ten_steps_equal_those_of_one_process(count, name, dtype, optimizer):
    model = make(name, dtype)
    outputs, gradients = learn(model, data(name, dtype), OPTIMIZERS[optimizer](model.parameters()))
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if dtype == torch.float64 else {"rtol": 1e-3, "atol": 2e-4}
    for theirs in ranks.run(count, on_rank, name, dtype, optimizer):
        torch.testing.assert_close(theirs[1], gradients, **tolerance)
        torch.testing.assert_close(theirs[0], outputs, **tolerance)
        torch.testing.assert_close(theirs[2], model.state_dict(), **tolerance)
