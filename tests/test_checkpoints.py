"""Checkpoints from rank to rank: what comes back, what is refused, and that no rank waits for one that cannot go on."""

from __future__ import annotations

import os
import pathlib

import pytest
import torch
from torch import nn

import warm
from groupwise import GroupwiseError
from groupwise.parallel import checkpoint, list_checkpoints, load, save, split
from ranks import ranks
from test_parallel_split import OPTIMIZERS, data, learn, make, whole

NAME, DTYPE = "resnext", torch.float64


def train(mesh, model, name=NAME, optimizer="adam"):
    optimizer = OPTIMIZERS[optimizer](model.parameters())
    learn(model, data(name, DTYPE)[:3], optimizer)
    return optimizer


def saved(mesh, folder, name):
    model = split(make(name, DTYPE), mesh)
    optimizer = train(mesh, model, name)
    path = save(folder, 3, model, optimizer, group=mesh.get_group(), epoch=1)
    outputs, _ = learn(model, data(name, DTYPE)[3:6], optimizer)
    return str(path), outputs


def loaded(mesh, path, name):
    torch.manual_seed(5)
    model = make(name, DTYPE)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    split(model, mesh)
    optimizer = train(mesh, model, name)
    facts = load(path, model, optimizer, group=mesh.get_group())
    return facts, learn(model, data(name, DTYPE)[3:6], optimizer)[0]


@pytest.mark.parametrize("name", ["resnext", "towers"])
def test_a_checkpoint_of_two_ranks_goes_on_with_any_number(name, tmp_path):
    answers = ranks.run(2, saved, str(tmp_path), name)
    path = answers[0][0]
    assert [str(found) for found in list_checkpoints(tmp_path)] == [path]
    for count in (1, 3, 4):
        for facts, outputs in ranks.run(count, loaded, path, name):
            assert facts == {"step": 3, "epoch": 1}
            torch.testing.assert_close(outputs, answers[0][1], rtol=1e-9, atol=1e-11)


def small():
    return nn.Sequential(nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4))


def step(model, optimizer):
    model(torch.ones(1, 4, 3, 3)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def sgd(model, **settings):
    return torch.optim.SGD(model.parameters(), lr=0.1, **settings)


def scheduled(model):
    optimizer = sgd(model, momentum=0.9)
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    return optimizer


OTHERS = {
    "adam": lambda model: torch.optim.AdamW(model.parameters()),
    "plain": sgd,
    "groups": lambda model: torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1, momentum=0.9),
    "stateful": lambda model: sgd(model, momentum=0.9),
    "scheduled": scheduled,
}


def written(mesh, folder, optimizer="stateful", steps=(1,)):
    model = split(small(), mesh)
    optimizer = OTHERS[optimizer](model)
    paths = []
    for number in steps:
        step(model, optimizer)
        paths.append(str(save(folder, number, model, optimizer, group=mesh.get_group())))
    return paths


def refused(mesh, path, optimizer="stateful", change=None):
    """What `load` says, which leaves the model and the optimiser as they are."""
    torch.manual_seed(1)
    model = small()
    if change:
        model.add_module("more", change())
    split(model, mesh)
    optimizer = OTHERS[optimizer](model)
    before = [whole(value).clone() for value in model.state_dict().values()]
    try:
        load(path, model, optimizer, group=mesh.get_group())
    except GroupwiseError as error:
        assert all(map(torch.equal, map(whole, model.state_dict().values()), before))
        assert not optimizer.state
        return str(error)
    return "loaded"


def told(call, *arguments, **names):
    try:
        call(*arguments, **names)
    except GroupwiseError as error:
        return str(error)
    return "done"


def more():
    return nn.Conv2d(8, 8, 1)


def test_what_is_no_checkpoint_of_this_model(tmp_path):
    path = ranks.run(2, written, str(tmp_path))[0][0]
    folder = pathlib.Path(path)
    for text in ranks.run(2, refused, path, "stateful", more):
        assert text.startswith(f"checkpoint {path} is of another model: more.weight is missing there and (8, 8, 1, 1) ")
    for text in ranks.run(2, refused, str(tmp_path)):
        assert f"{tmp_path} is not a checkpoint of groupwise" in text
    files = [file for file in folder.iterdir() if file.suffix == ".distcp"]
    content = files[0].read_bytes()
    files[0].write_bytes(content[:-100])
    for text in ranks.run(2, refused, path):
        assert f"checkpoint {path} is truncated: {files[0].name} has " in text
    files[0].unlink()
    for text in ranks.run(2, refused, path):
        assert f"{files[0].name} is missing" in text


STATE = "the state of its parameters is {} there and {} here"


@pytest.mark.parametrize(
    ("there", "here", "words"),
    [
        ("plain", "adam", "the optimiser is SGD (param_groups: 1) there and AdamW (param_groups: 1) here ("),
        ("stateful", "adam", "the optimiser is SGD (param_groups: 1) there and AdamW (param_groups: 1) here ("),
        ("adam", "stateful", "the optimiser is AdamW (param_groups: 1) there and SGD (param_groups: 1) here ("),
        ("plain", "stateful", STATE.format("none", "kept")),
        ("stateful", "plain", STATE.format("kept", "none")),
        ("stateful", "scheduled", "initial_lr of param_groups[0] is missing there and set here"),
        ("groups", "stateful", "the optimiser is SGD (param_groups: 4) there and SGD (param_groups: 1)"),
    ],
)
def test_what_is_no_checkpoint_of_this_optimizer(there, here, words, tmp_path):
    path = ranks.run(2, written, str(tmp_path), there)[0][0]
    for text in ranks.run(2, refused, path, here):
        assert text.startswith(f"checkpoint {path} is of another optimiser: {words}")
        assert text.endswith("load it into one made alike, before its first step")


def rescheduled(mesh, path):
    model = split(small(), mesh)
    optimizer = OTHERS["stateful"](model)
    return load(path, model, optimizer, group=mesh.get_group()), "initial_lr" in optimizer.param_groups[0]


def test_what_a_schedule_has_set_is_no_hindrance(tmp_path):
    path = ranks.run(2, written, str(tmp_path), "scheduled")[0][0]
    assert ranks.run(2, rescheduled, path) == [({"step": 1}, False)] * 2


class Unused(nn.Module):
    """With a layer that no input reaches, and a state beside its tensors."""

    def __init__(self):
        super().__init__()
        self.used, self.unused, self.seen = small(), nn.Conv2d(4, 4, 1), 0

    def forward(self, x):
        self.seen += 1
        return self.used(x)

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def resumed_unused(mesh, folder):
    model = split(Unused(), mesh)
    optimizer = OTHERS["stateful"](model)
    step(model, optimizer)
    path = save(folder, 1, model, optimizer, group=mesh.get_group())
    step(model, optimizer)
    again = split(Unused(), mesh)
    other = OTHERS["stateful"](again)
    load(path, again, other, group=mesh.get_group())
    step(again, other)
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    return again.seen, len(other.state), all(torch.equal(whole(one), whole(two)) for one, two in pairs)


def test_what_no_step_has_reached_and_what_is_no_tensor_come_back(tmp_path):
    assert ranks.run(2, resumed_unused, str(tmp_path)) == [(2, 4, True)] * 2


def unstepped(mesh, folder):
    """The first weight after a step, with and without a checkpoint before it."""
    weights = []
    for before in (True, False):
        torch.manual_seed(3)
        model = split(small(), mesh)
        optimizer = OTHERS["adam"](model)
        if before:
            save(folder, 0, model, optimizer, group=mesh.get_group())
        step(model, optimizer)
        weights.append(whole(model[0].weight).detach())
    return torch.equal(*weights)


def test_a_checkpoint_leaves_an_optimizer_as_it_is(tmp_path):
    assert ranks.run(2, unstepped, str(tmp_path)) == [True] * 2


def test_steps_are_in_the_order_in_which_they_were_written(tmp_path):
    ranks.run(1, written, str(tmp_path), "plain", (100, 200, 5))
    names = ["step-00000200", "step-00000005"]
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    # Whatever a copy does to their times.
    os.utime(tmp_path / names[0] / "groupwise.json")
    (tmp_path / "step-00000900").mkdir()
    assert [path.name for path in list_checkpoints(tmp_path)] == names
    ranks.run(1, written, str(tmp_path), "plain", (7,))
    assert [path.name for path in list_checkpoints(tmp_path)] == [names[1], "step-00000007"]
    assert (tmp_path / "step-00000900").is_dir()


def failing(mesh, folder, what):
    """What each rank is told when one of them cannot do its part."""
    from torch.distributed.checkpoint import FileSystemWriter

    def fail(*_):
        raise OSError(28, "No space left on device")

    owner, name, victim = {
        "folder": (checkpoint.saving, "_finish", None),
        "facts": (checkpoint.saving, "_finish", 0),
        "data": (FileSystemWriter, "write_data", 1),
    }[what]
    good = getattr(owner, name)
    if mesh.get_local_rank() == victim:
        setattr(owner, name, fail)
    try:
        return told(written, mesh, folder)
    finally:
        setattr(owner, name, good)


@pytest.mark.parametrize("what", ["folder", "data", "facts"])
def test_each_rank_is_told_that_one_cannot_write(what, tmp_path):
    folder = tmp_path / "file" if what == "folder" else tmp_path
    (tmp_path / "file").touch()
    reason = "FileExistsError: [Errno 17] File" if what == "folder" else "OSError: [Errno 28] No space left on device;"
    for text in ranks.run(2, failing, str(folder), what):
        assert text.startswith(f"checkpoint {folder / 'step-00000001'} cannot be written: {reason}")
    lock = set() if what == "folder" else {"groupwise.lock"}
    assert {path.name for path in tmp_path.iterdir()} == {"file"} | lock


def unseen(mesh, path):
    """Rank 1 does not see what the others see."""
    return refused(mesh, path if mesh.get_local_rank() == 0 else "nowhere")


def test_each_rank_is_told_that_one_cannot_read(tmp_path):
    path = ranks.run(2, written, str(tmp_path))[0][0]
    first, second = ranks.run(2, unseen, path)
    assert first == second
    assert first.startswith("nowhere is not a checkpoint of groupwise")


def wrapped(mesh, folder):
    """What a model in DistributedDataParallel wrote, in a plain one."""
    model = nn.parallel.DistributedDataParallel(small(), process_group=mesh.get_group())
    optimizer = OTHERS["stateful"](model)
    step(model, optimizer)
    path = save(folder, 1, model, optimizer, group=mesh.get_group())
    plain = small()
    load(path, plain, OTHERS["stateful"](plain), group=mesh.get_group())
    return all(map(torch.equal, model.parameters(), plain.parameters()))


def test_a_model_in_data_parallel_has_the_names_of_the_plain_one(tmp_path):
    assert ranks.run(2, wrapped, str(tmp_path)) == [True] * 2


def taken(mesh, folder):
    """What `save` says of a split model that DistributedDataParallel holds: before, and after a forward."""
    model = split(small(), mesh["groups"])
    early = sgd(model)
    parallel = nn.parallel.DistributedDataParallel(model, device_mesh=mesh["data"])
    late = sgd(parallel)
    texts = [told(save, folder, 1, parallel, late)]
    step(parallel, late)
    return [*texts, told(save, folder, 1, parallel, late), told(save, folder, 1, model, early)]


def test_data_parallel_of_a_split_model_is_refused(tmp_path):
    for texts in ranks.run((2, 2), taken, str(tmp_path)):
        for text in texts:
            assert text.startswith("DistributedDataParallel(device_mesh=...) has taken the parameters out of the split")
            assert "use torch.distributed.fsdp.fully_shard instead" in text
    assert not list(tmp_path.iterdir())


def sharded(mesh, folder):
    """A step of a split model in `fully_shard`, its checkpoint, and what another step gives."""
    from torch.distributed.fsdp import fully_shard

    model = fully_shard(split(small(), mesh["groups"]), mesh=mesh["data"])
    optimizer = OTHERS["adam"](model)
    step(model, optimizer)
    path = save(folder, 1, model, optimizer)
    step(model, optimizer)
    return str(path), [whole(parameter).detach() for parameter in model.parameters()]


def unsharded(mesh, path):
    torch.manual_seed(4)
    model = split(small(), mesh)
    optimizer = OTHERS["adam"](model)
    load(path, model, optimizer, group=mesh.get_group())
    step(model, optimizer)
    return [whole(parameter).detach() for parameter in model.parameters()]


def test_a_checkpoint_of_a_sharded_split_goes_on_without_shards(tmp_path):
    path, expected = ranks.run((2, 2), sharded, str(tmp_path))[0]
    for count in (1, 2):
        for parameters in ranks.run(count, unsharded, path):
            torch.testing.assert_close(parameters, expected)


def early_optimizer(mesh, folder):
    model = small()
    optimizer = sgd(model)
    split(model, mesh)
    return told(save, folder, 1, model, optimizer)


def test_an_optimizer_of_other_parameters_is_refused(tmp_path):
    for text in ranks.run(2, early_optimizer, str(tmp_path)):
        assert text.startswith("4 of the optimiser's 4 parameters are not in the model, such as one of shape (")


def test_the_example_alone_says_how_it_is_started():
    script = pathlib.Path(__file__).parent.parent / "examples" / "split_and_move.py"
    status, _, err = warm.Process(script).finish()
    words = "torchrun starts the ranks: torchrun --nproc-per-node 2 examples/split_and_move.py\n"
    assert (status, err) == (1, words)


def odd_fact(mesh, folder):
    model = small()
    optimizer = sgd(model)
    with pytest.raises(GroupwiseError, match=r"loss of type Tensor is no JSON value .*such as tensor\.item\(\)"):
        save(folder, 1, model, optimizer, group=mesh.get_group(), epoch=3, loss=torch.ones(()))
    return list_checkpoints(folder)


def test_a_fact_that_is_no_json_value(tmp_path):
    assert ranks.run(1, odd_fact, str(tmp_path)) == [[]]
