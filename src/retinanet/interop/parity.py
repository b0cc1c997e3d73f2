"""How equal a converted network is to torchvision's own, measured on the same images with the same weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

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

from retinanet.data.loader import Collate, resized
from retinanet.interop.files import WeightsFile
from retinanet.model.retinanet import RetinaNet
from retinanet.spec import ModelSpec
from retinanet.types import Batch, Detections, RawOutput, Sample, Target

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
def compare(spec: ModelSpec, net: RetinaNet, file: WeightsFile, slots: Sequence[int] | None) -> Parity:
    """Run both on the same two images.

    Args:
        spec: of the model made of the file.
        net: its network, on the CPU.
        file: under torchvision's names.
        slots: which of torchvision's class slots are the detector's classes; None for all.

    Returns:
        The differences. Slots that are no classes are silenced in torchvision before detections are compared.
    """
    peer = build_peer(spec, net, file.tensors)
    preprocess = replace(spec.preprocess, short=SHORT, long=LONG)
    images = [_picture(sides, seed) for seed, sides in enumerate(SIDES)]
    batch = _batch(spec, images)
    pixels = preprocess.normalise(batch.images, batch.sizes)
    floats = [image / 255 for image in images]
    theirs: ImageList = peer.transform(floats)[0]
    raw = net(theirs.tensors)
    features = list(peer.backbone(theirs.tensors).values())
    heads = peer.head(features)
    keep = list(range(_slot_count(peer)) if slots is None else slots)
    anchors = peer.anchor_generator(theirs, features)[0]
    lattice = raw.lattice
    threshold = _threshold(raw, spec.postprocess.score)
    _silence(peer, keep)
    peer.score_thresh, peer.nms_thresh = threshold, spec.postprocess.nms
    peer.topk_candidates, peer.detections_per_img = (
        spec.postprocess.topk,
        spec.postprocess.max_detections,
    )
    shown = replace(spec, preprocess=preprocess, postprocess=replace(spec.postprocess, score=threshold))
    ours = shown.detections(net(shown.prepare(batch)), batch)
    found = peer(floats)
    others = [_ordered_as(one, other, keep) for one, other in zip(ours, found, strict=True)]
    same = all(other is not None for other in others)
    nothing = float("nan")
    return Parity(
        peer=f"torchvision {torchvision.__version__}",
        pixels=_gap([pixels], [theirs.tensors]),
        features=_gap(net.fpn(net.backbone(theirs.tensors)), features),
        logits=_gap([_rows(raw.logits, raw.num_classes)], [heads["cls_logits"][..., keep]]),
        deltas=_gap([_rows(raw.deltas, 4)], [heads["bbox_regression"]]),
        anchors=_gap([lattice.boxes(torch.arange(lattice.count(raw.grids)), raw.grids)], [anchors]),
        found=(sum(map(len, ours)), sum(len(other["labels"]) for other in found)),
        matched=same,
        boxes=_gap([one.boxes for one in ours], [other["boxes"] for other in others if other]) if same else nothing,
        scores=_gap([one.scores for one in ours], [other["scores"] for other in others if other]) if same else nothing,
    )


def build_peer(spec: ModelSpec, net: RetinaNet, state: dict[str, Tensor]) -> TorchvisionRetinaNet:
    """The same network of torchvision, these weights loaded by its own loader with ``strict=True``."""
    architecture, rule = spec.architecture, spec.preprocess
    lattice, channels = architecture.anchors, architecture.channels
    sizes = tuple(tuple(int(size * scale) for scale in lattice.scales) for size in lattice.sizes)
    c5 = net.backbone.channels[-1]
    backbone = resnet_fpn_backbone(
        backbone_name=architecture.backbone,
        weights=None,
        norm_layer=nn.BatchNorm2d,
        returned_layers=[2, 3, 4],
        extra_blocks=LastLevelP6P7(c5 if architecture.p6_from == "C5" else channels, channels),
    )
    slots = state["head.classification_head.cls_logits.bias"].shape[0] // lattice.num_anchors
    norm = partial(nn.GroupNorm, 32) if architecture.head_norm == "group" else None
    peer = TorchvisionRetinaNet(
        backbone,
        slots,
        min_size=SHORT,
        max_size=LONG,
        image_mean=list(rule.mean),
        image_std=list(rule.std),
        anchor_generator=AnchorGenerator(sizes, (lattice.ratios,) * len(sizes)),
        head=RetinaNetHead(channels, lattice.num_anchors, slots, norm_layer=norm),
    )
    peer.load_state_dict(dict(state), strict=True)
    if architecture.norm_eps is not None:
        for module in peer.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = architecture.norm_eps
    return peer.eval()


def _picture(sides: tuple[int, int], seed: int) -> Tensor:
    """An image (3, H, W) uint8 of soft blots with noise: something for every level of the pyramid."""
    noise = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 7, 7, generator=noise)
    soft = functional.interpolate(coarse, size=sides, mode="bicubic")[0]
    return ((soft + 0.1 * torch.randn(3, *sides, generator=noise)).clamp(0, 1) * 255).round().to(torch.uint8)


def _batch(spec: ModelSpec, images: Sequence[Tensor]) -> Batch:
    preprocess = replace(spec.preprocess, short=SHORT, long=LONG)
    samples = [
        Sample(Path(), number, (image.shape[1], image.shape[2]), Target.empty(), torch.zeros(0), image)
        for number, image in enumerate(images)
    ]
    batch = Collate(preprocess)([resized(sample, preprocess) for sample in samples])
    assert isinstance(batch, Batch)
    # In torchvision's memory format: another one makes convolutions add up in another order.
    return replace(batch, images=batch.images.contiguous())


def _threshold(raw: RawOutput, score: float) -> float:
    """The model's own score threshold, or a lower one that lets enough pass to be compared."""
    images = zip(*(level.flatten(1) for level in raw.logits), strict=True)
    passing = min(float(torch.cat(levels).topk(SHOWN * 5).values[-1].sigmoid()) for levels in images)
    return min(score, passing)


def _slot_count(peer: TorchvisionRetinaNet) -> int:
    count: int = peer.head.classification_head.num_classes
    return count


def _silence(peer: TorchvisionRetinaNet, keep: Sequence[int]) -> None:
    """Slots without a class never fire."""
    layer, count = peer.head.classification_head.cls_logits, _slot_count(peer)
    silent = torch.ones(count, dtype=torch.bool)
    silent[list(keep)] = False
    layer.weight.unflatten(0, (-1, count))[:, silent] = 0
    layer.bias.unflatten(0, (-1, count))[:, silent] = -1e4


def _ordered_as(ours: Detections, other: dict[str, Tensor], keep: Sequence[int]) -> dict[str, Tensor] | None:
    """The other detections in the order of ours, each the nearest of its class, or None where they do not pair up."""
    if len(ours) != len(other["labels"]):
        return None
    if not len(ours):
        return other
    distance = (ours.boxes[:, None] - other["boxes"]).abs().amax(dim=-1)
    distance += 1e4 * (ours.scores[:, None] - other["scores"]).abs()
    distance[torch.tensor(list(keep))[ours.labels][:, None] != other["labels"]] = torch.inf
    order: list[int] = []
    for row in distance:  # each takes the nearest that is left
        order.append(int(row.argmin()))
        if not row[order[-1]].isfinite():
            return None
        distance[:, order[-1]] = torch.inf
    return {key: value[order] for key, value in other.items()}


def _rows(levels: Sequence[Tensor], per_anchor: int) -> Tensor:
    """L maps (N, A*k, H_l, W_l) -> (N, anchors, k), in the order of the lattice."""
    flat = [level.permute(0, 2, 3, 1).reshape(len(level), -1, per_anchor) for level in levels]
    return torch.cat(flat, dim=1)


def _gap(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """The largest absolute difference; infinite where shapes differ."""
    gaps = [0.0]
    for one, other in zip(ours, theirs, strict=True):
        if one.shape != other.shape:
            return float("inf")
        gaps += [float((one - other).abs().max())] if one.numel() else []
    return max(gaps)
