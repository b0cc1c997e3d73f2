"""How equal a converted network is to torchvision's own, measured on the same images with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import RetinaNet as TorchvisionRetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from retinanet.interop.comparison import largest_difference, make_batch, pair_detections, pair_differences
from retinanet.interop.torchvision import detector_arguments
from retinanet.model.retinanet import RetinaNet
from retinanet.spec import ModelSpec
from retinanet.types import Detections

SIDES = ((180, 250), (231, 160))  # of the images; resized to SHORT and LONG, which keeps a conversion quick
SHORT, LONG = 192, 320
SHOWN = 100  # detections that an image should have at least


@dataclass(frozen=True)
class Parity:
    """Maximum absolute differences from the source's own code, on two generated images in one batch.

    Attributes:
        peer: what was compared with.
        pixels: of the network's input.
        features: of P3 to P7.
        logits: of the classes kept.
        deltas: of the box outputs.
        anchors: in pixels.
        found: detections of ours and of theirs.
        matched: whether every detection of the one has its own, of the same class, in the other. Their order is not
            compared: equal scores have none in torchvision.
        boxes: of the detections, in pixels of the original images; NaN where they are not matched.
        scores: likewise.
    """

    peer: str
    pixels: float
    features: float
    logits: float
    deltas: float
    anchors: float
    found: tuple[int, int]
    matched: bool
    boxes: float
    scores: float

    def summary(self) -> str:
        """One line."""
        detections = (
            f"{self.found[0]} detections, labels equal, boxes {self.boxes:.2g} px, scores {self.scores:.2g}"
            if self.matched
            else f"detections DIFFER: {self.found[0]} here, {self.found[1]} there"
        )
        return (
            f"{self.peer}, largest difference: input {self.pixels:.2g}, features {self.features:.2g}, logits "
            f"{self.logits:.2g}, deltas {self.deltas:.2g}, anchors {self.anchors:.2g} px; {detections}"
        )


@torch.no_grad()
def compare(spec: ModelSpec, net: RetinaNet, state: dict[str, Tensor], slots: Sequence[int] | None) -> Parity:
    """Run both on the same two images.

    Args:
        spec: of the model made of the file.
        net: its network, on the CPU.
        state: its state dict under torchvision's names.
        slots: which of torchvision's class slots are the detector's classes; None for all.

    Returns:
        The differences. Slots that are no classes are silenced in torchvision before detections are compared.
    """
    spec = replace(spec, preprocess=replace(spec.preprocess, short=SHORT, long=LONG))
    peer = build_peer(spec, net, state)
    images = [_draw_image(sides, seed) for seed, sides in enumerate(SIDES)]
    batch = make_batch(spec.preprocess, images)
    # In torchvision's memory format: another one makes convolutions add up in another order.
    batch = replace(batch, images=batch.images.contiguous())

    # Stage by stage, each on torchvision's input.
    floats = [image / 255 for image in images]
    theirs: ImageList = peer.transform(floats)[0]
    raw = net(theirs.tensors)
    features = list(peer.backbone(theirs.tensors).values())
    heads = peer.head(features)
    keep = list(range(peer.head.classification_head.num_classes) if slots is None else slots)
    everywhere = torch.arange(raw.lattice.count(raw.grids))

    # From images to detections, at a threshold that lets enough pass to be compared.
    every_logit = torch.cat([level.flatten(1) for level in raw.logits], dim=1)  # (N, anchors * K)
    passing = float(every_logit.topk(SHOWN * 5).values.min().sigmoid())
    peer.score_thresh = min(spec.postprocess.score, passing)
    spec = replace(spec, postprocess=replace(spec.postprocess, score=peer.score_thresh))
    pixels = spec.prepare(batch)
    ours = spec.detections(net(pixels), batch)
    others = _detect(peer, floats, keep, spec.class_names)
    paired = [pair_detections(*both, score_weight=1e4) for both in zip(ours, others, strict=True)]
    differences = [pair_differences(*each) for each in zip(ours, others, paired, strict=True)]
    same = list(map(len, ours)) == list(map(len, others)) == list(map(len, paired))
    boxes, scores = (max(column) if same else float("nan") for column in zip(*differences, strict=True))
    return Parity(
        peer=f"torchvision {torchvision.__version__}",
        pixels=largest_difference([pixels], [theirs.tensors]),
        features=largest_difference(net.fpn(net.backbone(theirs.tensors)), features),
        logits=largest_difference([_rows(raw.logits, raw.num_classes)], [heads["cls_logits"][..., keep]]),
        deltas=largest_difference([_rows(raw.deltas, 4)], [heads["bbox_regression"]]),
        anchors=largest_difference(
            [raw.lattice.boxes(everywhere, raw.grids)], [peer.anchor_generator(theirs, features)[0]]
        ),
        found=(sum(map(len, ours)), sum(map(len, others))),
        matched=same,
        boxes=boxes,
        scores=scores,
    )


def _detect(
    peer: TorchvisionRetinaNet, images: Sequence[Tensor], keep: Sequence[int], class_names: tuple[str, ...]
) -> list[Detections]:
    """Torchvision's detections; its slots without a class are silenced, for good."""
    layer, slots = peer.head.classification_head.cls_logits, peer.head.classification_head.num_classes
    silent = torch.ones(slots, dtype=torch.bool)
    silent[list(keep)] = False
    layer.weight.unflatten(0, (-1, slots))[:, silent] = 0
    layer.bias.unflatten(0, (-1, slots))[:, silent] = -1e4
    label_of = (~silent).cumsum(0) - 1  # of a slot
    return [
        Detections(found["boxes"], found["scores"], label_of[found["labels"]], class_names)
        for found in peer(list(images))
    ]


def build_peer(spec: ModelSpec, net: RetinaNet, state: dict[str, Tensor]) -> TorchvisionRetinaNet:
    """The same detector of torchvision, these weights loaded by its own loader with ``strict=True``."""
    architecture = spec.architecture
    lattice, channels = architecture.anchors, architecture.channels
    sizes = tuple(tuple(int(size * scale) for scale in lattice.scales) for size in lattice.sizes)
    backbone = resnet_fpn_backbone(
        backbone_name=architecture.backbone,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(net.backbone.channels[-1] if architecture.p6_from == "C5" else channels, channels),
    )
    slots = state["head.classification_head.cls_logits.bias"].shape[0] // lattice.num_anchors
    norm = partial(nn.GroupNorm, 32) if architecture.head_norm == "group" else None
    peer = TorchvisionRetinaNet(
        backbone,
        slots,
        anchor_generator=AnchorGenerator(sizes, (lattice.ratios,) * len(sizes)),
        head=RetinaNetHead(channels, lattice.num_anchors, slots, norm_layer=norm),
        **detector_arguments(spec),
    )
    peer.load_state_dict(dict(state), strict=True)
    if architecture.norm_eps is not None:
        for module in peer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = architecture.norm_eps
    return peer.eval()


def _draw_image(sides: tuple[int, int], seed: int) -> Tensor:
    """An image (3, H, W) uint8 of soft blots with noise: something for every level of the pyramid."""
    noise = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 7, generator=noise)
    soft = functional.interpolate(coarse, size=sides, mode="bicubic")[0]
    return ((soft + 0.1 * torch.randn(3, *sides, generator=noise)).clamp(0, 1) * 255).round().to(torch.uint8)


def _rows(levels: Sequence[Tensor], per_anchor: int) -> Tensor:
    """L maps (N, A*k, H_l, W_l) -> (N, anchors, k), in the order of the lattice."""
    flat = [level.permute(0, 2, 3, 1).reshape(len(level), -1, per_anchor) for level in levels]
    return torch.cat(flat, dim=1)
