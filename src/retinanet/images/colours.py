"""The pixels of a picture of Pillow, of whatever kind, to upright RGB."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

WHITES = (255, 1023, 4095, 65535)  # of whole numbers of 8, 10, 12 and 16 bits
UNNAMED_BANDS, SAMPLES, EXTRA_SAMPLES = 0, 277, 338  # a value, and tags of TIFF 6.0
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
SIDES_SWAPPED, _ENDS_FIRST = (5, 6, 7, 8), (3, 4, 6, 7)  # orientations; with the latter the last row comes first
LARGE = 25_000_000  # pixels from which images are decoded one at a time, whatever the number of threads
_STRIP = 2_000_000  # pixels whose colours are converted at once
_log = logging.getLogger(__name__)
_one_at_a_time = threading.Lock()
_told: set[str] = set()  # warnings that this process has given, by their text


def picture_array(picture: Image.Image) -> NDArray[np.uint8]:
    """A picture of Pillow by the rules of :func:`read_pixels`: upright and in RGB, (H, W, 3) uint8.

    Converted strip by strip: beside the decoded picture there is only the array, whatever the kind of its pixels.
    """
    orientation = read_orientation(picture)  # before the pixels are loaded, which may drop it
    colours16 = picture.mode == "RGB" and any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ()))
    width, height = picture.size
    with _one_at_a_time if width * height > LARGE else nullcontext():
        picture.load()
        convert = _find_conversion(picture, colours16)
        swapped = orientation in SIDES_SWAPPED
        upright = np.empty((width, height, 3) if swapped else (height, width, 3), np.uint8)
        for top, strip in _strips(picture):
            bottom = top + strip.height
            rows = slice(height - bottom, height - top) if orientation in _ENDS_FIRST else slice(top, bottom)
            if orientation in _UPRIGHT:
                strip = strip.transpose(_UPRIGHT[orientation])
            upright[(slice(None), rows) if swapped else rows] = convert(strip)
    return upright


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """The first row of each strip, and the strip: all columns, and so many rows that it is small."""
    width, height = picture.size
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        yield top, picture if rows >= height else picture.crop((0, top, width, min(top + rows, height)))


def read_orientation(image: Image.Image) -> int:
    """The EXIF orientation still to be applied, 1 (upright) to 8."""
    if image.format == "TIFF":  # Pillow turns TIFF itself
        return 1
    try:
        # The method of the base class: PNG's own would decode the whole image to look for EXIF behind the pixels.
        return int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the pixels
        return 1


def _find_conversion(image: Image.Image, colours16: bool) -> Callable[[Image.Image], Any]:
    """The function that makes RGB of a strip: (h, w, 3) uint8, or (h, w, 1) for grey."""
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        white = find_white(max(int(np.asarray(strip).max()) for _, strip in _strips(image)))
        grey = (np.arange(white + 1) * 255.0 / white).round().astype(np.uint8)
        return lambda strip: grey[np.asarray(strip)][..., None]
    if image.mode in ("I", "F"):
        black, span = _find_scale(image)
        return lambda strip: _grey((np.asarray(strip).astype(np.float64) - black) * 255 / span)
    if colours16:  # of which Pillow keeps the upper eight bits
        largest = max(high for _, high in image.getextrema())  # type: ignore[misc]  # a pair for each band
        white = max(1, find_white((int(largest) << 8) + 255) >> 8)
        return lambda strip: (np.asarray(strip) * (255 / white)).round().astype(np.uint8)
    if tags.get(SAMPLES, 1) > 3 and image.mode in ("RGB", "RGBA") and tags.get(EXTRA_SAMPLES, (0,))[0] == UNNAMED_BANDS:
        warn_once("bands beyond the first three, which a TIFF file does not say to be transparency, are left out")
    elif image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _lay_over_white
    return lambda strip: np.asarray(strip if strip.mode == "RGB" else strip.convert("RGB"))


def _lay_over_white(strip: Image.Image) -> Any:
    white = Image.new("RGBA", strip.size, "white")
    return np.asarray(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"))


def _find_scale(image: Image.Image) -> tuple[float, float]:
    """The 32-bit value that is black, and how far above it white is, by the rule in ``read_pixels``."""
    if image.format == "PPM":
        return 0.0, 65535.0
    low, high = math.inf, -math.inf
    for _, strip in _strips(image):
        values = np.asarray(strip)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    white = next((white for white in ((1, 255) if image.mode == "F" else WHITES) if high <= white), None)
    if low < 0 or white is None:
        return low, high - low or 1.0
    return 0.0, float(white)


def _grey(values: np.ndarray) -> np.ndarray:
    whole = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return whole.round().clip(0, 255).astype(np.uint8)[..., None]


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
