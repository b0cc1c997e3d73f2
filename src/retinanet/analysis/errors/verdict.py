"""The verdict on a model: how good it is, what costs most, and what to do next."""

from __future__ import annotations

import math

import numpy as np

from retinanet.analysis.errors.report import REMEDIES, ErrorReport
from retinanet.analysis.errors.tide import TYPES
from retinanet.analysis.trace.shares import Shares
from retinanet.data.faults import short
from retinanet.plotting.html import KeyNumber, Point, State, Verdict, format_percent

COSTS_LITTLE = 0.01  # AP50 below which no type of error is worth the words

# What an error of each type is, for a reader who does not know the types.
MEANINGS = {
    "classification": "right boxes with the wrong class",
    "localisation": "boxes that lie near their object but not well enough",
    "both": "loose boxes of the wrong class",
    "duplicate": "objects found twice",
    "background": "detections where nothing is annotated",
    "missed": "objects without any detection near them",
}


def judge_model(report: ErrorReport, missed: Shares, ap: float) -> Verdict:
    """What a reader has to know about a model.

    Args:
        report: the errors of the model on a data set.
        missed: what happened to the annotated boxes.
        ap: AP over IoU 0.50:0.95, NaN where there are no objects.
    """
    errors, gains = report.errors, report.errors.dap
    objects = int(errors.objects.sum())
    if not objects or math.isnan(errors.ap50):
        headline = "Nothing can be judged: these images have no annotated object."
        return Verdict("bad", headline, [Point("Next", "Choose a split with annotated objects: --split.")])
    headline = f"AP {ap:.3f} and AP50 {errors.ap50:.3f} on {objects:,} objects in {errors.overlaps.images:,} images."
    worst = max(TYPES, key=lambda kind: gains[kind])
    if gains[worst] < COSTS_LITTLE:
        costs = f"No type of error costs more than {COSTS_LITTLE:g} AP50; the most costs {worst}, {gains[worst]:.3f}."
    else:
        costs = (
            f"{worst.capitalize()} errors, {MEANINGS[worst]}: without these {errors.totals[worst]:,}, AP50 would be "
            f"{errors.ap50 + gains[worst]:.3f} ({gains[worst]:+.3f})."
        )
    lost, listed = missed.lost, ", ".join(f"{number:,} {gate}" for number, gate in missed.lost)
    seen = f"{sum(number for number, _ in lost):,} of {missed.boxes:,} objects are missed at score {missed.score:g}"
    seen += f": {listed}." if lost else "."
    points = [Point("Costs most", costs), Point("Missed", seen), Point("Next", REMEDIES[worst])]
    return Verdict("plain", headline, points, _list_numbers(report, missed, ap, worst))


def _list_numbers(report: ErrorReport, missed: Shares, ap: float, worst: str) -> list[KeyNumber]:
    errors, shown = report.errors, report.shown
    hits, false = int(shown.hits.sum()), int(shown.false.sum())
    by_class = errors.ap50_by_class
    weakest = int(np.nanargmin(by_class))
    name = short(errors.overlaps.class_names[weakest], 30)
    share, right = hits / max(1, int(errors.objects.sum())), format_percent(hits / max(1, hits + false))
    state: State = "good" if share >= 0.9 else "fair" if share >= 0.7 else "bad"
    return [
        KeyNumber("AP", f"{ap:.3f}", "mean over IoU 0.50 to 0.95"),
        KeyNumber("AP50", f"{errors.ap50:.3f}", f"weakest class: {name}, {by_class[weakest]:.3f}"),
        KeyNumber("objects found", format_percent(share), "at the thresholds of the best F1", state),
        KeyNumber("detections right", right, f"at these thresholds; {false:,} are false"),
        KeyNumber(f"AP50 lost to {worst}", f"{errors.dap[worst]:.3f}", f"{errors.totals[worst]:,} errors"),
        KeyNumber("calibration error", f"{report.calibration[0].ece:.3f}", "scores against the share that is right"),
    ]
