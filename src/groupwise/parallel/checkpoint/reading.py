"""Reads a checkpoint as torch.distributed.checkpoint does, except that no pickle in it can call a function.

PyTorch's own reader unpickles the index of a checkpoint, and its planner unpickles values other than tensors: both run
whatever the pickles name.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.futures import Future

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.files import damaged
from groupwise.parallel.checkpoint.kinds import check_kind, kind
from groupwise.parallel.checkpoint.metadata import read_metadata
from groupwise.parallel.checkpoint.pickles import NotAdmittedError, read_value
from groupwise.parallel.checkpoint.together import words


class Reader(FileSystemReader):
    """Reads the files of one checkpoint, and checks their index when it is created."""

    def __init__(self, path: pathlib.Path, files: Mapping[str, int]) -> None:
        super().__init__(path)
        self._folder = path
        self.metadata = read_metadata(path, files)
        # This holds the shape and the dtype of each chunk of a tensor.
        self._chunks = {
            MetadataIndex(name, chunk.offsets): (chunk.sizes, entry.properties.dtype)
            for name, entry in self.metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata)
            for chunk in entry.chunks
        }

    # PyTorch looks for an index of each rank if the last parameter has a certain name; groupwise writes none.
    def read_metadata(self, *arguments: Any, **names: Any) -> Metadata:
        """Returns the index that has been checked."""
        return self.metadata

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Puts what a plan asks for into the model."""
        for item in plan.items:
            value = self._value(item.storage_index)
            if item.type == LoadItemType.BYTE_IO:
                planner.load_bytes(item, value)
            else:
                target = planner.resolve_tensor(item).detach()
                for dim, (start, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                    value = value.narrow(dim, start, length)
                target.copy_(value)
                planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def files_of(self, plan: LoadPlan) -> set[str]:
        """Returns the files that a plan reads."""
        return {self.metadata.storage_data[item.storage_index].relative_path for item in plan.items}

    def check_plan(self, plan: LoadPlan, state: Mapping[str, Any]) -> None:
        """Refuses a checkpoint if one value that a plan reads runs code, or is not of the kind of that in `state`."""
        for item in plan.items:
            name = item.dest_index.fqn
            value = self._value(item.storage_index)
            if item.type == LoadItemType.BYTE_IO:
                check_kind(self._folder, name, state[name], value)
            elif kind(value) != kind(state[name]) or (name.startswith("model.") and value.dtype != state[name].dtype):
                raise damaged(self._folder, f"{name} is a {kind(value)} and the model's is a {kind(state[name])}")

    def check_all(self) -> None:
        """Refuses a checkpoint with a value that `load` would refuse."""
        for index in self.metadata.storage_data:
            self._value(index)

    def _value(self, index: MetadataIndex) -> Any:
        info = self.metadata.storage_data[index]
        chunk = self._chunks.get(index)
        try:
            with (self._folder / info.relative_path).open("rb") as stream:
                file = self._slice_file(stream, info)
                value = read_value(file, **({"map_location": "cpu"} if chunk else {}))
        except NotAdmittedError as error:
            raise GroupwiseError(
                f"checkpoint {self._folder} cannot be read: {index.fqn} is refused: {error}"
            ) from error
        except GroupwiseError as error:
            raise damaged(self._folder, f"{index.fqn} cannot be used, as {error}") from error
        if chunk:
            size, dtype = chunk
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided:
                what = f"of type {type(value).__name__} and no tensor"
            elif (value.shape, value.dtype) != (size, dtype):
                what = f"a tensor of shape {tuple(value.shape)} of {value.dtype}"
            else:
                return value
            raise damaged(
                self._folder,
                f"{index.fqn} is {what}, and the index says that it has shape {tuple(size)} of {dtype}",
            )
        return value


class Planner(DefaultLoadPlanner):
    """Plans a load, and puts values other than tensors into the state."""

    # The reader has read the value already, where PyTorch's gives its bytes.
    def load_bytes(self, read_item: ReadItem, value: Any) -> None:
        """Puts one such value into the state."""
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], value)

    def check(self, path: pathlib.Path, state: dict[str, Any], metadata: Metadata) -> LoadPlan:
        """Refuses an index that does not fit `state`, before any of it is changed; returns this rank's plan."""
        self.set_up_planner(state, metadata)
        for name, value in self.state_dict.items():
            tensor = isinstance(metadata.state_dict_metadata.get(name), TensorStorageMetadata)
            # Only the model is checked: an optimiser may count its steps in a tensor or in a number, and PyTorch
            # accepts either.
            if name.startswith("model.") and isinstance(value, torch.Tensor) and not tensor:
                raise damaged(path, f"its index has no tensor {name}")
        try:
            return self.create_local_plan()
        except Exception as error:
            raise damaged(path, f"its index does not fit the model ({words(error)})") from error


def check_state(state: dict[str, Any]) -> None:
    """Refuses a state with a value that `load` would refuse, before anything is written."""
    planner = DefaultSavePlanner()
    planner.set_up_planner(state)
    for name, value in planner.state_dict.items():
        if not isinstance(value, torch.Tensor):
            buffer = io.BytesIO()
            try:
                torch.save(value, buffer)
                buffer.seek(0)
                read_value(buffer)
            except GroupwiseError as error:
                raise GroupwiseError(f"a checkpoint cannot hold {name}: {error}") from error
            except Exception as error:
                raise GroupwiseError(
                    f"a checkpoint cannot hold {name}: it is of type {type(value).__name__}, which cannot be pickled "
                    f"({words(error)}); leave it out"
                ) from error
