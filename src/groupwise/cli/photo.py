"""A photograph as the input of a network: of any size, mode and orientation, with one clear error for anything else."""

from __future__ import annotations

import io
import pathlib
import warnings
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from groupwise.errors import GroupwiseError

if TYPE_CHECKING:
    from PIL import Image

# This is just under Pillow's own limit. The largest camera sensors have about 150 million pixels.
MAX_PIXELS = 178_000_000
# The mean and standard deviation of ImageNet's training set, by which published networks expect their input normalised.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# The usual test crop takes 224 pixels out of 256.
_CROP = 224 / 256


def read_photo(path: str | pathlib.Path) -> Image.Image:
    """Returns the photograph in a file, upright and in RGB. It needs the extra `groupwise[report]`.

    It rotates the image by its EXIF tag, converts grey, palette, CMYK and 16-bit images to RGB, puts transparent ones
    on white, and takes the first frame of an animation.

    Raises `GroupwiseError` for a file that is missing, not an image, broken, truncated, or over 178 million pixels.
    """
    try:
        from PIL import Image, ImageOps, UnidentifiedImageError
    except ImportError:
        raise GroupwiseError('photographs need Pillow; install it with: pip install "groupwise[report]"') from None
    target = pathlib.Path(path)
    too_large = f"{target} is too large; at most {MAX_PIXELS:,} pixels are read; scale it down"
    if target.is_dir():
        raise GroupwiseError(f"{target} is a folder; give the path of a photograph")
    # A pipe blocks until someone writes to it, and a device may never end.
    if target.exists() and not target.is_file():
        raise GroupwiseError(f"{target} is a pipe, a device or a socket; give the path of a photograph in a file")
    try:
        # Pillow warns about large images by limits of its own; ours is checked before it decodes anything.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(target) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise GroupwiseError(too_large)
                return _to_rgb(ImageOps.exif_transpose(image))
    except GroupwiseError:
        raise
    except FileNotFoundError:
        raise GroupwiseError(f"{target} does not exist; give the path of a photograph") from None
    except PermissionError:
        raise GroupwiseError(f"{target} cannot be read; its permissions forbid it") from None
    except UnidentifiedImageError:
        raise GroupwiseError(f"{target} is not an image, or of a kind Pillow does not know; try JPEG or PNG") from None
    except Image.DecompressionBombError:
        raise GroupwiseError(too_large) from None
    except Exception as error:
        # Decoders raise many errors on damaged files (OSError, SyntaxError, struct.error, ...); all of them mean this.
        raise GroupwiseError(f"{target} is broken or truncated and cannot be decoded: {error}") from None


def as_input(image: Image.Image, size: tuple[int, int] = (224, 224)) -> torch.Tensor:
    """Returns an RGB image as float32 of shape (1, 3, *size), where `size` is (height, width).

    The image is center-cropped, resized and normalised by the mean and deviation of ImageNet.
    """
    from PIL import Image

    pixels = image.resize(size[::-1], Image.Resampling.BICUBIC, box=_middle(image, size))
    values = (np.asarray(pixels, dtype=np.float32) / 255 - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


def thumbnail(image: Image.Image, most: int = 320) -> bytes:
    """Returns an RGB image as a JPEG of at most `most` pixels a side."""
    small = image.copy()
    small.thumbnail((most, most))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


def _middle(image: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns the central box with the aspect ratio of `size`, to crop before resizing: long strips stay cheap."""
    scale = min(image.width / size[1], image.height / size[0])
    if min(size) * scale > 2:
        scale *= _CROP
    width, height = size[1] * scale, size[0] * scale
    left, top = (image.width - width) / 2, (image.height - height) / 2
    return (left, top, left + width, top + height)


def _to_rgb(image: Image.Image) -> Image.Image:
    from PIL import Image, ImageCms

    if image.mode.startswith(("I", "F")):
        most = 65535.0 if image.mode.startswith("I;16") else None
        image = Image.fromarray(_to_8_bits(np.asarray(image, dtype=np.float64), most))
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB") or image
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _to_8_bits(values: npt.NDArray[np.float64], top: float | None) -> npt.NDArray[np.uint8]:
    """Returns greys scaled to 8 bits, where Pillow would clip them at 255.

    `top` is the value of white. Where the mode does not define it, the smallest usual range that holds the image does.
    """
    values = np.nan_to_num(values)
    top = top or next((usual for usual in (1.0, 255.0, 65535.0) if values.max() <= usual), float(values.max()))
    return np.asarray((np.clip(values / top, 0, 1) * 255).round(), dtype=np.uint8)
