"""What the data doctor finds in the boxes of one split: columns of numbers in, findings out."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from retinanet.anchors.geometry import paired_iou
from retinanet.data.check import Split
from retinanet.data.faults import Fault
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

_EXACT = 0.02  # pixels: what is left of a whole number after it was written as a fraction


def box_findings(split: Split, preprocess: Preprocess, min_side: float) -> list[Fault]:
    """All that is wrong with the boxes of a split.

    Args:
        split: judged.
        preprocess: the resizing of training.
        min_side: pixels after it below which a box is too small.
    """
    one_based = [*_one_based(split)]
    return [
        *split.faulty_boxes(),
        *one_based,
        *_zero_based(split),
        *_over_edge(split, tolerated=1 if one_based else 0),
        *_duplicates(split),
        *_near_duplicates(split),
        *_repeated(split),
        *_pasted(split),
        *_tiny(split, preprocess, min_side),
        *_whole_image(split),
    ]


def _one_based(split: Split) -> Iterator[Fault]:
    """Boxes in a format that counts from 0 of which none begins at 0, but many exactly at 1."""
    if split.annotations.boxes.first_pixel != 0:
        return
    corners, limits = split.corners[split.usable], split.limits[split.usable]
    at_one = np.abs(corners[:, :2] - 1) < _EXACT
    past_end = np.abs(corners[:, 2:] - limits[:, 2:] - 1) < _EXACT
    at_zero = corners[:, :2] < 1 - _EXACT
    starts, ends = int(at_one.sum()), int(past_end.sum())
    if not at_zero.any() and (starts >= ONE_BASED_STARTS or ends >= ONE_BASED_ENDS):
        row = int(np.flatnonzero(split.usable)[(at_one.any(1) | past_end.any(1)).argmax()])
        reason = f"{starts} sides of boxes begin exactly at 1 and none at 0; {ends} end exactly one pixel outside"
        yield split.fault("one-based", row, reason)


def _zero_based(split: Split) -> Iterator[Fault]:
    if split.annotations.boxes.first_pixel == 0:
        return
    rows = np.flatnonzero(split.usable & ((split.raw[:, :2] > -1) & (split.raw[:, :2] < 1)).any(1)).tolist()
    of_all = f"{len(rows)} of {int(split.usable.sum())} boxes of the split begin so"
    for row in rows:
        xmin, ymin = split.raw[row, :2]
        yield split.fault("zero-based", row, f"xmin {xmin:g}, ymin {ymin:g}; {of_all}")


def _over_edge(split: Split, tolerated: int) -> Iterator[Fault]:
    """Boxes that are clipped; what counting from 0 or 1 explains is told elsewhere."""
    first = split.annotations.boxes.first_pixel
    start = np.array([-first, -first])  # a 0 in a Pascal VOC file
    before = (start - split.corners[:, :2]).max(1, initial=0)
    after = (split.corners[:, 2:] - split.limits[:, 2:]).max(1, initial=0)
    over = np.maximum(before, after - (tolerated + _EXACT if tolerated else 0))
    for row in np.flatnonzero(split.usable & (over > OVER_EDGE)).tolist():
        (width, height), by = split.limits[row, :2], max(before[row] + first, after[row])
        reason = f"box {_text(split.corners[row])} reaches {by:g} pixels over the edge of {width:.0f} x {height:.0f}"
        yield split.fault("over-edge-box", row, reason)


def duplicate_rows(split: Split) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(row, the earlier row) of usable boxes that stand twice with the same class, and with different classes."""
    rows = np.flatnonzero(split.usable)
    owners, labels, corners = split.owners[rows], split.labels[rows], split.corners[rows]
    order = np.lexsort((rows, labels, *corners.T, owners))
    rows, labels = rows[order], labels[order]
    same = (owners[order][1:] == owners[order][:-1]) & (corners[order][1:] == corners[order][:-1]).all(1)
    twins = np.flatnonzero(same).tolist()
    equal = [(int(rows[i + 1]), int(rows[i])) for i in twins if labels[i] == labels[i + 1]]
    conflicts = [(int(rows[i + 1]), int(rows[i])) for i in twins if labels[i] != labels[i + 1]]
    return equal, conflicts


def _duplicates(split: Split) -> Iterator[Fault]:
    equal, conflicts = duplicate_rows(split)
    where = split.annotations.boxes.where
    for row, first in equal:
        yield split.fault("duplicate-box", row, f"{_describe(split, row)} is {where(first)} again")
    for row, first in conflicts:
        reason = f"{_describe(split, row)} is {_name(split, first)} in {where(first)}"
        yield split.fault("conflicting-box", row, reason)


def _near_duplicates(split: Split) -> Iterator[Fault]:
    """Boxes of a class and an image that overlap almost wholly.

    Sorted by their left sides, such a pair lies close together: its left sides differ by at most a tenth of the width.
    """
    rows = np.flatnonzero(split.usable)
    key = split.owners[rows] * max(1, len(split.annotations.class_names)) + split.labels[rows]
    order = np.lexsort((split.boxes[rows, 0], key))
    rows, key = rows[order], key[order]
    boxes = split.boxes[rows]
    slack = (1 - NEAR_DUPLICATE) * (boxes[:, 2] - boxes[:, 0])
    pairs: dict[int, tuple[int, float]] = {}
    active = np.arange(len(rows))
    step = 1
    while len(active := active[active + step < len(rows)]):
        ahead = active + step
        active = active[(key[ahead] == key[active]) & (boxes[ahead, 0] - boxes[active, 0] <= slack[active])]
        overlap = paired_iou(torch.from_numpy(boxes[active]), torch.from_numpy(boxes[active + step])).numpy()
        equal = (split.corners[rows[active]] == split.corners[rows[active + step]]).all(1)
        for i in np.flatnonzero((overlap >= NEAR_DUPLICATE) & ~equal).tolist():
            first, second = sorted((int(rows[active[i]]), int(rows[active[i] + step])))
            pairs.setdefault(second, (first, float(overlap[i])))
        step += 1
    for row, (first, iou) in sorted(pairs.items()):
        place = split.annotations.boxes.where(first)
        reason = f"{_describe(split, row)} overlaps {place} with IoU {iou:.2f}"
        yield split.fault("near-duplicate-box", row, reason)


def _covers_image(split: Split) -> np.ndarray:
    sides = split.boxes[:, 2:] - split.boxes[:, :2]
    return (sides >= WHOLE_IMAGE * split.limits[:, 2:]).all(1)


def _whole_image(split: Split) -> Iterator[Fault]:
    for row in np.flatnonzero(split.usable & _covers_image(split)).tolist():
        width, height = split.limits[row, :2]
        reason = f"{_name(split, row)} covers all of {width:.0f} x {height:.0f} pixels"
        yield split.fault("whole-image-box", row, reason)


def _repeated(split: Split) -> Iterator[Fault]:
    """The same numbers for the same class in many images, one finding for each such box."""
    rows = np.flatnonzero(split.usable & ~_covers_image(split))
    written = np.asarray(split.annotations.boxes.xyxy, dtype=np.float64).reshape(-1, 4)[rows]
    table = np.column_stack([split.labels[rows], written.round(6), split.owners[rows]])
    table, index = np.unique(table, axis=0, return_index=True)  # once an image
    _, firsts, counts = np.unique(table[:, :5], axis=0, return_index=True, return_counts=True)
    least = max(REPEATED_IMAGES, REPEATED_SHARE * len(split.images))
    for group in np.flatnonzero(counts >= least).tolist():
        row = int(rows[index[firsts[group] : firsts[group] + counts[group]]].min())
        reason = f"{_describe(split, row)} stands in {counts[group]} images"
        yield split.fault("repeated-box", row, reason)


def _pasted(split: Split) -> Iterator[Fault]:
    """So many boxes of a class with the very same sides in one image, one finding for each such image and size."""
    sides = split.corners[:, 2:] - split.corners[:, :2]
    rows = np.flatnonzero(split.usable & (sides.min(1, initial=np.inf) >= PASTED_SIDE) & ~_covers_image(split))
    table = np.column_stack([split.owners[rows], split.labels[rows], sides[rows].round(2)])
    _, firsts, counts = np.unique(table, axis=0, return_index=True, return_counts=True)
    for group in np.flatnonzero(counts >= PASTED_BOXES).tolist():
        row = int(rows[firsts[group]])
        width, height = sides[row]
        image = split.images[split.owners[row]].path
        reason = f"{counts[group]} {_name(split, row)} of exactly {width:g} x {height:g} pixels"
        yield Fault("pasted-box", image, reason, image=image)


def _tiny(split: Split, preprocess: Preprocess, min_side: float) -> Iterator[Fault]:
    factors = np.ones((len(split.images), 2))  # of width and height, by image
    for number, image in enumerate(split.images):
        if image.size is not None:
            factors[number] = np.divide(preprocess.size(*image.size), image.size)[::-1]
    sides = (split.boxes[:, 2:] - split.boxes[:, :2]) * factors[split.owners]
    for row in np.flatnonzero(split.usable & (sides.min(1, initial=np.inf) < min_side)).tolist():
        width, height = sides[row]
        size = f"{width:.1f} x {height:.1f} pixels after resizing"
        yield split.fault("tiny-box", row, f"{_describe(split, row)} is {size}, below {min_side:g}")


def _describe(split: Split, row: int) -> str:
    """The class and the corners of a box."""
    return f"{_name(split, row)} {_text(split.corners[row])}"


def _name(split: Split, row: int) -> str:
    return split.annotations.class_names[split.labels[row]]


def _text(box: np.ndarray) -> str:
    return f"({', '.join(f'{side:g}' for side in box)})"
