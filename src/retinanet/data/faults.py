"""What can be wrong with a data set: one list of kinds, for the readers that train on it and for the data doctor.

Training stops at the first fault that is an error and tells the others; the doctor collects them all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from retinanet.errors import UserError

Severity = Literal["error", "warning", "note"]


class Kind(NamedTuple):
    """What kind of fault: how bad, what it is called, and how it is fixed where a fault does not say."""

    severity: Severity
    title: str
    remedy: str = ""


# Errors stop training or evaluation; warnings hurt; notes are for the reader to judge. Worst first.
KINDS: Mapping[str, Kind] = {
    "broken-file": Kind("error", "files that cannot be read", "Fix or export it anew."),
    "missing-file": Kind("error", "files that are named but missing", "Put the file there, or remove its name."),
    "empty-set": Kind("error", "splits without images or classes", "Check the path and the split."),
    "class-names": Kind("error", "class names that contradict each other"),
    "broken-annotation": Kind("error", "annotations that cannot be read"),
    "undeclared-class": Kind("error", "classes that are not declared"),
    "unknown-image": Kind("error", "annotations without an image", "Remove the annotation."),
    "label-without-image": Kind("error", "label files without an image", "Add the image, or remove the label file."),
    "duplicate-image-id": Kind(
        "error",
        "image ids that stand for two images",
        "Every image needs an id of its own; where they are of two splits, name one split.",
    ),
    "listed-twice": Kind("error", "images listed twice", "Remove one."),
    "bad-size": Kind("error", "declared sizes that are not valid", "Expected whole positive numbers of pixels."),
    "missing-image": Kind("error", "missing images", "Put the image there, or correct its name in the annotations."),
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
    "fractions": Kind(
        "error",
        "fractions in place of pixels",
        "Multiply x by the width and y by the height of the image; retinanet check DATA --fix NEW does so.",
    ),
    "pixels": Kind(
        "error",
        "pixels in place of fractions",
        "Divide by the width and height of the image; retinanet check DATA --fix NEW does so.",
    ),
    "confidence": Kind(
        "error",
        "label lines with a sixth number",
        "Is it the confidence of a detector? Remove it; retinanet check DATA --fix NEW does so.",
    ),
    "no-training": Kind("error", "training cannot start", "The reason names what to fix."),
    "nothing-to-learn": Kind("error", "no box to learn from", "Check the annotations and the split to train on."),
    "not-finite-box": Kind("warning", "boxes that are not finite", "Draw the box anew; training leaves it out."),
    "degenerate-box": Kind("warning", "boxes without extent", "Draw the box anew; training leaves it out."),
    "outside-box": Kind("warning", "boxes outside their image", "Draw the box anew; training leaves it out."),
    "corners": Kind(
        "warning",
        "many boxes over the edge",
        "Are these the corners x1, y1, x2, y2? Expected x, y, width, height in this format.",
    ),
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
        "Train on larger images or on tiles, or leave out objects that nobody can see.",
    ),
    "shared-label": Kind("warning", "two images with one label file", "Rename one image, or remove it."),
    "no-label-file": Kind(
        "warning",
        "images without a label file among others",
        "Training takes them as background. Put the label files there, or an empty one for an image without objects.",
    ),
    "missing-test": Kind("warning", "a test split that is not there", "Put it there, or remove its name."),
    "dark-image": Kind(
        "warning", "images that are almost black", "A camera of 10 or 12 bits in a 16-bit file? Stretch the values."
    ),
    "same-file-in-splits": Kind("warning", "images in two splits", "Take the image out of one of the splits."),
    "copy-in-splits": Kind("warning", "copies of an image in two splits", "Take the image out of one of the splits."),
    "near-copy-in-splits": Kind(
        "warning", "images in two splits that look the same", "Look at them; keep what belongs together in one split."
    ),
    "same-file-twice": Kind("warning", "images listed twice under two ids", "Join the two entries."),
    "unseen-class": Kind("warning", "classes without a box", "Annotate some, or remove the class."),
    "class-not-in-train": Kind("warning", "classes that are not trained", "Move some images to the training split."),
    "rare-class": Kind("warning", "classes with hardly any boxes", "Annotate more, or join it with another class."),
    "similar-classes": Kind("warning", "class names spelled in two ways", "Make them one class."),
    "unused-image": Kind("warning", "images that no annotation names", "Annotate or list the image, or remove it."),
    "found-elsewhere": Kind("note", "images found under another name or folder", "Correct if these are the images."),
    "other-files": Kind("note", "files that are not read as images", "Convert them to JPEG or PNG if they are images."),
    "outside-image": Kind("note", "images outside of the data set", "Fine if you know them; --confine refuses them."),
    "keypoints": Kind("note", "keypoints beside the boxes", "The boxes are taken; the points are left out."),
    "outline": Kind("note", "outlines in place of boxes", "Their extent is taken as the box."),
    "root-category": Kind("note", "categories above the others", "It is left out, because it has no annotation."),
    "many-objects": Kind(
        "note",
        "images with more than 100 objects",
        "The plan of train raises the limit of detections; with --plan none, raise --postprocess.max_detections.",
    ),
    "empty-image": Kind("note", "images without boxes", "Fine if no object is in it: training takes it as background."),
    "whole-image-box": Kind("note", "boxes that cover the whole image", "Correct if the object fills the image."),
    "turned-image": Kind("note", "images that are turned by EXIF", "Boxes are taken to be those of the upright image."),
    "pasted-box": Kind(
        "note",
        "boxes of one size in one image",
        "Look at them: were they pasted instead of drawn? Correct if boxes have a fixed size by design.",
    ),
    "class-not-in-val": Kind("note", "classes that are not validated", "Move some images to the validation split."),
    "copy-in-split": Kind("note", "copies of an image in one split", "Remove one of them."),
    "near-copy-in-split": Kind("note", "images of one split that look the same", "Look at them."),
}


class Fault(UserError):
    """One thing that is wrong with a data set, as an error with its parts apart.

    Args:
        kind: a key of ``KINDS``.
        where: the file, line or id; "" where the reason names the place itself.
        reason: what is wrong there, without a full stop.
        remedy: how to fix it, in sentences; that of the kind if not given.
        members: the files it is about, where one fault stands for several.
        image: the image concerned.
        box: xyxy in its pixels, counted from 0 and not clipped; dropped where it is not finite.
    """

    def __init__(
        self,
        kind: str,
        where: object,
        reason: str,
        remedy: str = "",
        *,
        members: Sequence[Path] = (),
        image: Path | None = None,
        box: Sequence[float] | None = None,
    ) -> None:
        remedy = remedy or KINDS[kind].remedy
        super().__init__(kind, str(where), reason, remedy)
        self.kind = kind
        self.where = _restore_address(str(where))
        self.reason = reason
        self.remedy = remedy
        self.members = tuple(members)
        self.image = image
        self.box = None if box is None or not all(map(math.isfinite, box)) else tuple(map(float, box))

    @property
    def severity(self) -> Severity:
        """How bad it is, by its kind."""
        return KINDS[self.kind].severity

    @property
    def sentence(self) -> str:
        """The place and the reason, without the remedy."""
        return f"{self.where}: {self.reason}" if self.where else self.reason

    def __str__(self) -> str:
        return f"{self.sentence}. {self.remedy}"


# What a reader does with a fault. Where this returns, the reader leaves the faulty part out, or sets it right.
Faults = Callable[[Fault], None]


class Notes(list[str]):
    """The ``Faults`` of training: an error is raised, what stops nothing is kept as a message."""

    def __call__(self, fault: Fault) -> None:
        """Raise or keep a fault."""
        if fault.severity == "error":
            raise fault
        self.append(str(fault))


def name_list(names: Sequence[object], limit: int = 12) -> str:
    """Names for a message, shortened when there are many."""
    shown = ", ".join(short(name, 200) for name in names[:limit])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > limit else shown or "none"


def _restore_address(path: str) -> str:
    """A path, with both slashes of an address, of which ``Path`` keeps one."""
    return re.sub(r"^([a-z][a-z0-9+.-]+):/(?=[^/])", r"\1://", path)


def short(value: object, limit: int = 60) -> str:
    """A value of a file for a message: on one line, of bounded length, and harmless on a terminal."""
    text = str(value) if value is None or isinstance(value, str | int | float | Path) else f"a {type(value).__name__}"
    text = _restore_address(text) if isinstance(value, Path) else text
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= limit else text[:limit] + "..."
