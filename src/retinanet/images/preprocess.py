"""From images of any size to one padded batch, and boxes back to original pixels.

The rule travels in the model file; training, evaluation, prediction and export all call this code. The rule itself
needs no torch: ``arrays.py`` follows it on numpy arrays, for exported models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args, get_type_hints

from retinanet.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_PIXELS = 1_000_000  # of any side: larger numbers are slips


@dataclass(frozen=True)
class PreprocessCompat:
    """What other code bases do with images, so that their weights see what they were trained on.

    Args:
        margin: pixels that padding adds at least; 1 for weights of yhenon's code, which pads a size that fits already.
        divisor: pixel values are divided by it first: 255 brings them to [0, 1], 1 leaves them in [0, 255].
        channels: the order in which the network takes them.
        rounding: of the resized sides.
        resampling: ``antialiased`` and ``plain`` resize bytes bilinearly, with or without a filter where an image
            shrinks (as Pillow and as OpenCV do); ``normalised`` normalises first and resizes floats without a filter,
            as torchvision does, and batches are float32 then.
    """

    margin: int = 0
    divisor: float = 255.0
    channels: Literal["RGB", "BGR"] = "RGB"
    rounding: Literal["nearest", "floor"] = "nearest"
    resampling: Literal["antialiased", "plain", "normalised"] = "antialiased"

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise UserError(f"compat.margin of images is at least 0, got {self.margin}")
        if not self.divisor > 0:
            raise UserError(f"compat.divisor of images is above 0, got {self.divisor}")
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)  # of a Literal
            if choices and value not in choices:
                raise UserError(f"compat.{name} of images is {' or '.join(choices)}, got {value!r}")


@dataclass(frozen=True)
class Preprocess:
    """Resize, pad and normalise.

    An image is scaled until its short side is ``short``, or less where the long side would pass ``long`` (Lin et al.,
    section 5; the long limit is Detectron's).

    Args:
        short: pixels of the short side.
        long: most pixels of the long side.
        multiple: height and width of a batch are padded to a multiple of this.
        mean: of the pixels, scaled to [0, 1], of red, green and blue (or as ``compat`` has them).
        std: standard deviation, likewise.
        compat: what weights of other code bases need.
    """

    short: int = 800
    long: int = 1333
    multiple: int = 32
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    compat: PreprocessCompat = PreprocessCompat()

    def __post_init__(self) -> None:
        if not 0 < self.short <= self.long:
            raise UserError(f"image sides must satisfy 0 < short <= long, got short {self.short} and long {self.long}")
        if self.multiple < 1:
            raise UserError(f"images are padded to a multiple of at least 1, got {self.multiple}")
        largest = max(self.long, self.multiple, self.compat.margin)
        if largest > MOST_PIXELS:
            raise UserError(f"long, multiple and margin of images are at most {MOST_PIXELS} pixels, got {largest}")
        if len(self.mean) != 3 or len(self.std) != 3 or not all(value > 0 for value in self.std):
            raise UserError(f"mean and std are three numbers each, std above 0; got {self.mean} and {self.std}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) that an image of this size is resized to, at least one pixel each."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        half = 0.5 if self.compat.rounding == "nearest" else 0.0
        return max(1, int(height * scale + half)), max(1, int(width * scale + half))

    def padded(self, height: int, width: int) -> tuple[int, int]:
        """The (height, width) of the network's input for one resized image of this size."""
        padded_height, padded_width = (
            -(-(side + self.compat.margin) // self.multiple) * self.multiple for side in (height, width)
        )
        return padded_height, padded_width

    def resize(self, image: Tensor) -> Tensor:
        """Bilinear resize, (3, H, W) uint8 -> (3, H', W') uint8, or float32 where images are ``normalised``."""
        import torch
        from torch.nn import functional

        size = self.size(image.shape[-2], image.shape[-1])
        if self.compat.resampling == "normalised":
            return functional.interpolate(self._normalised(image[None].contiguous()), size=size, mode="bilinear")[0]
        if size == tuple(image.shape[-2:]):
            return image
        # Pixels of three bytes side by side take torch's vectorised path: three times the speed of planes.
        pixels = image[None].contiguous(memory_format=torch.channels_last)
        return functional.interpolate(
            pixels, size=size, mode="bilinear", antialias=self.compat.resampling == "antialiased"
        )[0]

    def pad(self, images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Collate resized images at the top left of one batch.

        Args:
            images: N tensors (3, h, w), as :meth:`resize` makes them.

        Returns:
            (N, 3, H, W) of the same type, zero where no image is, and (N, 2) int64 sizes (h, w) of the content.
        """
        import torch

        sizes = torch.tensor([image.shape[-2:] for image in images], dtype=torch.int64)
        height, width = self.padded(*sizes.amax(dim=0).tolist())
        batch = torch.zeros((len(images), 3, height, width), dtype=images[0].dtype).contiguous(
            memory_format=torch.channels_last
        )
        for row, image in zip(batch, images, strict=True):
            row[:, : image.shape[-2], : image.shape[-1]] = image
        return batch, sizes

    def normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(N, 3, H, W) from :meth:`pad` and the sizes of its content -> float32, same shape; padding is exactly 0."""
        if images.is_floating_point():  # resizing has normalised them
            return images
        pixels = self._normalised(images)
        for row, (height, width) in zip(pixels, sizes.tolist(), strict=True):
            row[:, height:] = 0
            row[:, :, width:] = 0
        return pixels

    def _normalised(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) uint8 RGB -> float32, the operations in the order in which every code base has them."""
        import torch

        mean = torch.tensor(self.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.std, device=images.device)[:, None, None]
        ordered = images.flip(1) if self.compat.channels == "BGR" else images
        return (
            torch.empty_like(images, dtype=torch.float32).copy_(ordered).div_(self.compat.divisor).sub_(mean).div_(std)
        )

    @staticmethod
    def boxes_back(boxes: Tensor, resized: tuple[int, int], original: tuple[int, int]) -> Tensor:
        """Boxes (n, 4) xyxy in pixels of the resized image -> in pixels of the original one, clipped to it."""
        factor = boxes.new_tensor([original[1] / resized[1], original[0] / resized[0]]).repeat(2)
        limit = boxes.new_tensor([original[1], original[0]]).repeat(2)
        return (boxes * factor).clamp(min=0).minimum(limit)


def batches_of_one_size(sizes: Sequence[tuple[int, int]], batch_size: int) -> list[list[int]]:
    """Which images may share a forward pass without changing what the network sees of any of them.

    Padding an image further, for a larger neighbour, changes the features along its border, and so its detections.

    Args:
        sizes: (height, width) of the network's input for each image alone, as :meth:`Preprocess.padded` gives it.
        batch_size: most images of a batch.

    Returns:
        Batches of indices into ``sizes``. Each index is in one batch, all images of a batch have one size, and the
        batches are in the order of their first images.
    """
    batches: list[list[int]] = []
    unfinished: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        if len(unfinished.get(size, ())) in (0, batch_size):
            unfinished[size] = []
            batches.append(unfinished[size])
        unfinished[size].append(index)
    return batches
