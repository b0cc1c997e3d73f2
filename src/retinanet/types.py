"""What flows between the packages, and the legend of its shapes.

Shape legend, used in every docstring of the package:

| letter | meaning |
|---|---|
| N | images of a batch |
| K | classes; there is no background class, anywhere |
| A | anchors per cell of the lattice |
| L | levels of the pyramid |
| H_l, W_l | grid of level l |
| M | annotated boxes of one image |
| P | positive anchors of one image |
| D | detections of one image |

Boxes are ``(x1, y1, x2, y2)`` float32 in pixels; the pixel in the top left corner covers ``(0, 0, 1, 1)``. Sizes are
``(height, width)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from retinanet.detections import DEFAULT_THRESHOLD, Detections

if TYPE_CHECKING:  # who predicts with an exported model need not have torch
    import torch
    from torch import Tensor

    from retinanet.anchors.coding import BoxCoder
    from retinanet.anchors.lattice import AnchorLattice

__all__ = ["DEFAULT_THRESHOLD", "Assignment", "Batch", "Detections", "RawOutput", "Sample", "Target"]


@dataclass(frozen=True)
class Target:
    """What one image is known to contain.

    Attributes:
        boxes: (M, 4) xyxy; float64 as annotated, so that the evaluator sees the very numbers, float32 in a batch.
        labels: (M,) int64 in [0, K).
        ignore: (M,) bool. True marks an ignore region (COCO crowd, VOC difficult): anchors and detections on it count
            neither for nor against the model.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: Tensor) -> Target:
        """The rows that ``keep`` (bool mask or indices) names."""
        return Target(self.boxes[keep], self.labels[keep], self.ignore[keep])

    @staticmethod
    def empty() -> Target:
        """The target of an image without objects, with tensors of length 0."""
        import torch

        return Target(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool))


@dataclass(frozen=True)
class Sample:
    """One annotated image, as a data set format describes it.

    Attributes:
        path: the image file.
        image_id: the id in the annotation file; COCO results are written under it.
        size: (height, width) in pixels after EXIF orientation.
        target: boxes in pixels of the original image.
        areas: (M,) float64, the annotated areas (COCO splits small, medium and large by them).
        image: (3, H, W) uint8 RGB as read, or what resizing made of it; None until it is read.
    """

    path: Path
    image_id: int | str
    size: tuple[int, int]
    target: Target
    areas: Tensor
    image: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Images as the model takes them, and what is known about them.

    Attributes:
        images: (N, 3, H, W) uint8 RGB, padded at the right and the bottom; float32 where resizing has normalised them.
        sizes: (N, 2) int64, height and width of the unpadded content.
        targets: N targets, boxes in pixels of ``images``.
        samples: the N samples they were made from, without pixels.
        assignment: what every anchor has to answer, where whoever made the batch has found out.
    """

    images: Tensor
    sizes: Tensor
    targets: tuple[Target, ...]
    samples: tuple[Sample, ...]
    assignment: Assignment | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device) -> Batch:
        """The batch with its images on a device; boxes stay on the CPU, where they are matched."""
        return replace(self, images=self.images.to(device, non_blocking=True))


@dataclass(frozen=True)
class RawOutput:
    """What the network says, before any loss or threshold.

    Attributes:
        logits: L tensors (N, A*K, H_l, W_l), channel = a*K + k.
        deltas: L tensors (N, A*4, H_l, W_l), channel = a*4 + (dx, dy, dw, dh).
        lattice: the anchors they are over.
        coder: what the deltas mean.
    """

    logits: tuple[Tensor, ...]
    deltas: tuple[Tensor, ...]
    lattice: AnchorLattice
    coder: BoxCoder

    @property
    def grids(self) -> tuple[tuple[int, int], ...]:
        """The L grids (H_l, W_l)."""
        return tuple((int(level.shape[-2]), int(level.shape[-1])) for level in self.logits)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.logits[0].shape[1] // self.lattice.num_anchors


@dataclass(frozen=True)
class Assignment:
    """What every anchor of a batch has to answer: these are positive, those are ignored, all others negative.

    Rows are ordered by level; no row is an image's anchor twice.

    Attributes:
        index: (P, 4) int64, image, anchor of the cell, y and x of each positive anchor.
        labels: (P,) int64, its class.
        boxes: (P, 4) float32 xyxy, the box that it answers for.
        ignored: (G, 4) int64, image, anchor of the cell, y and x of each ignored anchor.
        positives_per_level: L counts that sum to P.
        ignored_per_level: L counts that sum to G.
        quality: (P,) float32 in [0, 1], the score that each positive anchor has to give to its class; None stands for 1
            everywhere. Quality focal loss asks for the IoU of what the network found with the box.
    """

    index: Tensor
    labels: Tensor
    boxes: Tensor
    ignored: Tensor
    positives_per_level: tuple[int, ...]
    ignored_per_level: tuple[int, ...]
    quality: Tensor | None = None

    @property
    def num_positives(self) -> int:
        """P, over all images of the batch."""
        return len(self.index)

    def positives_by_level(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each level the index (P_l, 4) and the labels (P_l,) of its positives."""
        counts = list(self.positives_per_level)
        return zip(self.index.split(counts), self.labels.split(counts), strict=True)

    def ignored_by_level(self) -> Sequence[Tensor]:
        """For each level the index (G_l, 4) of its ignored anchors."""
        return self.ignored.split(list(self.ignored_per_level))

    def of_image(self, image: int) -> Assignment:
        """The assignment of one image, as the only one of its batch."""
        mine, left = self.index[:, 0] == image, self.ignored[:, 0] == image
        per_level = [int(part.sum()) for part in mine.split(list(self.positives_per_level))]
        left_per_level = [int(part.sum()) for part in left.split(list(self.ignored_per_level))]
        index, ignored = self.index[mine].clone(), self.ignored[left].clone()
        index[:, 0], ignored[:, 0] = 0, 0
        quality = None if self.quality is None else self.quality[mine]
        levels = tuple(per_level), tuple(left_per_level)
        return Assignment(index, self.labels[mine], self.boxes[mine], ignored, *levels, quality)

    def to(self, device: torch.device | str) -> Assignment:
        """The same on another device."""
        tensors = {name: value.to(device) for name, value in vars(self).items() if hasattr(value, "to")}
        return replace(self, **tensors)
