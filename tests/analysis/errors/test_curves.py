"""Operating points and confusions against every threshold tried out, and against cases worked out by hand."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from retinanet.analysis.errors.curves import best_thresholds, confusion, operating_points
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.matching import find_overlaps, match_image
from retinanet.model_folder import write_thresholds
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
    matrix = confusion(find_overlaps([sample], [found], NAMES), score=0.3)
    assert matrix.matrix.tolist() == [[1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 2, 0]]
    lower = confusion(find_overlaps([sample], [found], NAMES), score={"b": 0.1, "c": 0.65})  # 0.3 for a
    assert lower.thresholds == (0.3, 0.1, 0.65)
    assert lower.matrix.tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 1, 1, 0]]
    assert matrix.summary().splitlines()[0] == (
        "4 objects: 1 found with their class, 2 with another, 1 overlooked; 3 detections of nothing"
    )
    assert matrix.summary().splitlines()[1:] == ["  a taken for b: 1", "  b taken for a: 1"]
    with pytest.raises(UserError, match="a score for 'd'; the classes are a, b, c"):
        confusion(find_overlaps([sample], [found], NAMES), score={"d": 0.5})


@pytest.mark.parametrize("score", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("ties", [False, True])
def test_rows_are_objects_and_columns_detections(make_scene, score, ties):
    samples, detections = make_scene(7, images=20, ties=ties)
    matrix = confusion(find_overlaps(samples, detections, NAMES), score=score).matrix
    shown = [found.above(score) for found in detections]
    metrics = coco_metrics(samples, shown, NAMES)
    assert matrix[:3].sum(axis=1).tolist() == [row.boxes for row in metrics.classes] and matrix[3, 3] == 0
    parts = [match_image(found, sample.target) for sample, found in zip(samples, shown, strict=True)]
    hits = torch.cat([found.labels[hit] for found, (hit, _, _) in zip(shown, parts, strict=True)])
    false = torch.cat([found.labels[wrong] for found, (_, wrong, _) in zip(shown, parts, strict=True)])
    assert matrix[:, :3].sum(axis=0).tolist() == torch.bincount(torch.cat([hits, false]), minlength=3).tolist()
    assert np.diag(matrix)[:3].tolist() == torch.bincount(hits, minlength=3).tolist()
    assert matrix[:3, :3].sum() > np.trace(matrix[:3, :3])


def test_thresholds_are_stored_in_the_model(trained, data, tmp_path, make_sample, make_detections):
    folder = tmp_path / "model"
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("*.pt"))
    before = json.loads((folder / "config.json").read_text())
    names = ("disc", "square")
    samples = [make_sample([[0, 0, 10, 10]], [1])]
    found = [make_detections([[0, 0, 10, 10], [30, 0, 40, 10]], [0.75, 0.25], [1, 1], names)]
    curves = operating_points(find_overlaps(samples, found, names))
    write_thresholds(folder, best_thresholds(curves))
    assert json.loads((folder / "config.json").read_text()) == {**before, "thresholds": {"square": 0.5}}
    assert Detector.load(folder).spec.thresholds == {"square": 0.5}
    tensors, again = load_file(trained / "model.safetensors"), load_file(folder / "model.safetensors")
    assert all(torch.equal(tensors[key], again[key]) for key in tensors)
    found = [make_detections([[0, 0, 10, 10]], [0.5], [1])]
    others = best_thresholds(operating_points(find_overlaps(samples, found, NAMES)))
    with pytest.raises(UserError, match="threshold for 'b'"):
        write_thresholds(folder, others)
