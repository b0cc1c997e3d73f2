"""All detections and all objects of a data set as flat arrays, their overlaps, COCO's matching and average precision.

The other files of error analysis ask the same questions of one :class:`Overlaps`: who matches whom at an IoU, and what
average precision follows. The answers are those of ``retinanet.evaluation.coco``; here they can be looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from retinanet.errors import UserError
from retinanet.types import Detections, Sample

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

LIMIT = 100  # detections per image and class, as in coco_metrics
RECALLS = np.linspace(0, 1, 101)
IOUS = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True)
class Overlaps:
    """A data set and what was found in it.

    Of every image and class the 100 best detections are here, as COCO counts them. Detections are in one order, best
    score first; equal scores are ranked by image id, then in the order given. Areas and overlaps are float64.

    Attributes:
        class_names: K names.
        images: number of images.
        image: (D,) index of each detection's sample.
        row: (D,) its row in that sample's ``Detections``.
        label: (D,) its class.
        score: (D,) its score.
        area: (D,) its area in square pixels.
        truth_image: (T,) index of each object's sample.
        truth_row: (T,) its row in that sample's ``Target``.
        truth_label: (T,) its class.
        truth_area: (T,) its annotated area in square pixels.
        ignore: (T,) whether it is an ignore region.
        pair_detection: (P,) the first of two boxes that overlap.
        pair_truth: (P,) the second.
        pair_iou: (P,) their IoU, above 0; for an ignore region the share of the detection that lies in it.
    """

    class_names: tuple[str, ...]
    images: int
    image: Integers
    row: Integers
    label: Integers
    score: Floats
    area: Floats
    truth_image: Integers
    truth_row: Integers
    truth_label: Integers
    truth_area: Floats
    ignore: Flags
    pair_detection: Integers
    pair_truth: Integers
    pair_iou: Floats

    @staticmethod
    def of(samples: Sequence[Sample], detections: Sequence[Detections], class_names: Sequence[str]) -> Overlaps:
        """The overlaps of a data set.

        Args:
            samples: N annotated images, boxes in pixels of the original image.
            detections: N, what was found in each of them, in the same pixels.
            class_names: K names.

        Raises:
            UserError: the two differ in length, or a label is no index of the class names.
        """
        _check(samples, detections, len(class_names))
        ids = [(isinstance(sample.image_id, str), sample.image_id) for sample in samples]
        rank = np.empty(len(samples), np.int64)
        rank[sorted(range(len(samples)), key=ids.__getitem__)] = np.arange(len(samples))
        found = [_best(one) for one in detections]
        image = np.repeat(np.arange(len(samples)), [len(rows) for rows in found])
        row = _joined(found, np.int64)
        score = _joined([one.scores.numpy()[rows] for one, rows in zip(detections, found, strict=True)], np.float64)
        order = np.lexsort((np.arange(len(row)), rank[image], -score))
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        boxes = [_xywh(one.boxes.numpy()[rows]) for one, rows in zip(detections, found, strict=True)]
        labels = [one.labels.numpy()[rows] for one, rows in zip(detections, found, strict=True)]
        areas = _joined([box[:, 2] * box[:, 3] for box in boxes], np.float64)
        detection, truth, iou = _pairs(boxes, samples)
        lengths = [len(sample.target) for sample in samples]
        return Overlaps(
            class_names=tuple(class_names),
            images=len(samples),
            image=image[order],
            row=row[order],
            label=_joined(labels, np.int64)[order],
            score=score[order],
            area=areas[order],
            truth_image=np.repeat(np.arange(len(samples)), lengths),
            truth_row=_joined([np.arange(length) for length in lengths], np.int64),
            truth_label=_joined([sample.target.labels.numpy() for sample in samples], np.int64),
            truth_area=_joined([sample.areas.numpy() for sample in samples], np.float64),
            ignore=_joined([sample.target.ignore.numpy() for sample in samples], np.bool_),
            pair_detection=place[detection],
            pair_truth=truth,
            pair_iou=iou,
        )

    @property
    def counts(self) -> Integers:
        """(K,) objects of each class, ignore regions left out."""
        return np.bincount(self.truth_label[~self.ignore], minlength=len(self.class_names))

    def match(self, threshold: float, ignored: Flags | None = None) -> Integers:
        """COCO's matching: best score first, a detection takes the free object of its class that it overlaps most.

        An object to be ignored is taken only where no other is left; an ignore region can be taken many times.

        Args:
            threshold: least IoU.
            ignored: (T,) objects that count neither way, the ignore regions among them; only those by default.

        Returns:
            (D,) the object of each detection, -1 for none.
        """
        ignored = self.ignore if ignored is None else ignored
        detection, truth, iou = self._wishes
        near = iou >= min(threshold, 1 - 1e-10)
        detection, truth = detection[near], truth[near]
        order = np.argsort(2 * detection + ignored[truth], kind="stable")
        return assign(detection[order], truth[order], len(self.label), self.ignore)

    @cached_property
    def _wishes(self) -> tuple[Integers, Integers, Floats]:
        """The pairs of one class by detection, its highest IoU first; of equal ones the last, as in pycocotools."""
        same = self.label[self.pair_detection] == self.truth_label[self.pair_truth]
        detection, truth, iou = self.pair_detection[same], self.pair_truth[same], self.pair_iou[same]
        order = np.lexsort((-truth, -iou, detection))
        return detection[order], truth[order], iou[order]

    def nearest(self, pairs: Flags) -> tuple[Integers, Floats]:
        """Of the chosen pairs (P,), each detection's object of highest IoU (D,), -1 for none, and the IoU (D,)."""
        order = np.lexsort((-self.pair_truth[pairs], self.pair_iou[pairs], self.pair_detection[pairs]))
        detection = self.pair_detection[pairs][order]
        truth, iou = np.full(len(self.label), -1), np.zeros(len(self.label))
        truth[detection] = self.pair_truth[pairs][order]  # the last of each detection stays
        iou[detection] = self.pair_iou[pairs][order]
        return truth, iou


def average_precision(labels: Integers, hits: Flags, counts: Integers) -> Floats:
    """COCO's average precision at one IoU: precision, made to fall only, at the recalls 0.00, 0.01 .. 1.00.

    Args:
        labels: (n,) classes of the detections that count, best score first.
        hits: (n,) whether each has found an object.
        counts: (K,) objects of each class.

    Returns:
        (K,) in [0, 1], NaN where a class has no object.
    """
    order = np.argsort(labels, kind="stable")
    bounds = np.searchsorted(labels[order], np.arange(len(counts) + 1))
    result = np.full(len(counts), np.nan)
    for label in np.flatnonzero(counts):
        found = np.cumsum(hits[order[bounds[label] : bounds[label + 1]]])
        precision = found / np.arange(1, len(found) + 1)
        falling = np.maximum.accumulate(precision[::-1])[::-1]
        reached = np.searchsorted(found / counts[label], RECALLS)
        result[label] = falling[reached[reached < len(found)]].sum() / len(RECALLS)
    return result


def mean(values: Floats) -> float:
    """Mean of the classes that have a value, NaN where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def plain(value: float, digits: int = 6) -> float | None:
    """A number for JSON: rounded, None for NaN."""
    return None if np.isnan(value) else round(float(value), digits)


def assign(detection: Integers, truth: Integers, detections: int, shared: Flags) -> Integers:
    """Each detection, best first, takes its first wish that is free, computed in rounds over all of them.

    All ask for their first wish; an object keeps the best that ever asked, and the others ask for their next wish. As
    every object prefers the better detection, the end is the same as one detection after the other.

    Args:
        detection: (n,) ascending; lower is better.
        truth: (n,) wishes, each detection's in its order.
        detections: D.
        shared: (T,) objects that take all who ask.

    Returns:
        (D,) the object of each detection, -1 for none.
    """
    matched = np.full(detections, -1)
    asking, begin = np.unique(detection, return_index=True)
    wish, end = np.zeros(detections, np.int64), np.zeros(detections, np.int64)
    wish[asking], end[asking] = begin, np.append(begin[1:], len(detection))
    holder = np.full(len(shared), detections)
    while len(asking):
        wanted = truth[wish[asking]]
        many = shared[wanted]
        matched[asking[many]] = wanted[many]
        asking, wanted = asking[~many], wanted[~many]
        before = holder[np.unique(wanted)]
        np.minimum.at(holder, wanted, asking)
        displaced = before[before != holder[np.unique(wanted)]]
        asking = np.concatenate([asking[holder[wanted] != asking], displaced[displaced < detections]])
        wish[asking] += 1
        asking = asking[wish[asking] < end[asking]]
    taken = np.flatnonzero(holder < detections)
    matched[holder[taken]] = taken
    return matched


def _best(found: Detections) -> Integers:
    """Rows of the detections, best score first, at most ``LIMIT`` of a class."""
    rows = np.argsort(-found.scores.numpy(), kind="stable")
    if len(rows) <= LIMIT:
        return rows
    labels = found.labels.numpy()[rows]
    keep = np.zeros(len(rows), bool)
    for label in np.unique(labels):
        keep[np.flatnonzero(labels == label)[:LIMIT]] = True
    return rows[keep]


def _pairs(boxes: Sequence[Floats], samples: Sequence[Sample]) -> tuple[Integers, Integers, Floats]:
    """The overlapping pairs of all images: detection (P,), object (P,) and IoU (P,), numbered through the images."""
    detections, truths, ious = [], [], []
    first, second = 0, 0
    for ours, sample in zip(boxes, samples, strict=True):
        theirs = _xywh(sample.target.boxes.numpy())
        if len(ours) and len(theirs):
            overlap = _iou(ours, theirs, sample.target.ignore.numpy())
            d, t = np.nonzero(overlap > 0)
            detections.append(d + first)
            truths.append(t + second)
            ious.append(overlap[d, t])
        first, second = first + len(ours), second + len(theirs)
    return _joined(detections, np.int64), _joined(truths, np.int64), _joined(ious, np.float64)


def _iou(ours: Floats, theirs: Floats, ignore: Flags) -> Floats:
    """(D, 4) and (M, 4) xywh -> (D, M), with the operations of pycocotools in their order; NaN for 0 / 0."""
    a, b = ours[:, None], theirs[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.where((sides > 0).all(-1), sides.prod(-1), 0.0)
    area = a[..., 2] * a[..., 3]
    union = np.where(ignore, area, area + b[..., 2] * b[..., 3] - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _xywh(corners: NDArray[np.floating]) -> Floats:
    corners = corners.astype(np.float64)
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _joined(parts: Sequence[NDArray], kind: type) -> NDArray:
    return np.concatenate([np.zeros(0, kind), *parts]).astype(kind)


def _check(samples: Sequence[Sample], detections: Sequence[Detections], classes: int) -> None:
    if len(samples) != len(detections):
        raise UserError(f"{len(samples)} samples but {len(detections)} detections: give one Detections per sample")
    for sample, found in zip(samples, detections, strict=True):
        for what, labels in (("annotated", sample.target.labels), ("detected", found.labels)):
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                wrong = labels[(labels < 0) | (labels >= classes)]
                raise UserError(
                    f"image {sample.image_id!r}: {what} label {int(wrong[0])} is not in [0, {classes}), the range of "
                    f"the {classes} class names; give the class names of the model"
                )
