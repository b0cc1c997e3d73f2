"""The entries of an image (an anchor and a class) from the side of its objects: which could find them, which answer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.analysis.trace.outcomes import Anchor, AssignedAnchor, Box, Entry
from retinanet.anchors.geometry import clip, iou, paired_iou
from retinanet.anchors.matching import Matcher
from retinanet.model.postprocess import Candidates
from retinanet.types import RawOutput, Target

IN_PLACE = 0.5  # IoU from which on a box is on an object
PAIRS = 2**20  # pairs of a decoded box and an object that are compared at a time


@dataclass(frozen=True)
class Report:
    """From tensors in pixels of the batch to plain values in pixels of the original image."""

    raw: RawOutput
    factors: Tensor

    def box(self, box: Tensor) -> Box:
        """From (4,)."""
        x1, y1, x2, y2 = (box.double().cpu() * self.factors).tolist()
        return x1, y1, x2, y2

    def anchors(self, places: Tensor) -> list[Anchor]:
        """From level, row, column and template (n, 4)."""
        places = places.cpu()
        lattice, boxes = self.raw.lattice, self.raw.lattice.boxes_at(*places.unbind(1))
        return [
            Anchor(level, lattice.strides[level], row, column, template, self.box(box))
            for (level, row, column, template), box in zip(places.tolist(), boxes, strict=True)
        ]

    def entry(self, candidates: Candidates, index: int, box: Tensor) -> Entry:
        """A candidate that is in place for the object at ``box`` (4,)."""
        shown = candidates.shown[index]
        return Entry(
            anchor=self.anchors(candidates.place[index][None])[0],
            box=self.box(shown),
            logit=float(candidates.logits[index]),
            score=float(candidates.scores[index]),
            iou=pair_iou(shown, box),
        )


@dataclass(frozen=True)
class InPlace:
    """For each of m objects the entry in place of its class with the highest logit.

    Attributes:
        count: (m,) anchors whose boxes are in place.
        logit: (m,) in the type that the network gave.
        place: (m, 4).
        box: (m, 4) decoded and clipped.
        iou: (m,).
    """

    count: Tensor
    logit: Tensor
    place: Tensor
    box: Tensor
    iou: Tensor

    def entry(self, i: int, report: Report) -> Entry | None:
        """That of object i; None where nothing is in place."""
        if not self.count[i]:
            return None
        logit = self.logit[i].float()
        return Entry(
            anchor=report.anchors(self.place[i][None])[0],
            box=report.box(self.box[i]),
            logit=float(logit),
            score=float(logit.sigmoid()),
            iou=float(self.iou[i]),
        )


def search(raw: RawOutput, image: int, objects: Target, size: tuple[int, int]) -> InPlace:
    """Decodes every anchor, a template of a level at a time, and keeps the best entry in place of each object.

    Args:
        raw: of N images.
        image: which of them.
        objects: m boxes in pixels of the batch, float32.
        size: (height, width) of the content.

    Returns:
        The best entries, on the CPU; of equal ones the first by level, template, row and column.
    """
    device, type_ = raw.logits[0].device, raw.logits[0].dtype
    truth, labels = objects.boxes.to(device), objects.labels.to(device)
    count = torch.zeros_like(labels)
    best = torch.full((len(labels),), -torch.inf, dtype=type_, device=device)
    place, box = torch.zeros(len(labels), 4, dtype=torch.int64, device=device), torch.zeros_like(truth)
    overlap = torch.zeros_like(truth[:, 0])
    lowest = torch.finfo(type_).min  # of logits that are none, above what stands for "not in place"
    for level, (rows, columns) in enumerate(raw.grids):
        cell = torch.arange(rows * columns, device=device)
        y, x = torch.div(cell, columns, rounding_mode="floor"), cell % columns
        portion = max(1, PAIRS // max(1, len(cell)))
        for a in range(raw.lattice.num_anchors):
            anchors = raw.lattice.boxes_at(torch.full_like(cell, level), y, x, torch.full_like(cell, a))
            deltas = raw.deltas[level][image, 4 * a : 4 * a + 4].flatten(1).T  # (H_l * W_l, 4)
            boxes = clip(raw.coder.decode(deltas, anchors), size)
            logits = raw.logits[level][image, a * raw.num_classes : (a + 1) * raw.num_classes].flatten(1)  # (K, cells)
            for mine in torch.arange(len(labels), device=device).split(portion):
                overlaps = iou(boxes, truth[mine])  # (cells, m)
                at, one = (overlaps >= IN_PLACE).nonzero(as_tuple=True)
                count[mine] += torch.bincount(one, minlength=len(mine))
                values = logits[labels[mine[one]], at].nan_to_num(nan=lowest, neginf=lowest, posinf=torch.inf)
                top = best[mine].scatter_reduce(0, one, values, "amax")
                better = (values == top[one]) & (values > best[mine[one]])
                first = torch.full_like(mine, len(cell)).scatter_reduce(0, one[better], at[better], "amin")
                found = (first < len(cell)).nonzero()[:, 0]
                row, at = mine[found], first[found]
                best[row], box[row], overlap[row] = top[found], boxes[at], overlaps[at, found]
                place[row] = torch.stack([torch.full_like(at, level), y[at], x[at], torch.full_like(at, a)], dim=1)
    best[best == lowest] = -torch.inf
    return InPlace(*(column.cpu() for column in (count, best, place, box, overlap)))


def assigned_anchors(
    raw: RawOutput, target: Target, matcher: Matcher, report: Report
) -> tuple[list[tuple[AssignedAnchor, ...]], list[float]]:
    """For each of M boxes the anchors that answer for it in training, best first, and the best IoU of any anchor.

    Args:
        raw: whose lattice and grids to ask.
        target: M boxes in pixels of the batch, on the CPU.
        matcher: the rule of the training.
        report: how anchors are told.
    """
    lattice, grids = raw.lattice, raw.grids
    match = matcher(lattice, grids, target.boxes, target.ignore)
    places = torch.stack(lattice.locate(match.positive, grids), dim=1)
    overlap = paired_iou(target.boxes[match.box], lattice.boxes_at(*places.unbind(1)))
    assigned: list[list[AssignedAnchor]] = [[] for _ in range(len(target))]
    order = overlap.argsort(descending=True, stable=True)
    rows, values = match.box[order].tolist(), overlap[order].tolist()
    for row, value, anchor in zip(rows, values, report.anchors(places[order]), strict=True):
        assigned[row].append(AssignedAnchor(anchor, value, value < matcher.foreground))
    return [tuple(one) for one in assigned], match.best_iou.tolist()


def pair_iou(one: Tensor, other: Tensor) -> float:
    """Of two boxes (4,)."""
    return float(iou(one[None], other[None])[0, 0])


def factors(size: tuple[int, int], original: tuple[int, int] | None) -> Tensor:
    """What x1, y1, x2, y2 in pixels of the batch are multiplied by: (4,) float64."""
    height, width = original or size
    return torch.tensor([width / size[1], height / size[0]], dtype=torch.float64).repeat(2)
