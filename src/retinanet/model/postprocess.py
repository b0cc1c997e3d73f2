"""From raw outputs to detections (Lin et al., section 4, "Inference"), with the fate of each candidate on record.

The settings need no torch: it is imported where tensors are made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from retinanet.errors import UserError
from retinanet.options import explain_unknown_fields
from retinanet.types import Detections, RawOutput

if TYPE_CHECKING:  # who predicts with an exported model need not have torch
    from torch import Tensor

DETECTION, CAPPED, SUPPRESSED, OUTSIDE = range(4)  # fates of a candidate


@dataclass(frozen=True)
class PostprocessCompat:
    """What other code bases do with candidates, for their weights.

    Args:
        clip: when boxes are clipped to the image: ``before`` suppression; ``after`` it, as in detectron2; ``half``,
            before it only the left and top edges at 0 and the right and bottom edges at the padded size, as yhenon's
            code and odtk do, and all of them after it.
        keep_empty: boxes of which nothing is left by clipping are detections too, as in torchvision.
    """

    clip: Literal["before", "after", "half"] = "before"
    keep_empty: bool = False

    def __post_init__(self) -> None:
        if self.clip not in ("before", "after", "half"):
            raise UserError(f"compat.clip is before, after or half, got {self.clip!r}")


@explain_unknown_fields
@dataclass(frozen=True)
class Postprocess:
    """Threshold and top-k per level on the logits; only the survivors are scored, decoded and suppressed.

    Args:
        score: a detection scores above this.
        topk: most candidates (anchor and class) of a level of an image.
        nms: overlaps above this IoU with a better detection of the same class are suppressed.
        max_detections: most detections of an image; the paper does not say, 100 is COCO's and Detectron's.
        class_agnostic: suppress across classes.
        vote: IoU from which on the candidates of its class take part in the box of a detection, which is then the mean
            of their boxes, weighted by their scores; 0 leaves it its own. See :func:`retinanet.anchors.nms.vote`. None
            is 0; ``train`` then does as its recipe says, or the model that it starts from.
        compat: what weights of other code bases need.
    """

    score: float = 0.05
    topk: int = 1000
    nms: float = 0.5
    max_detections: int = 100
    class_agnostic: bool = False
    vote: float | None = None
    compat: PostprocessCompat = PostprocessCompat()

    def __post_init__(self) -> None:
        if not 0 <= self.score < 1:
            raise UserError(f"the score threshold must be at least 0 and below 1, got {self.score}")
        if not 0 < self.nms <= 1:
            raise UserError(f"the NMS threshold is an IoU above 0 and at most 1, got {self.nms}")
        if self.vote is not None and not 0 <= self.vote <= 1:
            raise UserError(f"vote is an IoU from 0 (off) to 1, got {self.vote}")
        if self.topk < 1 or self.max_detections < 1:
            raise UserError(f"topk and max_detections are at least 1, got {self.topk} and {self.max_detections}")

    def __call__(self, raw: RawOutput, sizes: Tensor, class_names: Sequence[str]) -> list[Detections]:
        """Detections of each image.

        Args:
            raw: of N images.
            sizes: (N, 2) height and width of the content of each image; boxes are clipped to it.
            class_names: K names.

        Returns:
            N detections on the CPU, boxes in pixels of the batch, best score first; equal scores in the order level,
            channel, row, column.
        """
        detections = []
        for image, (height, width) in enumerate(sizes.tolist()):
            one = self.find_candidates(raw, image, (height, width))
            boxes, scores, labels = (column[one.detections].cpu() for column in (one.shown, one.scores, one.labels))
            detections.append(Detections(boxes, scores, labels, tuple(class_names)))
        return detections

    def find_candidates(self, raw: RawOutput, image: int, size: tuple[int, int]) -> Candidates:
        """The candidates of one image, with what post-processing does with each.

        Args:
            raw: of N images.
            image: which of them.
            size: (height, width) of its content.

        Returns:
            The candidates, in the order level, channel, row, column, on the device of ``raw``.
        """
        import torch

        from retinanet.anchors.geometry import clip
        from retinanet.anchors.nms import nms

        with torch.no_grad():
            levels = [self._select(raw, image, level) for level in range(len(raw.logits))]
            place, labels, logits, deltas = (torch.cat(parts) for parts in zip(*levels, strict=True))
            decoded = raw.coder.decode(deltas, raw.lattice.boxes_at(*place.unbind(dim=1)))
            scores = logits.sigmoid()

            shown = compared = clip(decoded, size)
            visible = (shown[:, 2:] > shown[:, :2]).all(dim=1) | self.compat.keep_empty
            if self.compat.clip == "after":
                compared = decoded
            elif self.compat.clip == "half":
                (rows, columns), stride = raw.grids[0], raw.lattice.strides[0]
                far = decoded.new_tensor([columns * stride, rows * stride])
                compared = torch.cat([decoded[:, :2].clamp(min=0), decoded[:, 2:].minimum(far)], dim=1)

            rivals = (visible if self.compat.clip == "before" else torch.ones_like(visible)).nonzero()[:, 0]
            kept = rivals[nms(compared[rivals], scores[rivals], labels[rivals], self.nms, self.class_agnostic)]
            found = Candidates(self, place, labels, logits, scores, shown, compared, visible, kept)
            return found.vote() if self.vote else found

    def _select(self, raw: RawOutput, image: int, level: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Places (n, 4), labels (n,), logits (n,) float32 and deltas (n, 4) of the candidates of one level."""
        import torch

        logits = raw.logits[level][image]
        channel, y, x = _find_highest(logits, self.find_passed(logits), self.topk).unbind(dim=1)
        a, label = channel // raw.num_classes, channel % raw.num_classes
        coordinate = torch.arange(4, device=a.device)
        deltas = raw.deltas[level][image][a[:, None] * 4 + coordinate, y[:, None], x[:, None]]
        place = torch.stack([torch.full_like(a, level), y, x, a], dim=1)
        return place, label, logits[channel, y, x].float(), deltas

    def find_passed(self, logits: Tensor) -> Tensor:
        """Which logits, of any shape and in the type that the network gave, pass the score threshold: bool."""
        import torch

        threshold = self.logit_threshold()
        limit = float(torch.tensor(threshold, dtype=logits.dtype))  # as the comparison would round it
        return logits >= limit if limit > threshold else logits > limit

    def logit_threshold(self) -> float:
        """The logit of the score threshold."""
        return math.log(self.score / (1 - self.score)) if self.score > 0 else -math.inf


@dataclass(frozen=True)
class Candidates:
    """The entries (an anchor and a class) of one image that passed the score threshold and the top-k of their level.

    Attributes:
        rule: what they went through.
        place: (n, 4) int64, level, row, column and template of the anchor.
        labels: (n,) int64.
        logits: (n,) float32.
        scores: (n,) float32.
        shown: (n, 4) the decoded box, clipped to the content: as it is reported if the candidate is a detection. Where
            candidates vote, that of a detection is the outcome.
        compared: (n, 4) the box as suppression sees it; ``compat.clip`` says in what it differs from ``shown``.
        visible: (n,) bool, whether ``shown`` may be reported: something is left of it, or ``compat.keep_empty``.
        kept: (m,) int64, what survived suppression, best score first.
    """

    rule: Postprocess
    place: Tensor
    labels: Tensor
    logits: Tensor
    scores: Tensor
    shown: Tensor
    compared: Tensor
    visible: Tensor
    kept: Tensor

    def cpu(self) -> Candidates:
        """The same on the CPU."""
        rule, *columns = (getattr(self, entry.name) for entry in fields(self))
        return Candidates(rule, *(column.cpu() for column in columns))

    def vote(self) -> Candidates:
        """The same, with the boxes of detections as all candidates see them."""
        from retinanet.anchors.nms import count_voters, vote_in_bands

        chosen, voters = self.detections, self.visible.nonzero()[:, 0]
        voters = voters[
            self.scores[voters].argsort(descending=True, stable=True)[: count_voters(self.rule.max_detections)]
        ]
        shown = self.shown.clone()
        shown[chosen] = vote_in_bands(
            *(shown[chosen], self.labels[chosen]),
            *(self.shown[voters], self.scores[voters], self.labels[voters]),
            self.rule.vote or 0.0,
        )
        return replace(self, shown=shown)

    @cached_property
    def detections(self) -> Tensor:
        """(D,) int64, those of ``kept`` that are detections."""
        best = self.kept[: self.rule.max_detections]
        return best[self.visible[best]]

    @cached_property
    def fate(self) -> Tensor:
        """(n,) int64: ``DETECTION``; ``CAPPED``, below their limit; ``SUPPRESSED``; ``OUTSIDE``, nothing is visible."""
        fate = self.labels.new_full(self.labels.shape, SUPPRESSED)
        fate[self.kept] = CAPPED
        fate[self.kept[: self.rule.max_detections]] = OUTSIDE
        fate[self.detections] = DETECTION
        if self.rule.compat.clip == "before":
            fate[~self.visible] = OUTSIDE
        return fate

    def suppressor(self, candidate: int) -> int:
        """The candidate under which a suppressed one went: the best kept one that overlaps it too much.

        Where rounding lets none reach the threshold, the one that overlaps it most.
        """
        from retinanet.anchors.geometry import iou

        rivals = self.kept if self.rule.class_agnostic else self.kept[self.labels[self.kept] == self.labels[candidate]]
        rivals = rivals[self.scores[rivals] >= self.scores[candidate]]
        overlap = iou(self.compared[candidate][None], self.compared[rivals])[0]
        enough = (overlap > self.rule.nms).nonzero()[:, 0]
        return int(rivals[enough[0] if len(enough) else overlap.argmax()])


def _find_highest(values: Tensor, passed: Tensor, most: int) -> Tensor:
    """Of the entries of a map (C, H, W) that passed, the highest, at most so many.

    Ties at the cut are settled by the order channel, row, column, in whatever layout the map lies in memory.

    Returns:
        (n, 3) int64 channel, row and column, in this order.
    """
    points = _find_points(passed)
    if len(points) > most:
        heights = values[points[:, 0], points[:, 1], points[:, 2]]
        cut = heights.topk(most, sorted=False).values.min()
        above, equal = heights > cut, (heights == cut).nonzero()[:, 0]
        above[equal[: most - int(above.sum())]] = True
        points = points[above]
    return points


def _find_points(mask: Tensor) -> Tensor:
    """``mask.nonzero()`` of (C, H, W), which takes seven times as long where channels lie side by side in memory."""
    import torch

    channels, height, width = mask.shape
    if mask.is_contiguous() or not mask.permute(1, 2, 0).is_contiguous():
        return mask.nonzero()
    found = mask.permute(1, 2, 0).flatten().nonzero()[:, 0]  # in the order row, column, channel
    flat = (found % channels * (height * width) + found // channels).sort().values
    return torch.stack([flat // (height * width), flat // width % height, flat % width], dim=1)
