"""The rule of ``preprocess.py`` on numpy arrays: exported models need Pillow and numpy, and no torch.

Pillow's filter and torch's are the same but for their rounding: with ``antialiased`` some pixels differ, by a grey
level or two. ``plain`` and ``normalised`` repeat torch's arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.images.preprocess import Preprocess


def resize_array(rule: Preprocess, image: NDArray[np.uint8]) -> NDArray[Any]:
    """:meth:`Preprocess.resize` for an array.

    Args:
        rule: what to resize to, and how.
        image: (H, W, 3) uint8 RGB.

    Returns:
        (H', W', 3) uint8 RGB; or (3, H', W') float32, normalised, where ``compat.resampling`` is ``normalised``.
    """
    height, width = rule.size(*image.shape[:2])
    if rule.compat.resampling == "normalised":
        planes = _normalised(rule, image)
        return _along(_along(planes, 2, width), 1, height)
    if (height, width) == image.shape[:2]:
        return image
    if rule.compat.resampling == "antialiased":
        picture = Image.fromarray(np.ascontiguousarray(image))
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    return _along(_along(image, 1, width), 0, height)


def pad_arrays(rule: Preprocess, images: Sequence[NDArray[Any]]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """:meth:`Preprocess.pad` for arrays.

    Args:
        rule: to what multiple, and with which margin.
        images: N arrays as :func:`resize_array` makes them.

    Returns:
        (N, 3, H, W) of the same type, zero where no image is, and (N, 2) int64 sizes (h, w) of the content.
    """
    planes = [image if image.dtype == np.float32 else image.transpose(2, 0, 1) for image in images]
    sizes = np.array([plane.shape[1:] for plane in planes], dtype=np.int64)
    height, width = rule.padded(*sizes.max(axis=0).tolist())
    batch = np.zeros((len(planes), 3, height, width), dtype=planes[0].dtype)
    for row, plane in zip(batch, planes, strict=True):
        row[:, : plane.shape[1], : plane.shape[2]] = plane
    return batch, sizes


def boxes_back(boxes: NDArray[np.float32], resized: tuple[int, int], original: tuple[int, int]) -> NDArray[np.float32]:
    """:meth:`Preprocess.boxes_back` for an array: boxes (n, 4) xyxy of the resized image -> of the original one."""
    factor = np.array([original[1] / resized[1], original[0] / resized[0]] * 2, dtype=np.float32)
    limit = np.array([original[1], original[0]] * 2, dtype=np.float32)
    return np.minimum(np.maximum(boxes * factor, 0), limit)


def _normalised(rule: Preprocess, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 RGB -> (3, H, W) float32 in the order of ``rule.compat.channels``."""
    ordered = image[..., ::-1] if rule.compat.channels == "BGR" else image
    planes = ordered.transpose(2, 0, 1).astype(np.float32, order="C")
    planes /= np.float32(rule.compat.divisor)
    planes -= np.array(rule.mean, dtype=np.float32)[:, None, None]
    planes /= np.array(rule.std, dtype=np.float32)[:, None, None]
    return planes


def _along(values: NDArray[Any], axis: int, length: int) -> NDArray[Any]:
    """Bilinear resize of one axis, without a filter: each value is a mean of two neighbours."""
    before = values.shape[axis]
    if before == length:
        return values
    kind = np.float32 if values.dtype == np.float32 else np.float64
    scale = float(kind(before) / kind(length))
    centre = np.maximum(((np.arange(length) + 0.5) * scale - 0.5).astype(kind), 0)  # one rounding: torch has an FMA
    first = np.minimum(centre.astype(np.int64), before - 1)
    second = np.minimum(first + 1, before - 1)
    share = (centre - first).astype(kind)
    shape = [1] * values.ndim
    shape[axis] = length
    low, high = (1 - share).reshape(shape), share.reshape(shape)
    if values.dtype == np.float32:
        return values.take(first, axis) * low + values.take(second, axis) * high
    bits = _bits(float(max(low.max(), high.max())))
    whole = [(weight * (1 << bits) + 0.5).astype(np.int32) for weight in (low, high)]
    total = values.take(first, axis) * whole[0] + values.take(second, axis) * whole[1]
    return ((total + (1 << (bits - 1))) >> bits).clip(0, 255).astype(np.uint8)


def _bits(largest: float) -> int:
    """Binary digits after the point with which a weight still fits into int16, as torch counts them."""
    bits = 0
    while bits < 22 and int(0.5 + largest * (1 << (bits + 1))) < 1 << 15:
        bits += 1
    return bits
