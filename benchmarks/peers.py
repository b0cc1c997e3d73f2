"""torchvision's detectors on the backbone, the data, the augmentation and the schedule of ``retinanet train``.

Each has torchvision's own heads, matching, loss and post-processing, with torchvision's defaults. The features under
them come from the same timm backbone with frozen batch norms, through a pyramid of the width that ours has. Images,
optimiser, schedule and moving average come from the functions that ``retinanet train`` calls.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7

from retinanet.data.dataset import DetectionDataset
from retinanet.data.loader import StepSampler, evaluation_batches, training_batches
from retinanet.data.transforms import Augment
from retinanet.evaluation.coco import coco_metrics
from retinanet.images.preprocess import Preprocess
from retinanet.model.backbone import load_backbone_weights
from retinanet.training.config import OptimConfig
from retinanet.training.optim import average_weights, build_optimizer, compute_lr_factor, set_lr
from retinanet.types import Batch, Detections

SIZES, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
SCALES = (2 ** (0 / 3), 2 ** (1 / 3), 2 ** (2 / 3))


class Features(nn.Module):
    """C3 to C5 of a timm backbone, from C2 on where asked for, with further layers on top; batch norms are frozen."""

    def __init__(self, name: str, weights: Path, top: Callable[[list[int]], nn.Module], *, first: int = 3) -> None:
        super().__init__()
        self.body = timm.create_model(name, features_only=True, out_indices=tuple(range(first - 1, 5)))
        load_backbone_weights(self.body, weights)
        self.norms = [module for module in self.body.modules() if isinstance(module, nn.BatchNorm2d)]
        for norm in self.norms:
            norm.requires_grad_(False)
        self.top = top(list(self.body.feature_info.channels()))
        self.out_channels: Any = getattr(self.top, "out_channels", None) or self.top.layer_blocks[0][0].out_channels

    def train(self, mode: bool = True) -> Features:
        """As ``nn.Module.train``, but batch norms keep their statistics."""
        super().train(mode)
        for norm in self.norms:
            norm.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Normalised images (N, 3, H, W) -> maps by name, fine to coarse."""
        maps: dict[str, Tensor] = self.top({str(level): one for level, one in enumerate(self.body(images))})
        return maps


class Further(nn.Module):
    """Two maps more, of strides 64 and 128, as SSD has them: 1x1, then 3x3 with stride 2."""

    def __init__(self, channels: list[int], width: int) -> None:
        super().__init__()
        self.out_channels = [*channels, width, width]
        self.steps = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(before, width // 2, 1), nn.ReLU(inplace=True)),
                *(nn.Conv2d(width // 2, width, 3, stride=2, padding=1), nn.ReLU(inplace=True)),
            )
            for before in (channels[-1], width)
        )

    def forward(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """The maps and two more."""
        last = list(maps.values())[-1]
        for step in self.steps:
            last = step(last)
            maps[str(len(maps))] = last
        return maps


def build_peer(
    kind: str, classes: int, backbone: str, weights: Path, preprocess: Preprocess, width: int = 128
) -> nn.Module:
    """A detector of torchvision's for K classes.

    Args:
        kind: fasterrcnn, retinanet, fcos or ssd.
        classes: K, without a background.
        backbone: name of a timm model.
        weights: its safetensors file.
        preprocess: sizes, mean and standard deviation of the images.
        width: channels of the pyramid.
    """
    common = {
        "min_size": preprocess.short,
        "max_size": preprocess.long,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }

    def features(top: Callable[[list[int]], nn.Module], first: int = 3) -> Features:
        return Features(backbone, weights, top, first=first)

    if kind == "fasterrcnn":
        body = features(lambda c: FeaturePyramidNetwork(c, width, LastLevelMaxPool()), first=2)
        anchors = AnchorGenerator(tuple((size,) for size in SIZES), (RATIOS,) * 5)
        return FasterRCNN(body, classes + 1, rpn_anchor_generator=anchors, **common)
    if kind == "retinanet":
        body = features(lambda c: FeaturePyramidNetwork(c, width, LastLevelP6P7(c[-1], width)))
        sizes = tuple(tuple(int(size * scale) for scale in SCALES) for size in SIZES)
        return RetinaNet(body, classes, anchor_generator=AnchorGenerator(sizes, (RATIOS,) * 5), **common)
    if kind == "fcos":
        body = features(lambda c: FeaturePyramidNetwork(c, width, LastLevelP6P7(width, width)))
        return FCOS(body, classes, **common)
    if kind == "ssd":
        body = features(lambda c: Further(c, 2 * width))
        boxes = DefaultBoxGenerator([[2, 3]] * 5, min_ratio=10, max_ratio=90)
        pixels = {name: common[name] for name in ("image_mean", "image_std")}
        return SSD(body, boxes, (preprocess.long, preprocess.short), classes + 1, **pixels)  # images of one size
    raise SystemExit(f"no such peer: {kind}")


@dataclass(frozen=True)
class Schedule:
    """How a peer is trained; the defaults are those of ``retinanet train``."""

    epochs: int = 12
    batch_size: int = 8
    seed: int = 0
    augment: Augment = Augment(hflip=0.5, vflip=0.5)
    optim: OptimConfig = OptimConfig(warmup=50)


def train_peer(
    model: nn.Module, data: DetectionDataset, preprocess: Preprocess, how: Schedule, folder: Path
) -> nn.Module:
    """Train a peer, or take up a training that was interrupted; returns the moving average of its weights."""
    model.to(memory_format=torch.channels_last)
    average = average_weights(model, how.optim.ema)
    optimizer = build_optimizer(model, how.optim, how.batch_size)
    steps = -(-len(data) // how.batch_size) * how.epochs
    parts = {"net": model, "average": average, "optimizer": optimizer}
    state, start = folder / "state.pt", 0
    if state.exists():
        saved = torch.load(state, weights_only=True)
        start = saved.pop("step")
        for name, values in saved.items():
            parts[name].load_state_dict(values)
    sampler = StepSampler(len(data), how.batch_size, start, steps, how.seed)
    batches = training_batches(data, preprocess=preprocess, augment=how.augment, sampler=sampler, workers=0)
    model.train()
    with closing(batches):
        for step, batch in enumerate(batches, start=start):
            torch.manual_seed(how.seed * 1_000_003 + step)
            set_lr(optimizer, compute_lr_factor(step, steps, how.optim))
            losses = model(_images(batch), _targets(batch, isinstance(model, FasterRCNN | SSD)))
            loss = sum(losses.values())
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), how.optim.clip)
            optimizer.step()
            average.update_parameters(model)
            if (step + 1) % sampler.steps_per_epoch == 0:
                print(f"{folder.name} step {step + 1}/{steps} loss {float(loss.detach()):.4f}", flush=True)
                folder.mkdir(parents=True, exist_ok=True)
                values = {name: part.state_dict() for name, part in parts.items()}
                torch.save({"step": step + 1, **values}, state.with_suffix(".part"))
                state.with_suffix(".part").replace(state)
    return average.module


def evaluate_peer(model: nn.Module, data: DetectionDataset, preprocess: Preprocess, background: bool) -> dict[str, Any]:
    """AP of a peer as :func:`retinanet.evaluate` counts it."""
    model.eval()
    found: dict[int, Detections] = {}
    for places, batch in evaluation_batches(data, preprocess=preprocess, batch_size=1, indices=range(len(data))):
        with torch.inference_mode():
            outputs = model(_images(batch))
        for place, output, size, sample in zip(places, outputs, batch.sizes.tolist(), batch.samples, strict=True):
            boxes = preprocess.boxes_back(output["boxes"], tuple(size), sample.size)
            found[place] = Detections(boxes, output["scores"], output["labels"] - int(background), data.class_names)
    detections = [found[place] for place in range(len(data))]
    metrics = coco_metrics(data.samples, detections, data.class_names, category_ids=data.category_ids)
    classes = {one.name: one.ap for one in metrics.classes}
    return {"AP": metrics.ap, "AP50": metrics.ap50, "AP75": metrics.ap75, "classes": classes}


def _images(batch: Batch) -> list[Tensor]:
    """The images of a batch as torchvision takes them, each float in [0, 1] and without padding."""
    sizes = batch.sizes.tolist()
    return [image[:, :height, :width].float() / 255 for image, (height, width) in zip(batch.images, sizes, strict=True)]


def _targets(batch: Batch, background: bool) -> list[dict[str, Tensor]]:
    """Their objects; label 0 is the background of some detectors. torchvision knows no ignore regions."""
    kept = [target.select(~target.ignore) for target in batch.targets]
    return [{"boxes": target.boxes, "labels": target.labels + int(background)} for target in kept]


def run_peer(
    kind: str,
    sets: Sequence[DetectionDataset],
    backbone: str,
    weights: Path,
    preprocess: Preprocess,
    how: Schedule,
    folder: Path,
) -> dict[str, Any]:
    """Train on the first set, measure on the second after the last epoch; a run that is complete is read."""
    result = folder / "result.json"
    if result.exists():
        return dict(json.loads(result.read_text()))
    train, test = sets
    torch.manual_seed(how.seed)
    model = build_peer(kind, len(train.class_names), backbone, weights, preprocess)
    model = train_peer(model, train, preprocess, how, folder)
    values = evaluate_peer(model, test, preprocess, kind in ("fasterrcnn", "ssd"))
    torch.save(model.state_dict(), folder / "model.pt")
    result.write_text(json.dumps(values, indent=1) + "\n")
    return values
