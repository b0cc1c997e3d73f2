"""Calibration against a loop over the detections, and of scores that are right by construction."""

import json
import math

import numpy as np
import pytest

from retinanet.analysis.errors.calibration import calibration
from retinanet.analysis.errors.tide import analyse_errors
from retinanet.errors import UserError
from retinanet.evaluation.matching import KINDS, find_overlaps

NAMES = ("a", "b", "c")


def by_loop(samples, detections, bins, label=None):
    """Counts, mean scores, shares of hits and ECE, one detection after the other."""
    overlaps = find_overlaps(samples, detections, NAMES)
    columns = zip(overlaps.score.tolist(), overlaps.label.tolist(), analyse_errors(overlaps).kind, strict=True)
    kinds = [(score, KINDS[kind]) for score, given, kind in columns if label in (None, given)]
    rows = [(score, kind == "hit") for score, kind in kinds if kind != "ignored"]
    parts = [[(score, hit) for score, hit in rows if min(int(score * bins), bins - 1) == b] for b in range(bins)]
    error = 0.0
    for part in filter(None, parts):
        error += abs(sum(hit for _, hit in part) - sum(score for score, _ in part)) / len(rows)
    confidence = [sum(score for score, _ in part) / len(part) if part else math.nan for part in parts]
    accuracy = [sum(hit for _, hit in part) / len(part) if part else math.nan for part in parts]
    return [len(part) for part in parts], confidence, accuracy, error


@pytest.mark.parametrize("bins", [1, 7, 15])
def test_equals_a_loop(make_scene, bins):
    samples, detections = make_scene(1, images=20)
    result = calibration(find_overlaps(samples, detections, NAMES), bins=bins)
    for label, one in [(None, result[0]), *enumerate(result[1:])]:
        counts, confidence, accuracy, error = by_loop(samples, detections, bins, label)
        assert one.counts.tolist() == counts and len(one.edges) == bins + 1
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
    found = make_detections([[0, 0, 10, 10]] * 4, [0.0, 0.25, 0.5, 1.0], [0] * 4)
    assert calibration(find_overlaps([make_sample([], [])], [found], NAMES), bins=4)[0].counts.tolist() == [
        1,
        1,
        1,
        1,
    ]


def test_nothing_found(make_sample, make_detections):
    result = calibration(find_overlaps([make_sample([[0, 0, 5, 5]], [0])], [make_detections([], [], [])], NAMES))
    assert math.isnan(result[0].ece) and "cannot be measured" in result[0].summary()
    assert json.loads(json.dumps(result[0].to_dict(), allow_nan=False))["ece"] is None
    with pytest.raises(UserError, match="bins is at least 1, got 0"):
        calibration(find_overlaps([], [], NAMES), bins=0)
