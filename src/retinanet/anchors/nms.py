"""Non-maximum suppression: of boxes that overlap too much, only the best stays; the others may vote on its place.

Classes are kept apart by looping over them. The usual trick, to shift each class far away and suppress all at once,
blurs the boxes: with 80 classes at 1333 px the shifted coordinates reach 1e5, where the steps of float32 are 1/128 px.
"""

from __future__ import annotations

import torch
import torchvision.ops
from torch import Tensor

from retinanet.anchors.geometry import paired_iou

BAND = 128  # detections that are voted on at a time
VOTERS, VOTERS_EACH = 1000, 5  # of an image, those of highest score; more where more is detected


def count_voters(detections: int) -> int:
    """How many candidates of an image vote at most, where so many are detected at most."""
    return max(VOTERS, VOTERS_EACH * detections)


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


def vote(chosen: Tensor, labels: Tensor, boxes: Tensor, scores: Tensor, voters: Tensor, threshold: float) -> Tensor:
    """Box voting (Gidaris and Komodakis 2015): the mean of the boxes on an object, weighted by their scores.

    The box of the highest score is not the one that fits best; the mean of all that suppression would have thrown away
    fits better. Everything may have leading dimensions, and no size depends on the data, so that it can be exported.

    Args:
        chosen: (..., D, 4) xyxy of detections.
        labels: (..., D) of detections.
        boxes: (..., n, 4) xyxy of the candidates.
        scores: (..., n) of the candidates; those of 0 do not vote.
        voters: (..., n) labels of the candidates.
        threshold: IoU with a detection of its class from which on a candidate votes.

    Returns:
        (..., D, 4) the boxes; that of a detection without any vote is its own.
    """
    boxes = torch.where(scores[..., None] > 0, boxes, 0.0).mT.contiguous().mT  # a coordinate of all lies side by side
    own, others = chosen[..., :, None, :], boxes[..., None, :, :]  # (..., D, 1, 4), (..., 1, n, 4)
    counts = (paired_iou(own, others) >= threshold) & (labels[..., :, None] == voters[..., None, :])
    weight = torch.where(counts, scores[..., None, :], 0.0)  # (..., D, n)
    # Sums of differences, not a product of matrices: that may be computed in bfloat16, in which 1332.4 is 1336.
    edges = zip(own.unbind(dim=-1), others.unbind(dim=-1), strict=True)  # one by one, for the sake of memory
    moves = torch.stack([(weight * (theirs - ours)).sum(dim=-1) for ours, theirs in edges], dim=-1)
    return chosen + moves / weight.sum(dim=-1, keepdim=True).clamp(min=1e-9)


def vote_in_bands(
    chosen: Tensor, labels: Tensor, boxes: Tensor, scores: Tensor, voters: Tensor, threshold: float
) -> Tensor:
    """:func:`vote` in one image, where only neighbours are compared, so that a crowd costs little.

    The detections are taken from top to bottom; ``BAND`` of them meet the candidates that lie as high as any of them.
    Only the rounding of the sums differs from that of :func:`vote`.

    Args:
        chosen: (D, 4).
        labels: (D,).
        boxes: (n, 4).
        scores: (n,).
        voters: (n,).
        threshold: above 0.
    """
    moved = chosen.clone()
    for rows in (chosen[:, 1] + chosen[:, 3]).argsort(stable=True).split(BAND):
        if len(rows):
            top, bottom = chosen[rows, 1].min(), chosen[rows, 3].max()
            near = ((boxes[:, 3] > top) & (boxes[:, 1] < bottom)).nonzero()[:, 0]
            moved[rows] = vote(chosen[rows], labels[rows], boxes[near], scores[near], voters[near], threshold)
    return moved


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
