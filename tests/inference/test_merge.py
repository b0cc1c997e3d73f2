"""Merging the detections of windows, against a reference that looks at every pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinanet.inference import merge
from retinanet.inference.merge import (
    CONTINUES,
    DETECTION,
    FRAGMENT,
    INSIDE,
    find_intersections,
    merge_detections,
)


def found(rows):
    """Rows (box, score, label, cut); cut names sides, such as ``"lt"``."""
    made = [(box, score, label, [side in cut for side in "ltrb"]) for box, score, label, cut in rows]
    return np.array(made, DETECTION)


def rows_of(result):
    return [
        (tuple(box), round(float(score), 4), int(label))
        for box, score, label in zip(result["box"].tolist(), result["score"], result["label"], strict=True)
    ]


def area(box):
    return (box[2] - box[0]) * (box[3] - box[1])


def common(one, two):
    width = min(one[2], two[2]) - max(one[0], two[0])
    height = min(one[3], two[3]) - max(one[1], two[1])
    return max(0, width) * max(0, height)


def around(boxes):
    return (*np.min(boxes, axis=0)[:2], *np.max(boxes, axis=0)[2:])


def rank(row):
    (x1, y1, x2, y2), score, _, cut = row
    return -score * (FRAGMENT if cut else 1), y1, x1, y2, x2, bool(cut)


def continues(one, two, near, far, side, tolerance):
    """Whether ``two`` goes on where a border cuts ``one``; ``near`` and ``far`` are the coordinates across it."""
    (a, _, _, cut), (b, _, _, other) = one, two
    if side[1] not in cut or side[0] not in other:
        return False
    low, high = (1, 3) if near == 0 else (0, 2)
    together = min(a[high], b[high]) - max(a[low], b[low])
    apart = max(a[high], b[high]) - min(a[low], b[low])
    crosses = a[near] <= b[near] + tolerance and a[far] <= b[far] + tolerance
    return crosses and b[near] <= a[far] + tolerance and together > CONTINUES * apart


def reference_joined(rows, tolerance):
    groups = [[row] for row in rows]
    for one in rows:
        for two in rows:
            if continues(one, two, 0, 2, "lr", tolerance) or continues(one, two, 1, 3, "tb", tolerance):
                first = next(group for group in groups if any(row is one for row in group))
                second = next(group for group in groups if any(row is two for row in group))
                if first is not second:
                    groups.remove(second)
                    first += second
    return [joined(group, tolerance) for group in groups]


def joined(group, tolerance):
    """One row around all; a side is cut where a fragment that reaches it is."""
    box = around([row[0] for row in group])
    cut = [
        side
        for index, side in enumerate("ltrb")
        if any(side in row[3] and abs(row[0][index] - box[index]) <= tolerance for row in group)
    ]
    return box, max(row[1] for row in group), group[0][2], "".join(cut)


def reference_suppressed(rows, iou, by_fragments=True):
    rows, kept = sorted(rows, key=rank), []
    for row in rows:
        for better in kept:
            shared = common(better[0], row[0])
            over = shared > iou * (area(better[0]) + area(row[0]) - shared)
            inside = row[3] and shared > INSIDE * area(row[0])
            if (over or inside) and (by_fragments or not better[3]):
                break
        else:
            kept.append(row)
    return kept


def reference(rows, how, iou, tolerance=1.0):
    """Every pair, one box after the other."""
    result = []
    for label in {row[2] for row in rows}:
        mine = [row for row in rows if row[2] == label]
        if how == "nmm":
            mine = reference_joined(reference_suppressed(mine, iou, by_fragments=False), tolerance)
        result += reference_suppressed(mine, iou)
    return sorted(
        ((tuple(map(float, box)), round(float(np.float32(score)), 4), label) for box, score, label, _ in result),
        key=lambda row: (-row[1], row[0][1], row[0][0], row[0][3], row[0][2], row[2]),
    )


@st.composite
def detections(draw):
    """Crowded whole numbers, so that areas are exact and equal scores and boxes occur."""
    rows = []
    for _ in range(draw(st.integers(0, 30))):
        x, y = draw(st.integers(0, 40)), draw(st.integers(0, 25))
        width, height = draw(st.integers(1, 20)), draw(st.integers(1, 20))
        cut = draw(st.sampled_from(["", "", "l", "r", "t", "b", "lr", "rb", "lt"]))
        score = draw(st.integers(1, 8)) / 8
        rows.append(((x, y, x + width, y + height), score, draw(st.integers(0, 1)), cut))
    return rows


@settings(max_examples=300, deadline=None)
@given(rows=detections(), how=st.sampled_from(["nms", "nmm"]), iou=st.sampled_from([0.3, 0.5, 0.75, 1.0]))
def test_as_the_reference(rows, how, iou):
    assert rows_of(merge_detections(found(rows), how=how, iou=iou)) == reference(rows, how, iou)


@settings(max_examples=100, deadline=None)
@given(rows=detections(), how=st.sampled_from(["nms", "nmm"]), random=st.randoms(use_true_random=False))
def test_the_order_of_the_input_does_not_matter(rows, how, random):
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert rows_of(merge_detections(found(shuffled), how=how)) == rows_of(merge_detections(found(rows), how=how))


@settings(max_examples=200, deadline=None)
@given(rows=detections())
def test_pairs_with_a_common_area(rows):
    boxes = found(rows)["box"]
    pairs = [tuple(sorted(pair)) for one, two in find_intersections(boxes) for pair in zip(one, two, strict=True)]
    every = [(i, j) for j in range(len(boxes)) for i in range(j) if common(boxes[i], boxes[j]) > 0]
    assert sorted(pairs) == sorted(every)  # each once


def scattered(count, side):
    """Boxes of 1 to 300 px over an image of ``side`` px, one in ten of them a fragment."""
    dice = np.random.default_rng(0)
    corner, side = dice.uniform(0, side, (count, 2)), dice.exponential(60, (count, 2)).clip(1, 300)
    cut = np.zeros((count, 4), bool)
    cut[::10, dice.integers(0, 4)] = True
    scores = dice.random(count, np.float32)
    detections = np.empty(count, DETECTION)
    detections["box"], detections["score"] = np.hstack([corner, corner + side]), scores
    detections["label"], detections["cut"] = dice.integers(0, 2, count), cut
    return detections


@pytest.mark.parametrize("pieces", [2_000_000, 50])
def test_random_boxes_as_the_reference(monkeypatch, pieces):
    monkeypatch.setattr(merge, "PAIRS", pieces)  # as when there are far more boxes
    small = scattered(300, 700)
    sides = ["".join(np.array(list("ltrb"))[row]) for row in small["cut"]]
    rows = [
        (tuple(box), score, label, cut)
        for box, score, label, cut in zip(
            small["box"].tolist(), small["score"].tolist(), small["label"].tolist(), sides, strict=True
        )
    ]
    for how in ("nms", "nmm"):
        result = merge_detections(small, how=how)
        wanted = reference(rows, how, 0.5)
        assert len(result) == len(wanted) < 300
        assert sorted(map(tuple, result["box"].tolist())) == sorted(row[0] for row in wanted)  # scores may be equal


def test_fifty_thousand_boxes_and_one_as_large_as_the_image():
    many = scattered(50_000, 20_000)
    huge = found([((0, 0, 20_000, 20_000), 0.5, 0, "")])
    for how in ("nms", "nmm"):
        result = merge_detections(np.concatenate([many, huge]), how=how)
        for label in (0, 1):  # what is kept does not overlap: looked at pair by pair, in a part of the image
            near = (result["box"][:, :2] < 2000).all(axis=1) & (result["label"] == label)
            kept = result["box"][near].tolist()
            assert len(kept) > 50
            for one in range(len(kept)):
                for two in range(one):
                    shared = common(kept[one], kept[two])
                    assert shared <= 0.5 * (area(kept[one]) + area(kept[two]) - shared)


def test_nothing():
    for how in ("nms", "nmm"):
        assert len(merge_detections(found([]), how=how)) == 0


def test_a_whole_box_beats_a_better_fragment():
    rows = [((60, 0, 90, 30), 0.6, 0, ""), ((68, 0, 90, 30), 0.9, 0, "l")]
    for how in ("nms", "nmm"):
        assert rows_of(merge_detections(found(rows), how=how)) == [((60, 0, 90, 30), 0.6, 0)]


def test_a_faint_whole_box_does_not_remove_a_certain_fragment():
    rows = [((60, 0, 90, 30), 0.1, 0, ""), ((68, 0, 90, 30), 0.9, 0, "l")]
    for how in ("nms", "nmm"):
        assert rows_of(merge_detections(found(rows), how=how)) == [((68, 0, 90, 30), 0.9, 0)]


def test_fragments_of_an_object_that_a_window_sees_whole_are_not_put_together():
    """The two windows below see one half each; the one above sees everything."""
    rows = [((50, 20, 150, 95), 0.8, 0, ""), ((50, 60, 110, 95), 0.9, 0, "rt"), ((90, 60, 150, 95), 0.9, 0, "lt")]
    assert rows_of(merge_detections(found(rows), how="nmm")) == [((50, 20, 150, 95), 0.8, 0)]


def test_a_small_whole_box_inside_a_fragment_leaves_it_alone():
    rows = [((70, 5, 80, 15), 0.1, 0, ""), ((0, 0, 100, 100), 0.9, 0, "r")]
    assert len(merge_detections(found(rows))) == 2


def test_an_object_cut_by_every_window():
    """Three windows of 100 with an overlap of 20 see parts of one object from 30 to 230; the middle one sees no end."""
    parts = [((30, 5, 100, 45), 0.7, 0, "r"), ((80, 4, 180, 46), 0.9, 0, "lr"), ((160, 5, 230, 45), 0.8, 0, "l")]
    assert rows_of(merge_detections(found(parts), how="nmm")) == [((30, 4, 230, 46), 0.9, 0)]
    assert ((80, 4, 180, 46), 0.9, 0) in rows_of(merge_detections(found(parts), how="nms"))  # the largest stays


def test_an_object_cut_at_the_meeting_of_four_windows():
    parts = [
        ((30, 40, 100, 100), 0.5, 0, "rb"),
        ((80, 40, 150, 100), 0.6, 0, "lb"),
        ((30, 80, 100, 170), 0.7, 0, "rt"),
        ((80, 80, 150, 170), 0.8, 0, "lt"),
    ]
    assert rows_of(merge_detections(found(parts), how="nmm")) == [((30, 40, 150, 170), 0.8, 0)]


def test_neighbours_at_a_border_are_not_one_object():
    """Each is whole in one window and cut in the other; their fragments do not cross the overlap."""
    rows = [
        ((60, 0, 90, 30), 0.9, 0, ""),
        ((92, 0, 120, 30), 0.8, 0, ""),
        ((92, 0, 100, 30), 0.7, 0, "r"),
        ((68, 0, 90, 30), 0.6, 0, "l"),
    ]
    for how in ("nms", "nmm"):
        assert rows_of(merge_detections(found(rows), how=how)) == [
            ((60, 0, 90, 30), 0.9, 0),
            ((92, 0, 120, 30), 0.8, 0),
        ]


def test_classes_are_merged_apart():
    rows = [((0, 0, 10, 10), 0.9, 0, ""), ((0, 0, 10, 10), 0.8, 1, "r"), ((9, 0, 20, 10), 0.8, 0, "l")]
    assert len(merge_detections(found(rows), how="nms")) == len(merge_detections(found(rows), how="nmm")) == 3
