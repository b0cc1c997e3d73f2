"""A model ready to use: images in, detections in pixels of the original images out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from retinanet.data.loader import Collate, resized
from retinanet.images.io import picture_pixels, read_image
from retinanet.model.device import choose_device
from retinanet.types import Batch, Detections, Sample, Target, UserError
from retinanet.weights.checkpoint import Detector
from retinanet.weights.pretrained import load_pretrained


class Predictor:
    """Finds objects in images.

    Args:
        detector: the model; its network is moved to ``device``.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        batch_size: images per forward pass.
    """

    def __init__(self, detector: Detector, *, device: str = "auto", batch_size: int = 8) -> None:
        if batch_size < 1:
            raise UserError(f"batch_size is at least 1, got {batch_size}")
        self.detector = detector
        self.batch_size = batch_size
        self.device = choose_device(device)
        detector.net.eval().to(self.device).to(memory_format=torch.channels_last)
        self._collate = Collate(detector.preprocess)

    @classmethod
    def load(cls, model: str | Path, *, device: str = "auto", batch_size: int = 8) -> Predictor:
        """A predictor from a model folder, or by name (see :func:`retinanet.weights.pretrained.model_folder`).

        Raises:
            UserError: there is no usable model, or no such device.
        """
        return cls(load_pretrained(model), device=device, batch_size=batch_size)

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names."""
        return self.detector.class_names

    @overload
    def __call__(self, images: str | Path | np.ndarray | Tensor) -> Detections: ...

    @overload
    def __call__(self, images: Sequence[Any]) -> list[Detections]: ...

    def __call__(self, images: Any) -> Detections | list[Detections]:
        """Detections in one image, or in each image of a list.

        Args:
            images: a path, a picture of Pillow, an array (H, W, 3) uint8 RGB, a tensor (3, H, W) uint8 RGB, or a list
                of these.

        Returns:
            Boxes in pixels of the original image, best score first.

        Raises:
            UserError: an image cannot be read, or is of another shape or type.
        """
        if not isinstance(images, list | tuple):
            return self([images])[0]
        found: list[Detections] = []
        for start in range(0, len(images), self.batch_size):
            found += self._batch([to_pixels(image) for image in images[start : start + self.batch_size]])
        return found

    @torch.inference_mode()
    def _batch(self, images: Sequence[Tensor]) -> list[Detections]:
        samples = [resized(_sample(image), self.detector.preprocess) for image in images]
        batch = self._collate(samples)
        assert isinstance(batch, Batch)
        batch = batch.to(self.device)
        return self.detector.detections(self.detector.raw(batch), batch)


def to_pixels(image: Any) -> Tensor:
    """Any kind of image -> (3, H, W) uint8 RGB tensor.

    Raises:
        UserError: it cannot be read, or is of another shape or type.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return picture_pixels(image)
    if isinstance(image, np.ndarray) and image.ndim == 3 and image.shape[2] == 3:
        image = torch.from_numpy(np.array(image, order="C")).permute(2, 0, 1)  # a copy: pictures may be read only
    if not isinstance(image, Tensor) or image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
        kind = f"{type(image).__name__} of shape {tuple(getattr(image, 'shape', ()))} and {getattr(image, 'dtype', '')}"
        raise UserError(
            "an image is a path, a picture of Pillow, an array (H, W, 3) uint8 or a tensor (3, H, W) uint8, all RGB; "
            f"got {kind}"
        )
    if 0 in image.shape:
        raise UserError(f"an image has at least one pixel, got shape {tuple(image.shape)}")
    return image


def _sample(image: Tensor) -> Sample:
    size = (int(image.shape[1]), int(image.shape[2]))
    return Sample(Path(), 0, size, Target.empty(), torch.zeros(0), image)
