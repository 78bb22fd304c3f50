"""Checkpoints whose values are not of the kind of the model's and the optimiser's, or that nest too deeply."""

from __future__ import annotations

import contextlib
import io
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import metadata as index
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate

from groupwise.parallel.checkpoint import metadata, pickles
from ranks import ranks
from test_checkpoint_files import made, resum, say
from test_checkpoint_harm import RATE, WEIGHT, Harm, reindex, value_of
from test_checkpoints import refused


@pytest.fixture
def path(tmp_path):
    return made(tmp_path)


LAST = "model.2.weight"


@pytest.mark.parametrize("name", [LAST, "optimizer.state.2.bias.momentum_buffer"])
@pytest.mark.parametrize("where", [0, 4])
def test_a_class_in_the_place_of_a_tensor(path, tmp_path, name, where):
    """Each chunk of a tensor is looked at before any other tensor reaches the model."""
    mark = tmp_path / "mark"
    value_of(path, Harm(str(mark)), name, where)
    text = say(
        path, f"checkpoint {path} cannot be read: {name} is refused: it names ", ".mkdir, which load does not run"
    )
    assert "weights_only" not in text
    assert not mark.exists()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (3, "is of type int and no tensor"),
        (
            torch.ones(2, 2),
            "is a tensor of shape (2, 2) of torch.float32, and the index says that it has shape (4, 2, ",
        ),
        (torch.ones(4, 2, 3, 3).double(), "is a tensor of shape (4, 2, 3, 3) of torch.float64, and the index says"),
        (torch.ones(4, 2, 3, 3).to_sparse(), "_rebuild_sparse_tensor, which load does not run"),
    ],
)
def test_a_tensor_of_another_kind(path, value, words):
    value_of(path, value, LAST, 4)
    say(path, LAST, words)


def dtype(name, value):
    def change(known):
        known.state_dict_metadata[name].properties.dtype = value

    return change


@pytest.mark.parametrize("name", [LAST, "optimizer.state.2.bias.momentum_buffer"])
def test_a_tensor_of_another_dtype_than_the_models(path, name):
    for where in (0, 4):
        shape = (4,) if "bias" in name else (4, 2, 3, 3)
        value_of(path, torch.ones(shape, dtype=torch.complex64), name, where)
    reindex(path, dtype(name, torch.complex64))
    say(path, f"checkpoint {path} is damaged: {name} is a complex tensor and the model's is a floating-point tensor")


class Reduced:
    """Calls something when it is unpickled."""

    def __init__(self, call, *arguments):
        self.reduced = call, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("admitted", [DeviceMesh, DTensor, Replicate])
@pytest.mark.parametrize("name", [RATE, LAST])
def test_what_only_pytorch_admits_does_not_run(path, admitted, name):
    """PyTorch admits these to torch.load(weights_only=True), and a mesh makes process groups."""
    assert admitted in torch.serialization.get_safe_globals()
    value_of(path, Reduced(admitted, "cpu", [0]), name)
    say(path, f"{name} is refused: it names torch.", f".{admitted.__name__}, which load does not run")


def of_dtypes():
    known = {value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    for dtype in sorted(known, key=str):
        # Some have no tensors yet, and tensors of others cannot be saved.
        with contextlib.suppress(Exception):
            tensor = torch.zeros(2, 3, dtype=torch.uint8).view(dtype) if dtype.is_floating_point else torch.zeros(2, 3)
            torch.save(tensor.to(dtype), io.BytesIO())
            yield tensor.to(dtype)


PLAIN = [None, True, 1, -(10**40), 0.5, 1j, "é", b"\xff", bytearray(b"a"), {1}, (1, [2, {"a": None}]), OrderedDict(a=1)]
TORCH = [torch.Size([1, 2]), torch.device("cpu"), torch.float8_e5m2, *of_dtypes()]


@pytest.mark.parametrize("value", [*PLAIN, *TORCH], ids=lambda value: f"{type(value).__name__}-{value!s:.20}")
def test_what_load_reads(value):
    buffer = io.BytesIO()
    torch.save({"in": [value, value]}, buffer)
    buffer.seek(0)
    read = pickles.read_value(buffer)["in"]
    for one in read:
        assert type(one) is type(value)
        if isinstance(value, torch.Tensor):
            assert (one.dtype, one.shape) == (value.dtype, value.shape)
            assert one.untyped_storage().tolist() == value.untyped_storage().tolist()
        else:
            assert one == value


GROUP = "optimizer.param_groups.0."
NAMES = ["0.weight", "0.bias", "2.weight", "2.bias"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("lr", "fast"),
        ("lr", None),
        ("lr", True),
        ("lr", [0.1]),
        ("lr", 1j),
        ("lr", torch.ones(3)),
        ("momentum", "0.9"),
        ("nesterov", 0.5),
        ("foreach", 3),
        ("foreach", torch.ones(2)),
        ("params", 3),
        ("params", None),
        ("params", []),
        ("params", NAMES[:3]),
        ("params", [*NAMES, "other"]),
        ("params", [*NAMES[:3], "other"]),
        ("params", [*NAMES[:3], 4]),
        ("params", [*NAMES, NAMES[0]]),
        ("params", tuple(NAMES)),
    ],
)
def test_a_value_of_another_kind_than_the_optimisers(path, key, value):
    value_of(path, value, GROUP + key)
    say(path, f"checkpoint {path} is damaged: {GROUP}{key} is ", " and the optimiser's is ")


@pytest.mark.parametrize(
    ("key", "value"),
    [("lr", 1), ("lr", torch.tensor(0.5)), ("foreach", True), ("nesterov", True), ("params", NAMES[::-1])],
)
def test_a_value_of_the_same_kind(path, key, value):
    value_of(path, value, GROUP + key)
    assert ranks.run(2, refused, str(path)) == ["loaded"] * 2


def test_a_number_in_the_place_of_a_momentum(path):
    name = "optimizer.state.0.bias.momentum_buffer"

    def change(known):
        known.state_dict_metadata[name] = index.BytesStorageMetadata()
        known.storage_data[index.MetadataIndex(name)] = known.storage_data[index.MetadataIndex(RATE)]

    reindex(path, change)
    own = "a floating-point tensor of shape (8,)"
    say(path, f"checkpoint {path} is damaged: {name} is 0.1 of type float and the optimiser's is {own}")


def chunked(*places):
    """The first weight of (8, 4, 1, 1) with other chunks."""

    def change(known):
        info = known.storage_data[index.MetadataIndex(WEIGHT, torch.Size([0, 0, 0, 0]))]
        known.state_dict_metadata[WEIGHT].chunks = [
            index.ChunkStorageMetadata(torch.Size([*offset, 0, 0]), torch.Size([*size, 1, 1]))
            for offset, size in places
        ]
        for offset, _ in places:
            known.storage_data[index.MetadataIndex(WEIGHT, torch.Size([*offset, 0, 0]))] = info

    return change


@pytest.mark.parametrize(
    "places",
    [
        [((0, 0), (4, 4)), ((0, 0), (4, 4))],
        [((0, 0), (4, 4)), ((2, 0), (4, 4))],
        [((0, 0), (8, 2)), ((0, 1), (8, 2))],
        [((0, 0), (4, 3)), ((4, 0), (4, 3)), ((3, 2), (4, 2))],
        [((0, 0), (8, 4)), ((0, 0), (0, 4)), ((7, 3), (1, 1))],
    ],
)
def test_chunks_that_overlap(path, places):
    reindex(path, chunked(*places))
    say(
        path,
        f"checkpoint {path} is damaged: ",
        "the chunks of model.0.weight are not the whole tensor, each element once",
    )


@pytest.mark.parametrize("seed", range(20))
def test_whether_chunks_overlap(seed):
    """Compares with a count of each element."""
    numbers = np.random.default_rng(seed)
    for _ in range(50):
        count = np.zeros((5, 4, 3), int)
        chunks = []
        for _ in range(numbers.integers(1, 5)):
            offsets = [int(numbers.integers(most)) for most in count.shape]
            sizes = [int(numbers.integers(most - n + 1)) for n, most in zip(offsets, count.shape, strict=True)]
            count[tuple(slice(n, n + size) for n, size in zip(offsets, sizes, strict=True))] += 1
            chunks.append(index.ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)))
        assert metadata._overlap(chunks) == (count.max() > 1)


def test_chunks_of_a_number_overlap():
    chunk = index.ChunkStorageMetadata(torch.Size([]), torch.Size([]))
    assert metadata._overlap([chunk, chunk])
    assert not metadata._overlap([chunk])


def nested(depth):
    """A tuple of a tuple ..., as the key of a dict, whose hash calls itself for each."""
    return b"\x80\x02}" + b")" + b"\x85" * depth + b"K\x01s."


def shared(depth):
    """The same, by way of the memo."""
    steps = b"".join(b"q" + bytes([n]) + b"0h" + bytes([n]) + b"\x85" for n in range(min(depth, 250)))
    return b"\x80\x02})" + steps + b"K\x01s."


def pickled(content):
    """A value as torch.save writes it, but for its pickle."""
    buffer, other = io.BytesIO(), io.BytesIO()
    torch.save(0.1, buffer)
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(other, "w") as new:
        for name in old.namelist():
            new.writestr(name, content if name.endswith("data.pkl") else old.read(name))
    return other.getvalue()


TOO_DEEP = "its values are nested more than 100 deep; resume from an older one"
ODD = [
    (nested(2_000_000), TOO_DEEP),
    (nested(150), TOO_DEEP),
    (b"\x80\x02" + b"]" * 150 + b"a" * 149 + b".", TOO_DEEP),
    (shared(250), "it holds the operation POP, which save never writes"),
    (b"\x80\x02]q\x00h\x00\x85h\x00K\x01a.", "it changes a value that another one holds already"),
    (b"\x80\x02Nr\xff\xff\xff\xff.", "it does not number its values in their order"),
    (b"\x80\x02h\x00.", "it refers to a value that it does not hold"),
    (b"\x80\x02\x85.", "it takes more values than it has"),
    (b"\x80\x02N(\x85.", "it takes more values than it has"),
    (b"\x80\x02t.", "it takes more values than it has"),
]


@pytest.mark.parametrize(("content", "words"), ODD)
def test_a_pickle_that_save_never_writes(path, content, words):
    """A checkpoint must not end the process either."""
    (path / ".metadata").write_bytes(content)
    resum(path)
    say(path, f"checkpoint {path} is damaged: .metadata cannot be used, as ", words)


@pytest.mark.parametrize(("content", "words"), ODD)
@pytest.mark.parametrize("name", [RATE, LAST])
def test_a_value_that_save_never_writes(path, content, words, name):
    value_of(path, pickled(content), name)
    say(path, f"checkpoint {path} is damaged: {name} cannot be used, as ", words)
