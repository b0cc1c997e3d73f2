"""What a model had at one point of an image: the best candidates there, and the gate that removed each one.

An entry (an anchor and a class) is at a point if its decoded box contains it. The fates of entries are those that
post-processing records (:class:`retinanet.model.postprocess.Candidates`); their names are those of ``why``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.analysis.trace.outcomes import BELOW, CUT_BY_CAP, CUT_BY_TOPK, SUPPRESSED, Box
from retinanet.analysis.trace.trace import decode_levels
from retinanet.anchors.nms import nms
from retinanet.model import postprocess as fates
from retinanet.model.postprocess import Candidates, Postprocess
from retinanet.types import DEFAULT_THRESHOLD, RawOutput

SHOWN, NOT_SHOWN, OUTSIDE = "shown", "not shown", "outside the image"
MOST = 12  # entries that are told
LOOKED_AT = 500  # entries of a level among which near copies are left out
ALIKE = 0.6  # IoU from which on two boxes of a class and a gate are copies


@dataclass(frozen=True)
class PointEntry:
    """An entry at a point, ``box`` in pixels of the original; ``gate`` says where it ended and ``reason`` why."""

    box: Box
    score: float
    label: int
    gate: str
    reason: str


def trace_point(
    raw: RawOutput,
    image: int,
    point: tuple[float, float],
    size: tuple[int, int],
    rule: Postprocess,
    *,
    original: tuple[int, int],
    class_names: Sequence[str],
    thresholds: Mapping[str, float],
) -> list[PointEntry]:
    """The entries at a point, best score first; of near copies with one class and one gate only the best.

    Args:
        raw: of N images.
        image: which of them.
        point: x and y in pixels of the original.
        size: (height, width) of the content of the image in the batch.
        rule: what the candidates went through.
        original: (height, width) of the image in whose pixels boxes are reported.
        class_names: K names.
        thresholds: from which score on a detection is shown, by class name.
    """
    factors = torch.tensor([original[1] / size[1], original[0] / size[0]], dtype=torch.float64).repeat(2)
    at = torch.tensor(point, dtype=torch.float64) / factors[:2]
    # Two passes would round boxes apart, so what is shown is looked up in the candidates, which votes have moved.
    candidates = rule.find_candidates(raw, image, size).cpu()
    numbers = {
        (*place, label): n
        for n, (place, label) in enumerate(zip(candidates.place.tolist(), candidates.labels.tolist(), strict=True))
    }
    shown: list[tuple[Tensor, PointEntry]] = []
    for place, label, logit, box in _entries_at(raw, image, at, size):
        number = numbers.get((*place.tolist(), label))
        if number is not None:
            box = candidates.shown[number]
        name, score = class_names[label], float(logit.float().sigmoid())
        gate, reason = _judge(candidates, number, name, score, bool(rule.find_passed(logit)), thresholds, class_names)
        x1, y1, x2, y2 = (box.double() * factors).tolist()
        shown.append((box, PointEntry((x1, y1, x2, y2), score, label, gate, reason)))
    return _leave_out_copies(shown)


def _entries_at(
    raw: RawOutput, image: int, at: Tensor, size: tuple[int, int]
) -> list[tuple[Tensor, int, Tensor, Tensor]]:
    """Place (4,), label, logit and decoded box (4,) of the best entries of each level whose box contains a point."""
    entries = []
    for places, boxes, logits in decode_levels(raw, image, size):
        places, boxes, logits = places.cpu(), boxes.cpu(), logits.transpose(1, 2).flatten(0, 1).cpu()  # logits (n, K)
        inside = ((boxes[:, :2] <= at) & (at <= boxes[:, 2:])).all(dim=1).nonzero()[:, 0]
        flat = logits[inside].flatten()  # (anchors at the point) * K
        for best in flat.float().topk(min(LOOKED_AT, len(flat))).indices.tolist():
            anchor, label = int(inside[best // raw.num_classes]), best % raw.num_classes
            entries.append((places[anchor], label, flat[best], boxes[anchor]))
    return entries


def _judge(
    candidates: Candidates,
    number: int | None,
    name: str,
    score: float,
    passed: bool,
    thresholds: Mapping[str, float],
    class_names: Sequence[str],
) -> tuple[str, str]:
    """The gate of an entry, and a sentence; ``number`` is that among the candidates, None where it is none."""
    rule = candidates.rule
    if number is None:
        if passed:
            return CUT_BY_TOPK, f"its level had {rule.topk} better candidates, the most that are looked at (topk)"
        return BELOW, f"its score {score:.3f} is not above {rule.score:g}, the model's least score"
    fate = int(candidates.fate[number])
    if fate == fates.DETECTION:
        least = thresholds.get(name, DEFAULT_THRESHOLD)
        if score >= least:
            return SHOWN, f"a detection: its score {score:.3f} reaches the threshold {least:.3g} of {name}"
        return NOT_SHOWN, f"a detection, but its score {score:.3f} is below the threshold {least:.3g} of {name}"
    if fate == fates.SUPPRESSED:
        rival = candidates.suppressor(number)
        other, high = class_names[int(candidates.labels[rival])], float(candidates.scores[rival])
        return SUPPRESSED, f"it overlaps a better box, {other} with score {high:.3f}, by an IoU above {rule.nms:g}"
    if fate == fates.CAPPED:
        return CUT_BY_CAP, f"{rule.max_detections} better detections came before it, the most of an image"
    return OUTSIDE, "nothing of its box lies within the image"


def _leave_out_copies(entries: Sequence[tuple[Tensor, PointEntry]]) -> list[PointEntry]:
    """The best entries; detections are no copies of each other, by suppression."""
    if not entries:
        return []
    kinds = sorted({(entry.label, entry.gate) for _, entry in entries})
    boxes = torch.stack([box for box, _ in entries]).float()
    scores = torch.tensor([entry.score for _, entry in entries])
    labels = torch.tensor([kinds.index((entry.label, entry.gate)) for _, entry in entries])
    return [entries[index][1] for index in nms(boxes, scores, labels, ALIKE, False)[:MOST].tolist()]
