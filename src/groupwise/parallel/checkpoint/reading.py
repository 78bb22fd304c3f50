"""Reads a checkpoint as torch.distributed.checkpoint does, except that no pickle in it can call a function.

PyTorch's own reader unpickles the index of a checkpoint, and its planner unpickles values other than tensors: both run
whatever the pickles name.
"""

from __future__ import annotations

import contextlib
import io
import pathlib
from collections.abc import Mapping
from typing import Any

import torch
from torch.distributed.checkpoint._traverse import set_element
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.files import damaged
from groupwise.parallel.checkpoint.metadata import read_metadata
from groupwise.parallel.checkpoint.together import words


class Reader(FileSystemReader):
    """Reads the files of one checkpoint, and checks their index when it is created."""

    def __init__(self, path: pathlib.Path, files: Mapping[str, int]) -> None:
        super().__init__(path)
        self.metadata = read_metadata(path, files)

    # PyTorch looks for an index of each rank if the last parameter has a certain name; groupwise writes none.
    def read_metadata(self, *arguments: Any, **names: Any) -> Metadata:
        """Returns the index that has been checked."""
        return self.metadata

    def check_values(self, path: pathlib.Path) -> None:
        """Refuses a checkpoint with a value that runs code, before any value is used."""
        for name, entry in self.metadata.state_dict_metadata.items():
            if isinstance(entry, BytesStorageMetadata):
                info = self.metadata.storage_data[MetadataIndex(name)]
                with (path / info.relative_path).open("rb") as file:
                    file.seek(info.offset)
                    content = file.read(info.length)
                if what := _problem(content):
                    raise GroupwiseError(f"checkpoint {path} cannot be read: {name} {what}")


class Planner(DefaultLoadPlanner):
    """Loads values other than tensors as `torch.load(weights_only=True)` does."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        """Puts one such value into the state."""
        set_element(self.original_state_dict, self.mappings[read_item.dest_index.fqn], _read(value))

    def check(self, path: pathlib.Path, state: dict[str, Any], metadata: Metadata) -> None:
        """Refuses an index that does not fit `state`, before any of it is changed."""
        self.set_up_planner(state, metadata)
        for name, value in self.state_dict.items():
            tensor = isinstance(metadata.state_dict_metadata.get(name), TensorStorageMetadata)
            # Only the model is checked: an optimiser may count its steps in a tensor or in a number, and PyTorch
            # accepts either.
            if name.startswith("model.") and isinstance(value, torch.Tensor) and not tensor:
                raise damaged(path, f"its index has no tensor {name}")
        try:
            self.create_local_plan()
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
                what = _problem(buffer.getvalue())
            except Exception as error:
                what = f"is of type {type(value).__name__}, which cannot be pickled ({words(error)}); leave it out"
            if what:
                raise GroupwiseError(f"a checkpoint cannot hold {name}: it {what}")


def _read(buffer: io.BytesIO) -> Any:
    return torch.load(buffer, weights_only=True)


def _problem(content: bytes) -> str | None:
    """Says why a value cannot be read without running code; None if it can."""
    try:
        _read(io.BytesIO(content))
    except Exception as error:
        unsafe: list[str] = []
        with contextlib.suppress(Exception):
            unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(content))
        if not unsafe:
            return f"is no value that torch.load(weights_only=True) reads ({words(error)})"
        return (
            f"names {', '.join(sorted(unsafe))}, which load does not run; use numbers, texts, lists and dicts, or "
            "admit a class that you trust by torch.serialization.add_safe_globals before save and load"
        )
    return None
