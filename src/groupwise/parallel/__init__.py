"""The groups of a network over the ranks of a `torch.distributed` mesh, as AlexNet's two towers lay on two GPUs."""

from __future__ import annotations

from groupwise.parallel.channelwise import ChannelwiseParallel, KeepWhole
from groupwise.parallel.checkpoint import list_checkpoints, load, save
from groupwise.parallel.crossing import Crossing
from groupwise.parallel.prediction import Link, Machine, Prediction, predict
from groupwise.parallel.splitting import Choice, SplitPlan, plan_split, split
from groupwise.parallel.styles import ChannelParallel, GroupParallel, SumParallel
from groupwise.parallel.traffic import traffic
from groupwise.spec.partition import Share

__all__ = [
    "ChannelParallel",
    "ChannelwiseParallel",
    "Choice",
    "Crossing",
    "GroupParallel",
    "KeepWhole",
    "Link",
    "Machine",
    "Prediction",
    "Share",
    "SplitPlan",
    "SumParallel",
    "list_checkpoints",
    "load",
    "plan_split",
    "predict",
    "save",
    "split",
    "traffic",
]
