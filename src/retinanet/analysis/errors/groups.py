"""Average precision of some of the objects: by their size, by their neighbours, by how full their image is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from retinanet.analysis.errors.tide import average_precision
from retinanet.anchors.geometry import iou
from retinanet.evaluation.coco import AREA_RANGES, mean
from retinanet.evaluation.matching import Flags, Overlaps

IOUS = np.linspace(0.5, 0.95, 10)
NEIGHBOURS = ("none", "1", "2", "3 or more")
# A name, the objects that belong to the group (T,), and the detections that count against it if they are false (D,).
Group = tuple[str, Flags, Flags]


@dataclass(frozen=True)
class GroupAP:
    """One group of objects."""

    name: str  # what is in it
    objects: int  # how many there are, ignore regions left out
    classes: int  # how many classes they belong to; groups of other classes cannot be compared
    ap: float  # AP over IoU 0.50:0.95, mean of the classes with objects in the group
    ap50: float  # AP at IoU 0.5
    recall: float  # share of the objects that some detection has found at IoU 0.5, whatever its score


def by_group(overlaps: Overlaps) -> dict[str, list[GroupAP]]:
    """Average precision by each of ``GROUPINGS``; groups without objects are left out.

    As COCO does for sizes: the objects outside a group are ignored, and so is a detection that finds one of them. A
    detection that finds nothing counts against the group that it belongs to itself: for sizes by its own area; for
    neighbours it is that of the object, of any class, that it overlaps most, and "none" if it overlaps none; for
    density that of its image, where an image without objects belongs to the emptiest group.
    """
    return {
        kind: [_measure(overlaps, *group) for group in find_groups(overlaps) if (group[1] & ~overlaps.ignore).any()]
        for kind, (_, find_groups) in GROUPINGS.items()
    }


def _measure(overlaps: Overlaps, name: str, inside: Flags, of_group: Flags) -> GroupAP:
    """The AP of a group."""
    ignored = overlaps.ignore | ~inside
    counts = np.bincount(overlaps.truth_label[~ignored], minlength=len(overlaps.class_names))
    by_iou, found = [], []
    for threshold in IOUS:
        matched = overlaps.match(float(threshold), ignored)
        counted = np.where(matched >= 0, ~ignored[matched], of_group)
        by_iou.append(average_precision(overlaps.label[counted], (matched >= 0)[counted], counts))
        found.append(int((counted & (matched >= 0)).sum()))
    objects, classes = int(counts.sum()), int((counts > 0).sum())
    return GroupAP(name, objects, classes, mean(np.stack(by_iou)), mean(by_iou[0]), found[0] / objects)


def _sizes(overlaps: Overlaps) -> Iterator[Group]:
    """COCO's small, medium and large, by annotated area; equal to those of the evaluator."""
    truth, found = overlaps.truth_area, overlaps.area
    for name, (low, high) in AREA_RANGES.items():  # both ends belong to a range, as in COCO
        yield name, (truth >= low) & (truth <= high), (found >= low) & (found <= high)


def _octaves(overlaps: Overlaps) -> Iterator[Group]:
    """By the side of a square of the annotated area: 8 to 16 pixels, 16 to 32, and so on."""
    areas = (overlaps.truth_area, overlaps.area)
    truth, found = (np.floor(np.log2(np.sqrt(np.maximum(area, 1)))) for area in areas)
    for octave in np.unique(truth[~overlaps.ignore]):
        yield f"{2**octave:.0f} to {2 ** (octave + 1):.0f} px", truth == octave, found == octave


def _neighbours(overlaps: Overlaps) -> Iterator[Group]:
    """By the number of other objects, of any class, that overlap the object (IoU above 0)."""
    crowd = np.zeros(len(overlaps.ignore), np.int64)  # how many other objects overlap each; ignore regions are none
    ends = np.searchsorted(overlaps.truth_image, np.arange(overlaps.images + 1)).tolist()
    for first, end in pairwise(ends):
        boxes = torch.from_numpy(overlaps.truth_box[first:end])
        overlap = iou(boxes, boxes).numpy() > 0
        np.fill_diagonal(overlap, False)
        crowd[first:end] = np.minimum(overlap[:, ~overlaps.ignore[first:end]].sum(axis=1), len(NEIGHBOURS) - 1)
    nearest, _ = overlaps.nearest(~overlaps.ignore[overlaps.pair_truth])
    of_detection = np.append(crowd, 0)[nearest]  # index -1 is the entry appended
    for number, name in enumerate(NEIGHBOURS):
        yield name, crowd == number, of_detection == number


def _density(overlaps: Overlaps) -> Iterator[Group]:
    """By the number of objects in the image, in quartiles of the images that have any."""
    objects = np.bincount(overlaps.truth_image[~overlaps.ignore], minlength=overlaps.images)
    if not objects.any():
        return
    ends = np.unique(np.floor(np.quantile(objects[objects > 0], [0.25, 0.5, 0.75, 1.0])).astype(np.int64))
    place = np.searchsorted(ends, objects)
    for number, end in enumerate(ends.tolist()):
        low = ends[number - 1] + 1 if number else 1
        name = f"{low} to {end}" if low < end else f"{end}"
        yield name, place[overlaps.truth_image] == number, place[overlaps.image] == number


# What groups are made by: a title, and the function that finds them.
GROUPINGS: dict[str, tuple[str, Callable[[Overlaps], Iterator[Group]]]] = {
    "sizes": ("Area, as COCO splits it", _sizes),
    "octaves": ("Side of a square of equal area", _octaves),
    "neighbours": ("Other objects that overlap it", _neighbours),
    "density": ("Objects in the image, in quartiles", _density),
}
