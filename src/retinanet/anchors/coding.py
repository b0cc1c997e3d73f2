"""Boxes as offsets from anchors, and back (Girshick et al. 2014, appendix C; the paper uses it unchanged)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from retinanet.errors import UserError


@dataclass(frozen=True)
class BoxCoder:
    """Encodes boxes as deltas (dx, dy, dw, dh) from anchors and decodes them.

    Args:
        std: what a delta is divided by in training; 1 in the paper.
        clamp: upper limit of dw and dh, so that no early prediction overflows.
        clamp_below: whether ``-clamp`` is the lower limit of both.
    """

    std: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    clamp: float = math.log(1000 / 16)
    clamp_below: bool = False

    def __post_init__(self) -> None:
        if not all(value > 0 for value in self.std) or not self.clamp > 0:
            raise UserError(f"std and clamp of the box coder are above 0, got {self.std} and {self.clamp}")

    def encode(self, boxes: Tensor, anchors: Tensor) -> Tensor:
        """Boxes (n, 4) xyxy, seen from anchors (n, 4) xyxy -> deltas (n, 4) float32."""
        boxes, anchors = boxes.float(), anchors.float()
        anchor_sides = anchors[:, 2:] - anchors[:, :2]
        box_sides = boxes[:, 2:] - boxes[:, :2]
        # The centre moves by the mean of the corners' moves, which does not round away what two far centres differ in.
        moves = boxes - anchors
        shift = 0.5 * (moves[:, :2] + moves[:, 2:]) / anchor_sides
        deltas = torch.cat([shift, torch.log(box_sides / anchor_sides)], dim=1)
        return deltas / deltas.new_tensor(self.std)

    def decode(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Deltas (n, 4) in any float type, from anchors (n, 4) xyxy -> boxes (n, 4) xyxy float32."""
        deltas, anchors = deltas.float(), anchors.float()
        deltas = deltas * deltas.new_tensor(self.std)
        anchor_sides = anchors[:, 2:] - anchors[:, :2]
        centre = anchors[:, :2] + 0.5 * anchor_sides + deltas[:, :2] * anchor_sides
        growth = deltas[:, 2:].clamp(min=-self.clamp if self.clamp_below else None, max=self.clamp)
        half = 0.5 * anchor_sides * torch.exp(growth)
        return torch.cat([centre - half, centre + half], dim=1)
