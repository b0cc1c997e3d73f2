"""Training augmentation on (image, target), built from torchvision.transforms.v2; each has a switch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from retinanet.errors import UserError
from retinanet.options import explain_unknown_fields
from retinanet.types import Target


@explain_unknown_fields
@dataclass(frozen=True)
class Augment:
    """What may happen to a training image. All chances are in [0, 1]; 0 switches a transform off.

    Attributes:
        hflip: chance of a mirror image.
        vflip: chance of an upside-down image; for subjects without an up, as cells or aerial views.
        scale_jitter: (least, most) factor on the size of the training image; (1, 1) is off.
        iou_crop: chance of an SSD crop (Liu et al. 2016), which keeps a given overlap with the objects.
        photometric: chance of a random change of brightness, contrast, saturation and hue, as far as SSD's.
        min_side: boxes of which less than this many pixels are left on a side are dropped.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    iou_crop: float = 0.0
    photometric: float = 0.0
    min_side: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "iou_crop", "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation {name} is a chance between 0 and 1, got {getattr(self, name)}")
        least, most = self.scale_jitter
        if not 0 < least <= most:
            raise UserError(f"scale_jitter is two factors, 0 < least <= most, got {self.scale_jitter}")

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        """One random view, drawn from torch's global generator.

        Args:
            image: (3, H, W) uint8.
            target: boxes in its pixels.

        Returns:
            The same types; boxes clipped to the image, degenerate ones dropped.
        """
        height, width = image.shape[-2:]
        boxes = tv_tensors.BoundingBoxes(target.boxes, format="XYXY", canvas_size=(height, width))
        view = {"image": tv_tensors.Image(image), "boxes": boxes}
        for transform in self._pipeline():
            view = transform(view)
        croppable = len(target) and min(height, width) >= 4  # 0.3 of a side is a pixel or more
        if self.iou_crop and croppable and torch.rand(()) < self.iou_crop:
            view = v2.RandomIoUCrop()(view)  # the boxes whose centre it cuts off become (0, 0, 0, 0)
        boxes = view["boxes"].as_subclass(Tensor).float()
        return view["image"].as_subclass(Tensor), replace(target, boxes=boxes).select(self.keeps(boxes))

    def keeps(self, boxes: Tensor) -> Tensor:
        """Which boxes are trained on: (M, 4) in pixels of the image, not resized -> (M,) bool."""
        sides = boxes[:, 2:] - boxes[:, :2]
        return ((sides >= self.min_side) & (sides > 0)).all(dim=1)

    def draw_scale(self) -> float:
        """A factor on the size of the training image."""
        least, most = self.scale_jitter
        return least if least == most else float(torch.empty(()).uniform_(least, most))

    def _pipeline(self) -> list[v2.Transform]:
        transforms: list[v2.Transform] = []
        if self.photometric:
            transforms.append(v2.RandomApply([_photometric()], p=self.photometric))
        if self.hflip:
            transforms.append(v2.RandomHorizontalFlip(self.hflip))
        if self.vflip:
            transforms.append(v2.RandomVerticalFlip(self.vflip))
        return transforms


def _photometric() -> v2.Transform:
    # Not RandomPhotometricDistort, which also swaps the colour channels: where classes differ in colour, that lies.
    return v2.ColorJitter(brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05))
