"""Reads the index that torch.distributed.checkpoint writes as a pickle, and runs nothing that the pickle names."""

from __future__ import annotations

import io
import itertools
import math
import pathlib
import pickle
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.facts import METADATA
from groupwise.parallel.checkpoint.files import damaged, read_file
from groupwise.parallel.checkpoint.pickles import look_through
from groupwise.spec.legible import legible

_PLACE = "torch.distributed.checkpoint.metadata"
_MOST = 2**63 - 1


class _StandIn:
    """Replaces whatever the pickle names: it keeps its arguments, and does nothing with them."""

    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> _StandIn:
        self = super().__new__(cls)
        self.arguments, self.state = arguments, None
        return self

    def __init__(self, *arguments: Any) -> None:
        pass

    # Without this a pickle could set attributes of the class, which every later checkpoint would see.
    def __setstate__(self, state: Any) -> None:
        self.state = state


# These are all names in a checkpoint of torch 2.10 and later, except dtypes. Python's versions write an enum and a path
# in several ways.
_STAND_INS: dict[tuple[str, str], type[_StandIn]] = {
    (module, name): type(name, (_StandIn,), {})
    for module, names in {
        _PLACE: (
            "Metadata TensorStorageMetadata BytesStorageMetadata ChunkStorageMetadata TensorProperties MetadataIndex "
            "StorageMeta _MEM_FORMAT_ENCODING"
        ),
        "torch.distributed.checkpoint.filesystem": "_StorageInfo",
        "torch": "Size",
        "torch.serialization": "_get_layout",
        "builtins": "getattr",
        "pathlib": "PosixPath WindowsPath",
        "pathlib._local": "PosixPath WindowsPath",
    }.items()
    for name in names.split()
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if stand_in := _STAND_INS.get((module, name)):
            return stand_in
        # `vars` finds only what is loaded; getattr would import what PyTorch loads on demand.
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        raise GroupwiseError(f"it names {legible(f'{module}.{name}'):.100}, which no checkpoint of groupwise holds")


def read_metadata(path: pathlib.Path, files: Mapping[str, int]) -> Metadata:
    """Reads the index of a checkpoint, and refuses one that does not describe the tensors in `files`."""
    try:
        content = read_file(path / METADATA)
        unpickler = _Unpickler(io.BytesIO(content))
        look_through(content, unpickler.find_class)
        return _metadata(unpickler.load(), files)
    except GroupwiseError as error:
        raise damaged(path, f"{METADATA} cannot be used, as {error}") from error
    except Exception as error:
        # A stranger's pickle may raise anything.
        raise damaged(path, f"{METADATA} is no index of a checkpoint ({type(error).__name__}: {error})") from error


def _metadata(root: object, files: Mapping[str, int]) -> Metadata:
    """Builds the index anew from the stand-ins, and checks each value."""
    fields = _fields("Metadata", root)
    storage = {
        _index(key): _info(info, files) for key, info in _mapping("storage_data", fields["storage_data"]).items()
    }
    entries: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    for name, entry in _mapping("state_dict_metadata", fields["state_dict_metadata"]).items():
        _text("a key", name)
        if isinstance(entry, _STAND_INS[_PLACE, "BytesStorageMetadata"]):
            entries[name] = BytesStorageMetadata()
            needed = [MetadataIndex(name)]
        else:
            entries[name] = tensor = _tensor(name, entry)
            needed = [MetadataIndex(name, chunk.offsets) for chunk in tensor.chunks]
        if not all(index in storage for index in needed):
            raise GroupwiseError(f"it does not say where {name} is")
    return Metadata(state_dict_metadata=entries, storage_data=storage, storage_meta=StorageMeta())


def _tensor(name: str, entry: object) -> TensorStorageMetadata:
    fields = _fields("TensorStorageMetadata", entry)
    properties = fields["properties"]
    if not isinstance(properties, _STAND_INS[_PLACE, "TensorProperties"]) or not isinstance(properties.state, tuple):
        raise GroupwiseError(f"{name} has no properties of a tensor")
    dtype, size = properties.state[0], _size(fields["size"])
    if not isinstance(dtype, torch.dtype):
        raise GroupwiseError(f"the dtype of {name} is {reprlib.repr(dtype)}")
    chunks = []
    for chunk in fields["chunks"]:
        place = _fields("ChunkStorageMetadata", chunk)
        offsets, sizes = _size(place["offsets"]), _size(place["sizes"])
        inside = len(offsets) == len(sizes) == len(size)
        if not inside or any(a + n > most for a, n, most in zip(offsets, sizes, size, strict=True)):
            raise GroupwiseError(f"{name} of shape {tuple(size)} has a chunk {tuple(sizes)} at {tuple(offsets)}")
        chunks.append(ChunkStorageMetadata(offsets, sizes))
    # Elements that no chunk covers would silently keep the model's values.
    if sum(math.prod(chunk.sizes) for chunk in chunks) != math.prod(size) or _overlap(chunks):
        raise GroupwiseError(f"the chunks of {name} are not the whole tensor, each element once")
    return TensorStorageMetadata(TensorProperties(dtype=dtype), size, chunks)


def _overlap(chunks: Sequence[ChunkStorageMetadata]) -> bool:
    """Says whether two chunks of a tensor have an element in common."""
    boxes = [list(zip(chunk.offsets, chunk.sizes, strict=True)) for chunk in chunks if math.prod(chunk.sizes)]
    dims = range(len(boxes[0]) if boxes else 0)
    # Along the dimension with the most different offsets each chunk has the fewest others beside it.
    along = max(dims, key=lambda dim: len({box[dim][0] for box in boxes}), default=None)
    if along is None:
        return len(boxes) > 1
    boxes.sort(key=lambda box: box[along][0])
    for number, box in enumerate(boxes):
        for other in itertools.islice(boxes, number + 1, None):
            if other[along][0] >= sum(box[along]):
                break
            if all(a < b + n and b < a + m for (a, m), (b, n) in zip(box, other, strict=True)):
                return True
    return False


def _info(value: object, files: Mapping[str, int]) -> _StorageInfo:
    fields = _fields("_StorageInfo", value)
    file, offset, length = fields["relative_path"], _number(fields["offset"]), _number(fields["length"])
    if fields.get("transform_descriptors"):
        raise GroupwiseError("it asks for a transform of the data, which groupwise never writes")
    # A path could lead out of the checkpoint, to a file that was not checked.
    if not isinstance(file, str) or file not in files or file == METADATA:
        raise GroupwiseError(f"it refers to {reprlib.repr(file)}, which is no file of tensors of this checkpoint")
    if offset + length > files[file]:
        raise GroupwiseError(f"it refers to bytes {offset} to {offset + length} of {file}, which has {files[file]}")
    return _StorageInfo(file, offset, length)


def _index(value: object) -> MetadataIndex:
    fields = _fields("MetadataIndex", value)
    offset, index = fields.get("offset"), fields.get("index")
    return MetadataIndex(
        _text("a name", fields["fqn"]),
        None if offset is None else _size(offset),
        None if index is None else _number(index),
    )


def _fields(name: str, value: object) -> dict[str, Any]:
    place = _PLACE if (_PLACE, name) in _STAND_INS else "torch.distributed.checkpoint.filesystem"
    if not isinstance(value, _STAND_INS[place, name]) or not isinstance(value.state, dict):
        raise GroupwiseError(f"{reprlib.repr(value)} is no {name}")
    return value.state


def _size(value: object) -> torch.Size:
    if not isinstance(value, _STAND_INS["torch", "Size"]) or not isinstance(value.arguments[0], tuple):
        raise GroupwiseError(f"{reprlib.repr(value)} is no shape")
    return torch.Size([_number(number) for number in value.arguments[0]])


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= _MOST:
        raise GroupwiseError(f"{reprlib.repr(value)} is no size or place")
    return value


def _mapping(name: str, value: object) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise GroupwiseError(f"{name} is {reprlib.repr(value)} and not a dict")
    return value


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise GroupwiseError(f"{reprlib.repr(value)} is {name} and not a text")
    return value
