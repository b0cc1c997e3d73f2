"""What a score decides and means: precision and recall, the threshold of the best F1, confusions, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from retinanet.analysis.errors.tide import RECALLS, average_precision, round_numbers
from retinanet.evaluation.matching import Flags, Floats, Integers, Overlaps
from retinanet.types import DEFAULT_THRESHOLD

BINS = 15  # of the calibration


@dataclass(frozen=True)
class ClassCurve:
    """Precision and recall of one class at every threshold that changes them; IoU 0.5, matched as COCO does."""

    name: str  # of the class
    objects: int  # annotated objects, ignore regions left out
    # (n,) the different scores of its detections, falling. Point i is "all detections of at least scores[i]".
    scores: Floats
    hits: Integers  # (n,) those that found an object
    detections: Integers  # (n,) how many these are; detections in ignore regions do not count
    ap50: float  # average precision at IoU 0.5, NaN without objects

    @property
    def precision(self) -> Floats:
        """(n,) hits / detections."""
        return self.hits / self.detections

    @property
    def recall(self) -> Floats:
        """(n,) hits / objects; NaN where there are no objects."""
        return self.hits / self.objects if self.objects else np.full(len(self.hits), np.nan)

    @cached_property
    def best(self) -> int | None:
        """The point of the highest F1 = 2 * hits / (detections + objects), the first of several; None without a hit."""
        return int(np.argmax(2 * self.hits / (self.detections + self.objects))) if self.hits.any() else None

    @property
    def threshold(self) -> float | None:
        """Halfway between the score of the best point and the next lower one, or its score where there is no other.

        So it separates the detections of the best point from the others. None without a best point.
        """
        return None if self.best is None else float(self.scores[self.best : self.best + 2].mean())

    @property
    def f1(self) -> float:
        """The highest F1; 0 where no detection is a hit, NaN where there are no objects."""
        if self.best is None:
            return 0.0 if self.objects else float("nan")
        return float(2 * self.hits[self.best] / (self.detections[self.best] + self.objects))

    def at_best(self) -> tuple[float, float, float]:
        """Threshold, precision and recall of the best point; NaN without one."""
        if self.best is None or self.threshold is None:
            return float("nan"), float("nan"), float("nan")
        return self.threshold, float(self.precision[self.best]), float(self.recall[self.best])

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; the curve as the best precision at the recalls 0.00, 0.01 .. 1.00."""
        falling = np.append(np.maximum.accumulate(self.precision[::-1])[::-1], 0.0)
        threshold, precision, recall = self.at_best()
        numbers = {
            "name": self.name,
            "objects": self.objects,
            "ap50": self.ap50,
            "best_f1": self.f1,
            "threshold": threshold,
            "precision": precision,
            "recall": recall,
            "precision_at_recall": falling[np.searchsorted(self.recall, RECALLS)] if self.objects else None,
        }
        return {**round_numbers(numbers), "threshold": self.threshold}

    def summary(self) -> str:
        """The best F1 in a line."""
        if self.best is None:
            return f"{self.name}: no detection is right, {self.objects} objects"
        threshold, precision, recall = self.at_best()
        at = f"at score {threshold:.3f} (precision {precision:.3f}, recall {recall:.3f})"
        return f"{self.name}: best F1 {self.f1:.3f} {at}"


@dataclass(frozen=True)
class ConfusionMatrix:
    """Which class was taken for which."""

    class_names: tuple[str, ...]  # K names
    # (K + 1, K + 1) counts. Row: the class of the object; column: the class it was given. The last column holds the
    # objects that were overlooked, the last row the detections of nothing; their corner is 0.
    matrix: Integers
    thresholds: tuple[float, ...]  # (K,) detections of each class below this score are left out

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


@dataclass(frozen=True)
class Reliability:
    """Scores against the share of detections that are right, in bins of equal width."""

    name: str  # a class, or "all"
    # expected calibration error: mean over the detections of abs(accuracy - confidence) of their bin; NaN without
    # detections.
    ece: float
    bias: float  # mean score minus the share that is right, of all detections; above 0 the model is too sure of itself
    edges: Floats  # (B + 1,) ends of the B = 15 bins; a score on an end belongs to the bin above it, 1 to the last
    counts: Integers  # (B,) detections
    confidence: Floats  # (B,) their mean score, NaN in an empty bin
    accuracy: Floats  # (B,) the share that is right, NaN in an empty bin

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**round_numbers(vars(self)), "edges": self.edges.tolist()}

    def summary(self) -> str:
        """The expected calibration error and in which direction the scores are wrong."""
        if np.isnan(self.ece):
            return "calibration cannot be measured: there are no detections"
        return (
            f"expected calibration error {self.ece:.3f} over {int(self.counts.sum())} detections; "
            f"scores are on average {abs(self.bias):.3f} too {'high' if self.bias > 0 else 'low'}"
        )


def operating_points(overlaps: Overlaps) -> list[ClassCurve]:
    """Precision, recall and the threshold of the best F1 of each class, in the order of the labels."""
    hits, counted = overlaps.judge(overlaps.match(0.5))
    ap50 = average_precision(overlaps.label[counted], hits[counted], overlaps.counts)
    curves = []
    for label, name in enumerate(overlaps.class_names):
        rows = np.flatnonzero(counted & (overlaps.label == label))
        scores = overlaps.score[rows]
        last = np.flatnonzero(np.diff(scores, append=-np.inf))  # of equal scores: a threshold takes all or none
        found = np.cumsum(hits[rows], dtype=np.int64)[last]
        curves.append(ClassCurve(name, int(overlaps.counts[label]), scores[last], found, last + 1, float(ap50[label])))
    return curves


def best_thresholds(curves: Sequence[ClassCurve]) -> dict[str, float]:
    """The threshold of each class that has one; one of which no detection is right has none."""
    return {curve.name: curve.threshold for curve in curves if curve.threshold is not None}


def reach(overlaps: Overlaps, thresholds: Mapping[str, float]) -> tuple[Flags, tuple[float, ...]]:
    """(D,) detections that reach the threshold of their class, and the K thresholds; 0.3 for a class without one.

    Scores are compared in float32, as ``predict`` does.
    """
    least = [float(thresholds.get(name, DEFAULT_THRESHOLD)) for name in overlaps.class_names]
    return overlaps.score >= np.array(least, np.float32)[overlaps.label], tuple(least)


def confusion(overlaps: Overlaps, thresholds: Mapping[str, float]) -> ConfusionMatrix:
    """Which class was taken for which, with the background as one more class.

    First every detection takes an object of its own class as COCO's matching at IoU 0.5 says; then, best score first,
    a detection that is left takes the object of another class that it overlaps most, by 0.5 or more, among those that
    are left. So a row of a class adds up to its objects, and its column to its detections. Detections in an ignore
    region of their class, and those that do not :func:`reach` their threshold, are left out.
    """
    reached, least = reach(overlaps, thresholds)
    matched = overlaps.match(0.5)
    hits, counted = overlaps.judge(matched)
    shown = counted & reached
    own = np.where(hits & shown, matched, -1)

    free = ~overlaps.ignore
    free[own[own >= 0]] = False
    left = (shown & ~hits)[overlaps.pair_detection] & free[overlaps.pair_truth] & (overlaps.pair_iou >= 0.5)
    truth = np.where(own < 0, overlaps.assign(left, overlaps.ignore), own)

    background = len(overlaps.class_names)
    matrix = np.zeros((background + 1, background + 1), np.int64)
    rows = np.append(overlaps.truth_label, background)[truth]  # index -1 is the entry appended
    np.add.at(matrix, (rows[shown], overlaps.label[shown]), 1)
    free[truth[truth >= 0]] = False
    matrix[:background, background] = np.bincount(overlaps.truth_label[free], minlength=background)
    return ConfusionMatrix(overlaps.class_names, matrix, least)


def calibration(overlaps: Overlaps) -> tuple[Reliability, ...]:
    """Does a score of 0.8 mean that 8 detections of 10 are right? Of all detections, then of each of the K classes.

    A detection is right if COCO's matching gives it an object at IoU 0.5; one in an ignore region of its class is left
    out. Only detections that the model gives out are judged, so nothing is said about scores below its threshold.
    See Guo et al., ICML 2017; Kueppers et al., CVPRW 2020.
    """
    right, counted = overlaps.judge(overlaps.match(0.5))
    edges = np.arange(BINS + 1) / BINS
    result = []
    for label, name in enumerate(("all", *overlaps.class_names), start=-1):
        chosen = counted & ((overlaps.label == label) | (label < 0))
        scores, hits = overlaps.score[chosen], right[chosen]
        place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, BINS - 1)
        counts = np.bincount(place, minlength=BINS)
        known = np.where(counts, counts, np.nan)
        confidence, accuracy = (np.bincount(place, values, BINS) / known for values in (scores, hits))
        error = bias = float("nan")
        if len(scores):
            error = float(np.nansum(counts * np.abs(accuracy - confidence)) / len(scores))
            bias = float(scores.mean() - hits.mean())
        result.append(Reliability(name, error, bias, edges, counts, confidence, accuracy))
    return tuple(result)
