"""Why was this box missed? Every annotated box and every detection of one image, followed through post-processing.

An *entry* is an anchor and a class: one logit. Its box is decoded from the anchor and clipped to the image, as it would
be reported. It is *in place* for an object if that box overlaps the object with IoU >= 0.5. An object is found only
through entries in place of its own class. The gate of an object is the first of these rules that holds:

1. ``found``: a detection of its class counts for it, matched as COCO does: best score first, a detection takes the free
   object of its class that it overlaps most, at IoU >= 0.5 (the later one of two equal).

Else, if an entry in place of its class passed the score threshold, post-processing lost it:

2. ``cut by the cap``: such an entry survived suppression, but ``max_detections`` better ones came before it.
3. ``suppressed by NMS``: such an entry went under a better box.
4. ``shared detection``: such an entry is a detection, but it counts for another object, and there is no other box.
5. ``cut by top-k``: all such entries had ``topk`` better ones on their level.

Else the network did not find it:

6. ``wrong class``: a detection of another class, that counts for no object, overlaps it with IoU >= 0.5.
7. ``below threshold``: entries of its class are in place, but score too low.
8. ``no anchor``: nothing is in place, and training gave it no anchor, or only forced ones of an IoU below
   ``Matcher.background``.
9. ``never localised``: nothing is in place, though it has anchors.

So the gate of a missed object is the one at which its last hope ended: without that rule, an entry in place would have
gone on. The rules hold for every setting of the post-processing; suppression across classes makes rule 3 name a box of
another class. Boxes of which clipping leaves nothing are never in place, but may suppress others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.analysis.trace import outcomes
from retinanet.analysis.trace.entries import IN_PLACE, Report, assigned_anchors, factors, pair_iou, search
from retinanet.analysis.trace.outcomes import BoxTrace, DetectionTrace, Entry, ImageTrace, Rival
from retinanet.anchors.geometry import area, iou
from retinanet.anchors.matching import Matcher
from retinanet.model import postprocess as fates
from retinanet.model.postprocess import Candidates, Postprocess
from retinanet.types import RawOutput, Target

NEAR = 0.1  # IoU below which a box has nothing to do with an object, TIDE's


def trace(
    raw: RawOutput,
    image: int,
    target: Target,
    size: tuple[int, int],
    postprocess: Postprocess,
    matcher: Matcher | None = None,
    *,
    original: tuple[int, int] | None = None,
    class_names: Sequence[str] = (),
) -> ImageTrace:
    """What happened to every box and every detection of one image; the rules stand at the top of this module.

    Time and memory: every anchor's box is decoded and compared with every object once, in portions of a million pairs.

    Args:
        raw: of N images.
        image: which of them.
        target: M boxes in pixels of the batch; ignore regions are not traced.
        size: (height, width) of the content of the image in the batch.
        postprocess: the rule to follow.
        matcher: which anchors answer for which box in training; the paper's rule by default.
        original: (height, width) in whose pixels boxes are reported; ``size`` by default.
        class_names: K names; the numbers of the classes by default.

    Returns:
        The trace; its detections are those that ``postprocess`` gives.
    """
    target = Target(target.boxes.cpu().float(), target.labels.cpu(), target.ignore.cpu())
    matcher = matcher or Matcher()
    candidates = postprocess.find_candidates(raw, image, size).cpu()
    report = Report(raw, factors(size, original))
    detections = _detections(candidates, target, report)
    rows = (~target.ignore).nonzero()[:, 0]
    found = search(raw, image, target.select(rows), size)
    passed = postprocess.find_passed(found.logit).tolist()
    assigned, best_iou = assigned_anchors(raw, target, matcher, report)
    boxes = []
    for i, row in enumerate(rows.tolist()):
        one = _Object(row, target.boxes[row], int(target.labels[row]), found.entry(i, report), passed[i])
        reached = any(one.iou >= matcher.background for one in assigned[row])
        gate, furthest, by = _gate(one, candidates, detections, reached, report)
        boxes.append(
            BoxTrace(
                index=row,
                label=one.label,
                box=report.box(one.box),
                gate=gate,
                anchors=assigned[row],
                best_anchor_iou=best_iou[row],
                localising=int(found.count[i]),
                best=one.best or furthest,
                furthest=furthest,
                by=by,
            )
        )
    names = tuple(class_names) or tuple(str(label) for label in range(raw.num_classes))
    return ImageTrace(tuple(boxes), detections, original or size, postprocess.score, names)


@dataclass(frozen=True)
class _Object:
    """One annotated box: what the search over all entries found for it."""

    row: int
    box: Tensor
    label: int
    best: Entry | None
    passed: bool


def _gate(
    one: _Object, candidates: Candidates, detections: Sequence[DetectionTrace], reached: bool, report: Report
) -> tuple[str, Entry | None, Rival | None]:
    """The first rule that holds for an object, the entry and the rival that it is about."""
    overlap = iou(candidates.shown, one.box[None])[:, 0]
    in_place = overlap >= IN_PLACE
    own = in_place & (candidates.labels == one.label)

    def furthest(fate: int) -> int | None:
        rows = (own & (candidates.fate == fate)).nonzero()[:, 0]
        return int(rows[candidates.logits[rows].argmax()]) if len(rows) else None

    def detection(wanted: Sequence[bool]) -> tuple[int, Rival] | None:
        number = next((n for n, good in enumerate(wanted) if good), None)
        if number is None:
            return None
        index = int(candidates.detections[number])
        return index, _rival(candidates, index, one.box, detections, report)

    if hit := detection([traced.matched == one.row for traced in detections]):
        return outcomes.FOUND, report.entry(candidates, hit[0], one.box), hit[1]
    if (index := furthest(fates.CAPPED)) is not None:
        return outcomes.CUT_BY_CAP, report.entry(candidates, index, one.box), None
    if (index := furthest(fates.SUPPRESSED)) is not None:
        by = _rival(candidates, candidates.suppressor(index), one.box, detections, report)
        return outcomes.SUPPRESSED, report.entry(candidates, index, one.box), by
    if shared := detection(own[candidates.detections].tolist()):
        return outcomes.SHARED, report.entry(candidates, shared[0], one.box), shared[1]
    if one.best and one.passed:
        return outcomes.CUT_BY_TOPK, one.best, None
    false = [traced.kind not in ("match", "ignored") for traced in detections]
    there = in_place[candidates.detections] & torch.tensor(false, dtype=torch.bool)
    if other := detection(there.tolist()):
        return outcomes.WRONG_CLASS, one.best, other[1]
    if one.best:
        return outcomes.BELOW, one.best, None
    return (outcomes.NEVER_LOCALISED if reached else outcomes.NO_ANCHOR), None, None


def _rival(
    candidates: Candidates, index: int, box: Tensor, detections: Sequence[DetectionTrace], report: Report
) -> Rival:
    """A candidate, as seen from the object at ``box`` (4,)."""
    number = (candidates.detections == index).nonzero()[:, 0].tolist()
    return Rival(
        box=report.box(candidates.shown[index]),
        label=int(candidates.labels[index]),
        score=float(candidates.scores[index]),
        iou=pair_iou(candidates.shown[index], box),
        detection=number[0] if number else None,
        matched=detections[number[0]].matched if number else None,
    )


def _detections(candidates: Candidates, target: Target, report: Report) -> tuple[DetectionTrace, ...]:
    """What each detection is."""
    index = candidates.detections
    shown, labels = candidates.shown[index], candidates.labels[index]
    overlaps = iou(shown, target.boxes)  # (D, M)
    same = labels[:, None] == target.labels
    matched = _matched(overlaps.where(same & ~target.ignore, -1.0))
    # the common area, of which COCO takes the share in the detection for an ignore region
    common = overlaps * (area(shown)[:, None] + area(target.boxes)) / (1 + overlaps)
    ignored = (same & target.ignore & (common >= IN_PLACE * area(shown)[:, None])).any(dim=1) & (area(shown) > 0)
    judged = overlaps.where(~target.ignore, 0.0)
    own = _highest(judged.where(same, 0.0))
    other = _highest(judged.where(~same, 0.0))
    anchors = report.anchors(candidates.place[index])
    traces = []
    for number, row in enumerate(matched):
        kind, overlap = ("match", float(overlaps[number, row])) if row is not None else ("ignored", 0.0)
        if row is None and not ignored[number]:
            kind, overlap = _false_positive(own[number], other[number])
        traces.append(
            DetectionTrace(
                index=number,
                label=int(labels[number]),
                score=float(candidates.scores[index[number]]),
                box=report.box(shown[number]),
                anchor=anchors[number],
                kind=kind,
                matched=row,
                iou=overlap,
            )
        )
    return tuple(traces)


def _false_positive(own: float, other: float) -> tuple[str, float]:
    """TIDE's name for a false positive, from its best IoU with objects of its class and of others."""
    if NEAR <= own < IN_PLACE:
        return "localisation", own
    if other >= IN_PLACE:
        return "classification", other
    if own >= IN_PLACE:
        return "duplicate", own
    return ("both", other) if other >= NEAR else ("background", max(own, other))


def _matched(overlaps: Tensor) -> list[int | None]:
    """COCO's matching of detections, best first, with objects: (D, M), -1 where not allowed -> D rows or None."""
    free = torch.ones(overlaps.shape[1], dtype=torch.bool)
    matched: list[int | None] = []
    for row in overlaps:
        open_ = row.where(free & (row >= IN_PLACE), -1.0)
        best = (open_ == open_.amax()).nonzero()[-1:, 0].tolist() if bool((open_ > 0).any()) else []
        free[best] = False
        matched.append(best[0] if best else None)
    return matched


def _highest(overlaps: Tensor) -> list[float]:
    """(D, M) -> D, 0 where there is no object."""
    return [float(value) for value in (overlaps.amax(dim=1) if overlaps.shape[1] else overlaps.sum(dim=1))]
