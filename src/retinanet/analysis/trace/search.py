"""The best entry (an anchor and a class) of every object: the one of its class whose box lies on it and scores best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.anchors.geometry import clip, iou
from retinanet.types import RawOutput, Target

IN_PLACE = 0.5  # IoU from which on a box is on an object
PAIRS = 2**20  # pairs of a decoded box and an object that are compared at a time


@dataclass(frozen=True)
class InPlace:
    """For each of m objects the entry in place of its class with the highest logit.

    Attributes:
        count: (m,) anchors whose boxes are in place; 0 where nothing is.
        logit: (m,) in the type that the network gave.
        place: (m, 4) level, row, column and template.
        box: (m, 4) decoded and clipped.
    """

    count: Tensor
    logit: Tensor
    place: Tensor
    box: Tensor


def search(raw: RawOutput, image: int, objects: Target, size: tuple[int, int]) -> InPlace:
    """Decode every anchor, a level at a time, and keep the best entry in place of each object.

    Args:
        raw: of N images.
        image: which of them.
        objects: m boxes in pixels of the batch, float32.
        size: (height, width) of the content.

    Returns:
        The best entries, on the CPU; of equal ones the first by level, template, row and column.
    """
    device, type_, templates = raw.logits[0].device, raw.logits[0].dtype, raw.lattice.num_anchors
    truth, labels = objects.boxes.to(device), objects.labels.to(device)
    count, box = torch.zeros_like(labels), torch.zeros_like(truth)
    place = torch.zeros(len(labels), 4, dtype=torch.int64, device=device)
    best = torch.full((len(labels),), -torch.inf, dtype=type_, device=device)
    lowest = torch.finfo(type_).min  # of logits that are none, above what stands for "not in place"
    for level, (rows, columns) in enumerate(raw.grids):
        cells = rows * columns
        entry = torch.arange(templates * cells, device=device)  # in the order template, row, column
        a, cell = entry // cells, entry % cells
        places = torch.stack([torch.full_like(a, level), cell // columns, cell % columns, a], dim=1)
        deltas = raw.deltas[level][image].reshape(templates, 4, cells).transpose(1, 2).reshape(-1, 4)
        boxes = clip(raw.coder.decode(deltas, raw.lattice.boxes_at(*places.unbind(dim=1))), size)
        logits = raw.logits[level][image].reshape(templates, raw.num_classes, cells)

        for mine in torch.arange(len(labels), device=device).split(max(1, PAIRS // len(entry))):
            in_place = iou(boxes, truth[mine]) >= IN_PLACE  # (A * H_l * W_l, m)
            count[mine] += in_place.sum(dim=0)
            values = logits[:, labels[mine]].transpose(1, 2).reshape(len(entry), len(mine))
            values = values.nan_to_num(nan=lowest, neginf=lowest, posinf=torch.inf).where(in_place, -torch.inf)
            top, at = values.max(dim=0)  # the first of equal ones
            better = top > best[mine]
            row, at = mine[better], at[better]
            best[row], box[row], place[row] = top[better], boxes[at], places[at]
    best[best == lowest] = -torch.inf
    return InPlace(*(column.cpu() for column in (count, best, place, box)))
