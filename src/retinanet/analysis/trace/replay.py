"""Post-processing once more, but nothing is forgotten: where every candidate came from and where it ended.

The steps are those of :class:`~retinanet.model.postprocess.Postprocess`, made with the same functions in the same
order, so that the detections are the same, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.anchors.geometry import clip, iou
from retinanet.anchors.nms import nms
from retinanet.model.postprocess import Postprocess, top_points
from retinanet.types import RawOutput

DETECTION, CAPPED, SUPPRESSED, OUTSIDE = range(4)


@dataclass(frozen=True)
class Candidates:
    """The entries (an anchor and a class) of one image that passed the score threshold and the top-k of their level.

    Attributes:
        rule: what they went through.
        place: (n, 4) int64, level, row, column and template of the anchor.
        labels: (n,) int64.
        logits: (n,) float32.
        scores: (n,) float32.
        shown: (n, 4) the decoded box, clipped to the content: as it is reported if the candidate is a detection.
        compared: (n, 4) the box as suppression sees it; ``Postprocess.clip`` says in what it differs from ``shown``.
        fate: (n,) int64: ``DETECTION``; ``CAPPED``, below the limit of detections; ``SUPPRESSED`` by a better one;
            ``OUTSIDE``, of which clipping left nothing.
        kept: (m,) int64, what survived suppression, best score first.
        detections: (D,) int64, those of ``kept`` that are detections.
    """

    rule: Postprocess
    place: Tensor
    labels: Tensor
    logits: Tensor
    scores: Tensor
    shown: Tensor
    compared: Tensor
    fate: Tensor
    kept: Tensor
    detections: Tensor

    def suppressor(self, candidate: int) -> int:
        """The candidate under which a suppressed one went: the best kept one that overlaps it too much.

        Where rounding lets none reach the threshold, the one that overlaps it most.
        """
        rivals = self.kept if self.rule.class_agnostic else self.kept[self.labels[self.kept] == self.labels[candidate]]
        score = self.scores[candidate]
        before = (self.scores[rivals] > score) | ((self.scores[rivals] == score) & (rivals < candidate))
        rivals = rivals[before]
        overlap = iou(self.compared[candidate][None], self.compared[rivals])[0]
        enough = (overlap > self.rule.nms).nonzero()[:, 0]
        return int(rivals[enough[0] if len(enough) else overlap.argmax()])


def replay(raw: RawOutput, image: int, size: tuple[int, int], postprocess: Postprocess) -> Candidates:
    """Post-process one image and keep the record.

    Args:
        raw: of N images.
        image: which of them.
        size: (height, width) of its content.
        postprocess: the rule.

    Returns:
        The candidates, on the CPU, in the order level, channel, row, column.
    """
    parts = [_level(raw, image, level, postprocess) for level in range(len(raw.logits))]
    place, labels, logits, decoded = (torch.cat(column) for column in zip(*parts, strict=True))
    shown, compared = clip(decoded, size), _compared(decoded, raw, size, postprocess)
    visible = (shown[:, 2:] > shown[:, :2]).all(dim=1) | postprocess.keep_empty
    scores = logits.sigmoid()
    first = postprocess.clip == "before"
    running = (visible if first else torch.ones_like(visible)).nonzero()[:, 0]
    kept = running[
        nms(
            compared[running],
            scores[running],
            labels[running],
            postprocess.nms,
            class_agnostic=postprocess.class_agnostic,
        )
    ]
    chosen = kept[: postprocess.max_detections]
    detections = chosen[visible[chosen]]
    fate = torch.full_like(labels, SUPPRESSED)
    fate[kept] = CAPPED
    fate[chosen] = OUTSIDE
    fate[detections] = DETECTION
    if first:
        fate[~visible] = OUTSIDE
    columns = (place, labels, logits, scores, shown, compared, fate, kept, detections)
    return Candidates(postprocess, *(column.cpu() for column in columns))


def threshold_passed(logits: Tensor, postprocess: Postprocess) -> Tensor:
    """Which of some logits (n,), in the type that the network gave, pass the score threshold: (n,) bool."""
    passed = torch.zeros_like(logits, dtype=torch.bool)
    if len(logits):
        passed[top_points(logits[:, None, None], postprocess.logit_threshold(), len(logits))[0]] = True
    return passed


def _level(raw: RawOutput, image: int, level: int, postprocess: Postprocess) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Places (n, 4), labels (n,), logits (n,) float32 and decoded boxes (n, 4) of the candidates of one level."""
    logits = raw.logits[level][image]
    channel, y, x = top_points(logits, postprocess.logit_threshold(), postprocess.topk)
    a, label = channel // raw.num_classes, channel % raw.num_classes
    here = torch.full_like(a, level)
    coordinate = torch.arange(4, device=a.device)
    deltas = raw.deltas[level][image][a[:, None] * 4 + coordinate, y[:, None], x[:, None]]
    decoded = raw.coder.decode(deltas, raw.lattice.boxes_at(here, y, x, a))
    return torch.stack([here, y, x, a], dim=1), label, logits[channel, y, x].float(), decoded


def _compared(decoded: Tensor, raw: RawOutput, size: tuple[int, int], postprocess: Postprocess) -> Tensor:
    """The boxes (n, 4) as suppression sees them."""
    if postprocess.clip == "before":
        return clip(decoded, size)
    if postprocess.clip == "after":
        return decoded
    (rows, columns), stride = raw.grids[0], raw.lattice.strides[0]
    far = decoded.new_tensor([columns * stride, rows * stride])
    return torch.cat([decoded[:, :2].clamp(min=0), decoded[:, 2:].minimum(far)], dim=1)
