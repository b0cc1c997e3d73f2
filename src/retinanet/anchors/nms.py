"""Non-maximum suppression: of boxes that overlap too much, only the best stays.

Classes are kept apart by looping over them. The usual trick, to shift each class far away and suppress all at once,
blurs the boxes: with 80 classes at 1333 px the shifted coordinates reach 1e5, where the steps of float32 are 1/128 px.
"""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, class_agnostic: bool = False) -> Tensor:
    """Keeps a box unless a better kept box of its class overlaps it with IoU > ``threshold``.

    The order is a function of the input alone: by score, and equal scores by position, on every device.

    Args:
        boxes: (n, 4) xyxy, any coordinates, negative ones too.
        scores: (n,) floating point.
        labels: (n,) int64, any values.
        threshold: IoU above which the weaker box is dropped.
        class_agnostic: boxes of different classes suppress each other too.

    Returns:
        (kept,) int64 indices into the input, best score first.
    """
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].float()
    if class_agnostic:
        return order[_greedy(boxes, threshold)]
    by_class, positions = labels[order].sort(stable=True)
    sizes = torch.unique_consecutive(by_class, return_counts=True)[1].tolist()
    kept = [group[_greedy(boxes[group], threshold)] for group in positions.split(sizes)]
    # Positions in descending score: sorting them merges the classes into one ranking.
    return order[torch.cat(kept).sort().values] if kept else order


def _greedy(boxes: Tensor, threshold: float) -> Tensor:
    """Boxes (n, 4), best first -> (kept,) int64 indices, ascending."""
    # Ranks instead of scores leave no ties, so a device's sort has nothing to decide.
    ranks = torch.arange(len(boxes), 0, -1, dtype=torch.float32, device=boxes.device)
    return torchvision.ops.nms(boxes, ranks, threshold)


@torch.library.custom_op("retinanet::nms_keep", mutates_args=())
def nms_keep(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, class_agnostic: bool, num_classes: int, most: int
) -> Tensor:
    """:func:`nms` for exported graphs, where nothing may have a size that depends on the data.

    Args:
        boxes: (N, n, 4) xyxy.
        scores: (N, n); a candidate has a score above 0.
        labels: (N, n) int64 in [0, K).
        threshold: as in :func:`nms`.
        class_agnostic: as in :func:`nms`.
        num_classes: K.
        most: how many are kept of a class at most.

    Returns:
        (N, n) bool, whether a candidate is kept.
    """
    keep = torch.zeros_like(scores, dtype=torch.bool)
    for row, box, score, label in zip(keep, boxes, scores, labels, strict=True):
        there = (score > 0).nonzero()[:, 0]
        row[there[nms(box[there], score[there], label[there], threshold, class_agnostic)]] = True
    return keep


nms_keep.register_fake(lambda boxes, scores, *_: torch.empty_like(scores, dtype=torch.bool))
