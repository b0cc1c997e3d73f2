"""The flat matching and average precision against the evaluator and against one detection after the other."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from retinanet.analysis.errors.tide import average_precision
from retinanet.anchors.geometry import iou
from retinanet.errors import UserError
from retinanet.evaluation.coco import coco_metrics, mean
from retinanet.evaluation.matching import find_overlaps, match_image
from retinanet.types import Detections, Target

NAMES = ("a", "b", "c")


def ap_by_class(overlaps, threshold):
    matched = overlaps.match(threshold)
    counted = ~np.append(overlaps.ignore, False)[matched]
    return average_precision(overlaps.label[counted], (matched >= 0)[counted], overlaps.counts)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_average_precision_equals_the_evaluator(make_scene, seed, ties):
    samples, detections = make_scene(seed, ties=ties)
    overlaps = find_overlaps(samples, detections, NAMES)
    metrics = coco_metrics(samples, detections, NAMES)
    ap50, ap75 = ap_by_class(overlaps, 0.5), ap_by_class(overlaps, 0.75)
    np.testing.assert_allclose(ap50, [row.ap50 for row in metrics.classes], rtol=0, atol=1e-9)
    np.testing.assert_allclose(mean(ap75), metrics.ap75, rtol=0, atol=1e-9)
    assert 0.05 < mean(ap50) < 0.95


@pytest.mark.parametrize("objects", [90, 130])
def test_all_detections_of_a_class_in_an_image_count(make_sample, make_detections, objects):
    boxes = np.array([[0, 0, 10, 10]] * 130) + np.arange(130)[:, None] * 20.0
    sample = make_sample(boxes[130 - objects :], [0] * objects)
    labels = [0] * 110 + [1] * 20
    found = make_detections(boxes, np.linspace(0.9, 0.1, 130), labels)
    overlaps = find_overlaps([sample], [found], NAMES)
    assert np.bincount(overlaps.label).tolist() == [110, 20]
    ap = ap_by_class(overlaps, 0.5)
    assert ap[0] == pytest.approx(coco_metrics([sample], [found], NAMES).classes[0].ap50, abs=1e-9)
    assert np.isnan(ap[1:]).all()


def greedy(found, target, threshold):
    """COCO's matching in one image as its program writes it: one detection, then one object after the other."""
    overlap = iou(found.boxes.double(), target.boxes).numpy()
    area = (found.boxes[:, 2:] - found.boxes[:, :2]).double().prod(1).numpy()
    size = (target.boxes[:, 2:] - target.boxes[:, :2]).prod(1).numpy()
    inside = overlap * (area[:, None] + size) / (1 + overlap) / area[:, None]
    taken, matched = set(), [-1] * len(found)
    objects = sorted(range(len(target)), key=lambda t: bool(target.ignore[t]))
    for d in np.argsort(-found.scores.numpy(), kind="stable"):
        best, least = -1, threshold
        for t in objects:
            crowd = bool(target.ignore[t])
            if found.labels[d] != target.labels[t] or (t in taken and not crowd):
                continue
            if best >= 0 and crowd and not target.ignore[best]:
                break
            value = inside[d, t] if crowd else overlap[d, t]
            if value >= least:
                best, least = t, value
        matched[d] = best
        taken.add(best)
    return matched


@pytest.mark.parametrize("threshold", [0.15, 0.5, 0.7])
def test_matching_equals_one_detection_after_the_other(make_scene, threshold):
    samples, detections = make_scene(3, images=30, found=9)
    overlaps = find_overlaps(samples, detections, NAMES)
    matched = overlaps.match(threshold)
    rows = np.append(overlaps.truth_row, -1)[matched]
    for index, (sample, found) in enumerate(zip(samples, detections, strict=True)):
        ours = np.full(len(found), -1)
        here = overlaps.image == index
        ours[overlaps.row[here]] = rows[here]
        assert ours.tolist() == greedy(found, sample.target, threshold)
    taken = matched[matched >= 0]
    assert len(np.unique(taken[~overlaps.ignore[taken]])) == (~overlaps.ignore[taken]).sum() > 10


def test_a_detection_that_lost_its_object_takes_the_next_from_a_worse_one(make_sample, make_detections):
    """Objects 40 wide every 10 pixels. A detection moved by 4.9 overlaps object i most, then i + 1 and i - 1."""
    sample = make_sample([[i * 10.0, 0, i * 10.0 + 40, 10] for i in range(4)], [0] * 4)
    boxes = [[x, 0, x + 40, 10] for x in (0.0, 4.9, 12.0, 22.0)]
    overlaps = find_overlaps([sample], [make_detections(boxes, [0.9, 0.8, 0.7, 0.6], [0] * 4)], NAMES)
    # the second wants 0, which the first has, so it takes 1 from the third, which takes 2 from the fourth
    assert overlaps.match(0.5).tolist() == [0, 1, 2, 3]
    overlaps = find_overlaps([sample], [make_detections(boxes[:1] * 3, [0.3, 0.9, 0.6], [0] * 3)], NAMES)
    assert overlaps.row.tolist() == [1, 2, 0] and overlaps.match(0.5).tolist() == [0, 1, -1]


def test_nothing_at_all(make_sample, make_detections):
    nothing = make_sample([], []), make_detections([], [], [])
    overlaps = find_overlaps([nothing[0]], [nothing[1]], NAMES)
    assert len(overlaps.match(0.5)) == 0 and np.isnan(ap_by_class(overlaps, 0.5)).all()
    overlaps = find_overlaps([], [], NAMES)
    assert overlaps.counts.tolist() == [0, 0, 0] and overlaps.images == 0


def test_what_does_not_fit_is_refused(make_sample, make_detections):
    sample, found = make_sample([[0, 0, 5, 5]], [2]), make_detections([[0, 0, 5, 5]], [0.5], [0])
    with pytest.raises(UserError, match="2 samples but 1 detections"):
        find_overlaps([sample, sample], [found], NAMES)
    with pytest.raises(UserError, match=r"annotated label 2 is not in \[0, 2\)"):
        find_overlaps([sample], [found], NAMES[:2])
    wrong = type(found)(found.boxes, found.scores, torch.tensor([-1]), found.class_names)
    with pytest.raises(UserError, match="detected label -1"):
        find_overlaps([sample], [wrong], NAMES)


# --- one image: hits, false detections, missed objects ---


def detections(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4).float()
    return Detections(
        boxes, torch.tensor([row[1] for row in rows]), torch.tensor([row[2] for row in rows]).long(), NAMES
    )


def target(*rows):
    boxes = torch.tensor([row[0] for row in rows]).reshape(-1, 4).float()
    ignore = torch.tensor([len(row) > 2 for row in rows], dtype=torch.bool)
    return Target(boxes, torch.tensor([row[1] for row in rows]).long(), ignore)


def test_matching_follows_the_coco_rule():
    known = target(
        [[0, 0, 100, 100], 0], [[0, 0, 90, 90], 1], [[200, 0, 300, 100], 0], [[0, 200, 300, 300], 0, "crowd"]
    )
    found = detections(
        [[0, 0, 100, 60], 0.5, 0],  # overlaps 0.6 of the first, but a better one comes before
        [[0, 0, 100, 95], 0.9, 0],
        [[200, 0, 300, 49], 0.8, 0],  # IoU below 0.5
        [[0, 0, 90, 90], 0.7, 2],  # right place, wrong class
        [[10, 210, 40, 240], 0.6, 0],  # in the crowd
        [[10, 210, 40, 240], 0.6, 1],  # in the crowd of another class
    )
    hit, false, missed = match_image(found, known)
    assert hit.tolist() == [1]
    assert sorted(false.tolist()) == [0, 2, 3, 5]
    assert missed.tolist() == [1, 2]


def coco_verdict(known, found):
    """Hits, false alarms and misses at IoU 0.5 by pycocotools, as index lists."""
    coco = COCO()
    coco.dataset = {"images": [{"id": 1}], "categories": [{"id": k} for k in range(1, 4)], "annotations": []}
    for i, (x1, y1, x2, y2) in enumerate(known.boxes.tolist()):
        row = {"id": i + 1, "image_id": 1, "category_id": int(known.labels[i]) + 1, "iscrowd": int(known.ignore[i])}
        coco.dataset["annotations"].append(row | {"bbox": [x1, y1, x2 - x1, y2 - y1], "area": (x2 - x1) * (y2 - y1)})
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
        evaluator = COCOeval(coco, coco.loadRes(found.to_coco(1)), "bbox")
        evaluator.params.iouThrs = np.array([0.5])
        evaluator.params.areaRng = evaluator.params.areaRng[:1]
        evaluator.evaluate()
    hit, false, missed = [], [], []
    for result in filter(None, evaluator.evalImgs):
        for d, matched, ignored in zip(result["dtIds"], result["dtMatches"][0], result["dtIgnore"][0], strict=True):
            (hit if matched else false).extend([] if ignored else [d - 1])
        matches = zip(result["gtIds"], result["gtMatches"][0], result["gtIgnore"], strict=True)
        missed += [g - 1 for g, matched, ignored in matches if not matched and not ignored]
    return sorted(hit), sorted(false), sorted(missed)


def test_matching_equals_pycocotools_on_random_layouts():
    generator = torch.Generator().manual_seed(1)

    def boxes(count):
        corner = torch.rand(count, 2, generator=generator) * 25
        return torch.cat([corner, corner + 20 + torch.rand(count, 2, generator=generator) * 40], 1).round()

    sizes = torch.zeros(3)
    for _ in range(40):
        labels = torch.randint(0, 3, (21,), generator=generator)
        known = Target(boxes(9), labels[:9], torch.rand(9, generator=generator) < 0.2)
        found = Detections(boxes(12), torch.rand(12, generator=generator), labels[9:], NAMES)
        verdict = [sorted(part.tolist()) for part in match_image(found, known)]
        assert verdict == list(coco_verdict(known, found))
        sizes += torch.tensor([len(part) for part in verdict])
    assert (sizes > 40).all()
