"""The options of the loss, typed and checked; the model file keeps them, so that it can be judged by its own loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from retinanet.anchors.atss import ATSS
from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.matching import Matcher
from retinanet.losses.box import L1, GIoU, SmoothL1
from retinanet.losses.detection import DetectionLoss
from retinanet.losses.focal import FocalLoss
from retinanet.losses.ohem import OHEM
from retinanet.options import explain_unknown_fields
from retinanet.plain import check_types

BoxLoss = Callable[[Tensor, Tensor, Tensor, BoxCoder], Tensor]


@explain_unknown_fields
@dataclass(frozen=True)
class LossConfig:
    """What is minimised; why the defaults are what they are is said in docs/how-it-works.md.

    Attributes:
        classification: ``focal`` (with gamma 0 it is cross entropy, alpha-balanced where alpha is set), ``quality``
            (focal loss whose positives have to say how well their box fits, Li et al. 2020) or ``ohem``.
        alpha: weight of the positives, or null for no weights; ``auto`` is 0.25 of focal and none of quality.
        gamma: how strongly easy examples are down-weighted; 0 is cross entropy.
        box: loss of the box offsets.
        beta: where smooth L1 turns from quadratic to linear.
        box_weight: weight of the box loss.
        matching: which anchors answer for a box: those of an ``iou`` of foreground, as in the paper, or ``atss``, which
            finds the IoU that fits each box (Zhang et al. 2020).
        cells: cells of each level at which atss looks.
        foreground: IoU from which an anchor is positive.
        background: IoU below which an anchor is negative; between the two it is ignored.
        forced: what becomes of the best anchors of a box that no anchor reaches: ``argmax`` (as torchvision and
            detectron2), ``reassign`` (as mmdetection) or ``off`` (as the paper). With atss, a box in which no centre of
            a cell lies has no anchor by ``off``, else its best one.
        forced_iou: a forced anchor that overlaps no box by this IoU stays negative.
        normaliser: whose positives divide the loss: of the whole ``batch``, or of each ``image`` (as torchvision).
        ohem_batch: anchors of an image that ohem takes.
        ohem_nms: IoU above which it drops the easier of two anchors.
        ohem_ratio: negatives that it takes for each positive; null leaves that to the losses.
    """

    classification: Literal["focal", "quality", "ohem"] = "quality"
    alpha: float | Literal["auto"] | None = "auto"
    gamma: float = 2.0
    box: Literal["smooth_l1", "l1", "giou"] = "giou"
    beta: float = 1 / 9
    box_weight: float = 2.0
    matching: Literal["iou", "atss"] = "atss"
    cells: int = 9
    foreground: float = 0.5
    background: float = 0.4
    forced: Literal["argmax", "reassign", "off"] = "argmax"
    forced_iou: float = 0.0
    normaliser: Literal["batch", "image"] = "batch"
    ohem_batch: int = OHEM.batch
    ohem_nms: float = OHEM.nms
    ohem_ratio: float | None = OHEM.ratio

    def __post_init__(self) -> None:
        check_types(self, "loss")
        self.build()  # which checks the rest

    def build(self) -> DetectionLoss:
        """The criterion.

        Raises:
            UserError: a number is out of its range.
        """
        mining = OHEM(self.ohem_batch, self.ohem_nms, self.ohem_ratio)
        matcher = Matcher(self.foreground, self.background, self.forced, self.forced_iou)
        quality = self.classification == "quality"
        alpha = self.alpha if self.alpha != "auto" else None if quality else 0.25
        focal = FocalLoss(alpha, self.gamma, quality=quality)
        boxes: dict[str, BoxLoss] = {"smooth_l1": SmoothL1(self.beta), "l1": L1(), "giou": GIoU()}
        return DetectionLoss(
            matcher=matcher if self.matching == "iou" else ATSS(self.cells, forced=self.forced != "off"),
            classification=mining if self.classification == "ohem" else focal,
            box=boxes[self.box],
            box_weight=self.box_weight,
            normaliser=self.normaliser,
        )


# What a model is judged by if its training is not known: the paper's loss, with forced matches as most code has them.
CLASSIC = LossConfig(classification="focal", matching="iou", box="smooth_l1", box_weight=1.0)
