"""All numbers about a model's errors from one matching, the part of the report that shows them, and the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np

from retinanet.analysis.errors import figures
from retinanet.analysis.errors.curves import (
    ClassCurve,
    ConfusionMatrix,
    Reliability,
    best_thresholds,
    calibration,
    confusion,
    operating_points,
    reach,
)
from retinanet.analysis.errors.groups import GROUPINGS, GroupAP, by_group
from retinanet.analysis.errors.tide import SPECIAL, TYPES, ErrorAnalysis, analyse_errors, round_numbers
from retinanet.analysis.trace.shares import Shares
from retinanet.data.dataset import DetectionDataset
from retinanet.data.faults import short
from retinanet.evaluation.matching import find_overlaps
from retinanet.plotting.draw import draw_comparison
from retinanet.plotting.html import KeyNumber, Picture, Point, Section, State, Table, Verdict, format_percent
from retinanet.types import Detections, Sample

LEGIBLE, WIDEST = 600, 1100  # pixels of the short side that small images are enlarged to; of a picture at most
COSTS_LITTLE = 0.01  # AP50 below which no type of error is worth the words


@dataclass(frozen=True)
class ErrorReport:
    """Everything about the errors of a model on a data set."""

    errors: ErrorAnalysis  # types and costs over all detections, as average precision sees them
    shown: ErrorAnalysis  # the same over the detections that reach the threshold of their class, as a user sees them
    curves: tuple[ClassCurve, ...]  # K, one per class, with the threshold of the best F1
    confusion: ConfusionMatrix  # at these thresholds
    calibration: tuple[Reliability, ...]  # of all detections, then of each of the K classes
    groups: Mapping[str, Sequence[GroupAP]]  # average precision by each of GROUPINGS

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "errors": self.errors.to_dict(),
            "errors_at_thresholds": self.shown.to_dict(),
            "curves": [curve.to_dict() for curve in self.curves],
            "confusion": self.confusion.to_dict(),
            "calibration": {
                "overall": self.calibration[0].to_dict(),
                "classes": [one.to_dict() for one in self.calibration[1:]],
            },
            "groups": round_numbers({kind: [*map(vars, found)] for kind, found in self.groups.items()}),
        }

    def summary(self) -> str:
        """The main numbers, for the console."""
        curves = [curve.summary() for curve in sorted(self.curves, key=lambda curve: curve.f1)]
        more = [f"... and {len(curves) - 10} classes more"] if len(curves) > 10 else []
        parts = [self.errors.summary(), *curves[:10], *more, f"at these scores, of {self.confusion.summary()}"]
        groups = [
            f"AP by {kind}: " + ", ".join(f"{group.name} {group.ap:.3f} ({group.objects})" for group in found)
            for kind, found in self.groups.items()
        ]
        return "\n".join([*parts, self.calibration[0].summary(), *groups])


def error_report(
    samples: Sequence[Sample], detections: Sequence[Detections], class_names: Sequence[str]
) -> ErrorReport:
    """The errors in N samples of which N detections were made, boxes of both in pixels of the original image.

    Raises:
        UserError: the data do not fit together.
    """
    overlaps = find_overlaps(samples, detections, class_names)
    curves = operating_points(overlaps)
    thresholds = best_thresholds(curves)
    return ErrorReport(
        errors=analyse_errors(overlaps),
        shown=analyse_errors(overlaps.select(reach(overlaps, thresholds)[0])),
        curves=tuple(curves),
        confusion=confusion(overlaps, thresholds),
        calibration=calibration(overlaps),
        groups=by_group(overlaps),
    )


def section(report: ErrorReport) -> list[Section]:
    """The report as parts of a page: errors and their cost, operating points, calibration, groups."""
    return [
        _show_costs(report),
        _show_operating_points(report),
        _show_calibration(report.calibration),
        _show_groups(report.groups),
    ]


def picture_worst(
    report: ErrorReport, dataset: DetectionDataset, detections: Sequence[Detections], *, most: int = 6
) -> list[Picture]:
    """The images with the most false detections and overlooked objects at the thresholds, drawn.

    Args:
        report: of the samples and detections.
        dataset: N annotated images with their pixels; those that are drawn are read.
        detections: N, what was found in each of them.
        most: how many.

    Raises:
        UserError: an image cannot be read.
    """
    pictures = []
    for index, _ in worst_images(report.shown, most):
        sample = dataset[index]
        zoom = max(1, LEGIBLE // min(sample.size))
        judged = report.shown.judge_image(index)
        drawn = draw_comparison(sample.image, detections[index], sample.target, *judged, zoom=zoom)
        drawn.thumbnail((WIDEST, WIDEST))
        hits, false, missed = map(len, judged)
        text = f"{hits} found, {false} false and {missed} missed at the thresholds of the best F1"
        pictures.append(Picture(short(sample.path.name), text, drawn, columns=3))
    return pictures


def worst_images(shown: ErrorAnalysis, most: int) -> list[tuple[int, int]]:
    """Index and number of errors of the images with the most false detections and overlooked objects, worst first."""
    overlaps = shown.overlaps
    images = [*overlaps.image[shown.false], *overlaps.truth_image[shown.unmatched]]
    errors = np.bincount(np.array(images, np.int64), minlength=overlaps.images)
    ranked = np.argsort(-errors, kind="stable")[:most]
    return [(int(image), int(errors[image])) for image in ranked if errors[image]]


def _show_costs(report: ErrorReport) -> Section:
    errors, counts, gains = report.errors, report.errors.totals, report.errors.dap
    special = {f"all {kind}": gains[kind] for kind in SPECIAL}
    ranked = sorted(TYPES, key=lambda kind: -gains[kind])
    shown = report.shown.totals
    rows: list[tuple[object, ...]] = [
        (kind, counts[kind], shown[kind], gains[kind], TYPES[kind].remedy) for kind in ranked
    ]
    rows += [(f"{name} removed", "", "", gain, "") for name, gain in special.items()]
    names, by_class = errors.overlaps.class_names, errors.ap50_by_class.tolist()
    by_type = [errors.dap_by_class[kind].tolist() for kind in TYPES]
    classes = list(zip(names, errors.objects.tolist(), by_class, *by_type, strict=True))
    known = [(name, ap) for name, ap, objects in zip(names, by_class, errors.objects, strict=True) if objects]
    extremes = [choose(known, key=itemgetter(1)) for choose in (min, max)] if known else []
    ends = ", ".join(f"{name} {ap:.3f}" for name, ap in dict.fromkeys(extremes))
    worst, most = ranked[0], f"{gains[ranked[0]]:+.3f}"
    text = (
        f"AP50 is {errors.ap50:.3f}. The table says how much it would be if all errors of one type were fixed and no "
        "other (Bolya et al. 2020), costliest first; the gains do not add up. Errors of low score are many and cost "
        "little: read the gains, not the counts. The counts at the thresholds of the best F1 are what a user sees."
    )
    heads = ("error", "at all scores", "at the thresholds", "gain in AP50", "what to do")
    same = f"The same for each class, with its AP50: {ends}" if ends else "The same for each class"
    tables = [
        Table(heads, rows, point=f"What fixing each type of error gains: most {worst}, {most} AP50"),
        Table(("class", "objects", "AP50", *TYPES), classes, "Gain in AP50 of each class.", point=same),
    ]
    caption = "Left: AP50 gained by fixing all errors of a type. Right: errors at all scores."
    bars = figures.error_bars({kind: gains[kind] for kind in TYPES}, special, counts)
    point = f"AP50 is {errors.ap50:.3f}; most costs {worst}: {most} if all were fixed."
    return Section("Errors and what they cost", text, tables, [(caption, bars)], point=point)


def _show_operating_points(report: ErrorReport) -> Section:
    text = (
        "A threshold on the score trades overlooked objects for false detections. The marked point of each curve has "
        "the highest F1; --write-thresholds stores these scores in the model folder, where predict finds them. They "
        "are chosen on the images of this report, so F1 on other images can be lower; choose them on validation images."
        f"\n\nAt these scores, of {report.confusion.summary()}."
    )
    heads = ("class", "objects", "AP50", "best F1", "at score", "precision", "recall")
    rows = [(curve.name, curve.objects, curve.ap50, curve.f1, *curve.at_best()) for curve in report.curves]
    table = Table(heads, rows, point="The threshold of the best F1 of each class, with its precision and recall")
    drawn = [
        ("Precision and recall of each class at IoU 0.5.", figures.precision_recall(report.curves)),
        ("Confusions at these scores: number, and share of the row.", figures.confusion_map(report.confusion)),
    ]
    point = f"At the thresholds of the best F1, of {report.confusion.summary()}"
    return Section("Operating points", text, [table], drawn, point=point)


def _show_calibration(result: Sequence[Reliability]) -> Section:
    overall, said = result[0], f"{result[0].summary().capitalize()}."
    text = (
        f"{said} If the bars follow the diagonal, a score can be read as the probability that a detection is right at "
        "IoU 0.5. Scores of the focal loss need not be probabilities: rank by them, choose thresholds by F1, and "
        "calibrate them before they enter a calculation of risk."
    )
    heads = ("class", "detections", "calibration error", "mean score minus share right")
    rows = [(one.name, int(one.counts.sum()), one.ece, one.bias) for one in result]
    table = Table(heads, rows, point=f"Calibration of each class: error {overall.ece:.3f} over all")
    drawn = [("Share of detections that are right, by score.", figures.reliability_diagram(overall))]
    return Section("Calibration", text, [table], drawn, point=said)


def _show_groups(groups: Mapping[str, Sequence[GroupAP]]) -> Section:
    text = (
        "Average precision where only one group of objects counts; a false detection counts against the group it "
        "belongs to. Groups of few objects say little, and groups that hold other classes cannot be compared."
    )
    panels = {GROUPINGS[kind][0]: found for kind, found in groups.items()}
    heads = ("by", "group", "objects", "classes", "AP", "AP50", "found at any score")
    rows = [(title, *vars(group).values()) for title, found in panels.items() for group in found]
    table = Table(heads, rows, point="AP, AP50 and recall of every group of objects")
    drawn = [("AP and AP50 of each group.", figures.group_bars(panels))]
    return Section("By size and crowding", text, [table], drawn, point=_name_ends(groups))


def _name_ends(groups: Mapping[str, Sequence[GroupAP]]) -> str:
    """The size and the crowding of the objects that are found best and worst."""
    words = []
    for kind, what in (("sizes", "size"), ("density", "number of objects in the image")):
        known = [group for group in groups[kind] if group.ap == group.ap]
        if len(known) > 1:
            ends = (choose(known, key=attrgetter("ap")) for choose in (min, max))
            lowest, highest = (f"{group.name} ({group.ap:.3f})" for group in ends)
            words.append(f"By {what}, AP is lowest for {lowest}, highest for {highest}.")
    return " ".join(words)


def judge_model(report: ErrorReport, missed: Shares, ap: float) -> Verdict:
    """What a reader has to know about a model.

    Args:
        report: the errors of the model on a data set.
        missed: what happened to the annotated boxes.
        ap: AP over IoU 0.50:0.95, NaN where there are no objects.
    """
    errors, gains = report.errors, report.errors.dap
    objects = int(errors.objects.sum())
    if not objects:
        headline = "Nothing can be judged: these images have no annotated object."
        return Verdict("bad", headline, [Point("Next", "Choose a split with annotated objects: --split.")])
    headline = f"AP {ap:.3f} and AP50 {errors.ap50:.3f} on {objects:,} objects in {errors.overlaps.images:,} images."
    worst = max(TYPES, key=lambda kind: gains[kind])
    if gains[worst] < COSTS_LITTLE:
        costs = f"No type of error costs more than {COSTS_LITTLE:g} AP50; the most costs {worst}, {gains[worst]:.3f}."
    else:
        costs = (
            f"{worst.capitalize()} errors, {TYPES[worst].meaning}: without these {errors.totals[worst]:,}, AP50 would "
            f"be {errors.ap50 + gains[worst]:.3f} ({gains[worst]:+.3f})."
        )
    count, listed = sum(n for n, _ in missed.lost), ", ".join(f"{n:,} {gate}" for n, gate in missed.lost)
    seen = f"{count:,} of {missed.boxes:,} objects are missed at score {missed.score:g}"
    seen += f": {listed}." if count else "."
    points = [Point("Costs most", costs), Point("Missed", seen), Point("Next", TYPES[worst].remedy)]
    return Verdict("plain", headline, points, _list_numbers(report, ap, worst))


def _list_numbers(report: ErrorReport, ap: float, worst: str) -> list[KeyNumber]:
    errors, shown = report.errors, report.shown
    hits, false = int(shown.hits.sum()), int(shown.false.sum())
    by_class = errors.ap50_by_class
    weakest = int(np.nanargmin(by_class))
    name = short(errors.overlaps.class_names[weakest], 30)
    share = hits / max(1, int(errors.objects.sum()))
    right = format_percent(hits / max(1, hits + false))
    state: State = "good" if share >= 0.9 else "fair" if share >= 0.7 else "bad"
    return [
        KeyNumber("AP", f"{ap:.3f}", "mean over IoU 0.50 to 0.95"),
        KeyNumber("AP50", f"{errors.ap50:.3f}", f"weakest class: {name}, {by_class[weakest]:.3f}"),
        KeyNumber("objects found", format_percent(share), "at the thresholds of the best F1", state),
        KeyNumber("detections right", right, f"at these thresholds; {false:,} are false"),
        KeyNumber(f"AP50 lost to {worst}", f"{errors.dap[worst]:.3f}", f"{errors.totals[worst]:,} errors"),
        KeyNumber("calibration error", f"{report.calibration[0].ece:.3f}", "scores against the share that is right"),
    ]
