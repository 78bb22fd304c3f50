from __future__ import annotations

import io
import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from groupwise import GroupwiseError
from groupwise.cli import photo

MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
STD = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def colours(tensor):
    """Back to RGB in 0..1."""
    return tensor[0] * STD + MEAN


def saved(image, path, **options):
    image.save(path, **options)
    return path


def quarters(width=64, height=48):
    """Red and green above, blue and white below."""
    image = Image.new("RGB", (width, height), (255, 0, 0))
    image.paste((0, 255, 0), (width // 2, 0, width, height))
    image.paste((0, 0, 255), (0, height // 2, width // 2, height))
    image.paste((255, 255, 255), (width // 2, height // 2, width, height))
    return image


def corners(tensor):
    shown = colours(tensor)
    spots = [(10, 10), (10, -10), (-10, 10), (-10, -10)]
    return [[round(float(v)) for v in shown[:, y, x]] for y, x in spots]


RED, GREEN, BLUE, WHITE = [1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 1]


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (500, 2), (2, 500), (1, 1), (3000, 2000), (20000, 3)])
def test_any_size(tmp_path, size):
    path = saved(quarters(*size), tmp_path / "a.png")
    tensor = photo.as_input(photo.read_photo(path))
    assert tensor.shape == (1, 3, 224, 224)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert torch.isfinite(tensor).all()
    if min(size) > 2:
        assert corners(tensor) == [RED, GREEN, BLUE, WHITE]


def test_other_input_sizes(tmp_path):
    image = photo.read_photo(saved(quarters(), tmp_path / "a.png"))
    assert photo.as_input(image, (32, 96)).shape == (1, 3, 32, 96)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path, orientation):
    """However the sensor was held, the picture comes out upright."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quarters() if orientation == 1 else quarters().transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(stored, tmp_path / "a.jpg", exif=exif, quality=95)
    assert corners(photo.as_input(photo.read_photo(path))) == [RED, GREEN, BLUE, WHITE]


# Modes that no file brings are tried without one.
MODES = {"L": "png", "1": "png", "LA": "png", "RGBA": "png", "P": "gif", "CMYK": "jpg", "YCbCr": "jpg", "I": "tif"}
MODES |= {"F": "tif", "I;16": "png", "RGB": "webp", "HSV": None, "PA": None}


@pytest.mark.parametrize(("mode", "suffix"), [*MODES.items(), ("CMYK", "tif")])
def test_any_mode(tmp_path, mode, suffix):
    grey = Image.fromarray(np.full((40, 40), 128, np.uint8))
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 40), 128 * 257, np.uint16))
    elif mode == "PA":
        image = grey.convert("P").convert("PA")
    else:
        image = grey.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "HSV", "P") else grey.convert(mode)
    converted = photo.read_photo(saved(image, tmp_path / f"a.{suffix}")) if suffix else photo._to_rgb(image)
    shown = colours(photo.as_input(converted))
    # Two modes have too few colours for the grey and mix it from others.
    shown = shown.mean((1, 2)) if mode in ("1", "P") else shown
    assert shown.numpy() == pytest.approx(128 / 255, abs=0.02)


def test_lab():
    lab = ImageCms.profileToProfile(
        quarters(), ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    assert corners(photo.as_input(photo._to_rgb(lab))) == [RED, GREEN, BLUE, WHITE]


def test_dark_16_bit_stays_dark(tmp_path):
    path = saved(Image.fromarray(np.full((9, 9), 514, np.uint16)), tmp_path / "a.png")
    assert colours(photo.as_input(photo.read_photo(path))).numpy() == pytest.approx(2 / 255, abs=1e-3)


@pytest.mark.parametrize(("white", "grey"), [(1.0, 0.5), (255.0, 127.5), (65535.0, 32767.5), (1e6, 5e5)])
def test_float_greys_by_their_range(white, grey):
    values = np.full((9, 9), grey, np.float32)
    values[0, 0] = white
    assert photo._to_rgb(Image.fromarray(values)).getpixel((5, 5)) == pytest.approx((127.5,) * 3, abs=1)


def test_the_middle_seven_eighths_are_kept_smoothly():
    """A ramp over 256 columns: the crop takes 16 off each side, and bicubic scaling by 1 keeps each value."""
    ramp = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None], 256, 0)).convert("RGB")
    shown = colours(photo.as_input(ramp)) * 255
    assert shown[0, 100].numpy() == pytest.approx(np.arange(16, 240), abs=0.01)
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (256, 128))).convert("RGB")
    halved = colours(photo.as_input(stripes, (112, 112)))
    assert halved[1, 50, 5:-5].numpy() == pytest.approx(0.5, abs=0.01)


def test_transparency_is_white(tmp_path):
    path = saved(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), tmp_path / "a.png")
    assert colours(photo.as_input(photo.read_photo(path))).numpy() == pytest.approx(1.0, abs=0.01)
    palette = Image.new("P", (9, 9), 3)
    palette.putpalette([0, 0, 0] * 8)
    path = saved(palette, tmp_path / "b.png", transparency=3)
    assert colours(photo.as_input(photo.read_photo(path))).numpy() == pytest.approx(1.0, abs=0.01)


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")]
    path = tmp_path / "a.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert corners(photo.as_input(photo.read_photo(path)))[0] == RED


def jpeg():
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()


def png():
    buffer = io.BytesIO()
    quarters(300, 300).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not an image"),
        (b"hello", "is not an image"),
        (jpeg()[:5000], "is broken or truncated"),
        (png()[:200], "is broken or truncated"),
        (png()[:60] + b"\0" * 30 + png()[90:], "is broken or truncated"),
    ],
)
def test_what_is_no_photograph(tmp_path, content, message):
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    with pytest.raises(GroupwiseError) as caught:
        photo.read_photo(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_and_folder(tmp_path):
    with pytest.raises(GroupwiseError, match="does not exist"):
        photo.read_photo(tmp_path / "none.jpg")
    with pytest.raises(GroupwiseError, match="is a folder"):
        photo.read_photo(tmp_path)


@pytest.mark.parametrize("side", [13_400, 20_000])
def test_huge_is_refused_before_decoding(tmp_path, side):
    """Both above our limit, and one above Pillow's own."""
    path = saved(Image.new("1", (side, side)), tmp_path / "a.png")
    with pytest.raises(GroupwiseError, match=r"is too large; at most 178,000,000 pixels are read"):
        photo.read_photo(path)


def test_thumbnail(tmp_path):
    small = Image.open(io.BytesIO(photo.thumbnail(quarters(1000, 500))))
    assert (small.format, small.size) == ("JPEG", (320, 160))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", ["pipe", "/dev/zero"])
def test_what_is_no_file_is_refused_and_not_waited_for(name, tmp_path):
    path = tmp_path / name
    if name == "pipe":
        os.mkfifo(path)
    with pytest.raises(GroupwiseError, match="is a pipe, a device or a socket; give the path of a photograph"):
        photo.read_photo(path)
