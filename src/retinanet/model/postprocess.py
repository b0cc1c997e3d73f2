"""From raw outputs to detections (Lin et al., section 4, "Inference")."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from retinanet.anchors.nms import nms
from retinanet.errors import UserError
from retinanet.types import Detections, RawOutput


@dataclass(frozen=True)
class Postprocess:
    """Threshold and top-k per level on the logits; only the survivors are scored, decoded and suppressed.

    Args:
        score: a detection scores above this.
        topk: most candidates (anchor and class) of a level of an image.
        nms: overlaps above this IoU with a better detection of the same class are suppressed.
        max_detections: most detections of an image; the paper does not say, 100 is COCO's and Detectron's.
        class_agnostic: suppress across classes.
        clip: when boxes are clipped to the image: ``before`` suppression; ``after`` it, as in detectron2; ``half``,
            before it only the left and top edges at 0 and the right and bottom edges at the padded size, as yhenon's
            code and odtk do, and all of them after it.
        keep_empty: boxes of which nothing is left by clipping are detections too, as in torchvision.
    """

    score: float = 0.05
    topk: int = 1000
    nms: float = 0.5
    max_detections: int = 100
    class_agnostic: bool = False
    clip: Literal["before", "after", "half"] = "before"
    keep_empty: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.score < 1:
            raise UserError(f"the score threshold must be at least 0 and below 1, got {self.score}")
        if not 0 < self.nms <= 1:
            raise UserError(f"the NMS threshold is an IoU above 0 and at most 1, got {self.nms}")
        if self.topk < 1 or self.max_detections < 1:
            raise UserError(f"topk and max_detections are at least 1, got {self.topk} and {self.max_detections}")
        if self.clip not in ("before", "after", "half"):
            raise UserError(f"clip is before, after or half, got {self.clip!r}")

    @torch.no_grad()
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
        return [
            self._image(raw, image, (int(height), int(width)), tuple(class_names))
            for image, (height, width) in enumerate(sizes.tolist())
        ]

    def _image(self, raw: RawOutput, image: int, size: tuple[int, int], class_names: tuple[str, ...]) -> Detections:
        levels = [self._level(raw, image, level) for level in range(len(raw.logits))]
        logits, labels, boxes = (torch.cat(parts) for parts in zip(*levels, strict=True))
        if self.clip == "before":
            boxes = _clipped(boxes, size)
            visible = self._visible(boxes)
            boxes, logits, labels = boxes[visible], logits[visible], labels[visible]
        elif self.clip == "half":
            (rows, columns), stride = raw.grids[0], raw.lattice.strides[0]
            far = boxes.new_tensor([columns * stride, rows * stride])
            boxes = torch.cat([boxes[:, :2].clamp(min=0), boxes[:, 2:].minimum(far)], dim=1)
        scores = logits.sigmoid()
        kept = nms(boxes, scores, labels, self.nms, class_agnostic=self.class_agnostic)[: self.max_detections]
        if self.clip != "before":
            boxes = _clipped(boxes, size)
            kept = kept[torch.isin(kept, self._visible(boxes))]
        return Detections(boxes[kept].cpu(), scores[kept].cpu(), labels[kept].cpu(), class_names)

    def _visible(self, boxes: Tensor) -> Tensor:
        """Which of the clipped boxes (n, 4) are shown, (m,) int64."""
        shown = (boxes[:, 2:] > boxes[:, :2]).all(dim=1) | self.keep_empty
        return shown.nonzero()[:, 0]

    def _level(self, raw: RawOutput, image: int, level: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n,) float32, labels (n,) and boxes (n, 4) of the candidates of one level."""
        logits = raw.logits[level][image]
        channel, y, x = top_points(logits, self.logit_threshold(), self.topk)
        a, label = channel // raw.num_classes, channel % raw.num_classes
        anchors = raw.lattice.boxes_at(torch.full_like(a, level), y, x, a)
        coordinate = torch.arange(4, device=a.device)
        deltas = raw.deltas[level][image][a[:, None] * 4 + coordinate, y[:, None], x[:, None]]
        return logits[channel, y, x].float(), label, raw.coder.decode(deltas, anchors)

    def logit_threshold(self) -> float:
        """The logit of the score threshold."""
        return math.log(self.score / (1 - self.score)) if self.score > 0 else -math.inf


def _clipped(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) inside an image of (height, width)."""
    return boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0], size[1], size[0]]))


def top_points(logits: Tensor, threshold: float, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """The entries of a map (C, H, W) above a threshold, at most so many, the highest.

    Ties at the cut are settled by the order channel, row, column, in whatever layout the map lies in memory.

    Returns:
        channel, row and column, each (n,) int64, in the order channel, row, column.
    """
    limit = float(torch.tensor(threshold, dtype=logits.dtype))  # as the comparison would round it
    points = _places(logits >= limit if limit > threshold else logits > limit)
    if len(points) > most:
        values = logits[points[:, 0], points[:, 1], points[:, 2]]
        cut = values.topk(most, sorted=False).values.min()
        above, equal = values > cut, (values == cut).nonzero()[:, 0]
        above[equal[: most - int(above.sum())]] = True
        points = points[above]
    channel, row, column = points.unbind(dim=1)
    return channel, row, column


def _places(mask: Tensor) -> Tensor:
    """``mask.nonzero()`` of (C, H, W), which takes seven times as long where channels lie side by side in memory."""
    channels, height, width = mask.shape
    if mask.is_contiguous() or not mask.permute(1, 2, 0).is_contiguous():
        return mask.nonzero()
    found = mask.permute(1, 2, 0).flatten().nonzero()[:, 0]  # in the order row, column, channel
    flat = (found % channels * (height * width) + found // channels).sort().values
    return torch.stack([flat // (height * width), flat // width % height, flat % width], dim=1)
