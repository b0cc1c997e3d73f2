"""What a score threshold decides: precision and recall of each class, the threshold of the best F1, confusions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.analysis.errors.overlaps import (
    RECALLS,
    Flags,
    Floats,
    Integers,
    Overlaps,
    assign,
    average_precision,
    plain,
)
from retinanet.errors import UserError
from retinanet.model_folder import write_thresholds as save_thresholds
from retinanet.types import DEFAULT_THRESHOLD, Detections, Sample


@dataclass(frozen=True)
class ClassCurve:
    """Precision and recall of one class at every threshold that changes them; IoU 0.5, matched as COCO does.

    Attributes:
        name: of the class.
        objects: annotated objects, ignore regions left out.
        scores: (n,) the different scores of its detections, falling. Point i is "all detections of at least scores[i]".
        precision: (n,) hits / detections; detections in ignore regions do not count.
        recall: (n,) hits / objects; NaN where there are no objects.
        ap50: average precision at IoU 0.5, NaN without objects.
        best: the point of the highest F1 = 2 * hits / (detections + objects), of several the one with the highest
            score; None where no detection is a hit.
        threshold: the score that separates the detections of the best point from the others, halfway between its score
            and the next; its score where there is no other. None without a best point.
    """

    name: str
    objects: int
    scores: Floats
    precision: Floats
    recall: Floats
    ap50: float
    best: int | None
    threshold: float | None

    @property
    def f1(self) -> float:
        """The highest F1; 0 where no detection is a hit, NaN where there are no objects."""
        if self.best is None:
            return 0.0 if self.objects else float("nan")
        precision, recall = float(self.precision[self.best]), float(self.recall[self.best])
        return 2 * precision * recall / (precision + recall)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve as the best precision at the recalls 0.00, 0.01 .. 1.00."""
        falling = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        curve = falling[np.searchsorted(self.recall, RECALLS)].tolist() if self.objects else None
        return {
            "name": self.name,
            "objects": self.objects,
            "ap50": plain(self.ap50),
            "best_f1": plain(self.f1),
            "threshold": self.threshold,
            "precision": None if self.best is None else plain(float(self.precision[self.best])),
            "recall": None if self.best is None else plain(float(self.recall[self.best])),
            "precision_at_recall": curve and [round(value, 6) for value in curve],
        }

    def summary(self) -> str:
        """The best F1 in a line."""
        if self.best is None:
            return f"{self.name}: no detection is right, {self.objects} objects"
        return (
            f"{self.name}: best F1 {self.f1:.3f} at score {self.threshold:.3f} "
            f"(precision {self.precision[self.best]:.3f}, recall {self.recall[self.best]:.3f})"
        )


@dataclass(frozen=True)
class ConfusionMatrix:
    """Which class was taken for which.

    Attributes:
        class_names: K names.
        matrix: (K + 1, K + 1) counts. Row: the class of the object; column: the class it was given. The last column
            holds the objects that were overlooked, the last row the detections of nothing; their corner is 0.
        thresholds: (K,) detections of each class below this score are left out.
    """

    class_names: tuple[str, ...]
    matrix: Integers
    thresholds: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "rows": "class of the object",
            "columns": "class given",
            "names": [*self.class_names, "background"],
            "thresholds": dict(zip(self.class_names, self.thresholds, strict=True)),
            "matrix": self.matrix.tolist(),
        }

    def summary(self, most: int = 5) -> str:
        """How many objects were found, overlooked and mistaken, and the most frequent mistakes."""
        mistaken = self.matrix[:-1, :-1] * ~np.eye(len(self.class_names), dtype=bool)
        lines = [
            f"{self.matrix[:-1].sum()} objects: {np.trace(self.matrix)} found with their class, {mistaken.sum()} with "
            f"another, {self.matrix[:, -1].sum()} overlooked; {self.matrix[-1].sum()} detections of nothing"
        ]
        for place in np.argsort(-mistaken, axis=None, kind="stable")[:most]:
            row, column = np.unravel_index(place, mistaken.shape)
            if mistaken[row, column]:
                names = self.class_names[row], self.class_names[column]
                lines.append(f"  {names[0]} taken for {names[1]}: {int(mistaken[row, column])}")
        return "\n".join(lines)


def operating_points(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    overlaps: Overlaps | None = None,
) -> list[ClassCurve]:
    """Precision, recall and the threshold of the best F1 of each class, in the order of the labels.

    Args:
        samples: N annotated images, boxes in pixels of the original image.
        detections: N, what was found in each of them, in the same pixels.
        class_names: K names.
        overlaps: of the same data, if they have been computed already.

    Raises:
        UserError: the data do not fit together.
    """
    overlaps = overlaps or Overlaps.of(samples, detections, class_names)
    hits, counted = _hits(overlaps, overlaps.match(0.5))
    ap50 = average_precision(overlaps.label[counted], hits[counted], overlaps.counts)
    curves = []
    for label, name in enumerate(overlaps.class_names):
        rows = np.flatnonzero(counted & (overlaps.label == label))
        curves.append(_curve(name, overlaps.score[rows], hits[rows], int(overlaps.counts[label]), float(ap50[label])))
    return curves


def confusion(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    score: float | Mapping[str, float],
    overlaps: Overlaps | None = None,
) -> ConfusionMatrix:
    """Which class was taken for which, with the background as one more class.

    First every detection takes an object of its own class as COCO's matching at IoU 0.5 says; then, best score first,
    a detection that is left takes the object of another class that it overlaps most, by 0.5 or more, among those that
    are left. So a row of a class adds up to its objects, and its column to its detections. Detections in an ignore
    region of their class are left out.

    Args:
        samples: N annotated images, boxes in pixels of the original image.
        detections: N, what was found in each of them, in the same pixels.
        class_names: K names.
        score: detections below it are left out; one number, or one per class name (0.3 for a class that is missing, as
            in ``predict``).
        overlaps: of the same data, if they have been computed already.

    Raises:
        UserError: the data do not fit together, or there is a score for an unknown class.
    """
    overlaps = overlaps or Overlaps.of(samples, detections, class_names)
    names = overlaps.class_names
    if isinstance(score, Mapping) and (unknown := score.keys() - set(names)):
        raise UserError(f"there is a score for {min(unknown)!r}; the classes are {', '.join(names)}")
    given = [score.get(name, DEFAULT_THRESHOLD) if isinstance(score, Mapping) else score for name in names]
    matched = overlaps.match(0.5)
    hits, counted = _hits(overlaps, matched)
    shown = counted & (overlaps.score >= np.array(given)[overlaps.label])
    truth = np.where(hits & shown, matched, -1)
    truth = np.where(truth < 0, _others(overlaps, shown & ~hits, truth), truth)
    background = len(names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    rows = np.append(overlaps.truth_label, background)[truth]  # index -1 is the entry appended
    np.add.at(matrix, (rows[shown], overlaps.label[shown]), 1)
    overlooked = ~overlaps.ignore
    overlooked[truth[truth >= 0]] = False
    matrix[:background, background] = np.bincount(overlaps.truth_label[overlooked], minlength=background)
    return ConfusionMatrix(names, matrix, tuple(float(value) for value in given))


def write_thresholds(folder: str | Path, curves: Sequence[ClassCurve]) -> dict[str, float]:
    """Store the threshold of the best F1 of each class in a model folder, where ``predict`` finds it.

    A class of which no detection is right gets none and is predicted at 0.3. Earlier thresholds are replaced.

    Args:
        folder: the model folder.
        curves: of :func:`operating_points`, measured on images that the model was not trained on.

    Returns:
        What was stored.

    Raises:
        UserError: there is no model in the folder, or it has other classes.
    """
    thresholds = best_thresholds(curves)
    save_thresholds(folder, thresholds)
    return thresholds


def best_thresholds(curves: Sequence[ClassCurve]) -> dict[str, float]:
    """The threshold of each class that has one."""
    return {curve.name: curve.threshold for curve in curves if curve.threshold is not None}


def _hits(overlaps: Overlaps, matched: Integers) -> tuple[Flags, Flags]:
    """(D,) detections that have found an object, and (D,) those that count at all, from the objects matched (D,)."""
    ignored = np.zeros(len(matched), bool)
    ignored[matched >= 0] = overlaps.ignore[matched[matched >= 0]]
    return (matched >= 0) & ~ignored, ~ignored


def _others(overlaps: Overlaps, left: Flags, truth: Integers) -> Integers:
    """(D,) objects of another class for the detections that are left (D,), where ``truth`` (D,) are taken; -1: none."""
    free = ~overlaps.ignore
    free[truth[truth >= 0]] = False
    pairs = left[overlaps.pair_detection] & free[overlaps.pair_truth] & (overlaps.pair_iou >= 0.5)
    detection, other, iou = overlaps.pair_detection[pairs], overlaps.pair_truth[pairs], overlaps.pair_iou[pairs]
    order = np.lexsort((-other, -iou, detection))
    return assign(detection[order], other[order], len(truth), overlaps.ignore)


def _curve(name: str, scores: Floats, hits: Flags, objects: int, ap50: float) -> ClassCurve:
    """One class from its detections, best score first."""
    last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of equal scores: a threshold takes all or none
    found, detections = np.cumsum(hits)[last], last + 1
    levels = scores[last]
    best, threshold = None, None
    if hits.any():
        best = int(np.argmax(2 * found / (detections + objects)))
        lower = levels[best + 1] if best + 1 < len(levels) else levels[best]
        threshold = float((levels[best] + lower) / 2)
    recall = found / objects if objects else np.full(len(last), np.nan)
    return ClassCurve(name, objects, levels, found / detections, recall, ap50, best, threshold)
