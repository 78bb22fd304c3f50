"""Splits the groups of a network over the ranks of a `torch.distributed` mesh, as AlexNet used two GPUs."""

from __future__ import annotations

from groupwise.parallel.checkpoint import list_checkpoints, load, save
from groupwise.parallel.planning.plan import Choice, SplitPlan, plan_split
from groupwise.parallel.planning.prediction import Link, Machine, Prediction, predict
from groupwise.parallel.planning.splitting import split
from groupwise.parallel.runtime.traffic import Collectives, traffic
from groupwise.parallel.styles.channelwise import ChannelwiseParallel, KeepWhole
from groupwise.parallel.styles.dense import ColwiseParallel, RowwiseParallel
from groupwise.parallel.styles.group import GroupParallel
from groupwise.spec.collectives import Collective
from groupwise.spec.partition import Partition

__all__ = [
    "ChannelwiseParallel",
    "Choice",
    "Collective",
    "Collectives",
    "ColwiseParallel",
    "GroupParallel",
    "KeepWhole",
    "Link",
    "Machine",
    "Partition",
    "Prediction",
    "RowwiseParallel",
    "SplitPlan",
    "list_checkpoints",
    "load",
    "plan_split",
    "predict",
    "save",
    "split",
    "traffic",
]
