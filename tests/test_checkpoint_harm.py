"""Checkpoints that were written to do harm: whatever their pickles name, nothing of it runs."""

from __future__ import annotations

import io
import json
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata as index

from groupwise.parallel import list_checkpoints, load, save, split
from groupwise.parallel.checkpoint.reading import Reader
from ranks import ranks
from test_checkpoint_files import made, resum, say
from test_checkpoints import OTHERS, Unused, small, step, told


@pytest.fixture
def path(tmp_path):
    return made(tmp_path)


class Harm:
    """Makes a folder when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


def named(name):
    """A pickle that is what it names."""
    module, _, rest = name.partition(":")
    parts = [word.encode() for word in (module, rest)]
    return b"\x80\x04" + b"".join(b"\x8c" + bytes([len(part)]) + part for part in parts) + b"\x93."


@pytest.mark.parametrize("protocol", range(6))
def test_an_index_that_would_run_code(path, tmp_path, protocol):
    mark = tmp_path / "mark"
    (path / ".metadata").write_bytes(pickle.dumps(Harm(str(mark)), protocol))
    resum(path)
    say(path, f"{path} is damaged: .metadata cannot be used, as it names ", ".mkdir, which no checkpoint of groupwise")
    assert not mark.exists()


@pytest.mark.parametrize(
    "name",
    [
        "os:system",
        "torch:load",
        "torch:nn",
        "torch:hub.load",
        "torch.distributed.checkpoint.metadata:Metadata.__init__",
        "torch.distributed.checkpoint.metadata:os",
        "groupwise:enable",
        "a\nb:c",
    ],
)
def test_an_index_that_names_something_else(path, name):
    (path / ".metadata").write_bytes(named(name))
    resum(path)
    shown = name.replace(":", ".").replace("\n", "\\n")
    say(path, f".metadata cannot be used, as it names {shown}, which no checkpoint of groupwise holds; resume from")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        bytes(100),
        b"\x80\x04",
        pickle.dumps({}),
        pickle.dumps(index.Metadata({})),
        pickle.dumps(index.Metadata),
        pickle.dumps(index.Metadata(None, storage_data=[])),
        pickle.dumps(index.Metadata({1: index.BytesStorageMetadata()}, storage_data={})),
        # Sets an attribute of a class, if the class is PyTorch's.
        named("torch.distributed.checkpoint.metadata:Metadata")[:-1] + b"N}\x8c\x01aK\x01s\x86b.",
    ],
)
def test_an_index_that_is_none(path, content):
    (path / ".metadata").write_bytes(content)
    resum(path)
    say(path, f"checkpoint {path} is damaged: .metadata ", "; resume from an older one")
    assert not hasattr(index.Metadata, "a")


WEIGHT, RATE = "model.0.weight", "optimizer.param_groups.0.lr"


def reindex(path, change):
    """Changes the index of a checkpoint of ours, and writes down the sums of that."""
    file = path / ".metadata"
    known = pickle.loads(file.read_bytes())
    change(known)
    file.write_bytes(pickle.dumps(known))
    resum(path)


def placed(name, **values):
    def change(known):
        info = next(info for index, info in known.storage_data.items() if index.fqn == name)
        for key, value in values.items():
            setattr(info, key, value)

    return change


def described(name, **values):
    def change(known):
        for key, value in values.items():
            setattr(known.state_dict_metadata[name], key, value)

    return change


def chunk(known):
    return known.state_dict_metadata[WEIGHT].chunks


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (placed(WEIGHT, relative_path="../other"), "it refers to '../other', which is no file of tensors of this"),
        (placed(WEIGHT, relative_path="/etc/passwd"), "it refers to '/etc/passwd', which is no file"),
        (placed(WEIGHT, relative_path=".metadata"), "it refers to '.metadata', which is no file"),
        (placed(WEIGHT, relative_path="groupwise.json"), "it refers to 'groupwise.json', which is no file"),
        (placed(WEIGHT, relative_path=7), "it refers to 7, which is no file"),
        (placed(WEIGHT, offset=-1), "-1 is no size or place"),
        (placed(WEIGHT, offset=True), "True is no size or place"),
        (placed(WEIGHT, length="5"), "'5' is no size or place"),
        (placed(WEIGHT, length=10**6), "it refers to bytes "),
        (placed(RATE, offset=10**6), "it refers to bytes 1000000 to "),
        (placed(WEIGHT, transform_descriptors=["stream.zstd/1"]), "it asks for a transform of the data"),
        (
            described(WEIGHT, size=torch.Size([9, 4, 1, 1])),
            "the chunks of model.0.weight are not the whole tensor, each",
        ),
        (described(WEIGHT, size=torch.Size([7, 4, 1, 1])), "model.0.weight of shape (7, 4, 1, 1) has a chunk (4, 4, 1"),
        (described(WEIGHT, size=(8, 4, 1, 1)), "(8, 4, 1, 1) is no shape"),
        (described(WEIGHT, size=torch.Size([8, 4, -1, -1])), "-1 is no size or place"),
        (described(WEIGHT, properties=None), "model.0.weight has no properties of a tensor"),
        (lambda known: chunk(known).pop(), "the chunks of model.0.weight are not the whole tensor, each"),
        (lambda known: chunk(known).append(3), "3 is no ChunkStorageMetadata"),
        (lambda known: known.storage_data.popitem(), "it does not say where "),
        (lambda known: known.storage_data.clear(), "it does not say where model.0.weight is"),
        (lambda known: known.state_dict_metadata.pop(WEIGHT), "its index has no tensor model.0.weight"),
        (lambda known: known.state_dict_metadata.pop(RATE), "does not fit the model (RuntimeError: Missing key in c"),
    ],
)
def test_an_index_that_is_wrong(path, change, words):
    reindex(path, change)
    say(path, f"checkpoint {path} is damaged: ", words, "; resume from an older one")


def test_a_value_in_the_place_of_a_tensor(path):
    def change(known):
        known.state_dict_metadata[WEIGHT] = index.BytesStorageMetadata()
        known.storage_data[index.MetadataIndex(WEIGHT)] = known.storage_data[index.MetadataIndex(RATE)]

    reindex(path, change)
    say(path, "its index has no tensor model.0.weight")


def value_of(path, value, name=RATE, where=None):
    """Gives a value in a checkpoint of ours, or the chunk of a tensor that begins at a row, another content."""
    if not isinstance(value, bytes):
        buffer = io.BytesIO()
        torch.save(value, buffer)
        value = buffer.getvalue()
    file = path / "__1_0.distcp"
    place = file.stat().st_size
    with file.open("ab") as stream:
        stream.write(value)

    def change(known):
        found = {at: info for at, info in known.storage_data.items() if at.fqn == name}
        at = next(at for at in found if where is None or at.offset[0] == where)
        found[at].relative_path, found[at].offset, found[at].length = file.name, place, len(value)

    reindex(path, change)


def test_a_value_that_would_run_code(path, tmp_path):
    mark = tmp_path / "mark"
    value_of(path, Harm(str(mark)))
    text = say(
        path, f"checkpoint {path} cannot be read: {RATE} is refused: it names ", ".mkdir, which load does not run; "
    )
    assert "admit a class that you trust by torch.serialization.add_safe_globals" in text
    assert "may be in the model" not in text
    assert not mark.exists()


def unchecked(mesh, path):
    """As if a value had been changed after it was looked at."""
    good = Reader.check_plan
    Reader.check_plan = lambda *_: None
    try:
        model = split(small(), mesh)
        return told(load, path, model, OTHERS["stateful"](model), group=mesh.get_group())
    finally:
        Reader.check_plan = good


def test_what_reads_the_values_runs_no_code_either(path, tmp_path):
    mark = tmp_path / "mark"
    value_of(path, Harm(str(mark)))
    for text in ranks.run(2, unchecked, str(path)):
        assert f"{RATE} is refused: it names " in text
        assert text.endswith("because some tensors of this one may be in the model by now")
    assert not mark.exists()


def test_a_value_that_is_none(path):
    file = path / "__1_0.distcp"
    file.write_bytes(bytes(file.stat().st_size))
    resum(path)
    say(path, f"checkpoint {path} is damaged: {RATE} cannot be used, as it is nothing that save writes (RuntimeError)")


def test_a_tensor_that_is_none(path):
    (path / "__0_0.distcp").write_bytes(bytes((path / "__0_0.distcp").stat().st_size))
    resum(path)
    say(path, f"checkpoint {path} is damaged: {WEIGHT} cannot be used, as it is nothing that save writes (RuntimeErr")


def test_no_character_of_a_checkpoint_reaches_the_terminal(path):
    def change(known):
        known.state_dict_metadata["\x1b[31m"] = known.state_dict_metadata.pop(WEIGHT)

    reindex(path, change)
    say(path, r"it does not say where \x1b[31m is")
    facts = path / "groupwise.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | {"model": {"\x1b[2J\x9b\u202e\n": "x\x07"}}))
    resum(path)
    say(path, r"\x1b[2J\x9b\u202e\n is x\x07 there and missing here")


class Counted:
    def __init__(self, seen):
        self.seen = seen

    def __eq__(self, other):
        return type(other) is Counted and self.seen == other.seen

    __hash__ = None


class Odd(Unused):
    """With a state of a class of its own."""

    def get_extra_state(self):
        return {"counted": Counted(self.seen), "beside": [1, "two", (3.0, None), OrderedDict(a=1)]}

    def set_extra_state(self, state):
        assert state["beside"] == [1, "two", (3.0, None), OrderedDict(a=1)]
        self.seen = state["counted"].seen


def odd(mesh, folder, admit):
    model = split(Odd(), mesh)
    optimizer = OTHERS["stateful"](model)
    step(model, optimizer)
    with torch.serialization.safe_globals([Counted] if admit else []):
        text = told(save, folder, 1, model, optimizer, group=mesh.get_group())
        if text != "done":
            return text
        again = split(Odd(), mesh)
        load(list_checkpoints(folder)[-1], again, OTHERS["stateful"](again), group=mesh.get_group())
    return again.seen


def test_a_class_that_nobody_admitted_is_not_written(tmp_path):
    for text in ranks.run(2, odd, str(tmp_path), False):
        assert text.startswith("a checkpoint cannot hold model._extra_state.counted: it names ")
        assert "Counted, which load does not run; use numbers, texts, lists and dicts, or admit a class" in text
    assert not list(tmp_path.iterdir())
    assert ranks.run(2, odd, str(tmp_path), True) == [1, 1]


def odd_rate(mesh, folder, rate):
    model = split(small(), mesh)
    optimizer = OTHERS["stateful"](model)
    optimizer.param_groups[0]["lr"] = {"numpy": np.float64(0.1), "function": lambda: 0.1}[rate]
    return told(save, folder, 1, model, optimizer, group=mesh.get_group())


def test_a_setting_that_would_not_come_back_is_not_written(tmp_path):
    for text in ranks.run(2, odd_rate, str(tmp_path), "numpy"):
        assert text.startswith(f"a checkpoint cannot hold {RATE}: it names numpy")
    for text in ranks.run(2, odd_rate, str(tmp_path), "function"):
        assert text.startswith(f"a checkpoint cannot hold {RATE}: it is of type function, which cannot be pickled (")
    assert not list(tmp_path.iterdir())
