"""How far the detections of a model can be relied on, measured on the annotations that they are to judge."""

from __future__ import annotations

import numpy as np

from retinanet.evaluation.matching import Flags, Floats, Integers, Overlaps

SHARE_WRONG = 0.05  # of annotations, before anything is known: one in twenty
FOREGROUND = 0.5  # IoU from which a detection lies on an annotation
NEAR = 0.1  # IoU from which it can be of an annotation that was drawn in the wrong place


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
    """(D,) for each detection the share of those of its class and score that are right; it never falls with the score.

    Isotonic regression by pooling neighbours (Ayer et al. 1955), with straight lines between the middles of the pools.
    """
    share, labels, scores = np.zeros(len(overlaps.label)), overlaps.label, overlaps.score
    for label in np.unique(labels[counted]):
        order = np.flatnonzero((labels == label) & counted)[::-1]  # detections are sorted, best first
        pools: list[list[float]] = []  # number, right ones, sum of scores
        for index in order.tolist():
            pools.append([1.0, float(right[index]), float(scores[index])])
            while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
                last = pools.pop()
                pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
        number, hits, total = np.array(pools).T
        mine = labels == label
        share[mine] = np.interp(scores[mine], total / number, (hits + 0.5) / (number + 1))
    return share
