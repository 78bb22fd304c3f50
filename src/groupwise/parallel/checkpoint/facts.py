"""Reads and lists checkpoints by their groupwise.json, whose schema it checks: a stranger may have written it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import re
import reprlib
from dataclasses import dataclass
from typing import Any

from groupwise.errors import MAX_EXTENT, GroupwiseError
from groupwise.parallel.checkpoint.files import PLAIN, SUMS, check_sum, damaged, read_file, read_sums

FACTS = "groupwise.json"
METADATA = ".metadata"
_NAME = re.compile(r"step-\d+")
_MOST = 2**63 - 1


@dataclass(frozen=True)
class Facts:
    """Holds what is known about a checkpoint before its tensors are read."""

    step: int
    # `order` numbers the checkpoints of a folder: a copy of a file need not keep its time.
    order: int
    facts: dict[str, Any]
    # These describe in words the shape and dtype of each tensor, and what the optimiser keeps.
    model: dict[str, str]
    optimizer: dict[str, str]
    # These hold the size and the SHA-256 of each file; the sums include groupwise.json.
    files: dict[str, int]
    sums: dict[str, str]


def list_checkpoints(folder: str | pathlib.Path) -> list[pathlib.Path]:
    """Returns the checkpoints in `folder` in the order in which they were written, the newest last."""
    return list(orders(pathlib.Path(folder)))


def orders(folder: pathlib.Path) -> dict[pathlib.Path, int]:
    """Returns the checkpoints in `folder`, the newest last, each with its number."""
    found = {}
    for path in sorted(folder.glob("step-*")):
        # Others are skipped: a checkpoint being written or removed has another name, and a partial copy lacks files.
        if _NAME.fullmatch(path.name):
            with contextlib.suppress(GroupwiseError):
                found[path] = read_facts(path).order
    return dict(sorted(found.items(), key=lambda item: item[1]))


def read_facts(path: pathlib.Path) -> Facts:
    """Reads groupwise.json. Raises one `GroupwiseError` for whatever is wrong with it."""
    try:
        content = read_file(path / FACTS)
    except (OSError, ValueError) as error:
        raise _foreign(path, f"{error}") from error
    sums = read_sums(path)
    if FACTS not in sums:
        raise damaged(path, f"{SUMS} does not list {FACTS}")
    check_sum(path, FACTS, hashlib.sha256(content).hexdigest(), sums[FACTS])
    try:
        facts = _checked(json.loads(content.decode("utf-8")), sums)
    except RecursionError as error:
        raise _foreign(path, "its values are nested too deeply") from error
    except ValueError as error:
        raise _foreign(path, f"{error}") from error
    if {*facts.files, FACTS} != {*sums}:
        name = min({*facts.files, FACTS} ^ {*sums})
        raise damaged(path, f"only one of {SUMS} and {FACTS} lists {name}")
    return facts


def _foreign(path: pathlib.Path, what: str) -> GroupwiseError:
    return GroupwiseError(
        f"{path} is not a checkpoint of groupwise: {FACTS} in it cannot be read ({what}); give the path that "
        "groupwise.parallel.save gave, or one of list_checkpoints(folder)"
    )


def _checked(content: object, sums: dict[str, str]) -> Facts:
    """Returns `content` if it is what `save` writes. Raises a `ValueError` that names the wrong key otherwise."""
    known = _object("the whole", content)
    for key in ("step", "order", "facts", "model", "optimizer", "files"):
        if key not in known:
            raise ValueError(f"it has no key {key!r}")
    files = _object("files", known["files"])
    for name, size in files.items():
        if not PLAIN.fullmatch(name) or name in (".", "..", FACTS, SUMS):
            raise ValueError(f"files names {reprlib.repr(name)}, which is not the plain name of a file of a checkpoint")
        _number(f"files[{name!r}]", size, _MOST)
    if METADATA not in files:
        raise ValueError(f"files does not name {METADATA}")
    return Facts(
        _number("step", known["step"], MAX_EXTENT),
        _number("order", known["order"], _MOST),
        _object("facts", known["facts"]),
        _texts("model", known["model"]),
        _texts("optimizer", known["optimizer"]),
        files,
        sums,
    )


def _number(key: str, value: object, most: int) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError(f"{key} is {reprlib.repr(value)} and not a whole number from 0 to {most}")
    return value


def _object(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{key} is {reprlib.repr(value)} and not an object")
    return value


def _texts(key: str, value: object) -> dict[str, str]:
    texts = _object(key, value)
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ValueError(f"{key}[{reprlib.repr(name)}] is {reprlib.repr(text)} and not a text")
    return texts
