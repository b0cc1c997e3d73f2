"""Which annotations a model doubts: missing, of the wrong class, loose, doubled, or of nothing.

A model that did not learn from the annotations is a second opinion on them. Where the two differ, the data say who is
right: how often detections of this class and score lie on an annotation, and how far from it they lie. To score each
kind of disagreement by itself is the idea of ObjectLab (Tkachenko et al. 2023, arXiv 2309.00832); here the scores of
all kinds and classes are chances, so that one list can be sorted by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from retinanet.anchors.nms import nms
from retinanet.curation.agreement import FOREGROUND, SHARE_WRONG, chance_of_error, measure_share, pair_up
from retinanet.evaluation.matching import Flags, Floats, Integers, Overlaps, find_overlaps, overlap_boxes
from retinanet.types import Detections, Sample

KINDS = {
    "missing": "objects that are not annotated",
    "class": "annotations of the wrong class",
    "loose": "boxes that do not fit",
    "doubled": "objects annotated twice",
    "extra": "annotations of nothing",
}
RELIABLE, FEW = 0.5, 10  # the usual distance is measured on detections so sure, where a class has so many

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Doubt:
    """One annotation, or one that is missing, that a model disagrees with.

    Attributes:
        kind: a key of ``KINDS``.
        score: in [0, 1], see :func:`find_doubts`.
        image: index of the sample.
        row: of the annotation in the sample's target; -1 where it is missing.
        label: class to be annotated; -1 where the annotation should go.
        box: xyxy to be annotated, in pixels of the image; None where the annotation should go.
        share: of the detections like this one, those that the annotations confirm; of ``extra``, how much the model
            sees of the class elsewhere, in [0, 1].
        iou: of the annotation with the proposal; of ``doubled`` with its double.
        usual: of ``loose``, the median IoU of the class.
    """

    kind: str
    score: float
    image: int
    row: int
    label: int
    box: Box | None
    share: float
    iou: float = 0.0
    usual: float = 0.0


def find_doubts(
    samples: Sequence[Sample], detections: Sequence[Detections], class_names: Sequence[str], *, least: float = 0.1
) -> list[Doubt]:
    """What a model doubts in the annotations of N images, worst first; at most one doubt of each annotation.

    The score is an estimate of the chance that the annotation is wrong, if one in twenty is (``SHARE_WRONG``), by
    Bayes' rule from what is measured on these very images: for detections of each class and score the share that lies
    on or near an annotation (missing, loose) and the share whose class agrees with it (class), and how far boxes of
    the class mostly are from their detection (loose). ``doubled`` is the IoU of the two annotations times the share of
    such detections that are right. An annotation of nothing is likelier the better the model sees others of the class.

    Args:
        samples: the annotated images; ignore regions are neither doubted nor added to.
        detections: N, what a model found that was not trained on these annotations, down to low scores.
        class_names: K names.
        least: doubts below this score are left out.

    Raises:
        UserError: as :func:`~retinanet.evaluation.matching.find_overlaps`.
    """
    overlaps = find_overlaps(samples, detections, class_names)
    view = _View.of(overlaps, detections)
    doubts = [*view.find_wrong_classes(), *view.find_loose(), *view.find_doubled(samples), *view.find_extra()]
    best: dict[tuple[int, int], Doubt] = {}
    for doubt in sorted(doubts, key=lambda doubt: doubt.score):
        best[doubt.image, doubt.row] = doubt
    found = [doubt for doubt in (*best.values(), *view.find_missing()) if doubt.score >= least]
    return sorted(found, key=lambda doubt: -doubt.score)


@dataclass(frozen=True)
class _View:
    """Detections beside annotations; D detections, T annotations, P pairs that overlap.

    Attributes:
        overlaps: of the two.
        boxes: (D, 4) of the detections.
        sure: (D,) the share of such detections that have found an annotation.
        near: (D,) the share that lie on or near one.
        agree: (D,) of those that lie on an annotation, the share whose annotation is of their class.
        partner: (D,) the annotation of its class that each detection belongs to, -1 for none.
        found_by: (T,) the same from the annotations, -1 for none.
        iou: (D,) of the two.
    """

    overlaps: Overlaps
    boxes: Floats
    sure: Floats
    near: Floats
    agree: Floats
    partner: Integers
    found_by: Integers
    iou: Floats

    @staticmethod
    def of(overlaps: Overlaps, detections: Sequence[Detections]) -> _View:
        """Match and measure."""
        first = np.cumsum([0, *(len(found) for found in detections)])
        boxes = np.concatenate([np.zeros((0, 4)), *(np.asarray(found.boxes, np.float64) for found in detections)])
        hits, counted = overlaps.judge(overlaps.match(FOREGROUND))
        other, other_iou = overlaps.nearest(~overlaps.ignore[overlaps.pair_truth])
        sure = measure_share(overlaps, hits, counted)
        same = overlaps.label == overlaps.truth_label[other] if len(overlaps.ignore) else hits
        agree = measure_share(overlaps, hits | same, counted & (other_iou >= FOREGROUND))
        partner = pair_up(overlaps, sure)
        found_by = np.full(len(overlaps.ignore), -1)
        found_by[partner[partner >= 0]] = np.flatnonzero(partner >= 0)
        return _View(
            overlaps,
            boxes[first[overlaps.image] + overlaps.row],
            sure,
            measure_share(overlaps, partner >= 0, counted),
            agree,
            partner,
            found_by,
            overlaps.iou_with(partner),
        )

    @property
    def own_sure(self) -> Floats:
        """(T,) how sure the model is of each annotation's class in its place; 0 where it found nothing."""
        return _of_found(np.where(self.iou >= FOREGROUND, self.sure, 0.0), self.found_by)

    def find_wrong_classes(self) -> list[Doubt]:
        """Annotations on which lies a detection of another class that has no annotation of its own."""
        alone = (self.partner < 0) | (self.iou < FOREGROUND)
        best = self._find_best(~self.overlaps.same_class & alone[self.overlaps.pair_detection])
        rows = np.flatnonzero(best >= 0)
        found = best[rows]
        scores = chance_of_error(self.agree[found]) * (1 - self.own_sure[rows])
        labels, boxes = self.overlaps.label[found], self.overlaps.truth_box[rows]
        return self._make("class", rows, scores, self.agree[found], labels=labels, boxes=boxes)

    def find_loose(self) -> list[Doubt]:
        """Annotations whose box is farther from the detection of their class than chance explains."""
        labels, found = self.overlaps.truth_label, self.found_by >= 0
        far, near = 1 - _of_found(self.iou, self.found_by), _of_found(self.near, self.found_by)
        reliable = found & (_of_found(self.sure, self.found_by) >= RELIABLE)
        usual, chance = np.zeros(len(labels)), np.zeros(len(labels))
        for label in np.unique(labels[found]):
            mine = found & (labels == label)
            known = mine & reliable if (mine & reliable).sum() >= FEW else mine
            usual[mine] = np.median(far[known])
            # Distances of right boxes as a half-normal density of this median; those of wrong ones lie from 0 to 1.
            sigma = max(float(np.median(far[known])), 0.01) / 0.6745
            chance[mine] = np.sqrt(2 / np.pi) / sigma * np.exp(-(far[mine] ** 2) / (2 * sigma**2))
        rows = np.flatnonzero(found)
        scores = near * SHARE_WRONG / (SHARE_WRONG + (1 - SHARE_WRONG) * chance)
        doubts = self._make(
            *("loose", rows, scores[rows], near[rows], 1 - far[rows], 1 - usual[rows]),
            labels=labels[rows],
            boxes=self.boxes[self.found_by[rows]],
        )
        return [doubt for doubt in doubts if doubt.iou < doubt.usual]

    def find_doubled(self, samples: Sequence[Sample]) -> list[Doubt]:
        """Annotations that lie on another of their class which the detection there fits better."""
        targets, names = [sample.target for sample in samples], self.overlaps.class_names
        twins = [Detections(one.boxes, np.ones(len(one)), one.labels, names) for one in targets]
        pairs = overlap_boxes(twins, targets, names)
        first = np.cumsum([0, *(len(one) for one in targets)])
        mine = (first[pairs.image] + pairs.row)[pairs.pair_detection]
        theirs, own_sure, ignored = pairs.pair_truth, self.own_sure, self.overlaps.ignore
        twice = pairs.same_class & (pairs.pair_iou >= FOREGROUND) & (own_sure[mine] < own_sure[theirs])
        twice &= ~ignored[mine] & ~ignored[theirs]
        mine, theirs, iou = mine[twice], theirs[twice], pairs.pair_iou[twice]
        sure = own_sure[theirs] - own_sure[mine]
        return self._make("doubled", mine, sure * iou, sure, iou)

    def find_extra(self) -> list[Doubt]:
        """Annotations where the model sees nothing of any class, though it sees others of their class."""
        labels, objects = self.overlaps.truth_label, ~self.overlaps.ignore
        lying = np.minimum(self.overlaps.pair_iou / FOREGROUND, 1) * self.sure[self.overlaps.pair_detection]
        seen, usual = np.zeros(len(labels)), np.zeros(len(labels))
        np.maximum.at(seen, self.overlaps.pair_truth, lying)
        for label in np.unique(labels[objects]):
            usual[labels == label] = seen[objects & (labels == label)].mean()
        rows = np.flatnonzero(objects)
        scores = (1 - seen) * SHARE_WRONG / (SHARE_WRONG + (1 - SHARE_WRONG) * (1 - usual))
        return self._make("extra", rows, scores[rows], usual[rows])

    def find_missing(self) -> list[Doubt]:
        """Detections of what is not annotated, the best of each place."""
        overlaps = self.overlaps
        _, own = overlaps.nearest(overlaps.same_class)
        _, nearest = overlaps.nearest(np.ones_like(overlaps.same_class))
        scores = chance_of_error(self.near) * (1 - own)
        rows = np.flatnonzero((self.partner < 0) & (nearest < FOREGROUND))
        boxes, best, images = (torch.from_numpy(column[rows]) for column in (self.boxes, scores, overlaps.image))
        kept = rows[nms(boxes, best, images, FOREGROUND).numpy()]  # images as labels: classes compete
        table = zip(*(c[kept].tolist() for c in (scores, overlaps.image, overlaps.label, self.near, own)), strict=True)
        return [
            Doubt("missing", score, image, -1, label, _corners(box), share, iou)
            for box, (score, image, label, share, iou) in zip(self.boxes[kept], table, strict=True)
        ]

    def _find_best(self, pairs: Flags) -> Integers:
        """Of the chosen pairs (P,), the surest detection in the place of each object (T,), -1 for none."""
        overlaps = self.overlaps
        pairs = pairs & (overlaps.pair_iou >= FOREGROUND) & ~overlaps.ignore[overlaps.pair_truth]
        detection, truth = overlaps.pair_detection[pairs], overlaps.pair_truth[pairs]
        best = np.full(len(overlaps.truth_label), -1)
        order = np.argsort(self.sure[detection], kind="stable")
        best[truth[order]] = detection[order]  # the last of each annotation stays
        return best

    def _make(
        self,
        kind: str,
        rows: Integers,
        scores: Floats,
        shares: Floats,
        iou: Floats | None = None,
        usual: Floats | None = None,
        *,
        labels: Integers | None = None,
        boxes: Floats | None = None,
    ) -> list[Doubt]:
        """Doubts of annotations (n,); without labels and boxes these should go."""
        return [
            Doubt(
                kind,
                float(scores[i]),
                int(self.overlaps.truth_image[row]),
                int(self.overlaps.truth_row[row]),
                -1 if labels is None else int(labels[i]),
                None if boxes is None else _corners(boxes[i]),
                float(shares[i]),
                0.0 if iou is None else float(iou[i]),
                0.0 if usual is None else float(usual[i]),
            )
            for i, row in enumerate(rows.tolist())
        ]


def _of_found(values: Floats, found_by: Integers) -> Floats:
    """(T,) a value (D,) of the detection of each annotation, 0 where it has none."""
    return np.append(values, 0.0)[found_by]  # index -1 is the entry appended


def _corners(box: Floats) -> Box:
    x1, y1, x2, y2 = (round(float(side), 2) for side in box)
    return x1, y1, x2, y2
