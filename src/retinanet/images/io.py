"""Image files to RGB uint8 pixels, whatever the file holds."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from retinanet.errors import UserError
from retinanet.images.colours import SAMPLES, SIDES_SWAPPED, picture_array, read_orientation

if TYPE_CHECKING:
    from torch import Tensor

_AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None  # Pillow has it from 11.3 on
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2"),
    *(".ppm", ".pgm", ".pbm"),
    *((".avif",) if _AVIF else ()),
)
MAX_PIXELS = 200_000_000

# Named, so that no other plugin of Pillow is ever tried: some of them start programs (EPS calls Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", *(("AVIF",) if _AVIF else ()))
_READABLE = f"JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG 2000{', AVIF' if _AVIF else ''} or PPM"


def read_pixels(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """The image as a viewer shows it: upright (EXIF orientation applied) and in RGB.

    Grey, 1-bit, palette, CMYK and YCbCr images become RGB. Transparent pixels are laid over white; a fourth band of a
    TIFF file that does not call it transparency is left out. Cameras of 10 or 12 bits write 16-bit files, so white is
    the smallest of 255, 1023, 4095 and 65535 that holds every value of the image; a warning is logged once where it is
    not 65535. (Of 16-bit colours Pillow reads the upper eight bits only.) White of 32-bit images is found likewise, of
    floats it is 1 or 255; where a value is larger or negative, the range of the image is stretched to 0..255. Values
    that are not finite become black. Of several frames the first is read.

    Args:
        path: the image file.
        max_pixels: an image with more pixels is refused before anything is decoded.

    Returns:
        (H, W, 3) uint8.

    Raises:
        UserError: the file is missing, truncated, not an image, or over the limit.
    """
    return _decode(Path(path), path, max_pixels)


def decode_pixels(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """What :func:`read_pixels` reads, from the bytes of a file; ``name`` stands for the file in messages."""
    return _decode(io.BytesIO(content), name, max_pixels)


def _decode(source: Path | BinaryIO, name: str | Path, max_pixels: int) -> NDArray[np.uint8]:
    with _opened(source, name, max_pixels) as image:
        try:
            return picture_array(image)
        except MemoryError:
            raise UserError(f"{name}: its header asks for more memory than there is. Replace the file.") from None
        except Image.DecompressionBombError:  # a small image cut into huge tiles
            raise _too_large(name, "what has to be decoded is", max_pixels) from None
        except Exception as error:  # decoders raise anything from OSError to struct.error on damaged data
            raise UserError(
                f"{name}: the image is truncated or damaged ({error}). Replace it, or remove it and its annotations."
            ) from error


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """What :func:`read_pixels` reads, as a tensor (3, H, W) uint8, contiguous."""
    return to_planes(read_pixels(path, max_pixels=max_pixels))


def to_planes(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) -> (3, H, W), contiguous."""
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def to_array(image: Any) -> NDArray[np.uint8]:
    """Any kind of image -> (H, W, 3) uint8 RGB array; arrays and tensors are not copied.

    Raises:
        UserError: it cannot be read, or is of another shape or type.
    """
    if isinstance(image, str | Path):
        return read_pixels(image)
    if isinstance(image, Image.Image):
        return picture_array(image)
    array = image
    if str(getattr(image, "dtype", "")) == "torch.uint8" and image.ndim == 3 and image.shape[0] == 3:
        array = image.detach().cpu().permute(1, 2, 0).numpy()  # (3, H, W) -> (H, W, 3)
    if not isinstance(array, np.ndarray) or array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        kind = f"{type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))} and {getattr(image, 'dtype', '')}"
        raise UserError(
            "an image is a path, a Pillow image, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8, all RGB; "
            f"got {kind}"
        )
    if 0 in array.shape:
        raise UserError(f"an image has at least one pixel, got shape {tuple(image.shape)}")
    return array


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone.

    Raises:
        UserError: the file is missing or not an image.
    """
    with _opened(Path(path), path, sys.maxsize // 4) as image:  # a header is small whatever the image
        width, height = image.size
        return (width, height) if read_orientation(image) in SIDES_SWAPPED else (height, width)


@contextmanager
def _opened(source: Path | BinaryIO, name: str | Path, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read and its pixel count checked; messages call it ``name``."""
    if isinstance(source, Path) and os.path.exists(source) and not (os.path.isfile(source) or os.path.isdir(source)):
        # a pipe waits for its writer
        raise UserError(f"{name}: is a named pipe or a device, an image file was expected. Save the image as a file.")
    with _quiet_pillow(max_pixels):
        try:
            image = Image.open(source, formats=_FORMATS)
        except FileNotFoundError:
            raise UserError(_explain_missing(Path(name))) from None
        except IsADirectoryError:
            raise UserError(f"{name}: is a folder, an image file was expected.") from None
        except UnidentifiedImageError:
            raise UserError(_explain_unreadable(source, name)) from None
        except MemoryError:
            raise UserError(f"{name}: its header asks for more memory than there is. Replace the file.") from None
        except Image.DecompressionBombError:
            raise _too_large(name, "its size is", max_pixels) from None
        except Exception as error:
            raise UserError(f"{name}: cannot be read as an image ({error}). Replace or remove the file.") from error
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(name, f"{width} x {height} = {width * height:,} pixels are", max_pixels)
            yield image


def _explain_missing(path: Path) -> str:
    """What to say of an image that is not there."""
    if address := re.match(r"([a-z][a-z0-9+.-]+:)/+(.*)", str(path)):  # Path has made one slash of two
        return f"{address[1]}//{address[2]}: is an address; images are not fetched. Download it and give the file."
    if set("*?[") & set(str(path)):
        return f"{path}: no such image file. Patterns are for the command line; in Python, pass glob.glob(...)."
    return f"{path}: no such image file. Check the path."


def _explain_unreadable(source: Path | BinaryIO, name: str | Path) -> str:
    """What to say of a file that Pillow does not know; a TIFF file is told what it holds."""
    try:
        with source.open("rb") if isinstance(source, Path) else source as file:
            file.seek(0)
            header = file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header + file.read(8) * (header[2] == 43))  # 43: BigTIFF
            file.seek(tags.next)
            tags.load(file)
        bits, kind, bands = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(SAMPLES, 1)
        numbers = {2: "signed whole numbers", 3: "floats"}.get(kind[0], "whole numbers")
        return (
            f"{name}: is a TIFF file with {bands} band{'s' * (bands != 1)} of {numbers} of {bits[0]} bits, which "
            "cannot be read. Save it as RGB or grey of 8 bits, or as grey of 16 bits or 32-bit floats."
        )
    except Exception:  # no TIFF file
        return f"{name}: is not an image that can be read. Expected {_READABLE}; convert it."


def _too_large(name: str | Path, what: str, max_pixels: int) -> UserError:
    return UserError(
        f"{name}: {what} over the limit of {max_pixels:,} pixels, so the image was not decoded. "
        "Cut it into tiles, shrink it, or raise max_pixels."
    )


_lock = threading.Lock()
_readers = 0
_before: tuple[int | None, warnings.catch_warnings] = (None, warnings.catch_warnings())


@contextmanager
def _quiet_pillow(max_pixels: int) -> Iterator[None]:
    """Our pixel limit in place of Pillow's, and no warnings of Pillow's, for as long as any thread reads an image.

    Both are global to the process, hence the count: the last reader restores what the first one found.
    """
    global _readers, _before
    with _lock:
        if _readers == 0:
            filters = warnings.catch_warnings()
            filters.__enter__()
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _before = (Image.MAX_IMAGE_PIXELS, filters)
            Image.MAX_IMAGE_PIXELS = max_pixels
        else:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS or 0, max_pixels)
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                Image.MAX_IMAGE_PIXELS = _before[0]
                _before[1].__exit__(None, None, None)
