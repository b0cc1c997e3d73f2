"""From images of any size to one padded batch, and boxes back to original pixels.

The rule travels in the model file; training, evaluation, prediction and export all call this code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from retinanet.types import UserError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Resize, pad and normalise.

    An image is scaled until its short side is ``short``, or less where the long side would pass ``long`` (Lin et al.,
    section 5; the long limit is Detectron's).

    Args:
        short: pixels of the short side.
        long: most pixels of the long side.
        multiple: height and width of a batch are padded to a multiple of this.
        mean: RGB mean, of pixel values in [0, 1].
        std: RGB standard deviation, likewise.
    """

    short: int = 800
    long: int = 1333
    multiple: int = 32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if not 0 < self.short <= self.long:
            raise UserError(f"image sides must satisfy 0 < short <= long, got short {self.short} and long {self.long}")
        if self.multiple < 1:
            raise UserError(f"images are padded to a multiple of at least 1, got {self.multiple}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise UserError(f"mean and std are three numbers each, std above 0; got {self.mean} and {self.std}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size is resized to, at least one pixel each."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))

    def resize(self, image: Tensor) -> Tensor:
        """Antialiased bilinear resize, (3, H, W) uint8 -> (3, H', W') uint8."""
        size = self.size(image.shape[-2], image.shape[-1])
        if size == tuple(image.shape[-2:]):
            return image
        # Pixels of three bytes side by side take torch's vectorised path: three times the speed of planes.
        pixels = image[None].contiguous(memory_format=torch.channels_last)
        return functional.interpolate(pixels, size=size, mode="bilinear", antialias=True)[0]

    def pad(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Collate resized images at the top left of one batch.

        Args:
            images: N tensors (3, h, w) uint8.

        Returns:
            (N, 3, H, W) uint8, zero where no image is, and (N, 2) int64 sizes (h, w) of the content.
        """
        sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
        height, width = (-(-int(side) // self.multiple) * self.multiple for side in sizes.amax(dim=0))
        batch = torch.zeros((len(images), 3, height, width), dtype=torch.uint8).contiguous(
            memory_format=torch.channels_last
        )
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[-2], : image.shape[-1]] = image
        return batch, sizes

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 and the sizes of their content -> float32 of the same shape; padding is exactly 0."""
        mean = torch.tensor(self.mean, device=images.device)[:, None, None] * 255
        std = torch.tensor(self.std, device=images.device)[:, None, None] * 255
        pixels = images.to(torch.float32, copy=True).sub_(mean).div_(std)
        for row, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            row[:, height:] = 0
            row[:, :, width:] = 0
        return pixels

    @staticmethod
    def boxes_back(boxes: Tensor, resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Boxes (n, 4) xyxy in pixels of the resized image -> in pixels of the original one, clipped to it."""
        factor = boxes.new_tensor([original[1] / resized[1], original[0] / resized[0]]).repeat(2)
        limit = boxes.new_tensor([original[1], original[0]]).repeat(2)
        return (boxes * factor).clamp(min=0).minimum(limit)
