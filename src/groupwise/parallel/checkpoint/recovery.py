"""Finds what killed writers left in a folder, and gives a checkpoint that is whole its name back."""

from __future__ import annotations

import contextlib
import pathlib
import re

from groupwise.errors import GroupwiseError
from groupwise.parallel.checkpoint.facts import orders, read_facts
from groupwise.parallel.checkpoint.files import check_sizes, check_sums

# A folder that is being written or removed has such a name, which begins with the name of the checkpoint.
PART = re.compile(r"(step-\d+)(\.[0-9a-f]{8})?\.part")
# `save` keeps so many checkpoints; what is older than these was being removed.
_KEPT = 2


def parts_in(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the folders in `folder` that writers have begun to write or to remove."""
    found = sorted(folder.glob("step-*"))
    return [path for path in found if PART.fullmatch(path.name) and path.is_dir() and not path.is_symlink()]


def recover(folder: pathlib.Path) -> None:
    """Gives whole checkpoints their names back, whose writer was killed while it replaced one of the same step.

    Only the holder of the lock calls it. At such a time neither the new nor the old one has its name.
    """
    whole = {}
    for part in parts_in(folder):
        with contextlib.suppress(GroupwiseError, OSError):
            facts = read_facts(part)
            check_sizes(part, facts.files)
            whole[part] = facts
    for part, facts in sorted(whole.items(), key=lambda item: -item[1].order):
        target = part.with_name(part.name.partition(".")[0])
        newer = [path for path, order in orders(folder).items() if order > facts.order and not path.is_symlink()]
        if len(newer) < _KEPT and not target.exists() and not target.is_symlink():
            with contextlib.suppress(GroupwiseError, OSError):
                check_sums(part, facts.sums, sorted(facts.files))
                part.rename(target)
