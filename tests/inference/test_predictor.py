"""The predictor: every kind of image, and boxes in its original pixels."""

import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.images.io import read_image, read_pixels
from retinanet.images.preprocess import Preprocess
from retinanet.inference.predictor import Predictor, to_array
from retinanet.inference.torch_backend import TorchBackend
from retinanet.model.presets import Architecture
from retinanet.spec import ModelSpec
from retinanet.types import RawOutput

LATTICE = AnchorLattice(strides=(8, 16), sizes=(16, 40), ratios=(1.0,), scales=(1.0,))


class BrightSpot(nn.Module):
    """Says 0.9 where a cell of stride 8 is white, and that its box is the anchor there."""

    lattice = LATTICE

    def __init__(self):
        super().__init__()
        self.backbone, self.fpn, self.heads = nn.Module(), nn.Module(), nn.Module()
        self.backbone.body = nn.Sequential(nn.Conv2d(3, 1, 1))  # there is nothing in it to be made faster

    def forward(self, images):
        bright = nn.functional.avg_pool2d(images.mean(dim=1, keepdim=True), 8)  # (N, 1, H/8, W/8)
        sure = torch.where(bright > 0.9, 2.1972246, -9.0)
        logits = (sure, torch.full_like(nn.functional.avg_pool2d(bright, 2), -9.0))
        deltas = tuple(torch.zeros(len(images), 4, *level.shape[-2:]) for level in logits)
        return RawOutput(logits, deltas, LATTICE, BoxCoder())


@pytest.fixture
def spotter():
    preprocess = Preprocess(short=32, long=64, multiple=32, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    detector = Detector(ModelSpec(("spot",), preprocess, architecture=Architecture()), BrightSpot())
    return Predictor(TorchBackend(detector, device="cpu"), batch_size=2)


def spot(height, width, y, x, cell):
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, y * cell : (y + 1) * cell, x * cell : (x + 1) * cell] = 255
    return image


def test_boxes_are_in_pixels_of_the_original(spotter):
    """Cell (1, 2) of stride 8 has its centre at (20, 12); its anchor is 16 wide."""
    (found,) = spotter([spot(32, 48, 1, 2, 8)])
    assert found.boxes.tolist() == [[12.0, 4.0, 28.0, 20.0]]
    assert found.scores.tolist() == pytest.approx([0.9]) and found.names == ["spot"]
    for factor in (2, 3, 10):
        (larger,) = spotter([spot(32 * factor, 48 * factor, 1, 2, 8 * factor)])
        torch.testing.assert_close(larger.boxes, found.boxes * factor)


def test_boxes_end_at_the_edge_of_the_image(spotter):
    (found,) = spotter([spot(32, 48, 0, 5, 8)])
    assert found.boxes.tolist() == [[36.0, 0.0, 48.0, 12.0]]  # 52 and -4 without the edge


def test_images_of_a_batch_do_not_see_each_other(spotter):
    images = [spot(32, 48, 1, 2, 8), spot(64, 64, 0, 3, 16), spot(48, 32, 4, 1, 8), spot(32, 32, 3, 3, 8)]
    together = spotter(images)
    assert [len(found) for found in together] == [1, 1, 1, 1]
    for image, found in zip(images, together, strict=True):
        alone = spotter(image)
        torch.testing.assert_close(found.boxes, alone.boxes, rtol=0, atol=0)
        assert found.boxes[0, 2] <= image.shape[2] and found.boxes[0, 3] <= image.shape[1]


def assert_same(one, two, tolerance=0.0):
    torch.testing.assert_close(one.boxes, two.boxes, rtol=0, atol=100 * tolerance)
    torch.testing.assert_close(one.scores, two.scores, rtol=0, atol=tolerance)
    assert torch.equal(one.labels, two.labels) and one.class_names == two.class_names


@pytest.fixture(scope="module")
def predictor(trained):
    return Predictor.load(trained, device="cpu", batch_size=2)


def test_all_kinds_of_one_image_give_the_same(predictor, data):
    path = data / "test" / "test_0.png"
    picture = Image.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wanted = predictor(path)
        assert len(wanted) == 20 and predictor.class_names == ("disc", "square") == wanted.class_names
        assert bool((wanted.scores[:-1] >= wanted.scores[1:]).all())
        kinds = [str(path), picture, np.asarray(picture), np.array(picture), read_image(path), picture.convert("RGBA")]
        for kind in kinds:
            assert_same(predictor(kind), wanted)
        many = predictor([path, *kinds])
    assert isinstance(many, list) and len(many) == 7
    for found in many:
        assert_same(found, wanted, 1e-5)
    assert_same(predictor((path,))[0], wanted)


def test_arrays_in_any_memory_layout(predictor, data):
    array = np.asarray(Image.open(data / "test" / "test_2.png"))
    turned = np.asfortranarray(array)
    flipped = array[::-1, ::-1]
    assert_same(predictor(turned), predictor(array))
    assert_same(predictor(flipped), predictor(flipped.copy()))
    assert_same(predictor(torch.from_numpy(array.copy()).permute(2, 0, 1)), predictor(array))


def test_neighbours_of_the_same_size_do_not_matter(predictor, data):
    paths = [data / "test" / f"test_{index}.png" for index in (0, 2, 1)]
    for path, found in zip(paths, predictor(paths), strict=True):
        assert_same(found, predictor(path), 1e-5)


def test_no_images_give_no_detections(predictor):
    assert predictor([]) == []


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((8, 8, 3), np.float32),
        np.zeros((0, 8, 3), np.uint8),
        torch.zeros(3, 8, 8),
        torch.zeros(8, 8, 3, dtype=torch.uint8),
        torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(3, 8, 0, dtype=torch.uint8),
        None,
        7,
        b"bytes",
    ],
)
def test_what_is_no_image_is_refused(predictor, image):
    with pytest.raises(UserError, match=r"an image (is a path|has at least one pixel).*(got|shape)"):
        predictor(image)


def test_files_that_are_no_images_are_refused(predictor, data, tmp_path):
    good = data / "test" / "test_0.png"
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "half.png").write_bytes(good.read_bytes()[:5000])
    for path, words in (
        (tmp_path / "none.png", "no such image file"),
        (tmp_path / "text.png", "not an image"),
        (tmp_path / "half.png", "truncated"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=f"{path}.*{words}"):
            predictor([good, path])


def test_arguments_out_of_range(trained, spotter):
    with pytest.raises(UserError, match="batch_size is at least 1, got 0"):
        Predictor(spotter.backend, batch_size=0)
    with pytest.raises(UserError, match="device 'abacus' cannot be used here"):
        Predictor.load(trained, device="abacus")
    with pytest.raises(UserError, match="no model in"):
        Predictor.load(trained / "none")


def test_a_model_folder_can_be_moved(trained, data, predictor, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(trained / name, tmp_path)
    path = data / "test" / "test_0.png"
    assert_same(Predictor.load(str(tmp_path), device="cpu")(path), predictor(path))


def test_to_array_copies_neither_arrays_nor_tensors(data):
    array, tensor = np.zeros((5, 7, 3), np.uint8), torch.zeros(3, 5, 7, dtype=torch.uint8)
    assert to_array(array) is array
    assert to_array(tensor).shape == (5, 7, 3) and np.shares_memory(to_array(tensor), tensor.numpy())
    path = data / "test" / "test_0.png"
    assert (to_array(path) == read_pixels(path)).all()
    assert torch.equal(torch.from_numpy(read_pixels(path)).permute(2, 0, 1), read_image(path))


def test_a_picture_is_read_as_its_file_is(tmp_path):
    """Turned by EXIF, transparent and 16 bit: Pillow's own conversion to RGB gets none of them right."""
    soft = np.linspace(0, 255, 20 * 30 * 4, dtype=np.uint8).reshape(20, 30, 4)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(soft[..., :3]).save(tmp_path / "turned.png", exif=exif)
    Image.fromarray(soft).save(tmp_path / "transparent.png")
    Image.fromarray(soft[..., 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    for path in sorted(tmp_path.iterdir()):
        with Image.open(path) as picture:
            assert (to_array(picture) == read_pixels(path)).all(), path.name
        assert path.name != "turned.png" or to_array(path).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        ("0.3", "expected a number from 0 to 1, or thresholds by class name; got '0.3'"),
        (3, "got 3"),
        ([0.3], "expected a number"),
        ({"dise": 0.3}, "there is no class 'dise', did you mean 'disc'?"),
        ({"disc": "0.3"}, "got '0.3'"),
    ],
)
def test_scores_that_cannot_be_meant(predictor, score, message):
    image = np.zeros((32, 32, 3), np.uint8)
    with pytest.raises(UserError, match=message.replace("?", r"\?")):
        predictor(image, score=score)
    if not isinstance(score, dict | int):
        with pytest.raises(UserError, match="expected a number"):
            predictor(image).above(score)
