"""Tiles against the whole image, with a detector that finds rectangles of one colour exactly."""

import logging
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import find_starts
from retinanet.inference.backend import Prepared
from retinanet.inference.predictor import Predictor
from retinanet.inference.tiled import EDGE, predict_tiled
from retinanet.model.postprocess import Postprocess
from retinanet.spec import ModelSpec
from retinanet.types import Detections


class Colours:
    """Finds the box around the pixels of each colour but black. Green is the score, the last bit of red the class."""

    name = "colours"

    def __init__(self, scale=1.0, streams=1, short=800):
        rule, post = Preprocess(short=short, long=4 * short), Postprocess(max_detections=1000)
        self.spec, self.streams = ModelSpec(("even", "odd"), rule, post, scale=scale), streams
        self.batches, self.rules, self.windows = [], [], []

    def prepare(self, image, rule=None):
        self.rules.append(rule)
        return Prepared(np.array(image), image.shape[:2], image.shape[:2])

    def run(self, images):
        self.batches.append(len(images))
        self.windows += [image.size for image in images]
        return [self.found(image.pixels) for image in images]

    def found(self, pixels):
        codes = pixels.astype(np.int64) @ [65536, 256, 1]
        rows = []
        for code in np.unique(codes[codes > 0]):
            y, x = np.nonzero(codes == code)
            rows.append((-(code >> 8 & 255), x.min(), y.min(), x.max() + 1, y.max() + 1, code >> 16 & 1))
        rows = np.array(sorted(rows), np.float64).reshape(-1, 6)
        return self.pack(rows[:, 1:5], -rows[:, 0] / 255, rows[:, 5])

    def pack(self, boxes, scores, labels):
        return Detections(np.float32(boxes), np.float32(scores), np.int64(labels), self.spec.class_names)


def predictor(batch_size=2, **options):
    return Predictor(Colours(**options), batch_size=batch_size)


def image_of(size, boxes):
    """Rectangles (x, y, width, height), each of its own colour and score; they may not overlap."""
    image = np.zeros((*size, 3), np.uint8)
    for number, (x, y, width, height) in enumerate(boxes):
        image[y : y + height, x : x + width] = (number % 2, 250 - number, 7)
    return image


def same(one, two):
    np.testing.assert_array_equal(one.boxes, two.boxes)
    np.testing.assert_array_equal(one.scores, two.scores)
    np.testing.assert_array_equal(one.labels, two.labels)
    assert one.class_names == two.class_names


def grid(size, side, pitch, first=3):
    """Boxes all over an image, some of them on every border of every tile."""
    height, width = size
    return [(x, y, side, side) for y in range(first, height - side, pitch) for x in range(first, width - side, pitch)][
        :240
    ]


@pytest.mark.parametrize("merge", ["nms", "nmm"])
@pytest.mark.parametrize("size", [(300, 500), (64, 500), (300, 50), (101, 101), (257, 131)])
@pytest.mark.parametrize("tile", [100, (80, 120), (120, 64)])
def test_objects_smaller_than_the_overlap(size, tile, merge):
    image = image_of(size, grid(size, side=20, pitch=27))
    one = predictor()
    found = one.tiled(image, tile=tile, overlap=32, merge=merge)
    whole = one(image)
    assert len(whole) > 3
    same(found, whole)


@pytest.mark.parametrize("overlap", [16, 10, 0])
def test_objects_larger_than_the_overlap_are_put_together(overlap):
    size = (400, 600)
    boxes = [(20, 30, 150, 90), (200, 30, 350, 40), (30, 150, 60, 230), (120, 140, 300, 250), (450, 100, 149, 299)]
    image = image_of(size, boxes)
    one = predictor()
    same(one.tiled(image, tile=100, overlap=overlap, merge="nmm"), one(image))


def test_of_objects_larger_than_the_overlap_nms_keeps_the_largest_part():
    image = image_of((100, 300), [(50, 30, 110, 40)])  # cut at 100 by the first window, at 80 by the second
    found = predictor().tiled(image, tile=100, overlap=20, merge="nms")
    assert [80, 30, 160, 70] in found.boxes.tolist() and [50, 30, 100, 70] in found.boxes.tolist()


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(20, 240),
    width=st.integers(20, 240),
    tile=st.tuples(st.integers(70, 110), st.integers(70, 110)),
    x=st.integers(0, 12),
    y=st.integers(0, 12),
    batch=st.integers(1, 5),
)
def test_any_size_and_place(height, width, tile, x, y, batch):
    boxes = [(x + 17 * column, y + 17 * row, 11, 13) for row in range(14) for column in range(14)]
    image = image_of((height, width), boxes)
    one = predictor(batch)
    found, whole = one.tiled(image, tile=tile, overlap=24), one(image)
    # the last border of the image cuts some boxes, as it does without tiles
    same(found, whole)


@given(length=st.integers(1, 400), window=st.integers(1, 100), overlap=st.integers(0, 99))
def test_windows_cover_every_pixel(length, window, overlap):
    window = min(window, length)
    overlap = min(overlap, window - 1)
    places = find_starts(length, window, overlap)
    covered = np.zeros(length, int)
    for start in places:
        assert 0 <= start <= length - window
        covered[start : start + window] += 1
    assert covered.all() and len(set(places)) == len(places)
    assert all(second - first <= window - overlap for first, second in pairwise(places))
    assert len(places) == 1 + -(-(length - window) // (window - overlap))  # no more than it takes


@pytest.mark.parametrize(("tile", "size"), [(100, (100, 100)), (100, (60, 90)), ((50, 200), (50, 199))])
def test_an_image_that_fits_into_one_tile(tile, size):
    image = image_of(size, grid(size, side=20, pitch=27))
    one = predictor(scale=0.25)
    same(one.tiled(image, tile=tile, overlap=10), one(image))
    assert one.backend.rules == [None, None]  # at the model's own size, not at the scale of tiles


def test_a_real_model_on_an_image_that_fits_into_one_tile(trained, data):
    path = data / "test" / "test_0.png"
    one = Predictor.load(trained, device="cpu")
    found, whole = one.tiled(path, tile=128, overlap=32), one(path)
    assert len(whole) and isinstance(found.boxes, torch.Tensor)
    assert torch.equal(found.boxes, whole.boxes) and torch.equal(found.scores, whole.scores)
    assert torch.equal(found.labels, whole.labels)


def test_a_real_model_on_several_tiles(trained, data):
    """Tiles of the same pixels, each at the magnification of training, are what the model says of them one by one."""
    pixels = np.asarray(Image.open(data / "test" / "test_0.png").convert("RGB"))
    one = Predictor.load(trained, device="cpu")
    rule = one.backend.spec.preprocess
    mosaic = np.concatenate([pixels, pixels[::-1]], axis=1)
    height, width = pixels.shape[:2]
    found = one.tiled(mosaic, tile=(height, width), overlap=0, scale=rule.size(height, width)[0] / height)
    left, right = one([pixels, pixels[::-1]])
    wanted = sorted([*left.scores.tolist(), *right.scores.tolist()], reverse=True)
    assert len(found) and set(found.scores.tolist()) <= set(wanted)
    assert found.boxes.dtype == torch.float32 and found.labels.dtype == torch.int64
    assert (found.boxes[:, 2] <= 2 * width).all() and (found.boxes[:, 2] > width).any()


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
def test_batches(batch_size):
    image = image_of((200, 330), grid((200, 330), side=20, pitch=27))
    wanted, one = predictor().tiled(image, tile=100, overlap=30), predictor(batch_size)
    done = []
    same(one.tiled(image, tile=100, overlap=30, progress=lambda *now: done.append(now)), wanted)
    assert max(one.backend.batches) <= batch_size and sum(one.backend.batches) == 15
    assert set(one.backend.windows) == {(100, 100)}
    assert done == [(number, 15) for number in range(1, 16)]


def test_several_streams_give_the_same():
    """The first window is done after the second has begun, and the result does not show it."""
    image = image_of((200, 330), grid((200, 330), side=20, pitch=27))
    one = predictor(streams=2)
    second, run, began = threading.Event(), one.backend.run, []

    def out_of_order(images):
        began.append(images)
        if len(began) == 1:
            assert second.wait(30)
        second.set() if len(began) > 1 else None
        return run(images)

    one.backend.run = out_of_order
    same(one.tiled(image, tile=100, overlap=30), predictor().tiled(image, tile=100, overlap=30))


@pytest.mark.parametrize("tile", [200, (100, 300), (301, 120)])
@pytest.mark.parametrize("scale", [0.5, 0.8, 1.0, 1.7])
def test_scale_is_what_the_network_sees_of_a_pixel(caplog, tile, scale):
    image = image_of((700, 650), [])
    height, width = (tile, tile) if isinstance(tile, int) else tile
    for one, given_scale in ((predictor(scale=scale), None), (predictor(scale=3.0), scale)):
        one.tiled(image, tile=tile, overlap=20, scale=given_scale)
        (rule,) = set(one.backend.rules)
        assert rule.size(height, width) == pytest.approx((height * scale, width * scale), abs=1)
        assert min(rule.size(height, width)) == round(min(height, width) * scale)
        assert rule == replace(one.backend.spec.preprocess, short=rule.short, long=rule.long)
    assert not caplog.records


def test_a_model_that_does_not_know_its_scale_warns_once(caplog):
    one = predictor(scale=None, short=160)
    with caplog.at_level(logging.WARNING):
        one.tiled(image_of((700, 650), []), tile=200, overlap=20)
    (record,) = caplog.records
    assert "tiles of 200 x 200 pixels are resized to 160 x 160, a scale of 0.8" in record.getMessage()
    assert set(one.backend.rules) == {one.backend.spec.preprocess}


def test_scale_is_honoured_where_the_image_fits_into_one_tile():
    one = predictor(scale=None)
    one.tiled(image_of((100, 200), [(5, 5, 20, 20)]), tile=200, overlap=20, scale=0.5)
    assert [rule.size(100, 200) for rule in one.backend.rules] == [(50, 100)]


def test_boxes_that_end_near_a_border_of_their_window_are_fragments():
    """A network is seldom exact to the pixel; it is so at the scale of its input."""
    one = predictor(scale=0.5)
    far = int(EDGE / 0.5)
    for gap, kept in ((far, 1), (far + 1, 2)):
        one.backend.found = lambda pixels, gap=gap: one.backend.pack(
            [[40, 10, 100 - gap, 50]] if pixels[0, 0, 0] else [[0, 10, 75, 50]], [0.9 if pixels[0, 0, 0] else 0.8], [0]
        )
        image = np.zeros((60, 180, 3), np.uint8)
        image[0, 0] = 255
        found = one.tiled(image, tile=(60, 100), overlap=20, merge="nms")
        assert len(found) == 2  # they share no more than 20 columns
        one.backend.found = lambda pixels, gap=gap: one.backend.pack(
            [[81, 10, 100 - gap, 50]] if pixels[0, 0, 0] else [[5, 10, 75, 50]], [0.9 if pixels[0, 0, 0] else 0.8], [0]
        )
        assert len(one.tiled(image, tile=(60, 100), overlap=20, merge="nms")) == kept


def test_kinds_of_images(tmp_path):
    image = image_of((200, 230), grid((200, 230), side=20, pitch=27))
    one = predictor()
    wanted = one.tiled(image, tile=100, overlap=30)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(image).save(tmp_path / "a.tif", compression="tiff_deflate")
    for kind in (
        tmp_path / "a.png",
        str(tmp_path / "a.tif"),
        Image.fromarray(image),
        torch.from_numpy(image).permute(2, 0, 1),
    ):
        same(one.tiled(kind, tile=100, overlap=30), wanted)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"tile": 31}, "tile is at least 32 pixels, one number or height and width; got 31"),
        ({"tile": (100, 20)}, r"tile is at least 32 .* got \(100, 20\)"),
        ({"tile": (100, 100, 100)}, "tile is at least 32"),
        ({"tile": 100, "overlap": 100}, r"overlap is at least 0 and smaller than the tile \(100 pixels\), got 100"),
        ({"tile": (200, 100), "overlap": 150}, r"smaller than the tile \(100 pixels\), got 150"),
        ({"overlap": -1}, "overlap is at least 0"),
        ({"merge": "wbf"}, "merge is nms or nmm, got 'wbf'"),
        ({"scale": 0}, r"scale \(--tile_scale\) is a number above 0, got 0"),
        ({"scale": float("nan")}, r"scale \(--tile_scale\) is a number above 0"),
    ],
)
def test_options_out_of_range(options, match):
    with pytest.raises(UserError, match=match):
        predict_tiled(predictor(), np.zeros((10, 10, 3), np.uint8), **options)


@pytest.mark.parametrize("image", ["nowhere.tif", np.zeros((10, 10), np.uint8), 3])
def test_what_is_no_image(image):
    with pytest.raises(UserError, match=r"no such image file|an image is a path"):
        predictor().tiled(image, tile=100, overlap=10)


def test_damage_in_the_middle_of_a_file(tmp_path):
    planes = np.random.default_rng(0).integers(0, 255, (3, 300, 300), dtype=np.uint8)
    write(tmp_path / "a.tif", [planes], 300, 300)
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[100_000:200_000] = bytes(100_000)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(UserError, match=r"a\.tif: the image is truncated or damaged"):
        predictor().tiled(tmp_path / "a.tif", tile=100, overlap=30)


def write(path, strips, height, width):
    """A tiled TIFF from strips (3, h, width) that follow each other."""
    profile = {"tiled": True, "blockxsize": 256, "blockysize": 256, "compress": "deflate", "dtype": "uint8"}
    with (
        pytest.warns(rasterio.errors.NotGeoreferencedWarning),
        rasterio.open(path, "w", driver="GTiff", count=3, height=height, width=width, **profile) as file,
    ):
        y = 0
        for strip in strips:
            file.write(strip, window=((y, y + strip.shape[1]), (0, width)))
            y += strip.shape[1]


LARGE = """
import re, sys
import numpy as np
from retinanet.inference.backend import Prepared
from retinanet.inference.predictor import Predictor
from retinanet.spec import ModelSpec
from retinanet.types import Detections

def peak():  # getrusage would count what the parent process held
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

class Sums:
    name, streams, spec = "sums", 1, ModelSpec(("a",), scale=1.0)

    def prepare(self, image, rule=None):
        return Prepared(np.array(image), image.shape[:2], image.shape[:2])

    def run(self, images):
        return [self.pack([[10, 10, 40, 40]], [image.pixels.mean() / 255], [0]) for image in images]

    def pack(self, boxes, scores, labels):
        return Detections(np.float32(boxes), np.float32(scores), np.int64(labels), self.spec.class_names)

windows = []
found = Predictor(Sums()).tiled(sys.argv[1], tile=512, overlap=64, progress=lambda *now: windows.append(now))
print(len(windows), len(found), peak())
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from Linux")
def test_memory_does_not_grow_with_the_image(tmp_path):
    """Images of 48 and 192 MB, tiles of 0.8 MB."""
    peaks = []
    for width in (4000, 16000):
        row = np.broadcast_to((np.arange(width) // 16).astype(np.uint8), (3, 256, width))
        write(tmp_path / "a.tif", [row] * 15 + [row[:, :160]], 4000, width)
        done = subprocess.run([sys.executable, "-c", LARGE, tmp_path / "a.tif"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        windows, found, peak = done.stdout.split()
        assert int(windows) == int(found) == 9 * (9 if width == 4000 else 36)
        peaks.append(float(peak))
    assert peaks[1] - peaks[0] < 10, peaks


def test_tiles_that_are_full_are_told(caplog):
    one = predictor()
    image = image_of((100, 300), [(10, 10, 20, 20), (150, 30, 20, 20)])
    one.tiled(image, tile=100, overlap=20)
    assert not caplog.messages
    one.backend.spec = replace(one.backend.spec, postprocess=Postprocess(max_detections=1))
    one.tiled(image, tile=100, overlap=20)
    assert "of 4 tiles hold 1 detections, the most that the model reports" in caplog.text


def test_the_suppression_is_the_models():
    """Two boxes of one class, and one of another, that overlap by a third of their union, in different windows."""
    one = predictor()
    image = np.zeros((60, 180, 3), np.uint8)
    image[0, 0] = 255
    left, right = [[50, 10, 90, 50]], [[0, 10, 30, 50]]  # the second window begins at 80

    def found(rule, label=0):
        one.backend.spec = replace(one.backend.spec, postprocess=rule)
        one.backend.found = lambda pixels: one.backend.pack(
            left if pixels[0, 0, 0] else right, [0.9 if pixels[0, 0, 0] else 0.8], [0 if pixels[0, 0, 0] else label]
        )
        return len(one.tiled(image, tile=(60, 100), overlap=20, merge="nms"))

    assert found(Postprocess(nms=0.5)) == 2 and found(Postprocess(nms=0.1)) == 1
    assert found(Postprocess(nms=0.1), label=1) == 2 and found(Postprocess(nms=0.1, class_agnostic=True), label=1) == 1
