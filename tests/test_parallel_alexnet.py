"""AlexNet itself in training, its towers on two ranks as in 2012, against the whole of it in one process."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from groupwise.models import alexnet
from groupwise.parallel import split
from ranks import ranks
from test_parallel_split import whole


def train(mesh, dtype, steps):
    """The losses, and on the first rank the parameters before and after."""
    torch.manual_seed(0)
    model = alexnet().to(dtype)
    alone, first = mesh is None, mesh is None or mesh.get_local_rank() == 0
    before = {name: p.detach().clone() for name, p in model.named_parameters()} if alone else {}
    if not alone:
        split(model, mesh)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
    generator = torch.Generator().manual_seed(1)
    torch.manual_seed(7)
    losses = []
    for _ in range(steps):
        pictures = torch.randn(2, 3, 224, 224, generator=generator).to(dtype)
        loss = F.cross_entropy(model(pictures), torch.randint(1000, (2,), generator=generator))
        # Memory for gradients of 61 million parameters is dear: keep it.
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Each rank takes part in putting them together.
    after = {name: whole(p).detach() for name, p in model.named_parameters()}
    return losses, before, after if first else {}


# `fraction` bounds the differences by each tensor's largest change. The layers of 2012 begin with biases of 1 over
# weights of 0.01, so that float32 rounds off much of what differs from place to place: one process pools other maxima
# in float32 than in float64, and its weights end up to 0.06 of their change apart. Two ranks are as near to it (0.03),
# and how near the losses are depends on the order of sums in the machine's kernels. In float64 the differences are
# 4e-12, so that a mistake of the split would show there.
@pytest.mark.parametrize(("dtype", "steps", "fraction"), [(torch.float32, 10, 0.1), (torch.float64, 2, 1e-9)])
def test_steps_on_two_ranks_are_those_of_one_process(dtype, steps, fraction):
    losses, before, after = train(None, dtype, steps)
    (theirs, _, state), (others, _, _) = ranks.run(2, train, dtype, steps)
    assert theirs == others
    assert theirs == pytest.approx(losses, rel=1e-3 if dtype == torch.float32 else 1e-13)
    assert set(state) == set(after)
    for name, expected in after.items():
        change = (expected - before[name]).abs().max()
        assert (state[name] - expected).abs().max() <= fraction * change, name
