"""Does a score of 0.8 mean that 8 detections of 10 are right? (Guo et al., ICML 2017; Kueppers et al., CVPRW 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from retinanet.analysis.errors.tide import round_numbers
from retinanet.errors import UserError
from retinanet.evaluation.matching import Flags, Floats, Integers, Overlaps


@dataclass(frozen=True)
class Reliability:
    """Scores against the share of detections that are right, in bins of equal width.

    Attributes:
        name: a class, or "all".
        ece: expected calibration error: mean over the detections of abs(accuracy - confidence) of their bin; NaN
            without detections.
        bias: mean score minus the share that is right, of all detections; above 0 the model is too sure of itself.
        edges: (B + 1,) ends of the bins; a score on an end belongs to the bin above it, 1 to the last.
        counts: (B,) detections.
        confidence: (B,) their mean score, NaN in an empty bin.
        accuracy: (B,) the share that is right, NaN in an empty bin.
    """

    name: str
    ece: float
    bias: float
    edges: Floats
    counts: Integers
    confidence: Floats
    accuracy: Floats

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


def calibration(overlaps: Overlaps, *, bins: int = 15) -> tuple[Reliability, ...]:
    """How far scores can be read as probabilities: of all detections, then of each of the K classes.

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
    rows = [counted, *(counted & (overlaps.label == label) for label in range(len(overlaps.class_names)))]
    named = zip(("all", *overlaps.class_names), rows, strict=True)
    return tuple(_reliability(name, overlaps.score[chosen], hits[chosen], bins) for name, chosen in named)


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
    return Reliability(name, error, bias, edges, counts, confidence, accuracy)
