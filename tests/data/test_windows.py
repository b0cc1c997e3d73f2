"""Windows of a data set, against slices of the whole images and boxes cut one by one."""

import copy
import pickle

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image

from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import StepSampler, evaluation_batches
from retinanet.data.windows import EMPTY, WindowDataset, choose_overlap, count_drawn
from retinanet.errors import UserError
from retinanet.images import windows as image_windows
from retinanet.images.io import read_image
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Tiling
from retinanet.types import Sample, Target

SIZES = ((130, 200), (40, 50), (64, 151), (90, 90))  # the second fits into a tile, the last has no objects
TILING = Tiling(64, 20)


@pytest.fixture(scope="module", params=["png", "tif"])
def images(request, tmp_path_factory):
    """Noise with random boxes, every fourth an ignore region."""
    folder, dice, samples = tmp_path_factory.mktemp("images"), np.random.default_rng(0), []
    for number, (height, width) in enumerate(SIZES):
        pixels, path = dice.integers(0, 256, (height, width, 3), np.uint8), folder / f"{number}.{request.param}"
        if request.param == "tif":
            how = {"height": height, "width": width, "count": 3, "dtype": "uint8", "photometric": "rgb"}
            with rasterio.open(path, "w", driver="GTiff", tiled=True, blockxsize=16, blockysize=16, **how) as file:
                file.write(pixels.transpose(2, 0, 1))
        else:
            Image.fromarray(pixels).save(path)
        count = 0 if number == 3 else 12
        corner = dice.uniform(0, 0.8, (count, 2)) * (width, height)
        boxes = torch.tensor(
            np.concatenate([corner, np.minimum(corner + dice.uniform(3, 30, (count, 2)), (width, height))], 1)
        )
        target = Target(boxes.reshape(-1, 4), torch.arange(count) % 2, torch.arange(count) % 4 == 3)
        samples.append(Sample(path, number + 5, (height, width), target, (boxes[:, 2:] - boxes[:, :2]).prod(1) * 0.9))
    return DetectionDataset(samples, ("ant", "bee"), name="noise")


def test_windows_are_parts_of_the_images(images):
    windows = WindowDataset(images, TILING)
    assert sorted(windows.places) == [
        (index, window) for index, sample in enumerate(images.samples) for window in TILING.windows(sample.size)
    ]
    for index, (image, (y0, x0, y1, x1)) in enumerate(windows.places):
        sample = windows[index]
        assert torch.equal(sample.image, read_image(images.samples[image].path)[:, y0:y1, x0:x1])
        assert sample.size == (y1 - y0, x1 - x0) and sample.image_id == images.samples[image].image_id


def test_boxes_are_moved_cut_and_where_little_is_left_ignored(images):
    windows = WindowDataset(images, TILING)
    whole = [set() for _ in images.samples]
    for index, (image, (y0, x0, y1, x1)) in enumerate(windows.places):
        sample, of = windows.samples[index], images.samples[image]
        wanted = []
        rows = zip(
            of.target.boxes.tolist(),
            of.target.labels.tolist(),
            of.target.ignore.tolist(),
            of.areas.tolist(),
            strict=True,
        )
        for row, ((left, top, right, bottom), label, ignore, area) in enumerate(rows):
            box = max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)
            if box[0] >= box[2] or box[1] >= box[3]:
                continue
            share = (box[2] - box[0]) * (box[3] - box[1]) / ((right - left) * (bottom - top))
            wanted.append(
                (
                    *(v - o for v, o in zip(box, (x0, y0, x0, y0), strict=True)),
                    label,
                    ignore or share < 0.5,
                    area * share,
                )
            )
            if share == 1:
                whole[image].add(row)
        columns = (
            sample.target.boxes,
            *(c[:, None] for c in (sample.target.labels, sample.target.ignore, sample.areas)),
        )
        np.testing.assert_allclose(
            torch.cat(columns, 1).reshape(-1, 7), np.array(wanted, float).reshape(-1, 7), atol=1e-9
        )
    for sample, found in zip(images.samples, whole, strict=True):
        sides = (sample.target.boxes[:, 2:] - sample.target.boxes[:, :2]).amax(1)
        assert {row for row, side in enumerate(sides.tolist()) if side <= TILING.overlap} <= found


def test_windows_with_objects_come_first(images):
    windows = WindowDataset(images, TILING)
    has = [bool((~sample.target.ignore).any()) for sample in windows.samples]
    assert has == sorted(has, reverse=True) and sum(has) == windows.occupied < len(has)
    assert [windows.places[index] for index in windows.in_order] == sorted(windows.places)
    groups = dict(windows.by_image())
    assert list(groups) == [0, 1, 2, 3] and sorted(index for group in groups.values() for index in group) == list(
        range(len(windows))
    )
    assert f"in {len(windows)} windows of 64 x 64 pixels that share 20" in windows.summary()
    assert "3 images are larger than a window" in windows.summary()


def test_a_worker_gets_the_same(images):
    windows = WindowDataset(images, TILING)
    windows[0]
    sent = pickle.loads(pickle.dumps(windows))
    for index in range(len(windows)):
        assert torch.equal(sent[index].image, windows[index].image)
        assert torch.equal(sent[index].target.boxes, windows[index].target.boxes)


def test_images_larger_than_can_be_decoded(images, monkeypatch):
    monkeypatch.setattr(image_windows, "MAX_PIXELS", 5000)
    windows = WindowDataset(images, TILING)
    index = windows.places.index((0, TILING.windows(SIZES[0])[0]))
    if images.samples[0].path.suffix == ".tif":
        assert windows[index].image.shape == (3, 64, 64)
        windows.check_image(0)
    else:
        with pytest.raises(UserError, match=r"0\.png: 200 x 130 pixels are more .* Convert it to a tiled TIFF"):
            windows[index]


def test_an_image_of_another_size_or_damaged_is_found(images, tmp_path):
    other = copy.copy(images)
    other.samples = list(images.samples)
    other.samples[0] = Sample(images.samples[0].path, 5, (140, 200), images.samples[0].target, images.samples[0].areas)
    windows = WindowDataset(other, TILING)
    for read in (lambda: windows.check_image(0), lambda: windows[0]):
        with pytest.raises(UserError, match="200 x 130"):
            read()
    windows.check_image(1)


def test_evaluation_batches_of_windows(images):
    windows = WindowDataset(images, TILING)
    rule = Preprocess(short=64, long=64)
    batches = evaluation_batches(windows, preprocess=rule, batch_size=4, indices=windows.in_order)
    seen = [index for indices, batch in batches for index in indices if len(batch) == len(indices)]
    assert sorted(seen) == list(range(len(windows)))


@pytest.mark.parametrize(("occupied", "empty"), [(8, 40), (8, 3), (8, 0), (1, 40)])
def test_windows_without_objects_take_turns(occupied, empty):
    drawn = min(empty, max(1, round(EMPTY * occupied)))
    length = occupied + drawn
    sampler = StepSampler(length, 4, 0, 1000, seed=3, in_turns=empty, turns=drawn)
    counts = np.zeros(occupied + empty, int)
    for epoch in range(20):
        steps = range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch)
        views = [view for step in steps for view in sampler.step(step)][:length]
        assert {one for one, _ in views} == {epoch} and len(set(views)) == length
        mine = [index for _, index in views]
        assert set(range(occupied)) <= set(mine)
        counts[mine] += 1
    assert (counts[:occupied] == 20).all()
    assert not empty or np.ptp(counts[occupied:]) <= 1  # each as often as the others
    plain = StepSampler(length, 4, 0, 1000, seed=3)
    assert empty or [plain.step(step) for step in range(9)] == [sampler.step(step) for step in range(9)]


def test_how_many_windows_an_epoch_has(images):
    windows = WindowDataset(images, TILING)
    always, turns = count_drawn(windows)
    assert always == windows.occupied and turns == min(len(windows) - always, round(always * EMPTY))
    assert count_drawn(images) == (len(images), 0)


@pytest.mark.parametrize(("side", "tile", "wanted"), [(10, 1024, 64), (90, 1024, 91), (90, 128, 63), (900, 1024, 511)])
def test_the_overlap_is_larger_than_nearly_all_objects(side, tile, wanted, make_sample):
    boxes = [[0, 0, 5, side]] * 99 + [[0, 0, 5000, 5000]]
    sample = make_sample([*boxes, [0, 0, 9999, 9999]], [0] * 101, [False] * 100 + [True])
    assert choose_overlap(DetectionDataset([sample], ("a",)), tile) == wanted
