"""COCO metrics against pycocotools, and against numbers worked out by hand."""

import contextlib
import io
import json
import logging
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.data.dataset import load_dataset
from retinanet.errors import UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.types import Detections, Sample, Target

COCO80 = Path(__file__).parents[2].parent / "shared" / "data" / "coco80" / "annotations" / "instances_train2017.json"


def make_sample(boxes=(), labels=None, *, image_id=1, ignore=None, areas=None, dtype=torch.float32):
    boxes = torch.as_tensor(boxes, dtype=dtype).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.as_tensor(labels)
    ignore = torch.zeros(len(boxes), dtype=torch.bool) if ignore is None else torch.as_tensor(ignore)
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides.prod(1) if areas is None else torch.as_tensor(areas, dtype=dtype)
    target = Target(boxes, labels.reshape(-1).long(), ignore.reshape(-1).bool())
    return Sample(Path(f"{image_id}.jpg"), image_id, (480, 640), target, areas)


def make_detections(boxes=(), scores=(), labels=None, names=("cell",)):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    labels = torch.zeros(len(boxes), dtype=torch.int64) if labels is None else torch.as_tensor(labels).long()
    return Detections(boxes, torch.as_tensor(scores, dtype=torch.float32).reshape(-1), labels.reshape(-1), tuple(names))


def pycocotools_reference(dataset, samples, detections, category_ids, limits=(1, 10, 100)):
    """The twelve numbers and precision (T, R, K) over all areas, from an annotation file in its own ids."""
    rows = [
        row
        for sample, found in zip(samples, detections, strict=True)
        for row in found.to_coco(sample.image_id, category_ids)
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dataset
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(rows), "bbox")
        evaluator.params.maxDets = list(limits)
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator.stats, evaluator.eval["precision"][:, :, :, 0, -1]


def as_dataset(samples, category_ids):
    """Samples as an annotation file, for scenes that were not read from one."""
    annotations = []
    for sample in samples:
        columns = (sample.target.boxes.double(), sample.target.labels, sample.areas, sample.target.ignore)
        for box, label, area, ignore in zip(*columns, strict=True):
            x1, y1, x2, y2 = box.tolist()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": category_ids[int(label)],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(area),
                    "iscrowd": int(ignore),
                }
            )
    categories = [{"id": category_id, "name": str(category_id)} for category_id in category_ids]
    images = [{"id": sample.image_id} for sample in samples]
    return {"images": images, "categories": categories, "annotations": annotations}


def assert_equal_to_pycocotools(metrics, stats, precision):
    sizes = (metrics.small, metrics.medium, metrics.large)
    ours = [metrics.ap, metrics.ap50, metrics.ap75, *(size.ap for size in sizes)]
    ours += [*metrics.ar.values(), *(size.ar for size in sizes)]
    # pycocotools writes -1 where we write NaN
    np.testing.assert_allclose(np.nan_to_num(ours, nan=-1), stats, rtol=0, atol=1e-9)
    assert len(metrics.classes) == precision.shape[2]
    for label, row in enumerate(metrics.classes):
        for value, part in ((row.ap, precision[:, :, label]), (row.ap50, precision[0, :, label])):
            part = part[part > -1]
            assert value == pytest.approx(part.mean(), abs=1e-9) if part.size else math.isnan(value)


@pytest.fixture(scope="module")
def coco80():
    if not COCO80.exists():
        pytest.skip(f"needs the coco80 data at {COCO80}")
    dataset = json.loads(COCO80.read_text())
    read = load_dataset(COCO80.parents[1])
    assert [sample.image_id for sample in read.samples] == [image["id"] for image in dataset["images"]]
    return dataset, read.samples, read.category_ids, read.class_names


def noisy_detections(samples, names, seed):
    """Each box several times with growing jitter, some with a wrong class, plus false positives and tied scores."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.rand(shape, generator=generator)

    found = []
    for sample in samples:
        copies = torch.arange(len(sample.target)).repeat(3)
        copies = copies[random(len(copies)) < 0.7]
        exact = sample.target.boxes[copies].float()
        sides = (exact[:, 2:] - exact[:, :2]).repeat(1, 2)
        boxes = exact + sides * 0.25 * random(len(exact), 1) * torch.randn(exact.shape, generator=generator)
        boxes = torch.where(random(len(exact), 1) < 0.1, exact, boxes)
        labels = sample.target.labels[copies]
        wrong = random(len(labels)) < 0.15
        labels = torch.where(wrong, (random(len(labels)) * len(names)).long(), labels)
        corner = random(60, 2) * 500
        boxes = torch.cat([boxes, torch.cat([corner, corner + 2 + random(60, 2) * 200], dim=1)])
        common = sample.target.labels if len(sample.target) else torch.zeros(1, dtype=torch.int64)
        labels = torch.cat([labels, common[(random(60) * len(common)).long()]])
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 0.5)
        scores = random(len(boxes))
        scores = torch.where(random(len(boxes)) < 0.5, (scores * 8).round() / 8, scores)
        order = scores.argsort(descending=True, stable=True)
        order = order[: 0 if random(1) < 0.05 else None]
        found.append(Detections(boxes[order], scores[order], labels[order], names))
    return found


@pytest.mark.parametrize("seed", [0, 10])
def test_coco80_equals_pycocotools(coco80, seed):
    dataset, samples, category_ids, names = coco80
    detections = noisy_detections(samples, names, seed)
    stats, precision = pycocotools_reference(dataset, samples, detections, category_ids)
    assert 0.05 < stats[0] < 0.8  # a trivial result would prove nothing
    metrics = coco_metrics(samples, detections, names, category_ids=category_ids)
    assert_equal_to_pycocotools(metrics, stats, precision)


def test_coco80_in_float32_equals_pycocotools_on_the_same_numbers(coco80):
    """Rounding the annotations moves one IoU of seed 10 over 0.75, so the reference gets the rounded ones too."""
    _, exact, category_ids, names = coco80
    samples = [
        replace(
            sample,
            target=replace(sample.target, boxes=sample.target.boxes.float()),
            areas=sample.areas.float(),
        )
        for sample in exact
    ]
    detections = noisy_detections(samples, names, 10)
    stats, precision = pycocotools_reference(as_dataset(samples, category_ids), samples, detections, category_ids)
    assert_equal_to_pycocotools(coco_metrics(samples, detections, names), stats, precision)


def test_coco80_counts(coco80):
    dataset, samples, category_ids, names = coco80
    detections = noisy_detections(samples, names, 0)
    metrics = coco_metrics(samples, detections, names, category_ids=category_ids)
    rows = [row for row in dataset["annotations"] if not row["iscrowd"]]
    assert (metrics.images, metrics.boxes, metrics.ignored) == (80, len(rows), 739 - len(rows))
    assert metrics.detections == sum(map(len, detections)) == sum(row.detections for row in metrics.classes)
    for row in metrics.classes:
        of_class = [entry for entry in rows if entry["category_id"] == row.category_id]
        assert (row.boxes, row.images) == (len(of_class), len({entry["image_id"] for entry in of_class}))
    assert metrics.small.boxes == sum(row["area"] <= 32**2 for row in rows)
    assert metrics.medium.boxes == sum(32**2 <= row["area"] <= 96**2 for row in rows)
    assert metrics.large.boxes == sum(row["area"] >= 96**2 for row in rows)


@pytest.mark.parametrize("seed", range(12))
def test_ties_on_a_coarse_grid_equal_pycocotools(seed):
    """Boxes and scores from a handful of values, so that equal IoUs, equal scores and full overlaps abound."""
    rng = np.random.default_rng(seed)
    names, category_ids = ("a", "b", "c", "d"), (7, 3, 90, 12)
    limits = (1, 3, 100)  # pycocotools fixes the last one of its own AP at 100

    def boxes(count):
        corner = rng.integers(0, 6, (count, 2)) * 16
        return np.concatenate([corner, corner + rng.integers(1, 9, (count, 2)) * 16], axis=1)

    samples, detections = [], []
    for image_id in rng.permutation(10).tolist():
        count, found = rng.integers(0, 9), rng.integers(0, 25)
        labels = rng.integers(0, 3, count)  # class d has detections and no object
        samples.append(make_sample(boxes(count), labels, image_id=image_id, ignore=rng.random(count) < 0.25))
        scores = rng.integers(1, 6, found) / 8
        detections.append(make_detections(boxes(found), scores, rng.integers(0, 4, found), names))
    # pycocotools orders its classes by id, so the reference is asked for ids in the order of the labels
    dataset = as_dataset(samples, (1, 2, 3, 4))
    stats, precision = pycocotools_reference(dataset, samples, detections, (1, 2, 3, 4), limits)
    metrics = coco_metrics(samples, detections, names, category_ids=category_ids, max_detections=limits)
    assert_equal_to_pycocotools(metrics, stats, precision)
    assert [row.category_id for row in metrics.classes] == list(category_ids)

    # neither the order of the images nor the type of their ids matters
    shuffled = rng.permutation(len(samples))
    again = coco_metrics(
        [replace(samples[i], image_id=f"{samples[i].image_id:02d}") for i in shuffled],
        [detections[i] for i in shuffled],
        names,
        max_detections=limits,
    )
    assert_equal_to_pycocotools(again, stats, precision)


def test_one_object_found_at_iou_three_fifths():
    metrics = coco_metrics([make_sample([0, 0, 10, 10])], [make_detections([0, 0, 10, 6], [0.9])], ["cell"])
    assert metrics.ap == pytest.approx(3 / 10, abs=1e-12)  # IoU 0.60 passes 0.50, 0.55 and 0.60
    assert (metrics.ap50, metrics.ap75) == (1.0, 0.0)
    assert metrics.ar == pytest.approx({1: 0.3, 10: 0.3, 100: 0.3}, abs=1e-12)
    assert (metrics.small.boxes, metrics.small.ap, metrics.small.ar) == pytest.approx((1, 0.3, 0.3), abs=1e-12)
    assert metrics.medium.boxes == metrics.large.boxes == 0
    assert math.isnan(metrics.medium.ap) and math.isnan(metrics.large.ar)


def test_half_of_the_objects_found():
    sample = make_sample([[0, 0, 40, 40], [50, 50, 90, 90]])
    metrics = coco_metrics([sample], [make_detections([0, 0, 40, 40], [0.5])], ["cell"])
    assert metrics.ap == pytest.approx(51 / 101, abs=1e-12)  # precision 1 at the 51 recalls 0.00 .. 0.50 of 101
    assert metrics.ar[100] == 0.5


def test_a_better_scored_false_positive_halves_precision():
    found = make_detections([[50, 50, 90, 90], [0, 0, 40, 40]], [0.9, 0.8])
    metrics = coco_metrics([make_sample([0, 0, 40, 40])], [found], ["cell"])
    assert metrics.ap == pytest.approx(0.5, abs=1e-12)
    assert (metrics.ar[1], metrics.ar[10]) == (0.0, 1.0)


def test_an_ignore_region_takes_any_number_of_detections():
    boxes = [[0, 0, 40, 40], [100, 100, 300, 300]]
    found = make_detections([[110, 110, 150, 150], [120, 120, 160, 160], [0, 0, 40, 40]], [0.9, 0.8, 0.7])
    ignored = coco_metrics([make_sample(boxes, ignore=[False, True])], [found], ["cell"])
    assert (ignored.ap, ignored.boxes, ignored.ignored) == (1.0, 1, 1)
    counted = coco_metrics([make_sample(boxes[:1])], [found], ["cell"])
    assert counted.ap == pytest.approx(1 / 3, abs=1e-12)


def test_areas_come_from_the_annotation_not_from_the_box():
    sample = make_sample([0, 0, 40, 40], areas=[32.0**2])
    metrics = coco_metrics([sample], [make_detections([0, 0, 40, 40], [0.9])], ["cell"])
    assert (metrics.small.boxes, metrics.medium.boxes, metrics.large.boxes) == (1, 1, 0)  # COCO counts 32 x 32 twice
    assert metrics.small.ap == metrics.medium.ap == 1.0


def test_the_limit_of_detections_is_per_image_and_class():
    boxes = [[0, 0, 40, 40], [50, 50, 90, 90]]
    found = make_detections([*boxes, boxes[0]], [0.9, 0.8, 0.7], [0, 0, 1], ("a", "b"))
    metrics = coco_metrics([make_sample([*boxes, boxes[0]], [0, 0, 1])], [found], ["a", "b"], max_detections=[2, 1])
    assert metrics.ar == {1: 0.75, 2: 1.0}
    assert metrics.ap == 1.0


def test_perfect_detections_of_a_crowd_have_ap_one():
    boxes = torch.tensor([[12 * x, 12 * y, 12 * x + 10, 12 * y + 10] for x in range(25) for y in range(15)])
    sample, scores = make_sample(boxes), torch.linspace(1, 0.5, 375)
    all_found = coco_metrics([sample], [make_detections(boxes, scores)], ["cell"])
    assert (all_found.ap, all_found.limit, set(all_found.ar)) == (1.0, 375, {1, 10, 100, 375})
    assert all_found.ap100 == pytest.approx(27 / 101) and all_found.ar[100] == pytest.approx(100 / 375)
    assert coco_metrics([sample], [make_detections(boxes, scores)], ["cell"], cap=500).limit == 500
    capped = coco_metrics([sample], [make_detections(boxes[:100], scores[:100])], ["cell"], cap=100)
    assert capped.ap == capped.ap100 == pytest.approx(27 / 101) and capped.limit == 100


def test_all_detections_count_beside_the_hundred_of_coco():
    """By the same rule whether the objects are many or few: 150 false ones before the object halve nothing at 100."""
    boxes = torch.tensor([[12.0 * x, 0, 12 * x + 10, 10] for x in range(151)])
    found = make_detections(boxes, torch.linspace(1, 0.5, 151))
    metrics = coco_metrics([make_sample(boxes[150])], [found], ["cell"], cap=300)
    assert (metrics.ap, metrics.ap100, metrics.limit) == (pytest.approx(1 / 151), 0.0, 300)
    spread = make_detections(boxes, torch.linspace(1, 0.5, 151), torch.arange(151) % 2, ("a", "b"))
    usual = coco_metrics([make_sample(boxes[150])], [spread], ["a", "b"], cap=300)
    assert usual.limit == 100 and usual.ap == usual.ap100 == pytest.approx(1 / 76)


def test_a_class_without_objects_has_no_ap_and_no_weight():
    found = make_detections([[0, 0, 40, 40], [0, 0, 40, 40]], [0.9, 0.8], [0, 1], ("seen", "unseen"))
    metrics = coco_metrics([make_sample([0, 0, 40, 40])], [found], ["seen", "unseen"])
    seen, unseen = metrics.classes
    assert metrics.ap == seen.ap == seen.ap50 == 1.0
    assert (unseen.images, unseen.boxes, unseen.detections) == (0, 0, 1)
    assert math.isnan(unseen.ap) and math.isnan(unseen.ap50)


def test_objects_and_no_detections():
    metrics = coco_metrics([make_sample([0, 0, 40, 40]), make_sample(image_id=2)], [make_detections()] * 2, ["cell"])
    assert (metrics.ap, metrics.ap50, metrics.ar[100], metrics.medium.ar, metrics.classes[0].ap) == (0,) * 5
    assert (metrics.images, metrics.boxes, metrics.detections) == (2, 1, 0)


@pytest.mark.parametrize(
    ("samples", "detections"),
    [
        ([make_sample()], [make_detections([0, 0, 9, 9], [0.5])]),
        ([make_sample([0, 0, 40, 40], ignore=[True])], [make_detections([0, 0, 40, 40], [0.5])]),
        ([make_sample()], [make_detections()]),
        ([], []),
    ],
    ids=["false positive", "only an ignore region", "nothing", "no images"],
)
def test_no_objects_at_all_gives_nan(samples, detections):
    metrics = coco_metrics(samples, detections, ["cell"])
    numbers = [metrics.ap, metrics.ap50, metrics.ap75, *metrics.ar.values(), metrics.small.ap, metrics.classes[0].ap]
    assert all(math.isnan(number) for number in numbers)
    assert metrics.boxes == 0


def test_the_evaluator_says_nothing_and_leaves_its_input_alone(capfd, caplog):
    sample, found = make_sample([0, 0, 10, 10]), make_detections([0, 0, 10, 6], [0.9])
    before = sample.target.boxes.clone(), found.boxes.clone()
    with caplog.at_level(logging.DEBUG):
        coco_metrics([sample], [found], ["cell"])
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert torch.equal(sample.target.boxes, before[0]) and torch.equal(found.boxes, before[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(detections=[]), "1 samples but 0 detections"),
        (dict(samples=[make_sample(), make_sample()], detections=[make_detections()] * 2), "image id 1 occurs 2 times"),
        (dict(class_names=["nucleus"]), "class 0 is 'cell' for the detections and 'nucleus' for the data set"),
        (dict(class_names=["cell", "b"]), "class 1 is None for the detections and 'b'"),
        (dict(category_ids=[1, 2]), "1 class names but 2 category ids"),
        (dict(max_detections=[0, 10]), "at least one limit, each 1 or more"),
        (dict(max_detections=[]), "at least one limit"),
        (dict(samples=[make_sample([0, 0, 9, 9], [1])]), r"annotated label 1 is not in \[0, 1\)"),
        (dict(detections=[make_detections([0, 0, 9, 9], [0.5], [-1])]), r"detected label -1 is not in \[0, 1\)"),
    ],
)
def test_mistakes_are_named(arguments, message):
    call = {"samples": [make_sample()], "detections": [make_detections()], "class_names": ["cell"], **arguments}
    with pytest.raises(UserError, match=message):
        coco_metrics(call.pop("samples"), call.pop("detections"), call.pop("class_names"), **call)
