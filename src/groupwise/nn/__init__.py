"""The convolution layers of `torch.nn`, which explain their groups here, and initialisation by their true fans."""

from groupwise.nn import init as init
from groupwise.nn.conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d

__all__ = ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "init"]
