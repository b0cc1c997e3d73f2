"""Windows of images: the same colours as the image read at once, and memory that does not grow with it."""

import builtins
import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from retinanet.errors import UserError
from retinanet.images import windows as module
from retinanet.images.io import read_pixels
from retinanet.images.windows import ImageWindows, overview

HEIGHT, WIDTH = 150, 210
DICE = np.random.default_rng(0)
SMOOTH = np.add.outer(np.arange(HEIGHT), np.arange(WIDTH)) % 256
PLANES = np.stack([SMOOTH, SMOOTH[::-1], 255 - SMOOTH, SMOOTH[:, ::-1], SMOOTH]).astype(np.uint8)  # (5, H, W)
NOISY = (PLANES + DICE.integers(0, 60, PLANES.shape)).astype(np.uint8)
TILED = {"tiled": True, "blockxsize": 64, "blockysize": 32}
WINDOWS = [(0, 0, HEIGHT, WIDTH), (0, 0, 1, 1), (31, 63, 33, 65), (10, 20, 100, 190), (149, 209, 150, 210)]


def write(path, planes, **profile):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        count, height, width = planes.shape
        kind = {"driver": "GTiff", "dtype": planes.dtype, "count": count, "height": height, "width": width}
        with rasterio.open(path, "w", **kind, **profile) as file:
            file.write(planes)
    return path


def same_as_at_once(path, *, by_blocks=True):
    wanted = read_pixels(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ImageWindows(path) as windows:
            assert windows.whole != by_blocks and windows.size == wanted.shape[:2]
            for y0, x0, y1, x1 in WINDOWS:
                found = windows.read(y0, x0, y1, x1)
                assert found.dtype == np.uint8 and (found == wanted[y0:y1, x0:x1]).all()


@pytest.mark.parametrize("layout", [{}, TILED], ids=["strips", "tiles"])
@pytest.mark.parametrize(
    "packing",
    [
        {},
        {"compress": "deflate"},
        {"compress": "deflate", "predictor": 2},
        {"compress": "lzw"},
        {"compress": "packbits"},
        {"compress": "deflate", "bigtiff": "YES"},
        {"compress": "deflate", "interleave": "band"},
    ],
    ids=str,
)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_colours_of_tiff(tmp_path, layout, packing, count):
    same_as_at_once(write(tmp_path / "a.tif", NOISY[:count], **layout, **packing))


@pytest.mark.parametrize("layout", [{}, {**TILED, "blockxsize": 64, "blockysize": 64}], ids=["strips", "tiles"])
@pytest.mark.parametrize("count", [1, 3])
def test_colours_of_jpeg_inside_tiff(tmp_path, layout, count):
    same_as_at_once(write(tmp_path / "a.tif", PLANES[:count], compress="jpeg", **layout))


def test_halved_chroma_is_read_at_once_until_it_is_too_large(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", PLANES[:3], compress="jpeg", photometric="ycbcr")
    same_as_at_once(path, by_blocks=False)
    wanted = read_pixels(path).astype(int)
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    with ImageWindows(path) as windows:
        assert not windows.whole
        assert np.abs(windows.read(0, 0, HEIGHT, WIDTH) - wanted).mean() < 2  # the same picture, chroma smoothed


@pytest.mark.parametrize("alpha", ["unspecified", "yes", "premultiplied"])
def test_a_fourth_band(tmp_path, alpha):
    same_as_at_once(write(tmp_path / "a.tif", NOISY[:4], photometric="rgb", alpha=alpha, **TILED))


@pytest.mark.parametrize("packing", [{}, {"compress": "deflate", **TILED}, {"endianness": "big"}], ids=str)
@pytest.mark.parametrize("count", [1, 3, 4])
def test_sixteen_bits(tmp_path, packing, count):
    values = NOISY[:count].astype(np.uint16) * 257 - (NOISY[:count] > 0) * DICE.integers(0, 200, PLANES[0].shape)
    photometric = "rgb" if count > 1 else "minisblack"
    same_as_at_once(write(tmp_path / "a.tif", values.astype(np.uint16), photometric=photometric, **packing))


@pytest.mark.parametrize("compression", [None, "tiff_deflate"])
@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA"])
def test_modes_that_pillow_writes(tmp_path, mode, compression):
    picture = Image.fromarray(np.ascontiguousarray(NOISY[:4].transpose(1, 2, 0)), "RGBA")
    picture = picture.convert("RGB").quantize(100) if mode == "P" else picture.convert(mode)
    picture.save(tmp_path / "a.tif", compression=compression)
    same_as_at_once(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["1", "CMYK", "I", "F"])
def test_modes_that_need_the_whole_image(tmp_path, mode):
    picture = Image.fromarray(NOISY[0])
    picture = Image.fromarray(NOISY[0].astype(np.float32) / 300) if mode == "F" else picture.convert(mode)
    picture.save(tmp_path / "a.tif")
    same_as_at_once(tmp_path / "a.tif", by_blocks=False)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_rotated_tiff(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    square = np.ascontiguousarray(NOISY[:3, :, :HEIGHT].transpose(1, 2, 0))
    Image.fromarray(square).save(tmp_path / "a.tif", exif=exif)
    with ImageWindows(tmp_path / "a.tif") as windows:
        assert windows.whole == (orientation != 1)
        assert (windows.read(3, 5, 90, 120) == read_pixels(tmp_path / "a.tif")[3:90, 5:120]).all()


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_jpeg_2000(tmp_path, mode):
    picture = Image.fromarray(np.ascontiguousarray(NOISY[:4].transpose(1, 2, 0)), "RGBA").convert(mode)
    picture.save(tmp_path / "a.jp2", tile_size=(64, 64))
    same_as_at_once(tmp_path / "a.jp2")


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.bmp"])
def test_other_formats_are_read_at_once(tmp_path, name):
    Image.fromarray(np.ascontiguousarray(NOISY[:3].transpose(1, 2, 0))).save(tmp_path / name)
    same_as_at_once(tmp_path / name, by_blocks=False)


def test_arrays_and_pictures_are_views():
    array = np.ascontiguousarray(NOISY[:3].transpose(1, 2, 0))
    for image in (array, Image.fromarray(array)):
        with ImageWindows(image) as windows:
            assert windows.size == (HEIGHT, WIDTH) and windows.whole
            window = windows.read(5, 6, 70, 80)
            assert (window == array[5:70, 6:80]).all() and np.shares_memory(window, windows.read(0, 0, HEIGHT, WIDTH))
    for wrong in (NOISY, array[..., 0], array.astype(float)):
        with pytest.raises(UserError, match=r"expected an array \(H, W, 3\) uint8"):
            ImageWindows(wrong)


def test_five_bands_named_red_green_blue(tmp_path):
    """Pillow reads no five bands in strips; GDAL's names of the first three decide."""
    path = write(tmp_path / "a.tif", NOISY, photometric="rgb")
    with ImageWindows(path) as windows:
        assert (windows.read(0, 0, HEIGHT, WIDTH) == NOISY[:3].transpose(1, 2, 0)).all()
    with pytest.raises(UserError, match="a TIFF file with 5 bands of whole numbers of 8 bits"):
        ImageWindows(write(tmp_path / "nameless.tif", NOISY))


def without_rasterio(monkeypatch):
    find, real = importlib.util.find_spec, builtins.__import__

    def absent(name, *rest):
        if name.split(".")[0] == "rasterio":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "rasterio" else find(name))
    monkeypatch.setattr(builtins, "__import__", absent)


def test_without_rasterio(tmp_path, monkeypatch):
    path = write(tmp_path / "a.tif", NOISY[:3])
    without_rasterio(monkeypatch)
    same_as_at_once(path, by_blocks=False)
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    with pytest.raises(UserError, match=r'a\.tif: 210 x 150 pixels .*pip install "retinanet\[tiles\]"'):
        ImageWindows(path)


def test_too_large_for_reading_at_once(tmp_path, monkeypatch):
    picture = Image.fromarray(NOISY[0])
    for name in ("a.png", "a.tif"):
        picture.save(tmp_path / name)
    picture.convert("F").save(tmp_path / "f.tif")
    monkeypatch.setattr(module, "MAX_PIXELS", 100)
    assert not ImageWindows(tmp_path / "a.tif").whole
    with pytest.raises(UserError, match=r"a\.png: .*only TIFF and JPEG 2000.*Convert it to a tiled TIFF"):
        ImageWindows(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"f\.tif: .*colours of its kind need that.*8-bit RGB"):
        ImageWindows(tmp_path / "f.tif")


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"no such image file"):
        ImageWindows(tmp_path / "nowhere.tif")
    (tmp_path / "text.tif").write_text("no image")
    with pytest.raises(UserError, match="is not an image that can be read"):
        ImageWindows(tmp_path / "text.tif")
    whole = write(tmp_path / "a.tif", NOISY[:3], compress="deflate", **TILED)
    data = bytearray(whole.read_bytes())
    data[3000:30000] = bytes(27000)
    whole.write_bytes(data)
    with ImageWindows(whole) as windows, pytest.raises(UserError, match=r"a\.tif: the image is truncated or damaged"):
        windows.read(0, 0, HEIGHT, WIDTH)


def means(array, factor):
    """The reduced picture, one square after the other."""
    rows = range(0, array.shape[0], factor)
    columns = range(0, array.shape[1], factor)
    squares = [[array[y : y + factor, x : x + factor].reshape(-1, 3) for x in columns] for y in rows]
    return np.array([[np.floor(square.mean(axis=0) + 0.5) for square in row] for row in squares])


@pytest.mark.parametrize("layout", [{}, TILED], ids=["strips", "tiles"])
@pytest.mark.parametrize("longest", [1000, 210, 209, 100, 41, 1])
def test_overview(tmp_path, monkeypatch, layout, longest):
    monkeypatch.setattr(module, "OVERVIEW_WINDOW", 40**2)  # several windows, also for an image this small
    with ImageWindows(write(tmp_path / "a.tif", NOISY[:3], compress="deflate", **layout)) as windows:
        picture, factor = overview(windows, longest)
    assert factor == -(-WIDTH // longest) and max(picture.shape) <= max(longest, 3)
    assert picture.dtype == np.uint8 and (picture == means(NOISY[:3].transpose(1, 2, 0), factor)).all()


PASS = """
import re, sys
from retinanet.images.windows import ImageWindows, overview

def peak():  # in MB; getrusage would count what the parent process held
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024

with ImageWindows(sys.argv[1]) as windows:
    assert not windows.whole
    height, width = windows.size
    before = peak()
    for y in range(0, height, 500):
        for x in range(0, width, 500):
            windows.read(y, x, y + 500, x + 500)
    picture, factor = overview(windows, 1000)
print((peak() - before))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux")
def test_memory_does_not_grow_with_the_image(tmp_path):
    """48 and 192 MB of pixels; the cache of GDAL may fill up in the first."""
    grown = []
    for width in (8000, 32000):
        planes = np.broadcast_to(np.arange(width, dtype=np.uint8), (3, 2000, width))
        profile = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate"}
        path = write(tmp_path / f"{width}.tif", planes, **profile)
        done = subprocess.run([sys.executable, "-c", PASS, path], capture_output=True, text=True, check=True)
        grown.append(int(done.stdout))
    assert grown[1] < grown[0] + 30 and grown[1] < 120, grown
