"""Windows of an image that may be far larger than memory."""

from __future__ import annotations

import importlib.util
import os
import threading
import warnings
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, Jpeg2KImagePlugin, TiffImagePlugin

from retinanet.errors import UserError
from retinanet.images.colours import EXTRA_SAMPLES, UNNAMED_BANDS, WHITES, find_white, picture_array
from retinanet.images.io import MAX_PIXELS, image_size, read_pixels

BLOCK_SUFFIXES = {".tif": "GTiff", ".tiff": "GTiff", ".jp2": "JP2OpenJPEG"}
CACHE = 64  # MB of decoded blocks that GDAL keeps; by default it takes 5 % of the memory
OVERVIEW_WINDOW = 1024**2  # pixels read at once for an overview
_PHOTOMETRIC, _BITS, _ORIENTATION, _SUBSAMPLING = 262, 258, 274, 530  # tags of TIFF 6.0
_MIN_IS_BLACK, _RGB, _PALETTE, _YCBCR = 1, 2, 3, 6
_BANDS = {"L": 1, "P": 1, "I;16": 1, "I;16B": 1, "LA": 2, "RGB": 3, "RGBX": 3, "RGBA": 4, "RGBa": 4}
_opening = threading.Lock()


class ImageWindows:
    """An image of which rectangles are read, in the colours of :func:`retinanet.images.io.read_pixels`.

    TIFF and JPEG 2000 files are read block by block where rasterio is installed, so that memory does not grow with the
    image, and without a limit on its pixels. Everything else is decoded once and held as bytes; windows are views of
    it then. So are files of a kind whose colours need the whole image (32-bit values) or that GDAL would show in other
    colours (CMYK, fewer than 8 bits, a rotation in the header, halved chroma of JPEG inside TIFF).

    Args:
        image: a path, a picture of Pillow, or an array (H, W, 3) uint8 RGB.

    Raises:
        UserError: it cannot be read, or only as a whole and is too large for that.
    """

    def __init__(self, image: str | Path | Image.Image | NDArray[np.uint8]) -> None:
        self._blocks: _Blocks | None = None
        if isinstance(image, str | Path):
            self._blocks = _open_blocks(Path(image))
            pixels = None if self._blocks else _whole(Path(image))
        else:
            pixels = picture_array(image) if isinstance(image, Image.Image) else image
        self._pixels: NDArray[np.uint8] = np.zeros((0, 0, 3), np.uint8) if pixels is None else pixels
        if self._blocks is None and (self._pixels.dtype != np.uint8 or self._pixels.shape[2:] != (3,)):
            raise UserError(f"expected an array (H, W, 3) uint8, got {self._pixels.shape} {self._pixels.dtype}")
        self.size: tuple[int, int] = self._blocks.size if self._blocks else self._pixels.shape[:2]
        """(height, width)."""

    def __enter__(self) -> ImageWindows:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._blocks:
            self._blocks.close()

    @property
    def whole(self) -> bool:
        """Whether the whole image is in memory."""
        return self._blocks is None

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[np.uint8]:
        """Rows ``y0`` to ``y1`` and columns ``x0`` to ``x1`` (both exclusive) of the image; any thread may call it.

        Returns:
            (y1 - y0, x1 - x0, 3) uint8 RGB.

        Raises:
            UserError: the file is damaged there.
        """
        assert 0 <= y0 < y1 <= self.size[0] and 0 <= x0 < x1 <= self.size[1], (y0, x0, y1, x1, self.size)
        return self._blocks.read(y0, x0, y1, x1) if self._blocks else self._pixels[y0:y1, x0:x1]

    def rows_at_once(self, factor: int) -> tuple[int, int]:
        """(height, width) of windows for a pass over the image, multiples of ``factor`` where smaller than the image.

        Files stored in strips are read in whole rows, so that no strip is decoded twice.
        """
        height, width = self.size
        striped = self._blocks is not None and self._blocks.striped
        columns = width if striped else min(width, max(1, int(OVERVIEW_WINDOW**0.5) // factor) * factor)
        return min(height, max(1, OVERVIEW_WINDOW // columns // factor) * factor), columns


def overview(windows: ImageWindows, longest: int = 4096) -> tuple[NDArray[np.uint8], int]:
    """A reduced picture of a whole image, the mean of every square of ``factor`` x ``factor`` pixels.

    Args:
        windows: the image; one part of it after the other is in memory.
        longest: most pixels of the longer side of the picture.

    Returns:
        (h, w, 3) uint8, and the factor: pixel (y, x) of the image lies at (y / factor, x / factor) in the picture.
    """
    height, width = windows.size
    factor = -(-max(height, width) // longest)
    picture = np.empty((-(-height // factor), -(-width // factor), 3), np.uint8)
    tall, wide = windows.rows_at_once(factor)
    for y, x in product(range(0, height, tall), range(0, width, wide)):
        part = windows.read(y, x, min(y + tall, height), min(x + wide, width))
        rows, columns = np.arange(0, part.shape[0], factor), np.arange(0, part.shape[1], factor)
        sums = np.add.reduceat(part, rows, axis=0, dtype=np.uint32)
        sums = np.add.reduceat(sums, columns, axis=1)  # (h', w', 3)
        heights, widths = np.diff(rows, append=part.shape[0]), np.diff(columns, append=part.shape[1])  # the last: less
        counts = (heights[:, None] * widths[None, :])[:, :, None]
        means = (2 * sums + counts) // (2 * counts)  # rounded
        picture[y // factor : y // factor + len(rows), x // factor : x // factor + len(columns)] = means
    return picture, factor


def _whole(path: Path) -> NDArray[np.uint8]:
    """The image decoded at once; one that is too large for that is told the way out."""
    height, width = image_size(path)
    if height * width <= MAX_PIXELS:
        return read_pixels(path)
    what = f"{path}: {width} x {height} pixels are more than are decoded at once ({MAX_PIXELS:,})"
    if path.suffix.lower() not in BLOCK_SUFFIXES:
        raise UserError(f"{what}, and only TIFF and JPEG 2000 can be read in parts. Convert it to a tiled TIFF")
    if importlib.util.find_spec("rasterio") is None:
        raise UserError(f'{what}. To read it in parts: pip install "retinanet[tiles]"')
    raise UserError(f"{what}, and the colours of its kind need that. Convert it to a tiled TIFF of 8-bit RGB")


class _Blocks:
    """A file that GDAL reads by windows."""

    def __init__(self, path: Path, dataset: Any, mode: str, header: Image.Image | None) -> None:
        self.path, self._dataset, self._mode = path, dataset, mode
        self._palette = header.palette if header is not None and mode == "P" else None
        self._lock = threading.Lock()  # a dataset is for one thread at a time
        self.size = (int(dataset.height), int(dataset.width))
        self.striped = dataset.block_shapes[0][1] >= dataset.width
        self._white: int | None = None  # of 16-bit values, found when it is needed

    def close(self) -> None:
        self._dataset.close()

    def read(self, y0: int, x0: int, y1: int, x1: int) -> NDArray[np.uint8]:
        import rasterio

        bands = list(range(1, _BANDS[self._mode] + 1))
        try:
            with self._lock, _environment():
                planes = self._dataset.read(bands, window=((y0, y1), (x0, x1)))  # (bands, h, w)
                if planes.dtype == np.uint16 and self._mode in ("I;16", "RGB") and self._white is None:
                    self._white = self._find_white(bands)
        except rasterio.errors.RasterioError as error:
            reason = error.__cause__ or error
            raise UserError(f"{self.path}: the image is truncated or damaged ({reason}). Replace it.") from error
        if self._mode == "I;16":
            grey = (planes[0].astype(np.float64) * 255 / self._white).round().astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if planes.dtype == np.uint16:
            planes = (planes >> 8).astype(np.uint8)  # as Pillow reads 16-bit colours
            if self._white is not None:
                planes = (planes * (255 / max(1, self._white >> 8))).round().astype(np.uint8)
        if self._mode == "RGB":
            return np.ascontiguousarray(planes.transpose(1, 2, 0))
        pixels = np.ascontiguousarray(planes.transpose(1, 2, 0)) if len(bands) > 1 else planes[0]
        kind = "RGBA" if self._mode == "RGBa" else self._mode
        picture = Image.frombuffer(kind, (x1 - x0, y1 - y0), pixels.tobytes(), "raw", self._mode, 0, 1)
        if self._palette is not None:
            picture.putpalette(self._palette)
        return picture_array(picture)

    def _find_white(self, bands: list[int]) -> int:
        """White of the whole image; looking ends at the first value that takes 16 bits."""
        largest = 0
        for _, window in self._dataset.block_windows(1):
            largest = max(largest, int(self._dataset.read(bands, window=window).max()))
            if largest > WHITES[-2]:
                break
        return find_white(largest)


def _open_blocks(path: Path) -> _Blocks | None:
    """The file opened for reading by windows; None where that is not possible in the same colours."""
    driver = BLOCK_SUFFIXES.get(path.suffix.lower())
    if driver is None or not path.is_file() or importlib.util.find_spec("rasterio") is None:
        return None
    import rasterio

    with _opening, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # no coordinates on earth; tags of odd lengths
        header = _header(path)
        try:
            with _environment():
                dataset = rasterio.open(os.path.abspath(path), driver=driver)
        except rasterio.errors.RasterioIOError:
            return None  # decoding it at once tells what is wrong with it
    mode = _mode(dataset, header)
    if mode is None:
        dataset.close()
        return None
    return _Blocks(path, dataset, mode, header)


def _environment() -> Any:
    """GDAL with a small cache, and without a look at the files next to an image."""
    import rasterio

    return rasterio.Env(GDAL_CACHEMAX=CACHE, GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR")


def _header(path: Path) -> Image.Image | None:
    """What Pillow knows of a file before decoding; not through ``Image.open``, which limits the pixels."""
    kind = Jpeg2KImagePlugin.Jpeg2KImageFile if path.suffix.lower() == ".jp2" else TiffImagePlugin.TiffImageFile
    try:
        with kind(path) as header:
            return header
    except Exception:  # it raises anything on damaged files and on bands that it does not know
        return None


def _mode(dataset: Any, header: Image.Image | None) -> str | None:
    """The mode of Pillow that the values GDAL reads are in; None where they would mean other colours."""
    kinds = set(dataset.dtypes)
    if header is None:  # such as five bands; Pillow cannot read it, so there is no rule but RGB
        colours = [colour.name for colour in dataset.colorinterp[:3]]
        return "RGB" if kinds == {"uint8"} and colours == ["red", "green", "blue"] else None
    if header.size != (dataset.width, dataset.height) or dataset.count < _BANDS.get(header.mode, 99):
        return None
    if not isinstance(header, TiffImagePlugin.TiffImageFile):
        return header.mode if kinds == {"uint8"} and header.mode in ("L", "LA", "RGB", "RGBA") else None
    tags = header.tag_v2
    bits, photometric = set(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC)
    if tags.get(_ORIENTATION, 1) != 1 or bits not in ({8}, {16}) or kinds != {f"uint{max(bits)}"}:
        return None
    if photometric == _YCBCR:  # GDAL smooths the halved chroma, Pillow repeats it: windows only where Pillow gives up
        exact = tuple(tags.get(_SUBSAMPLING, (2, 2))) == (1, 1) or dataset.width * dataset.height > MAX_PIXELS
        return "RGB" if exact and header.mode == "RGB" else None
    known = {"RGB": _RGB, "RGBA": _RGB, "RGBX": _RGB, "P": _PALETTE}
    if known.get(header.mode, _MIN_IS_BLACK) != photometric:
        return None
    if header.mode == "RGBA":
        kind = tags.get(EXTRA_SAMPLES, (UNNAMED_BANDS,))[0]
        return {UNNAMED_BANDS: "RGB", 1: "RGBa"}.get(kind, "RGBA")  # 1: colours are multiplied by alpha already
    return {"RGBX": "RGB", "I;16B": "I;16"}.get(header.mode, header.mode)
