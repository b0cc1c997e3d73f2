"""Each kind of mistake is found where it was planted, at the place it was planted."""

from pathlib import Path

import numpy as np
import pytest
import torch

from retinanet.curation.agreement import chance_of_error, measure_share
from retinanet.curation.doubts import KINDS, find_doubts
from retinanet.evaluation.matching import find_overlaps
from retinanet.types import Detections, Sample, Target

NAMES = ("cat", "dog")
SIDE = 20.0
IMAGES = 12


def a_sample(number, boxes, labels, ignore=None):
    corners = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4)
    flags = torch.tensor(ignore or [False] * len(labels), dtype=torch.bool)
    target = Target(corners, torch.tensor(labels, dtype=torch.int64), flags)
    return Sample(Path(f"{number}.png"), number, (100, 200), target, torch.ones(len(labels), dtype=torch.float64))


def detections(boxes, labels, scores):
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    order = np.argsort(-np.asarray(scores), kind="stable")
    return Detections(corners[order], torch.tensor(scores)[order], torch.tensor(labels)[order], NAMES)


def place(number):
    return [40.0 * number + 5, 10.0, 40.0 * number + 5 + SIDE, 10.0 + SIDE]


def scene():
    """12 images of two cats and two dogs, all found with nearly the right boxes, and weak false detections."""
    dice = np.random.default_rng(0)
    annotated = [([place(n) for n in range(4)], [0, 0, 1, 1]) for _ in range(IMAGES)]
    found = []
    for boxes, labels in annotated:
        noisy = (np.array(boxes) + dice.normal(0, 0.5, (4, 4))).tolist()
        false = [[100.0, 60.0, 120.0, 80.0]] * 2
        found.append((noisy + false, [*labels, 0, 1], [*dice.uniform(0.8, 0.95, 4).tolist(), 0.1, 0.12]))
    return annotated, found


def doubts(annotated, found, **options):
    samples = [a_sample(number, *one) for number, one in enumerate(annotated)]
    return find_doubts(samples, [detections(*one) for one in found], NAMES, **options)


def test_sound_annotations_are_not_doubted():
    assert doubts(*scene(), least=0.3) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_mistake_is_the_worst(kind):
    annotated, found = scene()
    boxes, labels = annotated[5]
    row, label, truth = 1, 0, boxes[1]
    if kind == "missing":
        del boxes[1], labels[1]
        row = -1
    elif kind == "class":
        labels[1] = 1
    elif kind == "loose":
        boxes[1] = [side + 0.3 * SIDE for side in truth]
    elif kind == "doubled":
        boxes.append([side + 1.5 for side in truth])
        labels.append(0)
        row = 4
    else:
        boxes.append([150.0, 60.0, 170.0, 80.0])
        labels.append(0)
        row = 4
    first = doubts(annotated, found, least=0.0)[0]
    assert (first.kind, first.image, first.row) == (kind, 5, row)
    assert 0.3 < first.score <= 1
    if kind in ("doubled", "extra"):
        assert first.box is None and first.label == -1
    else:
        assert first.label == label
        np.testing.assert_allclose(first.box, truth, atol=2)


def test_a_weak_detection_does_not_hide_a_shifted_box():
    """One that happens to lie on the shifted box fits it by more than 0.5, and must not take it from the strong one."""
    annotated, found = scene()
    truth = annotated[5][0][1]
    annotated[5][0][1] = [side + 0.3 * SIDE for side in truth]
    for column, value in zip(found[5], ([side + 0.25 * SIDE for side in truth], 0, 0.1), strict=True):
        column.append(value)
    assert [(one.kind, one.row) for one in doubts(annotated, found, least=0.3)] == [("loose", 1)]


def test_ignore_regions_are_neither_doubted_nor_added_to():
    annotated, found = scene()
    boxes, labels = annotated[5]
    annotated[5] = (boxes, labels, [False, True, False, False])
    boxes[1] = [0.0, 0.0, 90.0, 60.0]
    assert doubts(annotated, found, least=0.3) == []


def test_each_annotation_is_doubted_once_and_the_worst_comes_first():
    annotated, found = scene()
    for number in range(3):
        annotated[number][1][1] = 1
    every = doubts(annotated, found, least=0.0)
    rows = [(one.image, one.row) for one in every if one.row >= 0]
    assert len(rows) == len(set(rows))
    scores = [one.score for one in every]
    assert scores == sorted(scores, reverse=True) and scores[-1] >= 0 and scores[0] <= 1


@pytest.mark.parametrize("empty", ["annotations", "detections", "both"])
def test_nothing_annotated_or_nothing_found(empty):
    annotated, found = scene()
    if empty != "detections":
        annotated = [([], []) for _ in annotated]
    if empty != "annotations":
        found = [([], [], []) for _ in found]
    every = doubts(annotated, found, least=0.0)
    assert {one.kind for one in every} <= {"annotations": {"missing"}, "detections": {"extra"}, "both": set()}[empty]
    assert all(np.isfinite(one.score) and one.score < 0.5 for one in every)


def test_the_measured_share_rises_with_the_score_and_keeps_the_mean():
    dice = np.random.default_rng(1)
    scores = dice.uniform(0, 1, 400)
    right = dice.uniform(0, 1, 400) < scores**2
    boxes = [[0.0, 0.0, 1.0, 1.0]] * 400
    overlaps = find_overlaps([a_sample(0, [], [])], [detections(boxes, [0] * 400, scores.tolist())], NAMES)
    right = right[np.argsort(-scores, kind="stable")]
    share = measure_share(overlaps, right, np.ones(400, bool))
    assert (np.diff(share) <= 1e-12).all()  # best score first
    assert share.mean() == pytest.approx(right.mean(), abs=0.03)
    assert np.abs(share - overlaps.score**2).mean() < 0.08


def test_the_chance_of_an_error_is_that_of_bayes():
    """Of 1000 right detections 50 lie on wrong annotations; beside 0, 50 false ones; both differ from what is there."""
    for false in (0, 50, 1000):
        agreeing = 950 / (1000 + false)
        assert chance_of_error(np.array([agreeing]))[0] == pytest.approx(50 / (50 + false))
