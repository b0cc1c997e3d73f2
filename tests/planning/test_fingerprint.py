"""The facts about data, against counting by hand."""

import time

import numpy as np
import pytest
import torch

from retinanet.anchors.geometry import iou
from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.planning.fingerprint import Spread, count_copies, measure_crowding, take_fingerprint
from retinanet.types import Sample, Target


def sample(tmp_path, boxes, labels=None, ignore=None, size=(480, 640), name="a.png"):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.tensor(labels)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.tensor(ignore)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return Sample(tmp_path / name, name, size, Target(boxes, labels, ignore), areas)


def test_sizes_counts_and_shapes(tmp_path):
    first = sample(tmp_path, [[0, 0, 10, 40], [5, 5, 25, 25]], [0, 1], size=(100, 300))
    second = sample(tmp_path, [[0, 0, 90, 90]], [1], [True], size=(400, 200))
    train = DetectionDataset([first, second], ("a", "b"))
    facts = take_fingerprint(train, DetectionDataset([first], ("a", "b")))
    assert (facts.images, facts.val_images, facts.boxes) == (2, 1, 2)
    assert facts.classes == {"a": 1, "b": 1}  # the ignored box is none
    assert (facts.short.least, facts.short.most, facts.long.most) == (100, 200, 400)
    assert facts.side.least == facts.side.most == 20 and (facts.aspect.least, facts.aspect.most) == (1, 4)
    assert (facts.objects.least, facts.objects.most, facts.crowded_objects) == (1, 2, 2)


def test_small_is_of_the_class_with_the_smallest_boxes(tmp_path):
    """Few small ones among many large ones would not show in the percentiles of all."""
    large = [[0, 0, 100, 100]] * 900
    small = [[0, 0, side, side] for side in range(10, 50)]
    row = sample(tmp_path, large + small, [0] * 900 + [1] * 40)
    facts = take_fingerprint(DetectionDataset([row], ("large", "small")), DetectionDataset([row], ("large", "small")))
    assert facts.side.low == 100 and facts.small == pytest.approx(np.percentile(range(10, 50), 25), abs=0.01)
    few = sample(tmp_path, large + small[:5], [0] * 900 + [1] * 5)
    sets = [DetectionDataset([few], ("large", "small"))] * 2
    assert take_fingerprint(*sets).small == 100  # five boxes say nothing


def test_crowding_counts_boxes_with_a_neighbour_of_their_class(tmp_path):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 60, (300, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(10, 30, (300, 2))], axis=1)
    labels = rng.integers(0, 3, 300)
    overlap = iou(torch.tensor(boxes), torch.tensor(boxes)).numpy()
    expected = np.mean(
        [any(overlap[i, j] >= 0.5 for j in range(300) if j != i and labels[i] == labels[j]) for i in range(300)]
    )
    assert 0 < expected < 1
    assert measure_crowding([sample(tmp_path, boxes.tolist(), labels.tolist())]) == pytest.approx(expected)


def test_copies_across_splits(tmp_path):
    for name, content in (("a", b"one"), ("b", b"two"), ("c", b"one"), ("d", b"six")):
        (tmp_path / f"{name}.png").write_bytes(content)
    rows = {name: sample(tmp_path, [], name=f"{name}.png") for name in "abcd"}
    assert count_copies([rows["a"], rows["b"]], [rows["c"], rows["d"]]) == 1
    assert count_copies([rows["a"], rows["b"]], [rows["d"]]) == 0


def test_nothing_has_a_spread():
    assert Spread.of([]) == Spread(0, 0, 0, 0, 0)


def test_real_annotations(data):
    facts = take_fingerprint(load_dataset(data, "train"), load_dataset(data, "val"))
    assert facts.boxes == 14 and "disc 7, square 7" in facts.summary()
    assert facts.to_dict()["objects"]["most"] == facts.objects.most


def test_many_boxes_do_not_take_long(tmp_path):
    """100,000 boxes; the limit is generous, an n^2 rule over all boxes would take hours."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1000):
        corners = rng.uniform(0, 1000, (100, 2))
        rows.append(sample(tmp_path, np.concatenate([corners, corners + 20], 1).tolist(), name=f"{number}.png"))
    whole = DetectionDataset(rows, ("cell",))
    began = time.process_time()
    assert take_fingerprint(whole, whole.subset([0], "val")).boxes == 100_000
    assert time.process_time() - began < 60
