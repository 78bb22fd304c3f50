"""Layers of `torch.nn`: convolutions that explain their groups, and batch normalisations with an activation.

`init` initialises by the true fans of the groups.
"""

from groupwise.nn import functional as functional
from groupwise.nn import init as init
from groupwise.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from groupwise.nn.norm import BatchNormAct1d, BatchNormAct2d, BatchNormAct3d

__all__ = [
    "BatchNormAct1d",
    "BatchNormAct2d",
    "BatchNormAct3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "functional",
    "init",
]
