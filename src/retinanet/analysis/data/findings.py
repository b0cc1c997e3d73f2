"""What the data doctor says: findings, each of a kind, and the report of all of them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from retinanet.data.check import short

Severity = Literal["error", "warning", "note"]
_ORDER: tuple[Severity, ...] = ("error", "warning", "note")
_LISTED = 3


class Kind(NamedTuple):
    """What kind of finding: how bad, what it is called, and how it is fixed where a finding does not say."""

    severity: Severity
    title: str
    remedy: str = ""


# Errors stop training or evaluation; warnings hurt; notes are for the reader to judge. Worst first.
KINDS: Mapping[str, Kind] = {
    "broken-file": Kind("error", "files that cannot be read"),
    "missing-file": Kind("error", "files that are named and not there", "Put the file there, or remove its name."),
    "empty-set": Kind("error", "splits without images or classes", "Check the path and the split."),
    "class-names": Kind("error", "class names that contradict each other"),
    "broken-annotation": Kind("error", "annotations that cannot be read"),
    "undeclared-class": Kind("error", "classes that are not declared"),
    "unknown-image": Kind("error", "annotations without an image"),
    "label-without-image": Kind("error", "label files without an image", "Add the image, or remove the label file."),
    "duplicate-image-id": Kind("error", "image ids that stand for two images"),
    "listed-twice": Kind("error", "images listed twice"),
    "bad-size": Kind("error", "declared sizes that are none"),
    "missing-image": Kind("error", "missing images", "Put the image there, or remove its annotations."),
    "unreadable-image": Kind("error", "unreadable images", "Replace the image, or remove it and its annotations."),
    "exif-rotation": Kind(
        "error",
        "images annotated without their EXIF rotation",
        "Turn the boxes, or write the image anew upright and annotate it.",
    ),
    "swapped-size": Kind("error", "width and height swapped", "Swap the declared width and height; look at the boxes."),
    "wrong-size": Kind(
        "error", "sizes that are not those of the image", "Annotate the image anew, or put the original back."
    ),
    "no-training": Kind("error", "training cannot start"),
    "nothing-to-learn": Kind("error", "no box to learn from", "Check the annotations and the split to train on."),
    "not-finite-box": Kind("warning", "boxes that are not finite", "Draw the box anew; training leaves it out."),
    "degenerate-box": Kind("warning", "boxes without extent", "Draw the box anew; training leaves it out."),
    "outside-box": Kind("warning", "boxes outside their image", "Draw the box anew; training leaves it out."),
    "over-edge-box": Kind("warning", "boxes that reach over the edge", "Cut the box; training clips it."),
    "zero-based": Kind(
        "warning",
        "Pascal VOC boxes that begin at 0",
        "Pascal VOC counts pixels from 1: where the tool counted from 0, add 1 to xmin and ymin.",
    ),
    "one-based": Kind(
        "warning",
        "coordinates that seem to be counted from 1",
        "This format counts from 0: where the boxes were taken from Pascal VOC, subtract 1 from x1 and y1.",
    ),
    "duplicate-box": Kind("warning", "duplicate boxes", "Remove one of them."),
    "conflicting-box": Kind("warning", "the same box with two classes", "Keep the right one."),
    "near-duplicate-box": Kind("warning", "nearly the same box twice", "Look at the two; keep the better one."),
    "repeated-box": Kind(
        "warning", "the same box in many images", "Look at them: a default of the annotation tool, or a static object?"
    ),
    "tiny-box": Kind(
        "warning",
        "boxes that are too small after resizing",
        "Train on larger images or on tiles, or leave objects out that nobody can see.",
    ),
    "same-file-in-splits": Kind("warning", "images in two splits", "Take the image out of one of the splits."),
    "copy-in-splits": Kind("warning", "copies of an image in two splits", "Take the image out of one of the splits."),
    "near-copy-in-splits": Kind(
        "warning", "images in two splits that look the same", "Look at them; keep what belongs together in one split."
    ),
    "same-file-twice": Kind("warning", "images listed twice under two ids", "Join the two entries."),
    "unseen-class": Kind("warning", "classes without a box", "Annotate some, or remove the class."),
    "class-not-in-train": Kind("warning", "classes that are not trained", "Bring some of them into the training."),
    "rare-class": Kind("warning", "classes with hardly any boxes", "Annotate more, or join it with another class."),
    "similar-classes": Kind("warning", "class names spelled in two ways", "Make them one class."),
    "unused-image": Kind("warning", "images that no annotation names", "Annotate or list the image, or take it away."),
    "empty-image": Kind("note", "images without boxes", "Right if nothing is in it: training takes it as background."),
    "whole-image-box": Kind("note", "boxes that cover the whole image", "Right if the object fills the image."),
    "turned-image": Kind("note", "images that are turned by EXIF", "Boxes are taken to be those of the upright image."),
    "pasted-box": Kind(
        "note",
        "boxes of one size in one image",
        "Look at them: were they pasted instead of drawn? Right where boxes are of a fixed size by design.",
    ),
    "class-not-in-val": Kind("note", "classes that are not validated", "Bring some of them into the validation."),
    "copy-in-split": Kind("note", "copies of an image in one split", "Remove one of them."),
    "near-copy-in-split": Kind("note", "images of one split that look the same", "Look at them."),
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a data set.

    Attributes:
        kind: a slug, a key of ``KINDS``.
        severity: "error" stops training or evaluation, "warning" hurts, "note" is for the reader to judge.
        where: file, line or id.
        reason: what is wrong.
        remedy: how to fix it.
        image: the image concerned.
        box: xyxy in its pixels, counted from 0 and not clipped.
    """

    kind: str
    severity: Severity
    where: str
    reason: str
    remedy: str
    image: Path | None = None
    box: tuple[float, ...] | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


def finding(
    kind: str,
    where: object,
    reason: str,
    *,
    remedy: str = "",
    image: Path | None = None,
    box: Sequence[float] | None = None,
) -> Finding:
    """A finding with the severity and, unless another is given, the remedy of its kind."""
    known = KINDS[kind]
    corners = None if box is None or not all(map(math.isfinite, box)) else tuple(float(side) for side in box)
    return Finding(kind, known.severity, str(where), reason, remedy or known.remedy, image, corners)


@dataclass(frozen=True)
class Group:
    """All findings of a kind."""

    kind: str
    severity: Severity
    title: str
    findings: tuple[Finding, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.findings)


@dataclass(frozen=True)
class DoctorReport:
    """What was found in a data set.

    Attributes:
        findings: in the order of the files.
        images: how many images the splits hold, each file counted once.
        boxes: how many boxes could be read.
        classes: how many classes are declared.
        seconds: that the examination took.
        splits: images of each split; "" is a set without splits.
        per_class: usable boxes of each class in each split.
    """

    findings: tuple[Finding, ...]
    images: int
    boxes: int
    classes: int
    seconds: float
    splits: Mapping[str, int] = field(default_factory=dict)
    per_class: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def stops(self) -> bool:
        """Whether something would stop training or evaluation."""
        return any(one.severity == "error" for one in self.findings)

    def count(self, severity: Severity) -> int:
        """How many findings are of this severity."""
        return sum(one.severity == severity for one in self.findings)

    def groups(self) -> list[Group]:
        """The findings by kind: errors, warnings, notes, and among those as ``KINDS`` orders them."""
        by_kind: dict[str, list[Finding]] = defaultdict(list)
        for one in self.findings:
            by_kind[one.kind].append(one)
        groups = [
            Group(kind, known.severity, known.title, tuple(by_kind[kind]))
            for kind, known in KINDS.items()
            if kind in by_kind
        ]
        return sorted(groups, key=lambda group: _ORDER.index(group.severity))

    def summary(self) -> str:
        """A few lines per kind for the console: how many, the first places, and the remedy."""
        sizes = ", ".join(f"{name or 'all'} {count}" for name, count in self.splits.items())
        lines = [
            f"{self.images} images ({sizes or 'none'}), {self.boxes} boxes, {self.classes} classes, "
            f"read in {self.seconds:.1f} s: {self.count('error')} errors, {self.count('warning')} warnings, "
            f"{self.count('note')} notes"
        ]
        for group in self.groups():
            lines.append(f"{group.severity}: {group.title}: {group.count}  [{group.kind}]")
            lines += [f"    {short(one.where, 200)}: {short(one.reason, 300)}" for one in group.findings[:_LISTED]]
            if group.count > _LISTED:
                lines.append(f"    ... and {group.count - _LISTED} more")
            lines.append(f"  {group.findings[0].remedy}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: the counts, the groups, and every finding."""
        return {
            "images": self.images,
            "boxes": self.boxes,
            "classes": self.classes,
            "seconds": self.seconds,
            "stops": self.stops,
            "splits": dict(self.splits),
            "per_class": {name: dict(counts) for name, counts in self.per_class.items()},
            "groups": [
                {"kind": group.kind, "severity": group.severity, "title": group.title, "count": group.count}
                for group in self.groups()
            ],
            "findings": [
                {
                    "kind": one.kind,
                    "severity": one.severity,
                    "where": one.where,
                    "reason": one.reason,
                    "remedy": one.remedy,
                    "image": None if one.image is None else str(one.image),
                    "box": None if one.box is None else list(one.box),
                }
                for one in self.findings
            ],
        }
