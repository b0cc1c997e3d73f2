"""Average precision of some of the objects: by their size, by their neighbours, by how full their image is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from retinanet.analysis.errors.overlaps import IOUS, Flags, Integers, Overlaps, average_precision, mean, plain
from retinanet.anchors.geometry import iou
from retinanet.evaluation.coco import AREA_RANGES
from retinanet.types import Detections, Sample

NEIGHBOURS = ("none", "1", "2", "3 or more")


@dataclass(frozen=True)
class GroupAP:
    """One group of objects.

    Attributes:
        name: what is in it.
        objects: how many there are, ignore regions left out.
        classes: how many classes they belong to; groups of other classes cannot be compared.
        ap: AP over IoU 0.50:0.95, mean of the classes with objects in the group.
        ap50: AP at IoU 0.5.
        recall: share of the objects that some detection has found at IoU 0.5, whatever its score.
    """

    name: str
    objects: int
    classes: int
    ap: float
    ap50: float
    recall: float


@dataclass(frozen=True)
class GroupedAP:
    """Average precision of groups of objects; groups without objects are left out.

    Attributes:
        sizes: COCO's small, medium and large, by annotated area; equal to those of the evaluator.
        octaves: by the side of a square of the annotated area: 8 to 16 pixels, 16 to 32, and so on.
        neighbours: by the number of other objects, of any class, that overlap the object (IoU above 0).
        density: by the number of objects in the image, in quartiles of the images that have any.
    """

    sizes: tuple[GroupAP, ...]
    octaves: tuple[GroupAP, ...]
    neighbours: tuple[GroupAP, ...]
    density: tuple[GroupAP, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            kind: [
                {key: plain(value) if isinstance(value, float) else value for key, value in asdict(group).items()}
                for group in groups
            ]
            for kind, groups in vars(self).items()
        }

    def summary(self) -> str:
        """The AP of each group, a line for each kind."""
        return "\n".join(
            f"AP by {kind}: " + ", ".join(f"{group.name} {group.ap:.3f} ({group.objects})" for group in groups)
            for kind, groups in vars(self).items()
        )


def by_group(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    overlaps: Overlaps | None = None,
) -> GroupedAP:
    """Average precision by size, by overlapping neighbours and by the number of objects in the image.

    As COCO does for sizes: the objects outside a group are ignored, and so is a detection that finds one of them. A
    detection that finds nothing counts against the group that it belongs to itself: for sizes by its own area; for
    neighbours it is that of the object, of any class, that it overlaps most, and "none" if it overlaps none; for
    density that of its image, where an image without objects belongs to the emptiest group.

    Args:
        samples: N annotated images, boxes in pixels of the original image.
        detections: N, what was found in each of them, in the same pixels.
        class_names: K names.
        overlaps: of the same data, if they have been computed already.

    Raises:
        UserError: the data do not fit together.
    """
    overlaps = overlaps or Overlaps.of(samples, detections, class_names)
    return GroupedAP(_sizes(overlaps), _octaves(overlaps), _by_neighbours(overlaps, samples), _by_density(overlaps))


def _group(overlaps: Overlaps, name: str, inside: Flags, of_group: Flags) -> list[GroupAP]:
    """The group of the objects ``inside`` (T,); false detections ``of_group`` (D,) count against it. [] if empty."""
    ignored = overlaps.ignore | ~inside
    counts = np.bincount(overlaps.truth_label[~ignored], minlength=len(overlaps.class_names))
    if not counts.any():
        return []
    by_iou, found = [], []
    for threshold in IOUS:
        matched = overlaps.match(float(threshold), ignored)
        counted = np.where(matched >= 0, ~ignored[matched], of_group)
        by_iou.append(average_precision(overlaps.label[counted], (matched >= 0)[counted], counts))
        found.append(int((counted & (matched >= 0)).sum()))
    objects = int(counts.sum())
    ap, ap50 = mean(np.stack(by_iou)), mean(by_iou[0])
    return [GroupAP(name, objects, int((counts > 0).sum()), ap, ap50, found[0] / objects)]


def _sizes(overlaps: Overlaps) -> tuple[GroupAP, ...]:
    groups = []
    for name, (low, high) in AREA_RANGES.items():  # both ends belong to a range, as in COCO
        truth, found = overlaps.truth_area, overlaps.area
        groups += _group(overlaps, name, (truth >= low) & (truth <= high), (found >= low) & (found <= high))
    return tuple(groups)


def _octaves(overlaps: Overlaps) -> tuple[GroupAP, ...]:
    truth, found = (np.log2(np.sqrt(np.maximum(area, 1))) for area in (overlaps.truth_area, overlaps.area))
    truth, found = np.floor(truth), np.floor(found)
    groups = []
    for octave in np.unique(truth[~overlaps.ignore]):
        name = f"{2**octave:.0f} to {2 ** (octave + 1):.0f} px"
        groups += _group(overlaps, name, truth == octave, found == octave)
    return tuple(groups)


def _by_neighbours(overlaps: Overlaps, samples: Sequence[Sample]) -> tuple[GroupAP, ...]:
    last = len(NEIGHBOURS) - 1
    crowd = np.minimum(np.concatenate([np.zeros(0, np.int64), *map(_neighbours, samples)]), last)
    nearest, _ = overlaps.nearest(~overlaps.ignore[overlaps.pair_truth])
    of_detection = np.append(crowd, 0)[nearest]  # index -1 is the entry appended
    groups = []
    for number, name in enumerate(NEIGHBOURS):
        groups += _group(overlaps, name, crowd == number, of_detection == number)
    return tuple(groups)


def _neighbours(sample: Sample) -> Integers:
    """(M,) how many other objects overlap each; ignore regions are no objects."""
    overlap = iou(sample.target.boxes, sample.target.boxes).numpy() > 0
    np.fill_diagonal(overlap, False)
    return overlap[:, ~sample.target.ignore.numpy()].sum(axis=1)


def _by_density(overlaps: Overlaps) -> tuple[GroupAP, ...]:
    objects = np.bincount(overlaps.truth_image[~overlaps.ignore], minlength=overlaps.images)
    if not objects.any():
        return ()
    ends = np.unique(np.floor(np.quantile(objects[objects > 0], [0.25, 0.5, 0.75, 1.0])).astype(np.int64))
    place = np.searchsorted(ends, objects)
    groups = []
    for number, end in enumerate(ends.tolist()):
        low = ends[number - 1] + 1 if number else 1
        name = f"{low} to {end}" if low < end else f"{end}"
        groups += _group(overlaps, name, place[overlaps.truth_image] == number, place[overlaps.image] == number)
    return tuple(groups)
