"""Operating points, confusions and calibration against every threshold, a loop, and cases worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch

from retinanet.analysis.errors.curves import BINS, best_thresholds, calibration, confusion, operating_points
from retinanet.analysis.errors.tide import analyse_errors
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.matching import find_overlaps, match_image
from retinanet.types import Detections

NAMES = ("a", "b", "c")


def counted(samples, detections, label, least):
    """Hits, false detections and overlooked objects of a class among the detections of at least a score."""
    totals = np.zeros(3, np.int64)
    for sample, found in zip(samples, detections, strict=True):
        keep = (found.scores >= least) & (found.labels == label)
        shown = Detections(found.boxes[keep], found.scores[keep], found.labels[keep], NAMES)
        totals += [len(part) for part in match_image(shown, sample.target.select(sample.target.labels == label))]
    return totals.tolist()


@pytest.mark.parametrize("seed", range(3))
def test_the_best_f1_of_all_thresholds(make_scene, seed):
    samples, detections = make_scene(seed)
    curves = operating_points(find_overlaps(samples, detections, NAMES))
    metrics = coco_metrics(samples, detections, NAMES)
    for label, curve in enumerate(curves):
        assert curve.ap50 == pytest.approx(metrics.classes[label].ap50, abs=1e-9)
        points = []
        for score, precision, recall in zip(curve.scores, curve.precision, curve.recall, strict=True):
            hits, false, missed = counted(samples, detections, label, score)
            assert precision == hits / (hits + false) and recall == hits / (hits + missed)
            points.append(2 * hits / (2 * hits + false + missed))
        assert curve.f1 == pytest.approx(max(points), abs=1e-12)
        assert curve.best == points.index(max(points))
        hits, false, missed = counted(samples, detections, label, curve.threshold)  # as predict would show them
        assert 2 * hits / (2 * hits + false + missed) == pytest.approx(max(points), abs=1e-12)
        assert curve.threshold < curve.scores[curve.best]  # halfway to the next
        assert (np.diff(curve.scores) < 0).all() and curve.objects == metrics.classes[label].boxes


def test_equal_scores_are_shown_together(make_sample, make_detections):
    """Alone, the hit of 0.5 would give F1 1; at 0.5 the false one is shown as well: 2 / 3."""
    samples = [make_sample([[0, 0, 10, 10]], [0])]
    found = [make_detections([[0, 0, 10, 10], [50, 0, 60, 10]], [0.5, 0.5], [0, 0])]
    curve = operating_points(find_overlaps(samples, found, NAMES))[0]
    assert curve.scores.tolist() == [0.5] and curve.f1 == pytest.approx(2 / 3)
    assert curve.threshold == 0.5  # nothing lower to keep away from


def test_classes_without_a_threshold(make_sample, make_detections):
    samples = [make_sample([[0, 0, 10, 10], [20, 0, 30, 10]], [0, 1])]
    found = [make_detections([[0, 0, 10, 10], [50, 0, 60, 10], [50, 0, 60, 10]], [0.75, 0.5, 0.5], [0, 1, 2])]
    a, b, c = operating_points(find_overlaps(samples, found, NAMES))
    assert (a.f1, a.threshold, b.f1, b.threshold, c.threshold) == (1, 0.75, 0, None, None) and np.isnan(c.f1)
    assert best_thresholds([a, b, c]) == {"a": 0.75}
    rows = json.loads(json.dumps([curve.to_dict() for curve in (a, b, c)], allow_nan=False))
    assert rows[0]["precision_at_recall"] == [1] * 101 and rows[1]["precision_at_recall"] == [0] * 101
    assert rows[2]["precision_at_recall"] is None and rows[2]["best_f1"] is None
    assert a.summary().startswith("a: best F1 1.000 at score 0.750") and "no detection is right" in b.summary()


def test_confusions_worked_out_by_hand(make_sample, make_detections):
    """Objects: a, a, b, b and a crowd of a."""
    boxes = [[x, 0, x + 100, 100] for x in (0, 1000, 2000, 3000, 4000)]
    sample = make_sample(boxes, [0, 0, 1, 1, 0], [False] * 4 + [True])
    found = make_detections(
        [boxes[0], boxes[0], boxes[1], boxes[2], boxes[2], [9000, 0, 9100, 100], boxes[4], boxes[3]],
        [0.80, 0.95, 0.90, 0.85, 0.70, 0.60, 0.55, 0.20],
        [0, 1, 1, 0, 2, 2, 0, 1],
    )
    # the a of 0.80 finds object 0, although the b of 0.95 lies on it too: that one is left with nothing, and so is
    # the c of 0.70, as the a of 0.85 has taken object 2 before; the a of 0.55 lies in the crowd
    matrix = confusion(find_overlaps([sample], [found], NAMES), {})
    assert matrix.matrix.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 0]]
    lower = confusion(find_overlaps([sample], [found], NAMES), {"b": 0.1, "c": 0.65})  # 0.3 for a
    assert lower.thresholds == (0.3, 0.1, 0.65)
    assert lower.matrix.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert matrix.summary().splitlines()[0] == (
        "4 objects: 1 found with their class, 2 with another, 1 overlooked; 3 detections of nothing"
    )
    assert matrix.summary().splitlines()[1:] == ["  a taken for b: 1", "  b taken for a: 1"]


@pytest.mark.parametrize("score", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("ties", [False, True])
def test_rows_are_objects_and_columns_detections(make_scene, score, ties):
    samples, detections = make_scene(7, images=20, ties=ties)
    matrix = confusion(find_overlaps(samples, detections, NAMES), dict.fromkeys(NAMES, score)).matrix
    shown = [found.above(score) for found in detections]
    metrics = coco_metrics(samples, shown, NAMES)
    assert matrix[:3].sum(axis=1).tolist() == [row.boxes for row in metrics.classes] and matrix[3, 3] == 0
    parts = [match_image(found, sample.target) for sample, found in zip(samples, shown, strict=True)]
    hits = torch.cat([found.labels[hit] for found, (hit, _, _) in zip(shown, parts, strict=True)])
    false = torch.cat([found.labels[wrong] for found, (_, wrong, _) in zip(shown, parts, strict=True)])
    assert matrix[:, :3].sum(axis=0).tolist() == torch.bincount(torch.cat([hits, false]), minlength=3).tolist()
    assert np.diag(matrix)[:3].tolist() == torch.bincount(hits, minlength=3).tolist()
    assert matrix[:3, :3].sum() > np.trace(matrix[:3, :3])


def by_loop(samples, detections, label=None):
    """Counts, mean scores, shares of hits and ECE, one detection after the other."""
    overlaps = find_overlaps(samples, detections, NAMES)
    columns = zip(overlaps.score.tolist(), overlaps.label.tolist(), analyse_errors(overlaps).kind, strict=True)
    kinds = [(score, kind) for score, given, kind in columns if label in (None, given)]
    rows = [(score, kind == "hit") for score, kind in kinds if kind != "ignored"]
    parts = [[(score, hit) for score, hit in rows if min(int(score * BINS), BINS - 1) == b] for b in range(BINS)]
    error = 0.0
    for part in filter(None, parts):
        error += abs(sum(hit for _, hit in part) - sum(score for score, _ in part)) / len(rows)
    confidence = [sum(score for score, _ in part) / len(part) if part else math.nan for part in parts]
    accuracy = [sum(hit for _, hit in part) / len(part) if part else math.nan for part in parts]
    return [len(part) for part in parts], confidence, accuracy, error


def test_calibration_equals_a_loop(make_scene):
    samples, detections = make_scene(1, images=20)
    result = calibration(find_overlaps(samples, detections, NAMES))
    for label, one in [(None, result[0]), *enumerate(result[1:])]:
        counts, confidence, accuracy, error = by_loop(samples, detections, label)
        assert one.counts.tolist() == counts and len(one.edges) == BINS + 1
        np.testing.assert_allclose(one.confidence, confidence, rtol=0, atol=1e-9)
        np.testing.assert_allclose(one.accuracy, accuracy, rtol=0, atol=1e-9)
        assert one.ece == pytest.approx(error, abs=1e-9) and one.ece > 0.05
    assert [one.name for one in result] == ["all", "a", "b", "c"]
    assert sum(one.counts.sum() for one in result[1:]) == result[0].counts.sum()


@pytest.mark.parametrize(("score", "bias"), [(0.75, 0.0), (1.0, 0.25), (0.25, -0.5)])
def test_three_of_four_are_right(make_sample, make_detections, score, bias):
    boxes = [[i * 20, 0, i * 20 + 10, 10] for i in range(4)]
    result = calibration(
        find_overlaps([make_sample(boxes[:3], [0] * 3)], [make_detections(boxes, [score] * 4, [0] * 4)], NAMES)
    )
    assert result[0].ece == pytest.approx(abs(bias)) and result[0].bias == pytest.approx(bias)
    assert result[1].ece == result[0].ece and math.isnan(result[2].ece)
    assert f"{abs(bias):.3f} too {'high' if bias > 0 else 'low'}" in result[0].summary()


def test_a_score_on_the_end_of_a_bin(make_sample, make_detections):
    """It belongs to the bin above it, and 1 to the last."""
    found = make_detections([[0, 0, 10, 10]] * 3, [0.0, 0.2, 1.0], [0] * 3)
    counts = calibration(find_overlaps([make_sample([], [])], [found], NAMES))[0].counts
    assert np.flatnonzero(counts).tolist() == [0, 3, 14] and counts.sum() == 3


def test_calibration_of_nothing(make_sample, make_detections):
    result = calibration(find_overlaps([make_sample([[0, 0, 5, 5]], [0])], [make_detections([], [], [])], NAMES))
    assert math.isnan(result[0].ece) and "cannot be measured" in result[0].summary()
    assert json.loads(json.dumps(result[0].to_dict(), allow_nan=False))["ece"] is None
