"""What a RetinaNet is made of, as one plain description that is saved with it, and the named ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from retinanet.anchors.coding import BoxCoder
from retinanet.anchors.lattice import AnchorLattice
from retinanet.errors import UserError, suggest
from retinanet.model.backbone import Backbone, Norm
from retinanet.model.heads import HeadInit, HeadNorm, Heads
from retinanet.model.pyramid import FeaturePyramid
from retinanet.model.retinanet import RetinaNet

MOST_WEIGHTS = 10**9  # of pyramid and heads: 4 GB; the paper's model of 10,000 classes has a fifth of it


@dataclass(frozen=True)
class Architecture:
    """Everything that decides a network except its classes and its weights; the defaults are the paper's.

    Attributes:
        backbone: name of a timm backbone.
        norm: batch norms of the backbone: ``frozen``, ``batch`` (trained) or ``group`` (replaced).
        frozen_stages: stages of the backbone that are not trained; 2 are the stem and the stage of stride 4.
        stride_in_1x1: where the bottlenecks of a ResNet stride (see Backbone); for weights of Caffe and Detectron.
        norm_eps: epsilon of the backbone's batch norms, null for the backbone's own.
        channels: of the pyramid and the towers.
        depth: hidden convolutions of each tower.
        head_norm: ``none`` or ``group``.
        head_init: of the towers' hidden convolutions: ``normal`` (paper) or ``he``.
        depthwise: hidden convolutions of the towers are 5x5 of each channel and 1x1 over all, instead of 3x3.
        shared: both towers have their hidden convolutions in common.
        p6_from: ``C5`` (paper) or ``P5`` (torchvision's first).
        relu_before_p7: the paper's.
        prior: initial probability of every class at every anchor.
        anchors: the lattice.
        coder: what the box outputs mean.
    """

    backbone: str = "resnet50"
    norm: Norm = "frozen"
    frozen_stages: int = 0
    stride_in_1x1: bool = False
    norm_eps: float | None = None
    channels: int = 256
    depth: int = 4
    head_norm: HeadNorm = "none"
    head_init: HeadInit = "normal"
    depthwise: bool = False
    shared: bool = False
    p6_from: Literal["C5", "P5"] = "C5"
    relu_before_p7: bool = True
    prior: float = 0.01
    anchors: AnchorLattice = field(default_factory=AnchorLattice)
    coder: BoxCoder = field(default_factory=BoxCoder)

    def __post_init__(self) -> None:
        if not 1 <= self.channels <= 4096 or not 0 <= self.depth <= 32:
            raise UserError(
                f"a network has 1 to 4096 channels and 0 to 32 hidden convolutions in a tower, got channels "
                f"{self.channels} and depth {self.depth}"
            )

    def build(self, num_classes: int, *, weights: str = "none") -> RetinaNet:
        """The network for K classes.

        Args:
            num_classes: K.
            weights: of the backbone: ``imagenet``, ``none`` or a safetensors file.

        Raises:
            UserError: it cannot be built, or would be absurdly large; that is found before memory is taken.
        """
        outputs = self.anchors.num_anchors * (num_classes + 4)
        size = 9 * self.channels * ((5 + 2 * self.depth) * self.channels + outputs)  # of the 3x3 convolutions
        if size > MOST_WEIGHTS:
            raise UserError(
                f"pyramid and heads would have more than {MOST_WEIGHTS:,} weights: {num_classes} classes, "
                f"{self.anchors.num_anchors} anchors per cell, channels {self.channels}, depth {self.depth}"
            )
        backbone = Backbone(
            name=self.backbone,
            weights=weights,
            norm=self.norm,
            frozen_stages=self.frozen_stages,
            stride_in_1x1=self.stride_in_1x1,
            norm_eps=self.norm_eps,
        )
        pyramid = FeaturePyramid(
            in_channels=backbone.channels,
            channels=self.channels,
            p6_from=self.p6_from,
            relu_before_p7=self.relu_before_p7,
        )
        heads = Heads(
            num_classes=num_classes,
            num_anchors=self.anchors.num_anchors,
            channels=self.channels,
            depth=self.depth,
            norm=self.head_norm,
            init=self.head_init,
            depthwise=self.depthwise,
            shared=self.shared,
            prior=self.prior,
        )
        return RetinaNet(backbone=backbone, fpn=pyramid, heads=heads, lattice=self.anchors, coder=self.coder)


PRESETS = {
    "resnet18": Architecture(backbone="resnet18"),
    "resnet34": Architecture(backbone="resnet34"),
    "resnet50": Architecture(backbone="resnet50"),
    "resnet101": Architecture(backbone="resnet101"),
    "resnet152": Architecture(backbone="resnet152"),
    "lite": Architecture(backbone="tf_efficientnet_lite0", channels=128),
}


def preset(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UserError: there is none; the message lists them and the nearest.
    """
    if name not in PRESETS:
        known = ", ".join(PRESETS)
        raise UserError(f"unknown model {name!r}{suggest(name, PRESETS)} Expected a preset ({known}) or a model folder")
    return PRESETS[name]
