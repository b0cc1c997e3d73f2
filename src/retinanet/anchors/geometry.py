"""Overlaps of boxes, as free functions on tensors.

Overlaps of all boxes with all boxes come from torchvision. Matching needs them for chosen pairs only: the functions
named ``paired_*``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_iou, clip_boxes_to_image, generalized_box_iou_loss


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of all pairs: (n, 4) and (m, 4) xyxy -> (n, m); 0 for two boxes without area."""
    return box_iou(a, b).nan_to_num_(0.0)


def paired_intersection(a: Tensor, b: Tensor) -> Tensor:
    """Common area of a[i] and b[i]: (..., 4) and (..., 4) xyxy that broadcast -> (...) in square pixels."""
    left_a, top_a, right_a, bottom_a = a.unbind(-1)
    left_b, top_b, right_b, bottom_b = b.unbind(-1)
    width = (torch.minimum(right_a, right_b) - torch.maximum(left_a, left_b)).clamp_(min=0)
    return width.mul_((torch.minimum(bottom_a, bottom_b) - torch.maximum(top_a, top_b)).clamp_(min=0))


def paired_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of a[i] and b[i]: (..., 4) and (..., 4) xyxy that broadcast -> (...).

    The operations and their order are those of ``torchvision.ops.box_iou``, so that both round alike: forced matches
    compare IoUs for equality. Two boxes without area give NaN, which no threshold lets pass.
    """
    intersection = paired_intersection(a, b)
    union = _area(a) + _area(b) - intersection
    return intersection.div_(union)


def _area(boxes: Tensor) -> Tensor:
    left, top, right, bottom = boxes.unbind(-1)
    return (right - left) * (bottom - top)


def generalised_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of a[i] and b[i] (Rezatofighi et al. 2019, algorithm 1): both (n, 4) xyxy -> (n,) in [-1, 1]."""
    return 1 - generalized_box_iou_loss(a, b, reduction="none")


def clip(boxes: Tensor, size_hw: tuple[int, int]) -> Tensor:
    """Boxes (n, 4) xyxy, cut at the border of an image of size (height, width)."""
    return clip_boxes_to_image(boxes, size_hw)
