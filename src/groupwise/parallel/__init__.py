"""The groups of a network over the ranks of a `torch.distributed` mesh, as AlexNet's two towers lay on two GPUs."""

from __future__ import annotations

from groupwise.parallel.channelwise import ChannelwiseParallel, KeepWhole
from groupwise.parallel.checkpoint import list_checkpoints, load, save
from groupwise.parallel.share import Share
from groupwise.parallel.splitting import Choice, SplitPlan, plan_split, split
from groupwise.parallel.styles import ChannelParallel, GroupParallel, SumParallel
from groupwise.parallel.traffic import Crossing, traffic

__all__ = [
    "ChannelParallel",
    "ChannelwiseParallel",
    "Choice",
    "Crossing",
    "GroupParallel",
    "KeepWhole",
    "Share",
    "SplitPlan",
    "SumParallel",
    "list_checkpoints",
    "load",
    "plan_split",
    "save",
    "split",
    "traffic",
]
