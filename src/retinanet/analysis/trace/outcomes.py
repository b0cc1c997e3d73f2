"""What can happen to an annotated box and to a detection: the result of :mod:`retinanet.analysis.trace.trace`."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from math import log2
from typing import Any, NamedTuple

from retinanet.evaluation.matching import HIT, IGNORED
from retinanet.files import make_json_safe

Box = tuple[float, float, float, float]


class Gate(NamedTuple):
    """What can happen to an annotated box, in words and on a picture."""

    remedy: str  # what to do about it
    details: str  # what to say of a box, filled in by ImageTrace.explain
    colour: tuple[int, int, int]  # of its line on a picture and of its bar
    dash: tuple[float, float] | None  # of the line, as that of a Mark
    hatch: str  # of the bar


FOUND, NO_ANCHOR, NEVER_LOCALISED = "found", "no anchor", "never localised"
BELOW, WRONG_CLASS, CUT_BY_TOPK = "below threshold", "wrong class", "cut by top-k"
SUPPRESSED, SHARED, CUT_BY_CAP = "suppressed by NMS", "shared detection", "cut by the cap"
# Network's fault in warm colours, post-processing's in cold ones; told apart without colour by their tags and lines.
GATES = {
    FOUND: Gate("", "{hit}", (86, 180, 233), None, ""),
    NO_ANCHOR: Gate(
        "no anchor of this size and shape exists: change anchor sizes, ratios or scales, or enlarge the image",
        "{anchors}",
        *((213, 94, 0), (1.5, 2), "xx"),
    ),
    NEVER_LOCALISED: Gate(
        "anchors were there, but no box came out in place: train longer, add such objects, check the box",
        "no decoded box reaches IoU 0.5; {anchors}",
        *((213, 94, 0), (5, 2.5), "//"),
    ),
    BELOW: Gate(
        "a box in place scored too low: lower the score threshold, add such objects, or train longer",
        "{best}, is not above {score:g}; {anchors}",
        *((240, 228, 66), (5, 2.5), ""),
    ),
    WRONG_CLASS: Gate(
        "the object was boxed under another name: check the labels of both classes, add examples that differ",
        "a detection is there as {rival}; {best}",
        *((204, 121, 167), (3, 2), "\\\\"),
    ),
    CUT_BY_TOPK: Gate(
        "too many better candidates on its level: raise topk",
        "{best}, but its level had better candidates than topk",
        *((0, 158, 115), (2.5, 4), "--"),
    ),
    SUPPRESSED: Gate(
        "a better box overlapped it: where objects overlap, a higher NMS threshold keeps it, but keeps duplicates too",
        "its box of score {furthest} went under {rival}",
        *((230, 159, 0), (8, 2.5), ".."),
    ),
    SHARED: Gate(
        "one detection lies on two objects and counts for the other: check for boxes that are drawn twice",
        "its only box is {rival}",
        *((0, 158, 115), (12, 3), "++"),
    ),
    CUT_BY_CAP: Gate(
        "max_detections other boxes of the image scored better: raise max_detections",
        "its box of score {furthest} came after max_detections better ones",
        *((0, 158, 115), (8, 2.5), "oo"),
    ),
}
"""What can happen to an annotated box: exactly one of these (see :func:`retinanet.analysis.trace.trace.trace`)."""


@dataclass(frozen=True)
class Anchor:
    """An anchor; ``level`` counts from the finest as 0, ``template`` is its number in its cell, ``box`` is xyxy."""

    level: int
    stride: int  # pixels of the input between two cells
    row: int
    column: int
    template: int
    box: Box

    @property
    def name(self) -> str:
        """Its level as the paper names it, P3 to P7."""
        return f"P{log2(self.stride):.3g}"

    @property
    def words(self) -> str:
        """Its level and cell."""
        return f"{self.name} ({self.row}, {self.column})"


@dataclass(frozen=True)
class AssignedAnchor:
    """An anchor that answers for an object in training, and its IoU with the object.

    ``forced``: it is below the IoU that makes an anchor positive, and is so as one of the best the object has.
    """

    anchor: Anchor
    iou: float
    forced: bool


@dataclass(frozen=True)
class Entry:
    """An anchor and a class whose box lies on an object: IoU of at least 0.5."""

    anchor: Anchor
    box: Box  # decoded from the anchor and clipped to the image
    logit: float  # of the object's class
    score: float  # its sigmoid
    iou: float  # of the box with the object


@dataclass(frozen=True)
class Rival:
    """The box, as reported, that found an object, or that stands in its place."""

    box: Box
    label: int
    score: float
    iou: float  # of the box with the object
    # its number among the detections; None where it suppressed the object's box but is no detection itself, as of some
    # boxes nothing is left within the image.
    detection: int | None
    matched: int | None  # row of the object that it counts for; None if it is a false positive or no detection


@dataclass(frozen=True)
class BoxTrace:
    """What happened to one annotated box."""

    index: int  # its row in the target
    label: int
    box: Box  # as annotated
    gate: str  # a key of :data:`GATES`
    anchors: tuple[AssignedAnchor, ...]  # those that answer for it in training
    best_anchor_iou: float  # the highest IoU of any anchor with it
    localising: int  # how many anchors' decoded boxes reach IoU 0.5 with it, whatever they score
    best: Entry | None  # of these the one with the highest logit of the object's class
    # the one that the gate speaks of: it came as far as any, and of those that did it scored best.
    furthest: Entry | None
    # ``found``: the detection; ``suppressed by NMS``: the box under which ``furthest`` went; ``wrong class`` and
    # ``shared detection``: the detection in its place.
    by: Rival | None

    @property
    def found(self) -> bool:
        """A detection counts for it."""
        return self.gate == FOUND


@dataclass(frozen=True)
class DetectionTrace:
    """What one detection is.

    Attributes:
        index: its number, best score first.
        anchor: where it came from.
        kind: what it is, by :mod:`retinanet.evaluation.matching` at IoU 0.5 and 0.1: a hit, ignored, or a kind of
            false positive.
        matched: row of the object that it counts for.
        iou: with the object that ``kind`` is about, 0 for ``ignored``; for ``background`` the highest of any object.
    """

    index: int
    label: int
    score: float
    box: Box
    anchor: Anchor
    kind: str
    matched: int | None
    iou: float

    @property
    def false(self) -> bool:
        """It is a false positive."""
        return self.kind not in (HIT, IGNORED)


@dataclass(frozen=True)
class ImageTrace:
    """What happened on one image.

    Attributes:
        boxes: one per annotated box that is no ignore region.
        detections: best score first.
        size: (height, width) of the image that all boxes are in.
        score: the score threshold.
        class_names: K names.
    """

    boxes: tuple[BoxTrace, ...]
    detections: tuple[DetectionTrace, ...]
    size: tuple[int, int]
    score: float
    class_names: tuple[str, ...]

    @property
    def missed(self) -> tuple[BoxTrace, ...]:
        """The boxes that no detection counts for."""
        return tuple(box for box in self.boxes if not box.found)

    @property
    def counts(self) -> dict[str, int]:
        """How many boxes ended at each gate; gates without any are left out."""
        counted = Counter(box.gate for box in self.boxes)
        return {gate: counted[gate] for gate in GATES if counted[gate]}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; a number that is not finite is None."""
        return {"counts": self.counts, **make_json_safe(asdict(self))}

    def summary(self) -> str:
        """One line for the image, one for every box that was not found, one for the false positives."""
        kinds = Counter(detection.kind for detection in self.detections if detection.false)
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        first = f"{self.counts.get(FOUND, 0)} of {len(self.boxes)} boxes found by {len(self.detections)} detections"
        lines = [f"  {self.name_box(box)}: {self.explain(box)}" for box in self.missed]
        return "\n".join([first, *lines, f"{kinds.total()} false positives" + (f": {listed}" if listed else "")])

    def name_box(self, box: BoxTrace) -> str:
        """A box in words: its number, class and place."""
        x1, y1, x2, y2 = box.box
        return f"#{box.index} {self.class_names[box.label]} at ({x1:.0f}, {y1:.0f}, {x2:.0f}, {y2:.0f})"

    def explain(self, box: BoxTrace) -> str:
        """The gate of a box in words, with the numbers that belong to it."""
        forced = sum(anchor.forced for anchor in box.anchors)
        anchors = f"{len(box.anchors)} anchors ({forced} forced), best anchor IoU {box.best_anchor_iou:.2f}"
        best, furthest, rival, hit = anchors, "", "", ""
        if box.best:
            best = f"best score {box.best.score:.3f} of {box.localising} boxes in place, from {box.best.anchor.words}"
        if box.furthest:
            furthest = f"{box.furthest.score:.3f} from {box.furthest.anchor.words}"
        if by := box.by:
            hit = f"score {by.score:.2f}, IoU {by.iou:.2f}"
            role = "a false positive" if by.matched is None else f"matched to #{by.matched}"
            role = role if by.detection is not None else "no detection itself"
            rival = f"{self.class_names[by.label]} {by.score:.2f} (IoU {by.iou:.2f} with this box, {role})"
        values = {"anchors": anchors, "best": best, "furthest": furthest, "rival": rival, "hit": hit}
        return f"{box.gate}: {GATES[box.gate].details.format(**values, score=self.score)}"
