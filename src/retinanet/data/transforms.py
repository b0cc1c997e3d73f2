"""Training augmentation on (image, target), built from torchvision.transforms.v2; each has a switch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from retinanet.data.mixing import View, mosaic, paste, turn, zoom
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
        turn: chance of a turn by 90, 180 or 270 degrees, likewise.
        scale_jitter: (least, most) factor on the size of the training image; (1, 1) is off.
        zoom: (least, most) factor by which an image is enlarged and cut, or reduced and padded, to the size that it
            has (large-scale jitter, Ghiasi et al. 2021); (1, 1) is off.
        mosaic: chance of a view of four images around a point (Bochkovskiy et al. 2020).
        paste: chance that objects of another image are pasted in (Ghiasi et al. 2021, here as rectangles).
        closing: epochs at the end without zoom, mosaic and paste, so that the last steps see images as they are.
        iou_crop: chance of an SSD crop (Liu et al. 2016), which keeps a given overlap with the objects.
        photometric: chance of a random change of brightness, contrast, saturation and hue, as far as SSD's.
        min_side: boxes of which less than this many pixels are left on a side are dropped.
    """

    hflip: float = 0.5
    vflip: float = 0.0
    turn: float = 0.0
    scale_jitter: tuple[float, float] = (1.0, 1.0)
    zoom: tuple[float, float] = (1.0, 1.0)
    mosaic: float = 0.0
    paste: float = 0.0
    closing: int = 2
    iou_crop: float = 0.0
    photometric: float = 0.0
    min_side: float = 1.0

    def __post_init__(self) -> None:
        for name in ("hflip", "vflip", "turn", "mosaic", "paste", "iou_crop", "photometric"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation {name} is a chance between 0 and 1, got {getattr(self, name)}")
        for name in ("scale_jitter", "zoom"):
            least, most = getattr(self, name)
            if not 0 < least <= most:
                raise UserError(f"{name} is two factors, 0 < least <= most, got {getattr(self, name)}")
        if self.closing < 0:
            raise UserError(f"augmentation closing is a number of epochs, at least 0, got {self.closing}")

    def in_epoch(self, epoch: int, epochs: int) -> Augment:
        """What happens in an epoch, counted from 0, of so many."""
        if epoch < epochs - self.closing:
            return self
        return replace(self, zoom=(1.0, 1.0), mosaic=0.0, paste=0.0)

    def __call__(self, image: Tensor, target: Target, draw: Callable[[], View] | None = None) -> View:
        """One random view, drawn from torch's global generator.

        Args:
            image: (3, H, W) uint8.
            target: boxes in its pixels.
            draw: gives a random image of the data set with its boxes, for mosaic and paste.

        Returns:
            The same types; boxes clipped to the image, degenerate ones dropped.
        """
        if draw is not None and self.mosaic and torch.rand(()) < self.mosaic:
            image, target = mosaic((image, target), draw)
        if draw is not None and self.paste and torch.rand(()) < self.paste:
            image, target = paste((image, target), draw())
        if self.zoom != (1.0, 1.0):
            image, target = zoom((image, target), _draw_factor(self.zoom))
        if self.turn and torch.rand(()) < self.turn:
            image, target = turn((image, target))
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
        return _draw_factor(self.scale_jitter)

    def _pipeline(self) -> list[v2.Transform]:
        transforms: list[v2.Transform] = []
        if self.photometric:
            transforms.append(v2.RandomApply([_photometric()], p=self.photometric))
        if self.hflip:
            transforms.append(v2.RandomHorizontalFlip(self.hflip))
        if self.vflip:
            transforms.append(v2.RandomVerticalFlip(self.vflip))
        return transforms


def _draw_factor(limits: tuple[float, float]) -> float:
    least, most = limits
    return least if least == most else float(torch.empty(()).uniform_(least, most))


def _photometric() -> v2.Transform:
    # Not RandomPhotometricDistort, which also swaps the colour channels: where classes differ in colour, that lies.
    return v2.ColorJitter(brightness=(0.875, 1.125), contrast=(0.5, 1.5), saturation=(0.5, 1.5), hue=(-0.05, 0.05))
