"""Losses of the box branch, over the positive anchors alone (Lin et al., section 4, "Optimization").

Each is a callable ``(deltas, anchors, boxes, coder) -> scalar``: what the network said at each positive anchor, that
anchor, the box that it answers for, and what deltas mean; the sum over anchors and coordinates in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.geometry import generalised_iou
from retinanet.errors import UserError


@dataclass(frozen=True)
class SmoothL1:
    """Smooth L1 on encoded boxes, quadratic below ``beta`` and linear above (Girshick 2015, equation 3).

    Args:
        beta: half-width of the quadratic zone, in deltas. 1/9 in Detectron, which gave the paper's numbers; 0 is L1.
    """

    beta: float = 1 / 9

    def __post_init__(self) -> None:
        if not 0 <= self.beta < math.inf:
            raise UserError(f"beta of the smooth L1 loss must be a number of at least 0, got {self.beta}")

    def __call__(self, deltas: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder) -> Tensor:
        """Deltas (P, 4) in any float type, anchors (P, 4) xyxy, boxes (P, 4) xyxy -> scalar float32, the sum."""
        return F.smooth_l1_loss(deltas.float(), coder.encode(boxes, anchors), beta=self.beta, reduction="sum")


@dataclass(frozen=True)
class L1:
    """Absolute difference of encoded boxes, the choice of torchvision, Detectron2 and MMDetection."""

    def __call__(self, deltas: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder) -> Tensor:
        """Deltas (P, 4) in any float type, anchors (P, 4) xyxy, boxes (P, 4) xyxy -> scalar float32, the sum."""
        return F.l1_loss(deltas.float(), coder.encode(boxes, anchors), reduction="sum")


@dataclass(frozen=True)
class GIoU:
    """1 - generalised IoU of decoded boxes (Rezatofighi et al. 2019), one term per anchor instead of four."""

    def __call__(self, deltas: Tensor, anchors: Tensor, boxes: Tensor, coder: BoxCoder) -> Tensor:
        """Deltas (P, 4) in any float type, anchors (P, 4) xyxy, boxes (P, 4) xyxy -> scalar float32, the sum."""
        return (1 - generalised_iou(coder.decode(deltas, anchors), boxes.float())).sum()
