"""Online hard example mining, the rival that the paper compares focal loss with (section 5.1, Table 1d)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from retinanet.anchors.nms import nms
from retinanet.errors import UserError
from retinanet.losses.focal import sigmoid_focal_loss
from retinanet.types import Assignment, RawOutput

# Anchors that enter the suppression, per place in the minibatch. A hard spot of an image fills dozens of anchors.
CANDIDATES = 20


@dataclass(frozen=True)
class OHEM:
    """Cross entropy over the hardest anchors of each image, summed.

    The paper scores each example by its loss, applies non-maximum suppression, and builds a minibatch of the highest
    losses; its SSD-like variant holds one positive to three negatives. It leaves open the following, decided here as in
    the original OHEM (Shrivastava et al. 2016), where that says anything:

    * An example is an anchor; its loss is the cross entropy summed over the classes, without alpha. The box loss plays
      no part in the choice.
    * The boxes of the suppression are the anchors, not the predictions, and it ignores classes.
    * A minibatch belongs to one image; all levels compete in it. Ignored anchors take no part.
    * With a ratio, the suppression sees positives and negatives together. Then the hardest positives fill at most
      ``batch / (1 + ratio)`` places, with ``ratio`` negatives for each (for one, in an image without positives).
    * :class:`~retinanet.losses.detection.DetectionLoss` divides the sum by the positive anchors, as it does for focal
      loss, so the box loss keeps its weight in the comparison.

    Only the ``20 * batch`` anchors of highest loss enter the suppression (with a ratio, so many positives and so many
    negatives), so the work is bounded; if fewer than ``batch`` survive it, the minibatch is smaller.

    Args:
        batch: anchors per image; the paper tries 128, 256 and 512.
        nms: IoU above which the easier of two anchors is dropped; the paper tries 0.5 and 0.7.
        ratio: negatives per positive, 3 in the paper; None lets the losses decide.
    """

    batch: int = 128
    nms: float = 0.5
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"OHEM needs a batch of at least 1 anchor, got {self.batch}")
        if not 0 <= self.nms <= 1:
            raise UserError(f"nms of OHEM is an IoU between 0 and 1, got {self.nms}")
        if self.ratio is not None and not 0 < self.ratio < math.inf:
            raise UserError(f"ratio of OHEM must be positive, or None for no fixed ratio, got {self.ratio}")

    def __call__(self, raw: RawOutput, assignment: Assignment) -> Tensor:
        """The sum of cross entropy over the anchors chosen from all images: scalar float32.

        Args:
            raw: logits in any float type.
            assignment: positives and ignored anchors of the batch, on the device of the logits.
        """
        with torch.no_grad():
            losses, labels = _losses_and_labels(raw, assignment)
            chosen = [self._choose(raw, loss, label >= 0) for loss, label in zip(losses, labels, strict=True)]
        image = torch.cat([torch.full_like(flat, number) for number, flat in enumerate(chosen)])
        flat = torch.cat(chosen)
        terms = []
        for logits, label in _chosen_logits(raw, image, flat, labels[image, flat]):
            target = label[:, None] == torch.arange(raw.num_classes, device=label.device)  # (S_l, K)
            terms.append(sigmoid_focal_loss(logits, target, alpha=None, gamma=0).sum())
        return torch.stack(terms).sum()

    def _choose(self, raw: RawOutput, losses: Tensor, positive: Tensor) -> Tensor:
        """The minibatch of one image: losses and which are positive, both (n,) -> flat indices."""
        limit = CANDIDATES * self.batch
        if self.ratio is None:
            candidates = _hardest(losses, limit)
        else:
            candidates = torch.cat([_hardest(losses.where(kind, -torch.inf), limit) for kind in (positive, ~positive)])
        anchors = raw.lattice.boxes(candidates, raw.grids)
        no_class = torch.zeros_like(candidates)
        kept = candidates[nms(anchors, losses[candidates], no_class, self.nms, class_agnostic=True)]
        if self.ratio is None:
            return kept[: self.batch]
        positives = kept[positive[kept]][: int(self.batch / (1 + self.ratio))]
        negatives = int(self.ratio * max(len(positives), 1))
        return torch.cat([positives, kept[~positive[kept]][: min(negatives, self.batch - len(positives))]])


def _losses_and_labels(raw: RawOutput, assignment: Assignment) -> tuple[Tensor, Tensor]:
    """Cross entropy of each anchor, -inf if ignored, and its label, -1 if negative: both (N, anchors) in flat order."""
    anchors = raw.lattice.num_anchors
    levels = []
    for logits in raw.logits:
        # All as negatives, -log(1 - p) = softplus(x); one image at a time, to hold little:
        # (A*K, H, W) -> (A, K, H, W) -> (A, H, W) -> (H*W*A,)
        images = [F.softplus(image.float()).unflatten(0, (anchors, raw.num_classes)).sum(1) for image in logits]
        levels.append(torch.stack([image.permute(1, 2, 0).flatten() for image in images]))
    losses = torch.cat(levels, dim=1)
    labels = torch.full_like(losses, -1, dtype=torch.int64)
    levels_of = zip(assignment.positives_by_level(), assignment.ignored_by_level(), raw.logits, strict=True)
    for number, ((index, label), ignored, logits) in enumerate(levels_of):
        image, anchor, y, x = index.unbind(1)
        flat = raw.lattice.index(torch.full_like(anchor, number), y, x, anchor, raw.grids)
        labels[image, flat] = label
        # -log(p) = softplus(x) - x at the true class
        losses[image, flat] -= logits[image, anchor * raw.num_classes + label, y, x].float()
        image, anchor, y, x = ignored.unbind(1)
        losses[image, raw.lattice.index(torch.full_like(anchor, number), y, x, anchor, raw.grids)] = -torch.inf
    return losses, labels


def _hardest(losses: Tensor, limit: int) -> Tensor:
    """Indices of the at most ``limit`` highest losses (n,), best first, without the excluded ones (-inf)."""
    values, index = losses.topk(min(limit, len(losses)))
    return index[values > -torch.inf]


def _chosen_logits(raw: RawOutput, image: Tensor, flat: Tensor, label: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Of each level the logits (S_l, K) and labels (S_l,) of the chosen anchors, whose image, index, label are (S,)."""
    level, y, x, anchor = raw.lattice.locate(flat, raw.grids)
    classes = torch.arange(raw.num_classes, device=flat.device)
    for number, logits in enumerate(raw.logits):
        here = level == number
        channels = anchor[here][:, None] * raw.num_classes + classes  # (S_l, K)
        yield logits[image[here][:, None], channels, y[here][:, None], x[here][:, None]], label[here]
