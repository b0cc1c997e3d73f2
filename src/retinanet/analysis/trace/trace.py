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
8. ``no anchor``: nothing is in place, and training gave it no anchor, or only forced ones of an IoU below 0.4.
9. ``never localised``: nothing is in place, though it has anchors.

So the gate of a missed object is the one at which its last hope ended: without that rule, an entry in place would have
gone on. The rules hold for every setting of the post-processing; suppression across classes makes rule 3 name a box of
another class. Boxes of which clipping leaves nothing are never in place, but may suppress others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retinanet.analysis.trace import outcomes
from retinanet.analysis.trace.outcomes import Anchor, AssignedAnchor, BoxTrace, DetectionTrace, Entry, ImageTrace, Rival
from retinanet.anchors.atss import ATSS
from retinanet.anchors.geometry import clip, iou, paired_iou
from retinanet.anchors.matching import BACKGROUND, Matcher
from retinanet.evaluation.matching import HIT, IGNORED, overlap_boxes
from retinanet.model.postprocess import CAPPED, DETECTION, SUPPRESSED, Candidates, Postprocess
from retinanet.types import Detections, RawOutput, Target

IN_PLACE = 0.5  # IoU from which on a box is on an object
PAIRS = 2**20  # pairs of a decoded box and an object that are compared at a time


def trace(
    raw: RawOutput,
    image: int,
    target: Target,
    size: tuple[int, int],
    postprocess: Postprocess,
    matcher: Matcher | ATSS | None = None,
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
    matcher, original = matcher or Matcher(), original or size
    names = tuple(class_names) or tuple(str(label) for label in range(raw.num_classes))
    factors = torch.tensor([original[1] / size[1], original[0] / size[0]], dtype=torch.float64).repeat(2)
    found = postprocess.find_candidates(raw, image, size).cpu()
    tracer = _Tracer(raw, target, found, factors)
    detections = tracer.trace_detections(names)
    assigned, best_iou = tracer.find_anchors(matcher)

    rows = (~target.ignore).nonzero()[:, 0]
    in_place, logits, places, shown = _search(raw, image, target.select(rows), size)
    passed = postprocess.find_passed(logits).tolist()
    boxes = []
    for i, row in enumerate(rows.tolist()):
        gate, candidate, rival = tracer.find_gate(detections, row, passed=passed[i])
        best = furthest = tracer.describe_entry(places[i], shown[i], logits[i], row) if in_place[i] else None
        if gate is None:
            reached = any(not anchor.forced or anchor.iou >= BACKGROUND for anchor in assigned[row])
            gate = outcomes.BELOW if best else outcomes.NEVER_LOCALISED if reached else outcomes.NO_ANCHOR
        if candidate is not None:
            place, box, logit = found.place[candidate], found.shown[candidate], found.logits[candidate]
            furthest = tracer.describe_entry(place, box, logit, row)
        boxes.append(
            BoxTrace(
                index=row,
                label=int(target.labels[row]),
                box=tracer.to_original(target.boxes[row]),
                gate=gate,
                anchors=assigned[row],
                best_anchor_iou=best_iou[row],
                localising=int(in_place[i]),
                best=best or furthest,
                furthest=furthest,
                by=None if rival is None else tracer.describe_rival(rival, row, detections),
            )
        )
    return ImageTrace(tuple(boxes), detections, original, postprocess.score, names)


@dataclass(frozen=True)
class _Tracer:
    """One image: its objects and candidates in pixels of the batch, and the way to plain values in original pixels."""

    raw: RawOutput  # of the batch
    target: Target  # M objects
    candidates: Candidates  # of the post-processing
    factors: Tensor  # (4,) original pixels for each pixel of the batch

    def find_gate(
        self, detections: Sequence[DetectionTrace], row: int, *, passed: bool
    ) -> tuple[str | None, int | None, int | None]:
        """The first of rules 1 to 6 that holds for an object, the candidate that came furthest and its rival.

        ``passed`` says whether an entry in place of the object passed the score threshold. Where no rule holds the gate
        is None.
        """
        candidates, numbers = self.candidates, self.candidates.detections.tolist()
        in_place = iou(candidates.shown, self.target.boxes[row][None])[:, 0] >= IN_PLACE
        own = in_place & (candidates.labels == self.target.labels[row])
        for detection, number in zip(detections, numbers, strict=True):
            if detection.matched == row:
                return outcomes.FOUND, number, number
        for fate, gate in (
            (CAPPED, outcomes.CUT_BY_CAP),
            (SUPPRESSED, outcomes.SUPPRESSED),
            (DETECTION, outcomes.SHARED),
        ):
            ended = (own & (candidates.fate == fate)).nonzero()[:, 0]
            if len(ended):
                furthest = int(ended[candidates.logits[ended].argmax()])
                rival = candidates.suppressor(furthest) if fate == SUPPRESSED else furthest
                return gate, furthest, None if fate == CAPPED else rival
        if passed:
            return outcomes.CUT_BY_TOPK, None, None
        for detection, number in zip(detections, numbers, strict=True):
            if detection.false and in_place[number]:
                return outcomes.WRONG_CLASS, None, number
        return None, None, None

    def find_anchors(self, matcher: Matcher | ATSS) -> tuple[list[tuple[AssignedAnchor, ...]], list[float]]:
        """For each of M boxes the anchors that answer for it in training, best first, and the best IoU of any."""
        lattice, grids, target = self.raw.lattice, self.raw.grids, self.target
        match = matcher(lattice, grids, target.boxes, target.ignore)
        places = torch.stack(lattice.locate(match.positive, grids), dim=1)
        overlap = paired_iou(target.boxes[match.box], lattice.boxes_at(*places.unbind(1)))
        order = overlap.argsort(descending=True, stable=True)
        assigned: list[list[AssignedAnchor]] = [[] for _ in range(len(target))]
        rows, values = match.box[order].tolist(), overlap[order].tolist()
        for row, value, anchor in zip(rows, values, self.describe_anchors(places[order]), strict=True):
            assigned[row].append(AssignedAnchor(anchor, value, value < float(match.needed[row])))
        return [tuple(anchors) for anchors in assigned], match.best_iou.tolist()

    def trace_detections(self, names: tuple[str, ...]) -> tuple[DetectionTrace, ...]:
        """What each detection is."""
        chosen = self.candidates.detections
        shown, labels, scores = (
            column[chosen] for column in (self.candidates.shown, self.candidates.labels, self.candidates.scores)
        )
        overlaps = overlap_boxes([Detections(shown, scores, labels, names)], [self.target], names)
        kinds, partners = overlaps.kinds(overlaps.match(IN_PLACE), IN_PLACE)
        _, best_iou = overlaps.nearest(~overlaps.ignore[overlaps.pair_truth])
        ious = np.where(kinds == "background", best_iou, overlaps.iou_with(partners))
        ious[kinds == IGNORED] = 0.0
        matched = [row if hit else None for row, hit in zip(partners.tolist(), kinds == HIT, strict=True)]
        boxes, anchors = map(self.to_original, shown), self.describe_anchors(self.candidates.place[chosen])
        columns = (labels.tolist(), scores.tolist(), boxes, anchors, kinds.tolist(), matched, ious.tolist())
        return tuple(DetectionTrace(i, *row) for i, row in enumerate(zip(*columns, strict=True)))

    def to_original(self, box: Tensor) -> outcomes.Box:
        """(4,) in pixels of the original image."""
        x1, y1, x2, y2 = (box.double().cpu() * self.factors).tolist()
        return x1, y1, x2, y2

    def describe_anchors(self, places: Tensor) -> list[Anchor]:
        """From level, row, column and template (n, 4)."""
        strides, boxes = self.raw.lattice.strides, self.raw.lattice.boxes_at(*places.unbind(dim=1))
        return [
            Anchor(level, strides[level], row, column, template, self.to_original(box))
            for (level, row, column, template), box in zip(places.tolist(), boxes, strict=True)
        ]

    def describe_entry(self, place: Tensor, box: Tensor, logit: Tensor, row: int) -> Entry:
        """From the place (4,) and the box (4,) of an entry that lies on the object of a row."""
        (anchor,), logit = self.describe_anchors(place[None]), logit.float()
        overlap = float(iou(box[None], self.target.boxes[row][None]))
        return Entry(anchor, self.to_original(box), float(logit), float(logit.sigmoid()), overlap)

    def describe_rival(self, index: int, row: int, detections: Sequence[DetectionTrace]) -> Rival:
        """A candidate, as seen from the object of a row."""
        box, numbers = self.candidates.shown[index], self.candidates.detections.tolist()
        detection = numbers.index(index) if index in numbers else None
        return Rival(
            box=self.to_original(box),
            label=int(self.candidates.labels[index]),
            score=float(self.candidates.scores[index]),
            iou=float(iou(box[None], self.target.boxes[row][None])),
            detection=detection,
            matched=None if detection is None else detections[detection].matched,
        )


def _search(
    raw: RawOutput, image: int, objects: Target, size: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode every anchor, a level at a time, and keep the best entry in place of each of m objects, on the CPU.

    The best is that of its class with the highest logit; of equal ones the first by level, template, row and column.

    Args:
        raw: of N images.
        image: which of them.
        objects: m boxes in pixels of the batch, float32.
        size: (height, width) of the content.

    Returns:
        How many anchors' boxes are in place (m,), and of the best entry the logit (m,) in the type that the network
        gave, level, row, column and template (m, 4), and the box (m, 4), decoded and clipped.
    """
    device, type_ = raw.logits[0].device, raw.logits[0].dtype
    truth, labels = objects.boxes.to(device), objects.labels.to(device)
    count, box = torch.zeros_like(labels), torch.zeros_like(truth)
    place = torch.zeros(len(labels), 4, dtype=torch.int64, device=device)
    best = torch.full((len(labels),), -torch.inf, dtype=type_, device=device)
    lowest = torch.finfo(type_).min  # of logits that are none, above what stands for "not in place"
    for places, boxes, logits in decode_levels(raw, image, size):
        for mine in torch.arange(len(labels), device=device).split(max(1, PAIRS // len(places))):
            in_place = iou(boxes, truth[mine]) >= IN_PLACE  # (A * H_l * W_l, m)
            count[mine] += in_place.sum(dim=0)
            values = logits[:, labels[mine]].transpose(1, 2).reshape(len(places), len(mine))
            values = values.nan_to_num(nan=lowest, neginf=lowest, posinf=torch.inf).where(in_place, -torch.inf)
            top, at = values.max(dim=0)  # the first of equal ones
            better = top > best[mine]
            row, at = mine[better], at[better]
            best[row], box[row], place[row] = top[better], boxes[at], places[at]
    best[best == lowest] = -torch.inf
    return count.cpu(), best.cpu(), place.cpu(), box.cpu()


def decode_levels(raw: RawOutput, image: int, size: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Every entry of an image, level by level; ``size`` is (height, width) of its content.

    Yields:
        Level, row, column and template (n, 4) of the n = A * H_l * W_l anchors of a level, in the order template, row,
        column; their boxes (n, 4), decoded and clipped; and their logits (A, K, H_l * W_l).
    """
    templates = raw.lattice.num_anchors
    for level, (rows, columns) in enumerate(raw.grids):
        cells = rows * columns
        entry = torch.arange(templates * cells, device=raw.logits[level].device)
        a, cell = entry // cells, entry % cells
        places = torch.stack([torch.full_like(a, level), cell // columns, cell % columns, a], dim=1)
        deltas = raw.deltas[level][image].reshape(templates, 4, cells).transpose(1, 2).reshape(-1, 4)
        boxes = clip(raw.coder.decode(deltas, raw.lattice.boxes_at(*places.unbind(dim=1))), size)
        yield places, boxes, raw.logits[level][image].reshape(templates, raw.num_classes, cells)
