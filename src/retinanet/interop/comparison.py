"""How equal the results of two implementations are: of torchvision's code and ours, of an exported graph and ours."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from retinanet.images.preprocess import Preprocess
from retinanet.types import Batch, Detections, Sample, Target

Pairs = list[tuple[int, int]]


def pair_detections(
    ours: Detections, theirs: Detections, *, limit: float = torch.inf, score_weight: float = 0.0
) -> Pairs:
    """Each detection of ours, best first, with the nearest one of theirs of its class that is not taken yet.

    Args:
        ours: D detections.
        theirs: D' detections of the same image.
        limit: pixels from which on two boxes are not taken for the same.
        score_weight: pixels that a difference of 1 in the score counts for.

    Returns:
        Their numbers, ascending in ours; one without a partner is left out.
    """
    cost = (ours.boxes[:, None] - theirs.boxes[None]).abs().amax(dim=2)  # (D, D')
    cost += score_weight * (ours.scores[:, None] - theirs.scores[None]).abs()
    cost[ours.labels[:, None] != theirs.labels[None]] = torch.inf
    pairs = []
    for i in range(len(ours) if len(theirs) else 0):
        j = int(cost[i].argmin())
        if cost[i, j].isfinite() and cost[i, j] <= limit:
            cost[:, j] = torch.inf
            pairs.append((i, j))
    return pairs


def pair_differences(ours: Detections, theirs: Detections, pairs: Pairs) -> tuple[float, float]:
    """The largest differences of a coordinate, in pixels, and of a score over the pairs; 0 where there are none."""
    mine, other = [i for i, _ in pairs], [j for _, j in pairs]
    return (
        largest_difference([ours.boxes[mine]], [theirs.boxes[other]]),
        largest_difference([ours.scores[mine]], [theirs.scores[other]]),
    )


def largest_difference(ours: Iterable[Tensor], theirs: Iterable[Tensor]) -> float:
    """The largest absolute difference over tensors; infinite for other shapes and NaN, 0 where there is nothing."""
    differences = [0.0]
    for mine, other in zip(ours, theirs, strict=True):
        if mine.shape != other.shape:
            return float("inf")
        differences += [float((mine - other).abs().nan_to_num(nan=torch.inf).max())] if mine.numel() else []
    return max(differences)


def make_batch(preprocess: Preprocess, images: Sequence[Tensor]) -> Batch:
    """Images (3, H, W) uint8, resized and padded as for training, without objects."""
    pixels, sizes = preprocess.pad([preprocess.resize(image) for image in images])
    empty = Target.empty()
    samples = tuple(
        Sample(Path(), number, (image.shape[1], image.shape[2]), empty, torch.zeros(0))
        for number, image in enumerate(images)
    )
    return Batch(pixels, sizes, (empty,) * len(images), samples)
