"""What the data doctor finds in the boxes of one split: columns of numbers in, findings out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from retinanet.analysis.data.findings import Finding, finding
from retinanet.data.check import Annotations, ImageEntry, JudgedBoxes, judge_boxes
from retinanet.images.preprocess import Preprocess

OVER_EDGE = 0.5
"""Pixels by which a box may reach over the edge: less is rounding."""
NEAR_DUPLICATE = 0.9
"""IoU from which two boxes of a class are one object annotated twice."""
REPEATED_IMAGES, REPEATED_SHARE = 5, 0.01
"""The same box is suspicious in so many images, and in this share of the images of the split."""
ONE_BASED_STARTS, ONE_BASED_ENDS = 8, 3
"""So many sides exactly at 1, or exactly one pixel outside, and none at 0: the pixels were counted from 1."""
PASTED_BOXES, PASTED_SIDE = 4, 16
"""So many boxes of exactly one size, with sides of at least so many pixels, are not drawn by hand."""
WHOLE_IMAGE = 0.99
"""Share of both sides from which a box covers the whole image."""

_FAULTY = ("", "not-finite-box", "degenerate-box", "outside-box", "degenerate-box")
_EXACT = 0.02  # pixels: what is left of a whole number after it was written as a fraction


@dataclass(frozen=True)
class Part:
    """One split, read and judged.

    Attributes:
        name: of the split, "" for a set without splits.
        found: what its files say.
        images: with their sizes, None where they cannot be known.
        judged: its B boxes.
        corners: (B, 4) xyxy in pixels counted from 0, not clipped.
        labels: (B,) int64.
        known: (B,) bool, the size of the image is known.
        usable: (B,) bool, training takes the box as an object: it is neither faulty nor an ignore region.
    """

    name: str
    found: Annotations
    images: list[ImageEntry]
    judged: JudgedBoxes
    corners: np.ndarray
    labels: np.ndarray
    known: np.ndarray
    usable: np.ndarray

    @staticmethod
    def of(name: str, found: Annotations, images: list[ImageEntry]) -> Part:
        """Judge the boxes of a split."""
        columns = found.boxes
        judged = judge_boxes(columns, images)
        known = np.isfinite(judged.limits).all(1)
        ignore = np.zeros(len(known), bool) if columns.ignore is None else np.asarray(columns.ignore, dtype=bool)
        corners = judged.raw - np.array([columns.first_pixel, columns.first_pixel, 0, 0])
        labels = np.asarray(columns.labels, dtype=np.int64)
        return Part(name, found, images, judged, corners, labels, known, known & (judged.reasons == 0) & ~ignore)

    def finding(self, kind: str, row: int, reason: str) -> Finding:
        """A finding about a box."""
        image = self.images[self.judged.owners[row]].path
        return finding(kind, self.found.boxes.where(row), reason, image=image, box=self.corners[row].tolist())

    def class_name(self, row: int) -> str:
        """The class of a box."""
        return self.found.class_names[self.labels[row]]


def box_findings(part: Part, preprocess: Preprocess, min_side: float) -> list[Finding]:
    """All that is wrong with the boxes of a split.

    Args:
        part: the split.
        preprocess: the resizing of training.
        min_side: pixels after it below which a box is too small.
    """
    one_based = _one_based(part)
    return [
        *_faulty(part),
        *one_based,
        *_zero_based(part),
        *_over_edge(part, tolerated=1 if one_based else 0),
        *_duplicates(part),
        *_near_duplicates(part),
        *_repeated(part),
        *_pasted(part),
        *_tiny(part, preprocess, min_side),
        *_whole_image(part),
    ]


def _faulty(part: Part) -> list[Finding]:
    rows = np.flatnonzero((part.judged.reasons > 0) & part.known).tolist()
    return [part.finding(_FAULTY[part.judged.reasons[row]], row, part.judged.message(row)) for row in rows]


def _one_based(part: Part) -> list[Finding]:
    """Boxes in a format that counts from 0 of which none begins at 0, but many exactly at 1."""
    if part.found.boxes.first_pixel != 0:
        return []
    corners, limits = part.corners[part.usable], part.judged.limits[part.usable]
    at_one = np.abs(corners[:, :2] - 1) < _EXACT
    past_end = np.abs(corners[:, 2:] - limits[:, 2:] - 1) < _EXACT
    at_zero = corners[:, :2] < 1 - _EXACT
    starts, ends = int(at_one.sum()), int(past_end.sum())
    if at_zero.any() or (starts < ONE_BASED_STARTS and ends < ONE_BASED_ENDS):
        return []
    row = int(np.flatnonzero(part.usable)[(at_one.any(1) | past_end.any(1)).argmax()])
    reason = f"{starts} sides of boxes begin exactly at 1 and none at 0; {ends} end exactly one pixel outside"
    return [part.finding("one-based", row, reason)]


def _zero_based(part: Part) -> list[Finding]:
    if part.found.boxes.first_pixel == 0:
        return []
    rows = np.flatnonzero(part.usable & ((part.judged.raw[:, :2] > -1) & (part.judged.raw[:, :2] < 1)).any(1)).tolist()
    of_all = f"{len(rows)} of {int(part.usable.sum())} boxes of the split begin so"
    raw = part.judged.raw
    return [part.finding("zero-based", row, f"xmin {raw[row, 0]:g}, ymin {raw[row, 1]:g}; {of_all}") for row in rows]


def _over_edge(part: Part, tolerated: int) -> list[Finding]:
    """Boxes that are clipped; what counting from 0 or 1 explains is told elsewhere."""
    first = part.found.boxes.first_pixel
    start = np.array([-first, -first])  # a 0 in a Pascal VOC file
    before = (start - part.corners[:, :2]).max(1, initial=0)
    after = (part.corners[:, 2:] - part.judged.limits[:, 2:]).max(1, initial=0)
    over = np.maximum(before, after - (tolerated + _EXACT if tolerated else 0))
    rows = np.flatnonzero(part.usable & (over > OVER_EDGE)).tolist()
    sizes = part.judged.limits
    return [
        part.finding(
            "over-edge-box",
            row,
            f"box {_text(part.corners[row])} reaches {max(before[row] + first, after[row]):g} pixels over the edge of "
            f"{sizes[row, 0]:.0f} x {sizes[row, 1]:.0f}",
        )
        for row in rows
    ]


def duplicate_rows(part: Part) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(row, the earlier row) of usable boxes that stand twice with the same class, and with different classes."""
    rows = np.flatnonzero(part.usable)
    owners, labels, corners = part.judged.owners[rows], part.labels[rows], part.corners[rows]
    order = np.lexsort((rows, labels, *corners.T, owners))
    rows, labels = rows[order], labels[order]
    same = (owners[order][1:] == owners[order][:-1]) & (corners[order][1:] == corners[order][:-1]).all(1)
    twins = np.flatnonzero(same).tolist()
    equal = [(int(rows[i + 1]), int(rows[i])) for i in twins if labels[i] == labels[i + 1]]
    conflicts = [(int(rows[i + 1]), int(rows[i])) for i in twins if labels[i] != labels[i + 1]]
    return equal, conflicts


def _duplicates(part: Part) -> list[Finding]:
    equal, conflicts = duplicate_rows(part)
    where = part.found.boxes.where
    found = [
        part.finding("duplicate-box", row, f"{part.class_name(row)} {_text(part.corners[row])} is {where(first)} again")
        for row, first in equal
    ]
    for row, first in conflicts:
        reason = f"{part.class_name(row)} {_text(part.corners[row])} is {part.class_name(first)} in {where(first)}"
        found.append(part.finding("conflicting-box", row, reason))
    return found


def _near_duplicates(part: Part) -> list[Finding]:
    """Boxes of a class and an image that overlap almost wholly.

    Sorted by their left sides, such a pair lies close together: its left sides differ by at most a tenth of the width.
    """
    rows = np.flatnonzero(part.usable)
    key = part.judged.owners[rows] * max(1, len(part.found.class_names)) + part.labels[rows]
    order = np.lexsort((part.judged.boxes[rows, 0], key))
    rows, key = rows[order], key[order]
    boxes = part.judged.boxes[rows]
    slack = (1 - NEAR_DUPLICATE) * (boxes[:, 2] - boxes[:, 0])
    pairs: dict[int, tuple[int, float]] = {}
    active = np.arange(len(rows))
    step = 1
    while len(active := active[active + step < len(rows)]):
        ahead = active + step
        active = active[(key[ahead] == key[active]) & (boxes[ahead, 0] - boxes[active, 0] <= slack[active])]
        overlap = _iou(boxes[active], boxes[active + step])
        equal = (part.corners[rows[active]] == part.corners[rows[active + step]]).all(1)
        for i in np.flatnonzero((overlap >= NEAR_DUPLICATE) & ~equal).tolist():
            first, second = sorted((int(rows[active[i]]), int(rows[active[i] + step])))
            pairs.setdefault(second, (first, float(overlap[i])))
        step += 1
    return [
        part.finding(
            "near-duplicate-box",
            row,
            f"{part.class_name(row)} {_text(part.corners[row])} overlaps {part.found.boxes.where(first)} with IoU "
            f"{overlap:.2f}",
        )
        for row, (first, overlap) in sorted(pairs.items())
    ]


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(n, 4) and (n, 4) -> (n,)."""
    sides = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2])
    inside = np.clip(sides, 0, None).prod(1)
    areas = (one[:, 2:] - one[:, :2]).prod(1) + (other[:, 2:] - other[:, :2]).prod(1)
    return inside / (areas - inside)


def _covers_image(part: Part) -> np.ndarray:
    sides = part.judged.boxes[:, 2:] - part.judged.boxes[:, :2]
    return (sides >= WHOLE_IMAGE * part.judged.limits[:, 2:]).all(1)


def _whole_image(part: Part) -> list[Finding]:
    rows = np.flatnonzero(part.usable & _covers_image(part)).tolist()
    return [
        part.finding(
            "whole-image-box",
            row,
            f"{part.class_name(row)} covers all of {part.judged.limits[row, 0]:.0f} x "
            f"{part.judged.limits[row, 1]:.0f} pixels",
        )
        for row in rows
    ]


def _repeated(part: Part) -> list[Finding]:
    """The same numbers for the same class in many images, one finding for each such box."""
    rows = np.flatnonzero(part.usable & ~_covers_image(part))
    if not len(rows):
        return []
    written = np.asarray(part.found.boxes.xyxy, dtype=np.float64).reshape(-1, 4)[rows]
    table = np.column_stack([part.labels[rows], written.round(6), part.judged.owners[rows]])
    table, index = np.unique(table, axis=0, return_index=True)  # once an image
    _, firsts, counts = np.unique(table[:, :5], axis=0, return_index=True, return_counts=True)
    least = max(REPEATED_IMAGES, REPEATED_SHARE * len(part.images))
    found = []
    for group in np.flatnonzero(counts >= least).tolist():
        row = int(rows[index[firsts[group] : firsts[group] + counts[group]]].min())
        reason = f"{part.class_name(row)} {_text(part.corners[row])} stands in {counts[group]} images"
        found.append(part.finding("repeated-box", row, reason))
    return found


def _pasted(part: Part) -> list[Finding]:
    """So many boxes of a class with the very same sides in one image, one finding for each such image and size."""
    sides = part.corners[:, 2:] - part.corners[:, :2]
    rows = np.flatnonzero(part.usable & (sides.min(1, initial=np.inf) >= PASTED_SIDE) & ~_covers_image(part))
    if not len(rows):
        return []
    table = np.column_stack([part.judged.owners[rows], part.labels[rows], sides[rows].round(2)])
    _, firsts, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
    found = []
    for group in np.flatnonzero(counts >= PASTED_BOXES).tolist():
        row = int(rows[firsts[group]])
        width, height = sides[row]
        reason = f"{counts[group]} {part.class_name(row)} of exactly {width:g} x {height:g} pixels"
        found.append(
            finding(
                "pasted-box",
                part.images[part.judged.owners[row]].path,
                reason,
                image=part.images[part.judged.owners[row]].path,
            )
        )
    return found


def _tiny(part: Part, preprocess: Preprocess, min_side: float) -> list[Finding]:
    known = {image.size for image in part.images if image.size is not None}
    scaled = {size: preprocess.size(*size) for size in known}
    factor = {size: (scaled[size][1] / size[1], scaled[size][0] / size[0]) for size in known}  # of width, of height
    factors = np.array([(1.0, 1.0) if image.size is None else factor[image.size] for image in part.images])
    factors = factors.reshape(-1, 2)
    sides = (part.judged.boxes[:, 2:] - part.judged.boxes[:, :2]) * factors[part.judged.owners]
    rows = np.flatnonzero(part.usable & (sides.min(1, initial=np.inf) < min_side)).tolist()
    return [
        part.finding(
            "tiny-box",
            row,
            f"{part.class_name(row)} {_text(part.corners[row])} is {sides[row, 0]:.1f} x "
            f"{sides[row, 1]:.1f} pixels after resizing, below {min_side:g}",
        )
        for row in rows
    ]


def _text(box: np.ndarray) -> str:
    return f"({', '.join(f'{side:g}' for side in box)})"
