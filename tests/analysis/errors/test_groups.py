"""AP of groups against the evaluator's sizes, the evaluator on some of the images, and cases worked out by hand."""

import numpy as np
import pytest

from retinanet.analysis.errors.groups import by_group
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.matching import find_overlaps

NAMES = ("a", "b", "c")


def named(groups):
    return {group.name: group for group in groups}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("ties", [False, True])
def test_sizes_equal_the_evaluator(make_scene, seed, ties):
    samples, detections = make_scene(seed, ties=ties)
    groups, metrics = (
        named(by_group(find_overlaps(samples, detections, NAMES))["sizes"]),
        coco_metrics(samples, detections, NAMES),
    )
    assert len(groups) >= 2
    for name, group in groups.items():
        assert group.objects == getattr(metrics, name).boxes
        assert group.ap == pytest.approx(getattr(metrics, name).ap, abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_density_equals_the_evaluator_on_the_images(make_scene, seed):
    samples, detections = make_scene(seed, images=24)
    objects = np.array([int((~sample.target.ignore).sum()) for sample in samples])
    ends = np.floor(np.quantile(objects[objects > 0], [0.25, 0.5, 0.75, 1])).astype(int)
    groups = by_group(find_overlaps(samples, detections, NAMES))["density"]
    assert len(groups) == len(set(ends.tolist())) > 2
    low = 0
    for group, high in zip(groups, sorted(set(ends.tolist())), strict=True):
        inside = [i for i, count in enumerate(objects) if low <= count <= high]
        metrics = coco_metrics([samples[i] for i in inside], [detections[i] for i in inside], NAMES)
        assert (group.ap, group.ap50) == pytest.approx((metrics.ap, metrics.ap50), abs=1e-9)
        assert group.objects == metrics.boxes
        assert group.name == (f"{max(low, 1)} to {high}" if max(low, 1) < high else f"{high}")
        low = high + 1


def test_neighbours_worked_out_by_hand(make_sample, make_detections):
    """Objects: one alone; a pair; a row of three, whose middle has two neighbours. An ignored box is no neighbour."""
    pair, row = [[1000, 0, 1100, 100], [1050, 0, 1150, 100]], [[x, 0, x + 100, 100] for x in (2000, 2060, 2120)]
    boxes = [[0, 0, 100, 100], *pair, *row, [50, 0, 150, 100], [1150, 0, 1250, 100]]  # the last only touches
    sample = make_sample(boxes, [0, 0, 1, 0, 0, 0, 0, 0], [False] * 6 + [True, False])
    found = make_detections(
        [boxes[0], [70, 0, 170, 100], boxes[1], [2075, 0, 2175, 100], [9000, 0, 9100, 100], [1010, 0, 1110, 100]],
        [0.9, 0.8, 0.7, 0.6, 0.95, 0.5],
        [0, 1, 0, 0, 1, 1],
    )
    groups = named(by_group(find_overlaps([sample], [found], NAMES))["neighbours"])
    assert {name: (group.objects, group.classes) for name, group in groups.items()} == {
        "none": (2, 1), "1": (4, 2), "2": (1, 1)
    }  # fmt: skip
    # none: of the two of class a one is found first; the false ones of class b have no object here
    assert groups["none"].ap50 == pytest.approx(51 / 101) and groups["none"].recall == 0.5
    # 1: class a has 3 objects, one found by the only detection that belongs here: 34 of 101 points; the b of 0.50
    # overlaps object 1 by 0.82, so it belongs to this group, and finds its own object, 2, by 0.43 only
    assert groups["1"].ap50 == pytest.approx(34 / 101 / 2) and groups["1"].recall == 0.25
    # 2: the middle of the row is found at IoU 0.74
    assert groups["2"].ap50 == 1 and groups["2"].ap == pytest.approx(0.5)


def test_a_false_detection_counts_against_its_own_group(make_sample, make_detections):
    """Before the hit: a false one on the pair. It lowers the AP of the pair, not of the object that is alone."""
    boxes = [[0, 0, 100, 100], [1000, 0, 1100, 100], [1020, 0, 1120, 100]]
    sample = make_sample(boxes, [0, 0, 1])
    found = make_detections([[1060, 0, 1160, 100], boxes[0], boxes[1]], [0.9, 0.8, 0.7], [0, 0, 0])
    groups = named(by_group(find_overlaps([sample], [found], NAMES))["neighbours"])
    assert groups["none"].ap50 == 1 and groups["1"].ap50 == pytest.approx((1 / 2 + 0) / 2)


def test_octaves(make_sample, make_detections):
    """A box of 32 x 32 belongs to the octave from 32; a false one counts in the octave of its own area."""
    boxes = [[0, 0, 32, 32], [100, 0, 131, 31], [200, 0, 263, 63]]
    found = make_detections([boxes[0], boxes[1], boxes[2], [400, 0, 440, 40]], [0.5, 0.5, 0.5, 0.9], [0] * 4)
    groups = by_group(find_overlaps([make_sample(boxes, [0] * 3)], [found], NAMES))["octaves"]
    assert [(group.name, group.objects) for group in groups] == [("16 to 32 px", 1), ("32 to 64 px", 2)]
    assert groups[0].ap == 1 and groups[1].ap == pytest.approx(2 / 3)


def test_without_objects_there_are_no_groups(make_sample, make_detections):
    result = by_group(find_overlaps([make_sample([], [])], [make_detections([[0, 0, 9, 9]], [0.9], [0])], NAMES))
    assert result == {"sizes": [], "octaves": [], "neighbours": [], "density": []}
