"""What a set of annotated images demands of a detector, in a few numbers; no pixel is read for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from retinanet.anchors.geometry import iou
from retinanet.data.dataset import DetectionDataset
from retinanet.data.held_out import group_copies
from retinanet.plain import to_plain
from retinanet.types import Sample

CROWDED = 0.5  # IoU of neighbours from which on NMS at the paper's threshold takes one for the other
FEW = 20  # boxes of a class; fewer say nothing about its sizes
JUDGED = 50_000  # boxes whose neighbours are looked at


@dataclass(frozen=True)
class Spread:
    """How a number is distributed: least, 10th percentile, median, 90th percentile, most."""

    least: float
    low: float
    median: float
    high: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float] | NDArray[Any]) -> Spread:
        """The spread of values; zeros where there are none."""
        if not len(values):
            return cls(0, 0, 0, 0, 0)
        return cls(*(round(float(value), 3) for value in np.percentile(values, (0, 10, 50, 90, 100))))

    def __str__(self) -> str:
        return f"{self.median:.4g} ({self.low:.4g} to {self.high:.4g})"


@dataclass(frozen=True)
class Fingerprint:
    """The facts that a plan is made of. Ignore regions count for nothing but the limits of detections.

    Attributes:
        images: to train on.
        val_images: to validate on.
        classes: boxes to train on, by class name.
        short: of the images, the short side in pixels.
        long: the long side.
        side: of the boxes, the square root of the area in pixels.
        small: side that three quarters of the boxes of every class reach; of classes with ``FEW`` boxes or more.
        aspect: height by width of the boxes.
        objects: of an image, ignore regions included.
        crowded_objects: the 99.9th percentile of the same.
        crowding: share of the boxes that overlap another one of their class by ``CROWDED``.
        copies: validation images that are copies of training images, byte for byte.
    """

    images: int
    val_images: int
    classes: dict[str, int]
    short: Spread
    long: Spread
    side: Spread
    small: float
    aspect: Spread
    objects: Spread
    crowded_objects: int
    crowding: float
    copies: int

    @property
    def boxes(self) -> int:
        """To train on."""
        return sum(self.classes.values())

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain values."""
        plain: dict[str, Any] = to_plain(vars(self))
        return plain

    def summary(self) -> str:
        """The facts in a few lines."""
        names = ", ".join(f"{name} {count:,}" for name, count in list(self.classes.items())[:8])
        more = f", and {len(self.classes) - 8} classes more" if len(self.classes) > 8 else ""
        lines = [
            f"data: {self.images:,} images to train on, {self.val_images:,} to validate on",
            f"  {self.boxes:,} boxes: {names}{more}",
            f"  images: short side {self.short}, long side {self.long} pixels (median, 10th to 90th percentile)",
            f"  boxes: side {self.side} pixels, height / width {self.aspect}",
            f"  small boxes: side {self.small:.4g} pixels, the first quarter of the class with the smallest ones",
            f"  objects of an image: {self.objects}, 99.9th percentile {self.crowded_objects}, most "
            f"{self.objects.most:.0f}",
        ]
        if self.crowding >= 0.001:
            lines.append(f"  {self.crowding:.1%} of the boxes overlap one of their class by an IoU of {CROWDED:g}")
        if self.copies:
            lines.append(
                f"  {self.copies} validation images are copies of training images: AP says little about new images. "
                "`retinanet check` names them"
            )
        return "\n".join(lines)


def take_fingerprint(train_set: DetectionDataset, val_set: DetectionDataset) -> Fingerprint:
    """The facts about two sets; 100,000 boxes take a second or two."""
    samples = [*train_set.samples, *val_set.samples]
    targets = [sample.target.select(~sample.target.ignore) for sample in samples]
    boxes = torch.cat([torch.zeros(0, 4, dtype=torch.float64), *(target.boxes for target in targets)]).double().numpy()
    labels = [target.labels for target in targets]
    counts = torch.cat(labels[: len(train_set)]).bincount(minlength=len(train_set.class_names)).tolist()
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side, label = np.sqrt(width * height), torch.cat(labels).numpy()
    classes = [side[label == number] for number in np.unique(label)]
    objects = np.array([len(sample.target) for sample in samples])
    return Fingerprint(
        images=len(train_set),
        val_images=len(val_set),
        classes=dict(zip(train_set.class_names, counts, strict=True)),
        short=Spread.of([min(sample.size) for sample in samples]),
        long=Spread.of([max(sample.size) for sample in samples]),
        side=Spread.of(side),
        small=round(min((float(np.percentile(sides, 25)) for sides in classes if len(sides) >= FEW), default=0), 3)
        or Spread.of(side).low,
        aspect=Spread.of(height / width.clip(min=1e-6)),
        objects=Spread.of(objects),
        crowded_objects=int(np.ceil(np.percentile(objects, 99.9))),
        crowding=measure_crowding(samples),
        copies=count_copies(train_set.samples, val_set.samples),
    )


def measure_crowding(samples: Sequence[Sample]) -> float:
    """Share of the boxes that overlap another one of their class and image by ``CROWDED``; of ``JUDGED`` boxes."""
    crowded = judged = 0
    for sample in samples:
        target = sample.target.select(~sample.target.ignore)
        for label in target.labels.unique():
            boxes = target.boxes[target.labels == label]
            overlap = iou(boxes, boxes).fill_diagonal_(0)
            crowded += int((overlap >= CROWDED).any(dim=1).sum())
        judged += len(target)
        if judged >= JUDGED:
            break
    return crowded / judged if judged else 0.0


def count_copies(train: Sequence[Sample], val: Sequence[Sample]) -> int:
    """How many images of ``val`` are copies of images of ``train`` under other names."""
    trained = {sample.path for sample in train}
    others = [sample.path for sample in val if sample.path not in trained]
    groups = group_copies([*trained, *others])
    return sum(min(groups[row]) < len(trained) for row in range(len(trained), len(trained) + len(others)))
