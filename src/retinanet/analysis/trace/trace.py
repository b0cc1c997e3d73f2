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

import torch
from torch import Tensor

from retinanet.analysis.trace import outcomes
from retinanet.analysis.trace.outcomes import (
    Anchor,
    AssignedAnchor,
    Box,
    BoxTrace,
    DetectionTrace,
    Entry,
    ImageTrace,
    Rival,
)
from retinanet.analysis.trace.search import IN_PLACE, search
from retinanet.anchors.geometry import iou, paired_iou
from retinanet.anchors.matching import Matcher
from retinanet.evaluation.matching import HIT, IGNORED, KINDS, overlap_boxes
from retinanet.model.postprocess import CAPPED, DETECTION, SUPPRESSED, Candidates, Postprocess
from retinanet.types import Detections, RawOutput, Target


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
    names = tuple(class_names) or tuple(str(label) for label in range(raw.num_classes))
    candidates = postprocess.find_candidates(raw, image, size).cpu()
    to_plain = _PlainValues(raw, size, original or size)
    detections = _trace_detections(to_plain, candidates, target, names)
    assigned, best_iou = _find_anchors(to_plain, target, matcher)
    rows = (~target.ignore).nonzero()[:, 0]
    in_place = search(raw, image, target.select(rows), size)
    passed = postprocess.find_passed(in_place.logit).tolist()
    boxes = []
    for i, row in enumerate(rows.tolist()):
        truth, label = target.boxes[row], int(target.labels[row])
        gate, candidate, rival = _find_gate(candidates, detections, row, truth, label, passed=passed[i])
        best: Entry | None = None
        if in_place.count[i]:
            best = to_plain.entry(in_place.place[i], in_place.box[i], in_place.logit[i], truth)
        furthest = best
        if candidate is not None:
            place, box = candidates.place[candidate], candidates.shown[candidate]
            furthest = to_plain.entry(place, box, candidates.logits[candidate], truth)
        if gate is None:
            reached = any(anchor.iou >= matcher.background for anchor in assigned[row])
            gate = outcomes.BELOW if best else outcomes.NEVER_LOCALISED if reached else outcomes.NO_ANCHOR
        boxes.append(
            BoxTrace(
                index=row,
                label=label,
                box=to_plain.box(truth),
                gate=gate,
                anchors=assigned[row],
                best_anchor_iou=best_iou[row],
                localising=int(in_place.count[i]),
                best=best or furthest,
                furthest=furthest,
                by=None if rival is None else _describe_rival(to_plain, candidates, rival, truth, detections),
            )
        )
    return ImageTrace(tuple(boxes), detections, original or size, postprocess.score, names)


def _find_gate(
    candidates: Candidates, detections: Sequence[DetectionTrace], row: int, truth: Tensor, label: int, *, passed: bool
) -> tuple[str | None, int | None, int | None]:
    """The first of rules 1 to 6 that holds for an object, the candidate that came furthest and its rival.

    The object is the row of the target at the box ``truth`` (4,); ``passed`` says whether an entry in place of it
    passed the score threshold. Where no rule holds the gate is None.
    """
    numbers = candidates.detections.tolist()
    in_place = iou(candidates.shown, truth[None])[:, 0] >= IN_PLACE

    def furthest(fate: int) -> int | None:
        rows = (in_place & (candidates.labels == label) & (candidates.fate == fate)).nonzero()[:, 0]
        return int(rows[candidates.logits[rows].argmax()]) if len(rows) else None

    for detection, number in zip(detections, numbers, strict=True):
        if detection.matched == row:
            return outcomes.FOUND, number, number
    if (candidate := furthest(CAPPED)) is not None:
        return outcomes.CUT_BY_CAP, candidate, None
    if (candidate := furthest(SUPPRESSED)) is not None:
        return outcomes.SUPPRESSED, candidate, candidates.suppressor(candidate)
    if (candidate := furthest(DETECTION)) is not None:
        return outcomes.SHARED, candidate, candidate
    if passed:
        return outcomes.CUT_BY_TOPK, None, None
    for detection, number in zip(detections, numbers, strict=True):
        if detection.false and in_place[number]:
            return outcomes.WRONG_CLASS, None, number
    return None, None, None


def _find_anchors(
    to_plain: _PlainValues, target: Target, matcher: Matcher
) -> tuple[list[tuple[AssignedAnchor, ...]], list[float]]:
    """For each of M boxes the anchors that answer for it in training, best first, and the best IoU of any anchor."""
    lattice, grids = to_plain.raw.lattice, to_plain.raw.grids
    match = matcher(lattice, grids, target.boxes, target.ignore)
    places = torch.stack(lattice.locate(match.positive, grids), dim=1)
    overlap = paired_iou(target.boxes[match.box], lattice.boxes_at(*places.unbind(1)))
    order = overlap.argsort(descending=True, stable=True)
    assigned: list[list[AssignedAnchor]] = [[] for _ in range(len(target))]
    rows, values = match.box[order].tolist(), overlap[order].tolist()
    for row, value, anchor in zip(rows, values, to_plain.anchors(places[order]), strict=True):
        assigned[row].append(AssignedAnchor(anchor, value, value < matcher.foreground))
    return [tuple(anchors) for anchors in assigned], match.best_iou.tolist()


def _trace_detections(
    to_plain: _PlainValues, candidates: Candidates, target: Target, class_names: tuple[str, ...]
) -> tuple[DetectionTrace, ...]:
    """What each detection is."""
    chosen = candidates.detections
    shown, labels, scores = candidates.shown[chosen], candidates.labels[chosen], candidates.scores[chosen]
    overlaps = overlap_boxes([Detections(shown, scores, labels, class_names)], [target], class_names)
    codes, partners = overlaps.kinds(overlaps.match(IN_PLACE), IN_PLACE)
    partner_iou = overlaps.iou_with(partners)
    _, best_iou = overlaps.nearest(~overlaps.ignore[overlaps.pair_truth])
    traces = []
    for index, anchor in enumerate(to_plain.anchors(candidates.place[chosen])):
        kind = KINDS[codes[index]]
        iou_of = {IGNORED: 0.0, "background": float(best_iou[index])}
        traces.append(
            DetectionTrace(
                index=index,
                label=int(labels[index]),
                score=float(scores[index]),
                box=to_plain.box(shown[index]),
                anchor=anchor,
                kind=kind,
                matched=int(partners[index]) if kind == HIT else None,
                iou=iou_of.get(kind, float(partner_iou[index])),
            )
        )
    return tuple(traces)


def _describe_rival(
    to_plain: _PlainValues, candidates: Candidates, index: int, truth: Tensor, detections: Sequence[DetectionTrace]
) -> Rival:
    """A candidate, as seen from the object at ``truth`` (4,)."""
    box, number = candidates.shown[index], (candidates.detections == index).nonzero()[:, 0].tolist()
    return Rival(
        box=to_plain.box(box),
        label=int(candidates.labels[index]),
        score=float(candidates.scores[index]),
        iou=float(iou(box[None], truth[None])),
        detection=number[0] if number else None,
        matched=detections[number[0]].matched if number else None,
    )


class _PlainValues:
    """From tensors of one image, in pixels of the batch, to plain values in pixels of the original image.

    Args:
        raw: of the batch.
        size: (height, width) of the content of the image in the batch.
        original: (height, width) of the original image.
    """

    def __init__(self, raw: RawOutput, size: tuple[int, int], original: tuple[int, int]) -> None:
        self.raw = raw
        self.factors = torch.tensor([original[1] / size[1], original[0] / size[0]], dtype=torch.float64).repeat(2)

    def box(self, box: Tensor) -> Box:
        """From (4,)."""
        x1, y1, x2, y2 = (box.double().cpu() * self.factors).tolist()
        return x1, y1, x2, y2

    def anchors(self, places: Tensor) -> list[Anchor]:
        """From level, row, column and template (n, 4)."""
        strides, boxes = self.raw.lattice.strides, self.raw.lattice.boxes_at(*places.unbind(dim=1))
        return [
            Anchor(level, strides[level], row, column, template, self.box(box))
            for (level, row, column, template), box in zip(places.tolist(), boxes, strict=True)
        ]

    def entry(self, place: Tensor, box: Tensor, logit: Tensor, truth: Tensor) -> Entry:
        """From the place (4,) and the box (4,) of an entry that lies on the object at ``truth`` (4,)."""
        (anchor,), logit = self.anchors(place[None]), logit.float()
        overlap = float(iou(box[None], truth[None]))
        return Entry(anchor, self.box(box), float(logit), float(logit.sigmoid()), overlap)
