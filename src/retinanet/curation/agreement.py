"""How far the detections of a model can be relied on, measured on the annotations that they are to judge."""

from __future__ import annotations

import numpy as np

from retinanet.evaluation.matching import Flags, Floats, Integers, Overlaps

SHARE_WRONG = 0.05  # of annotations, before anything is known: one in twenty
FOREGROUND = 0.5  # IoU from which a detection lies on an annotation
NEAR = 0.1  # IoU from which it can be of an annotation that was drawn in the wrong place

TRUST = 1.0  # in the scores: the inverse variance of a slope of 1 and an offset of 0
STEPS = 20  # of Newton's method


def chance_of_error(share: Floats) -> Floats:
    """The chance (n,) that the annotation is wrong where a detection differs, from the share (n,) that does not.

    A right detection differs where the annotation is wrong, with the probability ``SHARE_WRONG``; a false one always.
    """
    right = np.minimum(share / (1 - SHARE_WRONG), 1.0)
    return right * SHARE_WRONG / (1 - right + right * SHARE_WRONG)


def pair_up(overlaps: Overlaps, sure: Floats) -> Integers:
    """(D,) the object of its class of each detection, -1 for none; the sure pairs that overlap most come first.

    COCO's matching asks for an IoU of 0.5, so that a weak detection that happens to lie on a shifted box would take it
    from the strong one that the box was meant for.
    """
    detection, truth = overlaps.pair_detection, overlaps.pair_truth
    same = overlaps.same_class & ~overlaps.ignore[truth]
    pairs = np.flatnonzero(same & (overlaps.pair_iou >= NEAR))
    order = pairs[np.argsort(-(sure[detection] * overlaps.pair_iou)[pairs], kind="stable")]
    partner, taken = np.full(len(sure), -1), np.zeros(len(overlaps.ignore), bool)
    for d, t in zip(detection[order].tolist(), truth[order].tolist(), strict=True):
        if partner[d] < 0 and not taken[t]:
            partner[d], taken[t] = t, True
    return partner


def measure_share(overlaps: Overlaps, right: Flags, counted: Flags) -> Floats:
    """(D,) for each detection the share of those of its class and score that are right.

    A logistic curve over the log odds of the score is fitted to each class (Platt 1999), by Newton's method. It starts
    from the scores themselves, which ``TRUST`` holds it to: where there are few detections it stays near them, and one
    that is wrongly annotated does not decide about itself, as it would with bins.
    """
    share, score = np.zeros(len(overlaps.label)), np.clip(overlaps.score, 1e-6, 1 - 1e-6)
    columns = np.stack([np.log(score / (1 - score)), np.ones(len(score))], axis=1)
    usual = np.array([1.0, 0.0])
    for label in np.unique(overlaps.label):
        mine = overlaps.label == label
        x, y, fit = columns[mine & counted], right[mine & counted], usual
        for _ in range(STEPS):
            p = _logistic(x @ fit)
            slope = x.T @ (y - p) - TRUST * (fit - usual)
            fit = fit + np.linalg.solve((x * (p * (1 - p))[:, None]).T @ x + TRUST * np.eye(2), slope)
        share[mine] = _logistic(columns[mine] @ fit)
    return share


def _logistic(x: Floats) -> Floats:
    return 1 / (1 + np.exp(-np.clip(x, -30, 30)))
