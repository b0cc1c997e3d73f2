"""Image files to RGB uint8 pixels, whatever the file holds."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from retinanet.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_AVIF = importlib.util.find_spec("PIL.AvifImagePlugin") is not None  # Pillow has it from 11.3 on
IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".jpe", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".jp2"),
    *(".ppm", ".pgm", ".pbm"),
    *((".avif",) if _AVIF else ()),
)
MAX_PIXELS = 200_000_000
WHITES = (255, 1023, 4095, 65535)  # of whole numbers of 8, 10, 12 and 16 bits
UNNAMED_BANDS, SAMPLES, EXTRA_SAMPLES = 0, 277, 338  # a value, and tags of TIFF 6.0

# Named, so that no other plugin of Pillow is ever tried: some of them start programs (EPS calls Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP", "GIF", "JPEG2000", "PPM", *(("AVIF",) if _AVIF else ()))
_READABLE = f"JPEG, PNG, TIFF, BMP, WebP, GIF, JPEG 2000{', AVIF' if _AVIF else ''} or PPM"
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDES_SWAPPED = (5, 6, 7, 8)
_log = logging.getLogger(__name__)
_told: set[str] = set()  # warnings that this process has given, by their text


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
    path = Path(path)
    with _opened(path, max_pixels) as image:
        try:
            return picture_array(image)
        except MemoryError:
            raise
        except Image.DecompressionBombError:  # a small image cut into huge tiles
            raise _too_large(path, "what has to be decoded is", max_pixels) from None
        except Exception as error:  # decoders raise anything from OSError to struct.error on damaged data
            raise UserError(
                f"{path}: the image is truncated or damaged ({error}). Replace it, or remove it and its annotations."
            ) from error


def read_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Tensor:
    """What :func:`read_pixels` reads, as a tensor (3, H, W) uint8, contiguous."""
    return _planes(read_pixels(path, max_pixels=max_pixels))


def picture_array(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture of Pillow by the rules of :func:`read_pixels`: upright and in RGB, (H, W, 3) uint8."""
    orientation = _orientation(picture)  # before the pixels are loaded, which may drop it
    colours16 = picture.mode == "RGB" and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    picture.load()
    upright = _stretch_colours(picture) if colours16 else _rgb(picture)
    if orientation in _UPRIGHT:
        upright = upright.transpose(_UPRIGHT[orientation])
    return np.array(upright)


def picture_pixels(picture: Image.Image) -> Tensor:
    """What :func:`picture_array` makes of a picture, as a tensor (3, H, W) uint8, contiguous."""
    return _planes(picture_array(picture))


def _planes(pixels: NDArray[np.uint8]) -> Tensor:
    import torch

    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()  # (H, W, 3) -> (3, H, W)


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from its header alone.

    Raises:
        UserError: the file is missing or not an image.
    """
    with _opened(Path(path), sys.maxsize // 4) as image:  # a header is small whatever the image
        width, height = image.size
        return (width, height) if _orientation(image) in _SIDES_SWAPPED else (height, width)


@contextmanager
def _opened(path: Path, max_pixels: int) -> Iterator[Image.Image]:
    """The image with its header read and its pixel count checked."""
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):  # a pipe waits for its writer
        raise UserError(f"{path}: is a named pipe or a device, an image file was expected. Save the image as a file.")
    with _quiet_pillow(max_pixels):
        try:
            image = Image.open(path, formats=_FORMATS)
        except FileNotFoundError:
            raise UserError(_explain_missing(path)) from None
        except IsADirectoryError:
            raise UserError(f"{path}: is a folder, an image file was expected.") from None
        except UnidentifiedImageError:
            raise UserError(_explain_unreadable(path)) from None
        except MemoryError:
            raise
        except Image.DecompressionBombError:
            raise _too_large(path, "its size is", max_pixels) from None
        except Exception as error:
            raise UserError(f"{path}: cannot be read as an image ({error}). Replace or remove the file.") from error
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_large(path, f"{width} x {height} = {width * height:,} pixels are", max_pixels)
            yield image


def _explain_missing(path: Path) -> str:
    """What to say of an image that is not there."""
    if re.match(r"[a-z][a-z0-9+]+:/", str(path)):  # Path has made one slash of two
        return f"{path}: is an address, and images are not fetched. Download the image and give its file."
    if set("*?[") & set(str(path)):
        return f"{path}: no such image file. Patterns are for the command line; in Python, pass glob.glob(...)."
    return f"{path}: no such image file. Check the path."


def _explain_unreadable(path: Path) -> str:
    """What to say of a file that Pillow does not know; a TIFF file is told what it holds."""
    try:
        with path.open("rb") as file:
            header = file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(header + file.read(8) * (header[2] == 43))  # 43: BigTIFF
            file.seek(tags.next)
            tags.load(file)
        bits, kind, bands = tags.get(258, (1,)), tags.get(339, (1,)), tags.get(SAMPLES, 1)
        numbers = {2: "signed whole numbers", 3: "floats"}.get(kind[0], "whole numbers")
        return (
            f"{path}: is a TIFF file with {bands} band{'s' * (bands != 1)} of {numbers} of {bits[0]} bits, which "
            "cannot be read. Save it as RGB or grey of 8 bits, or as grey of 16 bits or 32-bit floats."
        )
    except Exception:  # no TIFF file
        return f"{path}: is not an image that can be read. Expected {_READABLE}; convert it."


def _too_large(path: Path, what: str, max_pixels: int) -> UserError:
    return UserError(
        f"{path}: {what} over the limit of {max_pixels:,} pixels, so the image was not decoded. "
        "Cut it into tiles, shrink it, or raise max_pixels."
    )


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be applied, 1 (upright) to 8."""
    if image.format == "TIFF":  # Pillow turns TIFF itself
        return 1
    try:
        # The method of the base class: PNG's own would decode the whole image to look for EXIF behind the pixels.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    """The pixels in mode RGB."""
    if image.mode.startswith("I;16"):
        values = np.asarray(image)
        return _grey(values.astype(np.float64) * 255 / find_white(int(values.max())))
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float64)
        return _grey(values / 257 if image.format == "PPM" else _scaled(values, image.mode))
    tags = getattr(image, "tag_v2", {})
    if tags.get(SAMPLES, 1) > 3 and image.mode in ("RGB", "RGBA") and tags.get(EXTRA_SAMPLES, (0,))[0] == UNNAMED_BANDS:
        warn_once("bands beyond the first three, which a TIFF file does not say to be transparency, are left out")
        return image.convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        pixels = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, pixels).convert("RGB")
    return image.convert("RGB")


def find_white(largest: int) -> int:
    """The value that is white where ``largest`` is the largest of a 16-bit image: of 8, 10, 12 or 16 bits."""
    white = next(white for white in WHITES if largest <= white)
    if largest > 0 and white < WHITES[-1]:
        warn_once(
            "16-bit images whose values end below %d are taken for images of %d bits; divide by 257 yourself where "
            "they are dark ones of 16 bits",
            *(white + 1, white.bit_length()),
        )
    return white


def warn_once(message: str, *values: object) -> None:
    """Log a warning that concerns many images once in a process."""
    text = message % values if values else message
    if text not in _told:
        _told.add(text)
        _log.warning("%s", text)


def _stretch_colours(image: Image.Image) -> Image.Image:
    """16-bit colours, of which Pillow keeps the upper eight bits, by the rule for 16-bit grey."""
    rgb = _rgb(image)
    values = np.asarray(rgb)
    white = max(1, find_white((int(values.max()) << 8) + 255) >> 8)
    if white == 255:
        return rgb
    return Image.fromarray((values * (255 / white)).round().astype(np.uint8))


def _scaled(values: np.ndarray, mode: str) -> np.ndarray:
    """32-bit values on 0..255, by the rule in the docstring of ``read_pixels``."""
    finite = values[np.isfinite(values)]
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
    white = next((white for white in ((1, 255) if mode == "F" else WHITES) if high <= white), None)
    if low < 0 or white is None:
        return (values - low) * 255 / (high - low) if high > low else np.zeros_like(values)
    return values * 255 / white


def _grey(values: np.ndarray) -> Image.Image:
    whole = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(whole).convert("RGB")


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
