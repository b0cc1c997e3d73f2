"""Images of the kind that a model is for: they set the scales of int8, and the proof looks at some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retinanet.data.dataset import load_dataset
from retinanet.errors import UserError
from retinanet.images.io import read_image
from retinanet.images.preprocess import Preprocess
from retinanet.inference.paths import find_images


def spread_images(data: str, most: int, split: str = "train") -> list[Path]:
    """Images spread evenly over a data set.

    Args:
        data: annotated images, or a folder of images.
        most: how many at most.
        split: the part of annotated images to take.

    Raises:
        UserError: there is no image.
    """
    if most < 1:
        raise UserError(f"--samples is at least 1, got {most}")
    if not Path(data).exists():
        raise UserError(f"there is no {data}: expected annotated images, or a folder of images")
    try:
        paths = [sample.path for sample in load_dataset(data, split).samples]
    except UserError as error:
        try:
            paths = find_images([data])
        except UserError:
            raise UserError(
                f"there are no images in {data}: expected annotated images, or a folder of images ({error})"
            ) from None
    if not paths:
        raise UserError(f"there are no images in {data}: expected annotated images, or a folder of images")
    return [paths[i] for i in np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)]


def feed(preprocess: Preprocess, image: Path) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """What a graph is given for one image: (1, 3, H, W) and (1, 2)."""
    batch, sizes = preprocess.pad([preprocess.resize(read_image(image))])
    return batch.contiguous().numpy(), sizes.numpy()
