"""The detections of overlapping windows of one image, made one set.

An object in the overlap of two windows is found twice, and one that crosses the border of a window is found in part.
Each class is merged by itself. Boxes rank by score and then by position, so that the result does not depend on the
order of the input. For this the score of a fragment, a box that a border of its window cuts, counts half: what a window
sees whole is the better box even where the model is a little less sure of it, but a faint box does not remove what is
certain.

* ``nms``: a kept box suppresses what ranks behind it and overlaps it with IoU above the threshold, and fragments that
  lie in it by more than half of their own area.
* ``nmm`` (non-maximum merging): the boxes that are whole suppress first. Of the fragments that are left, those that
  continue each other across a border become one box around all, with the best of their scores. Then as ``nms``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

INSIDE = 0.5  # share of a fragment's area from which on it belongs to the box that it lies in
FRAGMENT = 0.5  # what the score of a fragment is worth when boxes are ranked
CONTINUES = 0.5  # IoU of the sides along a border from which on two fragments are one object
PAIRS = 2_000_000  # looked at in one piece, which bounds the memory
# A detection of a window: box, xyxy in pixels of the image; score; label; cut, whether the box ends at the left, top,
# right, bottom border of its window where the image goes on behind that border.
DETECTION = np.dtype([("box", np.float64, 4), ("score", np.float32), ("label", np.int64), ("cut", np.bool_, 4)])
Merge = Literal["nms", "nmm"]
Indices = NDArray[np.int64]


def merge_detections(
    detections: NDArray[Any],
    *,
    how: Merge = "nms",
    iou: float = 0.5,
    class_agnostic: bool = False,
    tolerance: float = 1.0,
) -> NDArray[Any]:
    """One detection per object, by the rules at the top of this file.

    Args:
        detections: (n,) of type ``DETECTION``, of all windows.
        how: ``nms`` or ``nmm``.
        iou: of two boxes of a class, the threshold of suppression.
        class_agnostic: of any two boxes.
        tolerance: pixels by which fragments may miss each other, for ``nmm``.

    Returns:
        (m,) of type ``DETECTION``, best score first, equal scores by position.
    """
    groups = np.zeros_like(detections["label"]) if class_agnostic else detections["label"]
    merged = [detections[:0]]
    for group in np.unique(groups):
        part = detections[groups == group]
        if how == "nmm":
            part = _join_fragments(_suppress(part, iou, by_fragments=False), tolerance)
        merged.append(_suppress(part, iou, by_fragments=True))
    together = np.concatenate(merged)
    return together[_rank(together, together["score"])]


def _is_fragment(detections: NDArray[Any]) -> NDArray[np.bool_]:
    """(n,) whether a border of its window cuts a box."""
    cut: NDArray[np.bool_] = np.logical_or.reduce(detections["cut"], axis=1)
    return cut


def _rank(detections: NDArray[Any], worth: NDArray[np.float32]) -> Indices:
    """The most worth first, then by position."""
    x1, y1, x2, y2 = detections["box"].T
    return np.lexsort((detections["label"], _is_fragment(detections), x2, y2, x1, y1, -worth))


def _suppress(detections: NDArray[Any], iou: float, *, by_fragments: bool) -> NDArray[Any]:
    """What is kept, in its order; fragments suppress each other only ``by_fragments``."""
    weights = np.where(_is_fragment(detections), np.float32(FRAGMENT), np.float32(1))
    detections = detections[_rank(detections, detections["score"] * weights)]
    boxes, fragment = detections["box"].copy(), _is_fragment(detections)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)

    # Pairs of ranks (i, j), i before j, where i suppresses j unless it is suppressed itself.
    pairs = [np.zeros((2, 0), np.int64)]
    for left, right in find_intersections(boxes):
        i, j = np.minimum(left, right), np.maximum(left, right)
        sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
        common = sides[:, 0] * sides[:, 1]
        weaker = (common > iou * (area[i] + area[j] - common)) | (fragment[j] & (common > INSIDE * area[j]))
        weaker &= by_fragments or ~fragment[i]
        pairs.append(np.stack([i[weaker], j[weaker]]))
    first, second = np.concatenate(pairs, axis=1)

    order = np.argsort(first, kind="stable")
    ranks, starts = np.unique(first[order], return_index=True)
    kept = np.ones(len(detections), bool)
    for rank, weaker in zip(ranks.tolist(), np.split(second[order], starts[1:]), strict=False):
        if kept[rank]:
            kept[weaker] = False
    return detections[kept]


def _join_fragments(detections: NDArray[Any], tolerance: float) -> NDArray[Any]:
    """Fragments that continue each other as one box, the rest as it is."""
    fragments = np.flatnonzero(_is_fragment(detections))
    boxes, cut = detections["box"][fragments], detections["cut"][fragments]
    reach = boxes + tolerance * np.array([-1, -1, 1, 1])  # those that only touch are found as well
    group = np.arange(len(detections))
    for left, right in find_intersections(reach):
        for i, j in ((left, right), (right, left)):
            for axis in (0, 1):
                pairs = _find_continuations(boxes, cut, i, j, axis, tolerance)
                for a, b in zip(fragments[i[pairs]].tolist(), fragments[j[pairs]].tolist(), strict=True):
                    group[_find_root(group, a)] = _find_root(group, b)
    roots = np.array([_find_root(group, row) for row in range(len(detections))], np.int64)

    joined = detections.copy()
    np.minimum.at(joined["box"][:, :2], roots, detections["box"][:, :2])
    np.maximum.at(joined["box"][:, 2:], roots, detections["box"][:, 2:])
    np.maximum.at(joined["score"], roots, detections["score"])
    joined["cut"] = False  # but on the sides where an outermost fragment is cut
    ends = np.abs(detections["box"] - joined["box"][roots]) <= tolerance
    np.logical_or.at(joined["cut"], roots, detections["cut"] & ends)
    return joined[np.unique(roots)]


def _find_root(group: Indices, row: int) -> int:
    while group[row] != row:
        group[row] = group[group[row]]
        row = int(group[row])
    return row


def _find_continuations(
    boxes: NDArray[np.float64], cut: NDArray[np.bool_], i: Indices, j: Indices, axis: int, tolerance: float
) -> NDArray[np.bool_]:
    """Which fragments j go on, to the right (axis 0) or below (axis 1), where i are cut.

    Both cross the whole strip between the two borders, and their sides along the borders agree.
    """
    near, far, other = axis, axis + 2, 1 - axis
    crosses = (boxes[i, near] <= boxes[j, near] + tolerance) & (boxes[i, far] <= boxes[j, far] + tolerance)
    meets = boxes[j, near] <= boxes[i, far] + tolerance
    common = np.minimum(boxes[i, other + 2], boxes[j, other + 2]) - np.maximum(boxes[i, other], boxes[j, other])
    union = np.maximum(boxes[i, other + 2], boxes[j, other + 2]) - np.minimum(boxes[i, other], boxes[j, other])
    return cut[i, far] & cut[j, near] & crosses & meets & (common > CONTINUES * union)


def find_intersections(boxes: NDArray[np.float64]) -> Iterator[tuple[Indices, Indices]]:
    """All pairs of boxes (n, 4) with a common area, each once, in pieces of bounded size.

    Boxes are sorted into the cells of a grid, each into all cells that it covers, and compared within a cell. The cells
    are as large as the average box, so that there are a few entries per box. The cell that holds the corner of the
    common area alone reports a pair.
    """
    if len(boxes) < 2:
        return
    origin = boxes[:, :2].min(axis=0)
    sides = boxes[:, 2:] - boxes[:, :2]
    side = max(*sides.mean(axis=0), float(np.sqrt(sides.prod(axis=1).mean())), 1e-6)
    first = np.floor((boxes[:, :2] - origin) / side).astype(np.int64)  # (n, 2) column and row of the corners' cells
    spans = np.floor((boxes[:, 2:] - origin) / side).astype(np.int64) - first + 1
    count = spans.prod(axis=1)
    box = np.repeat(np.arange(len(boxes)), count)  # (entries,)
    place = np.arange(len(box)) - np.repeat(count.cumsum() - count, count)
    column, row = first[box, 0] + place % spans[box, 0], first[box, 1] + place // spans[box, 0]
    cell = row * (int(column.max()) + 1) + column
    order = np.argsort(cell, kind="stable")
    box, cell = box[order], cell[order]
    later = np.searchsorted(cell, cell, side="right") - np.arange(len(cell)) - 1  # entries of the cell behind each one
    start = 0
    while start < len(cell):
        stop = max(start + 1, int(np.searchsorted(later[start:].cumsum(), PAIRS, side="right")) + start)
        counts = later[start:stop]
        entry = np.repeat(np.arange(start, stop), counts)
        other = entry + 1 + np.arange(len(entry)) - np.repeat(counts.cumsum() - counts, counts)
        left, right = box[entry], box[other]
        low = np.maximum(boxes[left, :2], boxes[right, :2])
        meet = (low < np.minimum(boxes[left, 2:], boxes[right, 2:])).all(axis=1)
        home = np.maximum(first[left], first[right])  # the cell of the corner ``low``
        meet &= home[:, 1] * (int(column.max()) + 1) + home[:, 0] == cell[entry]
        yield left[meet], right[meet]
        start = stop
