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

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

INSIDE = 0.5  # share of a fragment's area from which on it belongs to the box that it lies in
FRAGMENT = 0.5  # what the score of a fragment is worth when boxes are ranked
CONTINUES = 0.5  # IoU of the sides along a border from which on two fragments are one object
PAIRS = 2_000_000  # looked at in one piece, which bounds the memory
Merge = Literal["nms", "nmm"]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Found:
    """Detections of windows, in pixels of the image.

    Attributes:
        boxes: (n, 4) float64 xyxy.
        scores: (n,) float32.
        labels: (n,) int64.
        cut: (n, 4) bool, whether a box ends at the left, top, right, bottom border of its window, where the image goes
            on behind that border.
    """

    boxes: NDArray[np.float64]
    scores: NDArray[np.float32]
    labels: Indices
    cut: Flags

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def fragment(self) -> Flags:
        """(n,) bool, whether a border of its window cuts a box."""
        return self.cut[:, 0] | self.cut[:, 1] | self.cut[:, 2] | self.cut[:, 3]

    def rows(self, rows: Indices) -> Found:
        """The rows that ``rows`` names."""
        return Found(self.boxes[rows], self.scores[rows], self.labels[rows], self.cut[rows])


def concatenated(parts: Sequence[Found]) -> Found:
    """The detections of all parts, in their order."""
    return Found(
        np.concatenate([np.zeros((0, 4)), *(part.boxes for part in parts)]),
        np.concatenate([np.zeros(0, np.float32), *(part.scores for part in parts)]),
        np.concatenate([np.zeros(0, np.int64), *(part.labels for part in parts)]),
        np.concatenate([np.zeros((0, 4), bool), *(part.cut for part in parts)]),
    )


def merged(
    found: Found, *, how: Merge = "nms", iou: float = 0.5, class_agnostic: bool = False, tolerance: float = 1.0
) -> Found:
    """One detection per object, by the rules at the top of this file.

    Args:
        found: n detections of all windows.
        how: ``nms`` or ``nmm``.
        iou: of two boxes of a class, the threshold of suppression.
        class_agnostic: of any two boxes.
        tolerance: pixels by which fragments may miss each other, for ``nmm``.

    Returns:
        (m,) detections, best score first, equal scores by position.
    """
    groups = np.zeros_like(found.labels) if class_agnostic else found.labels
    parts = [
        _one_class(found.rows(np.flatnonzero(groups == group)), how, iou, tolerance) for group in np.unique(groups)
    ]
    together = concatenated(parts)
    return together.rows(_order(together, together.scores))


def _order(found: Found, worth: NDArray[np.float32]) -> Indices:
    """The most worth first, then by position."""
    x1, y1, x2, y2 = found.boxes.T
    return np.lexsort((found.labels, found.fragment, x2, y2, x1, y1, -worth))


def _one_class(found: Found, how: Merge, iou: float, tolerance: float) -> Found:
    if how == "nmm":
        found = _joined(_suppressed(found, iou, by_fragments=False), tolerance)
    return _suppressed(found, iou, by_fragments=True)


def _suppressed(found: Found, iou: float, *, by_fragments: bool) -> Found:
    """What is kept, in its order; fragments suppress each other only ``by_fragments``."""
    found = found.rows(_order(found, found.scores * np.where(found.fragment, np.float32(FRAGMENT), np.float32(1))))
    first, second = (np.concatenate(part) for part in zip(*_suppressions(found, iou), strict=True))
    active = by_fragments | ~found.fragment[first]
    first, second = first[active], second[active]
    order = np.argsort(first, kind="stable")
    boxes, starts = np.unique(first[order], return_index=True)
    kept = np.ones(len(found), bool)
    for box, weaker in zip(boxes.tolist(), np.split(second[order], starts[1:]), strict=False):
        if kept[box]:
            kept[weaker] = False
    return found.rows(np.flatnonzero(kept))


def _suppressions(found: Found, iou: float) -> Iterator[tuple[Indices, Indices]]:
    """Pairs of ranks (i, j), i before j, where i suppresses j unless it is suppressed itself."""
    boxes, fragment = found.boxes, found.fragment
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    yield np.zeros(0, np.int64), np.zeros(0, np.int64)
    for one, two in intersecting(boxes):
        i, j = np.minimum(one, two), np.maximum(one, two)
        sides = np.minimum(boxes[i, 2:], boxes[j, 2:]) - np.maximum(boxes[i, :2], boxes[j, :2])
        common = sides[:, 0] * sides[:, 1]
        weaker = (common > iou * (area[i] + area[j] - common)) | (fragment[j] & (common > INSIDE * area[j]))
        yield i[weaker], j[weaker]


def _joined(found: Found, tolerance: float) -> Found:
    """Fragments that continue each other as one box, the rest as it is."""
    fragments = np.flatnonzero(found.fragment)
    boxes, cut = found.boxes[fragments], found.cut[fragments]
    reach = boxes + tolerance * np.array([-1, -1, 1, 1])  # those that only touch are found as well
    group = np.arange(len(found))
    for one, two in intersecting(reach):
        for i, j in ((one, two), (two, one)):
            for axis in (0, 1):
                pairs = _continue(boxes, cut, i, j, axis, tolerance)
                for a, b in zip(fragments[i[pairs]].tolist(), fragments[j[pairs]].tolist(), strict=True):
                    group[_root(group, a)] = _root(group, b)
    roots = np.array([_root(group, row) for row in range(len(found))], np.int64)
    together, scores, cut = found.boxes.copy(), found.scores.copy(), np.zeros_like(found.cut)
    np.minimum.at(together[:, :2], roots, found.boxes[:, :2])
    np.maximum.at(together[:, 2:], roots, found.boxes[:, 2:])
    np.maximum.at(scores, roots, found.scores)
    ends = np.abs(found.boxes - together[roots]) <= tolerance  # a side is cut still where the outermost fragment is
    np.logical_or.at(cut, roots, found.cut & ends)
    return Found(together, scores, found.labels, cut).rows(np.unique(roots))


def _root(group: Indices, row: int) -> int:
    while group[row] != row:
        group[row] = group[group[row]]
        row = int(group[row])
    return row


def _continue(boxes: NDArray[np.float64], cut: Flags, i: Indices, j: Indices, axis: int, tolerance: float) -> Flags:
    """Which fragments j go on, to the right (axis 0) or below (axis 1), where i are cut.

    Both cross the whole strip between the two borders, and their sides along the borders agree.
    """
    near, far, other = axis, axis + 2, 1 - axis
    crosses = (boxes[i, near] <= boxes[j, near] + tolerance) & (boxes[i, far] <= boxes[j, far] + tolerance)
    meets = boxes[j, near] <= boxes[i, far] + tolerance
    common = np.minimum(boxes[i, other + 2], boxes[j, other + 2]) - np.maximum(boxes[i, other], boxes[j, other])
    union = np.maximum(boxes[i, other + 2], boxes[j, other + 2]) - np.minimum(boxes[i, other], boxes[j, other])
    return cut[i, far] & cut[j, near] & crosses & meets & (common > CONTINUES * union)


def intersecting(boxes: NDArray[np.float64]) -> Iterator[tuple[Indices, Indices]]:
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
        one, two = box[entry], box[other]
        low = np.maximum(boxes[one, :2], boxes[two, :2])
        meet = (low < np.minimum(boxes[one, 2:], boxes[two, 2:])).all(axis=1)
        home = np.maximum(first[one], first[two])  # the cell of the corner ``low``
        meet &= home[:, 1] * (int(column.max()) + 1) + home[:, 0] == cell[entry]
        yield one[meet], two[meet]
        start = stop
