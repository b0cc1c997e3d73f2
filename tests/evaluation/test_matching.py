"""The flat matching and average precision against the evaluator and against one detection after the other."""

import numpy as np
import pytest
import torch

from retinanet.anchors.geometry import iou
from retinanet.errors import UserError
from retinanet.evaluation.coco import average_precision, coco_metrics, mean
from retinanet.evaluation.matching import find_overlaps

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


def test_beyond_a_hundred_of_a_class_in_an_image_nothing_counts(make_sample, make_detections):
    boxes = np.array([[0, 0, 10, 10]] * 130) + np.arange(130)[:, None] * 20.0
    sample = make_sample(boxes, [0] * 130)
    labels = [0] * 110 + [1] * 20
    found = make_detections(boxes, np.linspace(0.9, 0.1, 130), labels)
    overlaps = find_overlaps([sample], [found], NAMES)
    assert len(overlaps.label) == 120 and (np.bincount(overlaps.label) == [100, 20]).all()
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
