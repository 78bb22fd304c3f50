"""Saves and loads split models by `torch.distributed.checkpoint`, on any number of ranks and then on any other."""

from __future__ import annotations

from groupwise.parallel.checkpoint.facts import list_checkpoints
from groupwise.parallel.checkpoint.loading import load
from groupwise.parallel.checkpoint.lock import claim, release
from groupwise.parallel.checkpoint.saving import save
from groupwise.parallel.checkpoint.together import AlikeError, alike

__all__ = ["AlikeError", "alike", "claim", "list_checkpoints", "load", "release", "save"]
