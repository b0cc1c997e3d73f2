"""Does a score of 0.8 mean that 8 detections of 10 are right? (Guo et al., ICML 2017; Kueppers et al., CVPRW 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.analysis.errors.tide import plain
from retinanet.errors import UserError
from retinanet.evaluation.matching import Flags, Floats, Integers, Overlaps


@dataclass(frozen=True)
class Reliability:
    """Scores against the share of detections that are right, in bins of equal width.

    Attributes:
        name: a class, or "all".
        edges: (B + 1,) ends of the bins; a score on an end belongs to the bin above it, 1 to the last.
        counts: (B,) detections.
        confidence: (B,) their mean score, NaN in an empty bin.
        accuracy: (B,) the share that is right, NaN in an empty bin.
        ece: expected calibration error: mean over the detections of abs(accuracy - confidence) of their bin; NaN
            without detections.
        bias: mean score minus the share that is right, of all detections; above 0 the model is too sure of itself.
    """

    name: str
    edges: Floats
    counts: Integers
    confidence: Floats
    accuracy: Floats
    ece: float
    bias: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "name": self.name,
            "ece": plain(self.ece),
            "bias": plain(self.bias),
            "edges": self.edges.tolist(),
            "counts": self.counts.tolist(),
            "confidence": [plain(value) for value in self.confidence],
            "accuracy": [plain(value) for value in self.accuracy],
        }


@dataclass(frozen=True)
class Calibration:
    """How far scores can be read as probabilities.

    Attributes:
        overall: of all detections.
        classes: K, one per class.
    """

    overall: Reliability
    classes: tuple[Reliability, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"overall": self.overall.to_dict(), "classes": [one.to_dict() for one in self.classes]}

    def summary(self) -> str:
        """The expected calibration error and in which direction the scores are wrong."""
        if np.isnan(self.overall.ece):
            return "calibration cannot be measured: there are no detections"
        bias = self.overall.bias
        return (
            f"expected calibration error {self.overall.ece:.3f} over {int(self.overall.counts.sum())} detections; "
            f"scores are on average {abs(bias):.3f} too {'high' if bias > 0 else 'low'}"
        )


def calibration(overlaps: Overlaps, *, bins: int = 15) -> Calibration:
    """Reliability diagram and expected calibration error, of all detections and of each class.

    A detection is right if COCO's matching gives it an object at IoU 0.5; one in an ignore region of its class is left
    out. Only detections that the model gives out are judged, so nothing is said about scores below its threshold.

    Args:
        overlaps: of the detections and the objects.
        bins: B.

    Raises:
        UserError: there is no bin.
    """
    if bins < 1:
        raise UserError(f"bins is at least 1, got {bins}")
    hits, counted = overlaps.judge(overlaps.match(0.5))
    overall = _reliability("all", overlaps.score[counted], hits[counted], bins)
    rows = [counted & (overlaps.label == label) for label in range(len(overlaps.class_names))]
    named = zip(overlaps.class_names, rows, strict=True)
    return Calibration(overall, tuple(_reliability(name, overlaps.score[r], hits[r], bins) for name, r in named))


def _reliability(name: str, scores: Floats, hits: Flags, bins: int) -> Reliability:
    """That of some detections from their scores and whether each is right."""
    edges = np.arange(bins + 1) / bins
    place = np.clip(np.searchsorted(edges, scores, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    known = np.where(counts, counts, np.nan)
    confidence, accuracy = np.bincount(place, scores, bins) / known, np.bincount(place, hits, bins) / known
    error = bias = float("nan")
    if len(scores):
        error = float(np.nansum(counts * np.abs(accuracy - confidence)) / len(scores))
        bias = float(scores.mean() - hits.mean())
    return Reliability(name, edges, counts, confidence, accuracy, error, bias)
