"""Which detection counts for which object: COCO's matching and TIDE's kinds of false detections.

This is the only matching of detections to objects. Error analysis, the trace of single boxes and the pictures read its
results. They equal those of pycocotools (and of ``retinanet.evaluation.coco``); here they can be looked into.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retinanet.evaluation.coco import check_samples, rank_by_id, to_xywh
from retinanet.types import Detections, Sample, Target

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]
Names = NDArray[np.str_]

# What a detection is: it has found an object, is one of TIDE's errors, or lies in an ignore region.
HIT, IGNORED = "hit", "ignored"
KINDS = (HIT, "classification", "localisation", "both", "duplicate", "background", IGNORED)


@dataclass(frozen=True)
class Overlaps:
    """The detections and the objects of one or more images as flat arrays, and the pairs of them that overlap.

    Detections are in one order, best score first; equal scores are ranked by image, then in the order given. Areas and
    overlaps are float64.
    """

    class_names: tuple[str, ...]  # K names
    images: int  # number of images
    image: Integers  # (D,) index of each detection's image
    row: Integers  # (D,) its row in that image's ``Detections``
    label: Integers  # (D,) its class
    score: Floats  # (D,) its score
    area: Floats  # (D,) its area in square pixels
    truth_image: Integers  # (T,) index of each object's image
    truth_row: Integers  # (T,) its row in that image's ``Target``
    truth_label: Integers  # (T,) its class
    truth_box: Floats  # (T, 4) its box, xyxy
    truth_area: Floats  # (T,) its annotated area in square pixels
    ignore: Flags  # (T,) whether it is an ignore region
    # (P,) the first of two boxes that overlap; rising, the pairs of one in the order in which it asks for objects:
    # highest IoU first, of equal ones the last, as in pycocotools.
    pair_detection: Integers
    pair_truth: Integers  # (P,) the second
    pair_iou: Floats  # (P,) their IoU, above 0; for an ignore region the share of the detection that lies in it

    @property
    def counts(self) -> Integers:
        """(K,) objects of each class, ignore regions left out."""
        return np.bincount(self.truth_label[~self.ignore], minlength=len(self.class_names))

    def select(self, keep: Flags) -> Overlaps:
        """The same objects with the detections of the mask (D,) only."""
        pairs = keep[self.pair_detection]
        kept = {name: getattr(self, name)[keep] for name in ("image", "row", "label", "score", "area")}
        kept |= {name: getattr(self, name)[pairs] for name in ("pair_detection", "pair_truth", "pair_iou")}
        kept["pair_detection"] = (np.cumsum(keep) - 1)[kept["pair_detection"]]
        return replace(self, **kept)

    def match(self, threshold: float, ignored: Flags | None = None) -> Integers:
        """COCO's matching: best score first, a detection takes the free object of its class that it overlaps most.

        An object to be ignored is taken only where no other is left; an ignore region can be taken many times.

        Args:
            threshold: least IoU.
            ignored: (T,) objects that count neither way, the ignore regions among them; only those by default.

        Returns:
            (D,) the object of each detection, -1 for none.
        """
        near = self.pair_iou >= min(threshold, 1 - 1e-10)
        return self.assign(self.same_class & near, self.ignore if ignored is None else ignored)

    def assign(self, pairs: Flags, last: Flags) -> Integers:
        """Best score first, each detection takes the free object that it overlaps most, of equal ones the last.

        Args:
            pairs: (P,) who may take whom.
            last: (T,) objects that are taken only where no other is left. Ignore regions are always free.

        Returns:
            (D,) the object of each detection, -1 for none.
        """
        detection, truth = self.pair_detection[pairs], self.pair_truth[pairs]
        order = np.argsort(2 * detection + last[truth], kind="stable")
        matched, shared = [-1] * len(self.label), self.ignore.tolist()
        taken = [False] * len(shared)
        for d, t in zip(detection[order].tolist(), truth[order].tolist(), strict=True):
            if matched[d] < 0 and not taken[t]:
                matched[d], taken[t] = t, not shared[t]
        return np.array(matched, np.int64)

    @property
    def same_class(self) -> Flags:
        """(P,) pairs of one class."""
        return self.label[self.pair_detection] == self.truth_label[self.pair_truth]

    def judge(self, matched: Integers) -> tuple[Flags, Flags]:
        """(D,) detections that found an object, and (D,) those that count at all, from the objects matched (D,)."""
        counted = ~np.append(self.ignore, False)[matched]  # index -1 is the entry appended
        return (matched >= 0) & counted, counted

    def kinds(self, matched: Integers, foreground: float = 0.5, background: float = 0.1) -> tuple[Names, Integers]:
        """What each detection is, in the words of TIDE (Bolya et al., ECCV 2020), by the first rule that holds.

        ==============  ==========================================================  ===============
        kind            the detection ...                                           its partner
        ==============  ==========================================================  ===============
        hit             has found an object                                         that object
        ignored         lies in an ignore region of its class                       that region
        localisation    comes nearest to an object of its class by an IoU from      the nearest one
                        ``background`` to less than ``foreground``
        classification  overlaps one of another class by ``foreground`` or more     the nearest one
        duplicate       overlaps one of its class, found by a better detection      the nearest one
        background      overlaps every object by less than ``background``           none
        both            is near an object of another class only                     the nearest one
        ==============  ==========================================================  ===============

        Args:
            matched: (D,) what :meth:`match` gives at ``foreground``.
            foreground: IoU from which a detection has found an object.
            background: IoU below which a detection has nothing to do with an object.

        Returns:
            (D,) entries of ``KINDS`` and (D,) the object that each kind refers to, -1 for none.
        """
        objects = ~self.ignore[self.pair_truth]
        own, own_iou = self.nearest(objects & self.same_class)
        other, other_iou = self.nearest(objects & ~self.same_class)
        hits, counted = self.judge(matched)
        rules: dict[str, tuple[Flags, Integers]] = {
            IGNORED: (~counted, matched),
            HIT: (hits, matched),
            "localisation": ((own_iou >= background) & (own_iou < foreground), own),
            "classification": (other_iou >= foreground, other),
            "duplicate": (own_iou >= foreground, own),
            "background": (other_iou < background, np.full_like(matched, -1)),
            "both": (np.ones_like(hits), other),
        }
        conditions, partners = zip(*rules.values(), strict=True)
        return np.select(conditions, list(rules), ""), np.select(conditions, partners)

    def nearest(self, pairs: Flags) -> tuple[Integers, Floats]:
        """Of the chosen pairs (P,), each detection's object of highest IoU (D,), -1 for none, and the IoU (D,)."""
        order = np.lexsort((-self.pair_truth[pairs], self.pair_iou[pairs], self.pair_detection[pairs]))
        detection = self.pair_detection[pairs][order]
        truth, iou = np.full(len(self.label), -1), np.zeros(len(self.label))
        truth[detection] = self.pair_truth[pairs][order]  # the last of each detection stays
        iou[detection] = self.pair_iou[pairs][order]
        return truth, iou

    def iou_with(self, truth: Integers) -> Floats:
        """(D,) IoU of each detection with the object that ``truth`` (D,) names for it; 0 for -1."""
        return self.nearest(self.pair_truth == truth[self.pair_detection])[1]


def find_overlaps(samples: Sequence[Sample], detections: Sequence[Detections], class_names: Sequence[str]) -> Overlaps:
    """The overlaps of a data set, as AP counts them: equal scores are ranked as in COCO, and all detections count.

    Args:
        samples: N annotated images, boxes in pixels of the original image; equal scores are ranked by image id.
        detections: N, what was found in each of them, in the same pixels.
        class_names: K names.

    Raises:
        UserError: the two differ in length, or a label is no index of the class names.
    """
    check_samples(samples, detections, len(class_names))
    targets, areas = [sample.target for sample in samples], [sample.areas for sample in samples]
    return overlap_boxes(detections, targets, class_names, areas=areas, rank=rank_by_id(samples))


def overlap_boxes(
    detections: Sequence[Detections],
    targets: Sequence[Target],
    class_names: Sequence[str],
    *,
    areas: Sequence[ArrayLike] | None = None,
    rank: Integers | None = None,
) -> Overlaps:
    """The overlaps of images from their boxes alone, whatever pixels they are in.

    Args:
        detections: N, arrays or tensors.
        targets: N, arrays or tensors, boxes in the pixels of the detections.
        class_names: K names.
        areas: N times (M,) annotated areas; those of the boxes by default.
        rank: (N,) which image comes first among equal scores; in the order given by default.
    """
    image, row = _number(detections)
    truth_image, truth_row = _number(targets)
    label = _join([found.labels for found in detections], np.int64)
    score = _join([found.scores for found in detections], np.float64)
    ignore = _join([target.ignore for target in targets], np.bool_)
    truth_box = _join([target.boxes for target in targets], np.float64).reshape(-1, 4)
    xywh = to_xywh(_join([found.boxes for found in detections], np.float64).reshape(-1, 4))
    truth_xywh = to_xywh(truth_box)
    order = np.lexsort((row, image if rank is None else rank[image], -score))
    place = np.argsort(order)

    pairs = [np.zeros((3, 0))]  # detection, object, IoU
    first, first_truth = 0, 0
    for found, target in zip(detections, targets, strict=True):
        ours, theirs = slice(first, first + len(found)), slice(first_truth, first_truth + len(target))
        iou = _iou(xywh[ours], truth_xywh[theirs], ignore[theirs])
        d, t = np.nonzero(iou > 0)
        pairs.append(np.stack([place[ours][d], t + first_truth, iou[d, t]]))
        first, first_truth = ours.stop, theirs.stop
    detection, truth, overlap = np.concatenate(pairs, axis=1)
    wishes = np.lexsort((-truth, -overlap, detection))
    return Overlaps(
        class_names=tuple(class_names),
        images=len(targets),
        image=image[order],
        row=row[order],
        label=label[order],
        score=score[order],
        area=xywh[order, 2:].prod(axis=1),
        truth_image=truth_image,
        truth_row=truth_row,
        truth_label=_join([target.labels for target in targets], np.int64),
        truth_box=truth_box,
        truth_area=truth_xywh[:, 2:].prod(axis=1) if areas is None else _join(areas, np.float64),
        ignore=ignore,
        pair_detection=detection[wishes].astype(np.int64),
        pair_truth=truth[wishes].astype(np.int64),
        pair_iou=overlap[wishes],
    )


def match_image(detections: Detections, target: Target, threshold: float = 0.5) -> tuple[Integers, Integers, Integers]:
    """Rows of the detections that are hits, of those that are false, and of the objects that are missed.

    A detection in an ignore region of its class is neither hit nor false.

    Args:
        detections: of one image, arrays or tensors.
        target: its objects, in the same pixels.
        threshold: IoU from which a detection is a hit.
    """
    overlaps = overlap_boxes([detections], [target], detections.class_names)
    matched = overlaps.match(threshold)
    hits, counted = overlaps.judge(matched)
    missed = np.setdiff1d(np.flatnonzero(~overlaps.ignore), matched[hits])
    return overlaps.row[hits], overlaps.row[counted & ~hits], missed


def _number(images: Sequence[Detections] | Sequence[Target]) -> tuple[Integers, Integers]:
    """The image and the row in it of every entry."""
    lengths = [len(entries) for entries in images]
    return np.repeat(np.arange(len(lengths)), lengths), _join([np.arange(length) for length in lengths], np.int64)


def _iou(ours: Floats, theirs: Floats, ignore: Flags) -> Floats:
    """(D, 4) and (M, 4) xywh -> (D, M), with the operations of pycocotools in their order; 0 for 0 / 0."""
    a, b = ours[:, None], theirs[None]
    sides = np.minimum(a[..., :2] + a[..., 2:], b[..., :2] + b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.where((sides > 0).all(-1), sides.prod(-1), 0.0)
    area = a[..., 2] * a[..., 3]
    union = np.where(ignore, area, area + b[..., 2] * b[..., 3] - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _join(parts: Sequence[ArrayLike], kind: type) -> NDArray:
    """One array of a type from many along their first axis, none included."""
    return np.concatenate([np.asarray(part, kind) for part in parts]) if len(parts) else np.zeros(0, kind)
