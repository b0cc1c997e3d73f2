"""The report of the data doctor: all faults of a data set, grouped by kind, and the verdict on the data set."""

from __future__ import annotations

import os
import shlex
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retinanet.analysis.anchors.audit import AnchorAudit
from retinanet.analysis.anchors.propose import Proposal
from retinanet.data.faults import KINDS, Fault, Severity, short
from retinanet.data.objects import Data, name_data
from retinanet.plotting.html import KeyNumber, Point, State, Verdict

_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_LISTED = 3
_OF_CLASSES = ("class-not-in-train", "rare-class", "similar-classes")
_OF_THE_WHOLE = ("corners", "one-based")
_IDLE = ("unseen-class", "unused-image", "missing-test")
"""Warnings about what training does not touch."""
# What ``check --fix`` sets right, or leaves out of the copy; the others need an eye.
FIXED = frozenset(
    (
        *("broken-annotation", "undeclared-class", "unknown-image", "duplicate-image-id", "missing-image"),
        *("unreadable-image", "exif-rotation", "swapped-size", "wrong-size", "fractions", "pixels", "confidence"),
        *("not-finite-box", "degenerate-box", "outside-box", "over-edge-box", "duplicate-box"),
        *("same-file-in-splits", "copy-in-splits"),
    )
)


class Harm(NamedTuple):
    """How much of the data set the findings of a kind concern."""

    kind: str
    faults: tuple[Fault, ...]
    share: float  # 0 to 1
    words: str


@dataclass(frozen=True)
class DoctorReport:
    """What was found in a data set."""

    findings: tuple[Fault, ...]  # in the order of the files
    images: int  # how many images the splits hold, each file counted once
    boxes: int  # how many boxes could be read
    classes: int  # how many classes are declared
    seconds: float  # that the examination took
    splits: Mapping[str, int] = field(default_factory=dict)  # images of each split; "" is a set without splits
    per_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)  # usable boxes of each class in each split

    @property
    def stops(self) -> bool:
        """Whether something would stop training or evaluation."""
        return self.count("error") > 0

    def count(self, severity: Severity) -> int:
        """How many findings are of this severity."""
        return sum(fault.severity == severity for fault in self.findings)

    @property
    def totals(self) -> dict[str, int]:
        """Usable boxes of each class in all splits."""
        return {name: sum(counts.values()) for name, counts in self.per_class.items()}

    def groups(self) -> dict[str, tuple[Fault, ...]]:
        """The findings by kind: errors, warnings, notes, and among those as ``KINDS`` orders them."""
        by_kind: dict[str, list[Fault]] = defaultdict(list)
        for fault in self.findings:
            by_kind[fault.kind].append(fault)
        kinds = sorted((kind for kind in KINDS if kind in by_kind), key=lambda kind: _ORDER.index(KINDS[kind].severity))
        return {kind: tuple(by_kind[kind]) for kind in kinds}

    def harms(self) -> list[Harm]:
        """Errors and warnings, the most harmful first: errors as ``KINDS`` has them, then by the share they concern."""
        harms: dict[Severity, list[Harm]] = {severity: [] for severity in _ORDER}
        for kind, faults in self.groups().items():
            harms[KINDS[kind].severity].append(self._measure_harm(kind, faults))
        return harms["error"] + sorted(harms["warning"], key=lambda harm: -harm.share)

    def _measure_harm(self, kind: str, faults: tuple[Fault, ...]) -> Harm:
        """Against the boxes, images or classes, by what the kind is about."""
        if kind in _OF_THE_WHOLE:
            return Harm(kind, faults, 1.0, "")
        if kind in _OF_CLASSES or kind == "unseen-class":
            whole, what = self.classes, "classes"
        elif faults[0].box is not None:
            whole, what = self.boxes, "boxes"
        else:
            whole, what = self.images, "images"
        count = len(faults)
        known = what == "classes" or faults[0].image is not None
        words = f"{count:,} of {whole:,} {what}" if known else f"{count:,}" if count > 1 else ""
        return Harm(kind, faults, 0.0 if kind in _IDLE else count / max(whole, 1), words)

    def summary(self) -> str:
        """A few lines per kind for the console: how many, the first places, and the remedy."""
        sizes = ", ".join(f"{name or 'all'} {count}" for name, count in self.splits.items())
        lines = [
            f"{self.images} images ({sizes or 'none'}), {self.boxes} boxes, {self.classes} classes, "
            f"read in {self.seconds:.1f} s: {self.count('error')} errors, {self.count('warning')} warnings, "
            f"{self.count('note')} notes"
        ]
        for kind, faults in self.groups().items():
            lines.append(f"{KINDS[kind].severity}: {KINDS[kind].title}: {len(faults)}  [{kind}]")
            lines += [f"    {short(fault.where, 200)}: {short(fault.reason, 300)}" for fault in faults[:_LISTED]]
            if len(faults) > _LISTED:
                lines.append(f"    ... and {len(faults) - _LISTED} more")
            lines.append(f"  {faults[0].remedy}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the counts, the groups, and every finding."""
        return {
            **{key: getattr(self, key) for key in ("images", "boxes", "classes", "seconds", "stops")},
            "splits": dict(self.splits),
            "per_class": {name: dict(counts) for name, counts in self.per_class.items()},
            "groups": [
                {"kind": kind, "severity": KINDS[kind].severity, "title": KINDS[kind].title, "count": len(faults)}
                for kind, faults in self.groups().items()
            ],
            "findings": [
                {
                    **{key: getattr(fault, key) for key in ("kind", "severity", "where", "reason", "remedy")},
                    "image": None if fault.image is None else str(fault.image),
                    "box": None if fault.box is None else list(fault.box),
                }
                for fault in self.findings
            ],
        }


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
        what = _count(warnings, "warning") + (f" of {kinds} kinds" if kinds > 1 else "")
        return "fair", f"Usable, with faults: nothing stops training, but {what} may hurt."
    return "good", "The data set is sound: nothing was found that stops or hurts training."


def _choose_first(report: DoctorReport, data: str) -> Point:
    """The most harmful finding: how many, where, and how it is fixed."""
    harms = report.harms()
    if not harms:
        notes = report.count("note")
        return Point("Fix first", f"Nothing; {_count(notes, 'note')} to look at." if notes else "Nothing.")
    harm = harms[0]
    fault, title = harm.faults[0], KINDS[harm.kind].title
    title = f"{title[0].upper()}{title[1:]}" + (f" ({harm.words})" if harm.words else "")
    place = name_places(fault.sentence, data)
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
        short_side = f"short side {after.preprocess.short} in place of {anchors.preprocess.short} pixels"
        changes.append(f"larger images ({short_side})")
    sentence = f"Only {reached}; with {' and '.join(changes)} it would be {_percent(after.covered)}."
    return Point("Training", sentence, f"retinanet check {shlex.quote(data)} --write anchors.yaml")


def _list_numbers(report: DoctorReport, anchors: AnchorAudit | None) -> list[KeyNumber]:
    errors, warnings, notes = (report.count(severity) for severity in _ORDER)
    splits = ", ".join(f"{name} {count:,}" for name, count in report.splits.items() if name)
    density = f"{report.boxes / report.images:.1f} an image" if report.images else ""
    fewest = min(report.totals, key=report.totals.__getitem__, default="")
    rarest = f"fewest boxes: {short(fewest, 30)}, {report.totals[fewest]:,}" if report.totals else ""
    stops: tuple[str, State] = ("they stop training", "bad") if errors else ("nothing stops training", "good")
    numbers = [
        KeyNumber("images", f"{report.images:,}", splits),
        KeyNumber("boxes", f"{report.boxes:,}", density),
        KeyNumber("classes", f"{report.classes:,}", rarest),
        KeyNumber("errors", f"{errors:,}", *stops),
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


def name_places(text: object, data: Data) -> str:
    """Words with the files of a data set named as seen from it, in one line."""
    path = Path(name_data(data))
    home = path if path.is_dir() else path.parent
    return short(str(text).replace(f"{os.path.normpath(home)}/", ""), 240)
