"""The verdict on a data set: is it sound, what to fix first, and what will be trained."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from retinanet.analysis.anchors.audit import AnchorAudit
from retinanet.analysis.anchors.propose import Proposal
from retinanet.analysis.data.findings import DoctorReport, Harm
from retinanet.analysis.data.pictures import name_places
from retinanet.data.faults import KINDS, short
from retinanet.plotting.html import KeyNumber, Point, State, Verdict

# What ``check --fix`` sets right, or leaves out of the copy; the others need an eye.
FIXED = frozenset(
    (
        *("broken-annotation", "undeclared-class", "unknown-image", "duplicate-image-id", "missing-image"),
        *("unreadable-image", "exif-rotation", "swapped-size", "wrong-size", "fractions", "pixels", "confidence"),
        *("not-finite-box", "degenerate-box", "outside-box", "over-edge-box", "duplicate-box"),
        *("same-file-in-splits", "copy-in-splits"),
    )
)


def judge_data(
    report: DoctorReport,
    anchors: AnchorAudit | None,
    proposal: Proposal | None,
    *,
    data: str,
    plan: Sequence[tuple[str, str, str]] = (),
    plan_sentence: str = "",
    command: str = "",
) -> Verdict:
    """What a reader has to know about a data set before training on it.

    Args:
        report: what was found.
        anchors: how the anchors fit the boxes to train on; None where training would stop before that.
        proposal: what the anchors need, likewise.
        data: the data set, as given.
        plan: (label, value, reason) of each thing that training will be told to do.
        plan_sentence: the same in a sentence: what will be trained, and how long it takes; in its place stands what the
            anchors need.
        command: that trains it.
    """
    state, headline = _judge_soundness(report)
    first = _choose_first(report, data)
    training = Point("Training", plan_sentence, command) if plan_sentence else _judge_anchors(anchors, proposal, data)
    return Verdict(state, headline, (first, training), _list_numbers(report, anchors), tuple(plan))


def _judge_soundness(report: DoctorReport) -> tuple[State, str]:
    errors, warnings = report.count("error"), report.count("warning")
    if errors:
        more = f", and {_count(warnings, 'warning')} besides" if warnings else ""
        return "bad", f"Not sound: training or evaluation would stop at {_count(errors, 'error')}{more}."
    if warnings:
        kinds = len(report.harms())
        of_kinds = f" of {kinds} kinds" if kinds > 1 else ""
        return (
            "fair",
            f"Usable, with faults: nothing stops training, but {_count(warnings, 'warning')}{of_kinds} may hurt.",
        )
    return "good", "The data set is sound: nothing was found that stops or hurts training."


def _choose_first(report: DoctorReport, data: str) -> Point:
    """The most harmful finding: how many, where, and how it is fixed."""
    harms = report.harms()
    if not harms:
        notes = report.count("note")
        return Point("Fix first", f"Nothing; {_count(notes, 'note')} to look at." if notes else "Nothing.")
    harm: Harm = harms[0]
    fault, title = harm.faults[0], KINDS[harm.kind].title
    title = f"{title[0].upper()}{title[1:]}" + (f" ({harm.words})" if harm.words else "")
    place = name_places(fault.sentence, Path(data))
    example = f"for instance {place}" if len(harm.faults) > 1 else place
    command = f"retinanet check {shlex.quote(data)} --fix fixed" if harm.kind in FIXED else ""
    return Point("Fix first", f"{title}: {example}. {fault.remedy}", command)


def _judge_anchors(anchors: AnchorAudit | None, proposal: Proposal | None, data: str) -> Point:
    if anchors is None or proposal is None:
        return Point("Training", "Whether the anchors fit was not judged, because training would stop.")
    if not len(anchors):
        return Point("Training", "There is no box to train on.")
    high = anchors.foreground
    reached = f"{_percent(anchors.covered)} of the {len(anchors):,} boxes to train on have an anchor at IoU {high:g}"
    if not proposal.changed:
        return Point("Training", f"{reached}; {'the anchors can stay' if anchors.covered >= 0.9 else proposal.reason}.")
    after = proposal.after
    changes = ["new anchors"] if proposal.architecture_anchors else []
    if after.preprocess.short != anchors.preprocess.short:
        changes.append(
            f"larger images (short side {after.preprocess.short} in place of {anchors.preprocess.short} pixels)"
        )
    sentence = f"Only {reached}; with {' and '.join(changes)} it would be {_percent(after.covered)}."
    return Point("Training", sentence, f"retinanet check {shlex.quote(data)} --write anchors.yaml")


def _list_numbers(report: DoctorReport, anchors: AnchorAudit | None) -> list[KeyNumber]:
    errors, warnings, notes = (report.count(severity) for severity in ("error", "warning", "note"))
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items() if name)
    totals = {name: sum(counts.values()) for name, counts in report.per_class.items()}
    fewest = min(totals, key=totals.__getitem__, default="")
    numbers = [
        KeyNumber("images", f"{report.images:,}", splits),
        KeyNumber(
            "boxes", f"{report.boxes:,}", f"{report.boxes / report.images:.1f} an image" if report.images else ""
        ),
        KeyNumber(
            "classes", f"{report.classes:,}", f"fewest boxes: {short(fewest, 30)}, {totals[fewest]:,}" if totals else ""
        ),
        KeyNumber(
            "errors",
            f"{errors:,}",
            "they stop training" if errors else "nothing stops training",
            "bad" if errors else "good",
        ),
        KeyNumber("warnings", f"{warnings:,}", f"and {_count(notes, 'note')}", "fair" if warnings else "good"),
    ]
    if anchors is not None and len(anchors):
        side = format(float(np.median(np.sqrt(anchors.sides.prod(axis=1)))), ".0f")
        state: State = "good" if anchors.covered >= 0.99 else "fair" if anchors.covered >= 0.9 else "bad"
        note = f"at IoU {anchors.foreground:g}; median box {side} pixels after the resize"
        numbers.append(KeyNumber("boxes with an anchor", _percent(anchors.covered), note, state))
    return numbers


def _percent(share: float) -> str:
    """With a decimal: 99.9 % is not 100 %."""
    return f"{100 * share:.1f} %"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"
