"""Detections in an image larger than memory: cut, predict, shift back, merge, in a fixed order."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.windows import ImageWindows
from retinanet.inference.backend import Prepared
from retinanet.inference.merge import DETECTION, Merge, merge_detections
from retinanet.inference.predictor import Predictor, to_array
from retinanet.inference.stream import stream_detections
from retinanet.spec import ModelSpec
from retinanet.types import Detections

SMALLEST_TILE = 32
EDGE = 2.0  # pixels of the network's input: a box that ends this near to a border of its window is cut by it
Corner = tuple[int, int]
_log = logging.getLogger(__name__)


def predict_tiled(
    predictor: Predictor,
    image: Any,
    *,
    tile: int | tuple[int, int] = 1024,
    overlap: int = 128,
    merge: Merge = "nmm",
    scale: float | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> Detections:
    """Detections in one image of any size, window by window.

    The windows are of one size, cover every pixel, and neighbours overlap by ``overlap`` at least; memory is bounded by
    the windows of a few batches, and by the image only where its file cannot be read in parts (see
    :class:`retinanet.images.windows.ImageWindows`). An image that fits into one tile gives what ``predictor(image)``
    gives, unless ``scale`` is given.

    Args:
        predictor: the model.
        image: a path, a picture of Pillow, an array (H, W, 3) uint8 RGB or a tensor (3, H, W) uint8 RGB.
        tile: side of the windows, or their (height, width), in pixels of the image.
        overlap: pixels that neighbours share: more than the largest object, so that one window sees it whole.
        merge: ``nms`` or ``nmm``, see :mod:`retinanet.inference.merge`. Objects larger than the overlap come out whole
            with ``nmm`` only.
        scale: pixels of the network's input per pixel of the image. By default the magnification that the training
            images had; where the model does not know it, that of its resize rule on a window, with a warning.
        progress: called with the windows done and their total, after each.

    Returns:
        Boxes in pixels of the image, best score first; their number is limited per window only.

    Raises:
        UserError: the image cannot be read, or an option is out of its range.
    """
    sides = check_tile_options(tile, overlap, merge, scale)
    report = progress or (lambda done, total: None)
    with ImageWindows(image if isinstance(image, str | Path | Image.Image) else to_array(image)) as windows:
        height, width = windows.size
        window = min(sides[0], height), min(sides[1], width)
        if window == (height, width) and scale is None:
            whole = predictor(windows.read(0, 0, height, width))
            report(1, 1)
            return whole
        rule = _choose_rule(predictor.backend.spec, window, scale)
        edge = max(1.0, EDGE * window[0] / rule.size(*window)[0])
        corners = list(product(find_starts(height, window[0], overlap), find_starts(width, window[1], overlap)))

        def prepare(corner: Corner) -> Prepared:
            y, x = corner
            return predictor.backend.prepare(windows.read(y, x, y + window[0], x + window[1]), rule)

        parts, full = [], 0
        with closing(stream_detections(predictor.backend, prepare, corners, batch_size=predictor.batch_size)) as stream:
            for corner, detections in zip(corners, stream, strict=True):
                if isinstance(detections, UserError):
                    raise detections
                parts.append(_place(detections, corner, window, windows.size, edge))
                full += predictor.is_at_limit(detections)
                report(len(parts), len(corners))
                like = detections
    limits = predictor.backend.spec.postprocess
    if full:
        _log.warning(
            "%d of %d tiles hold %d detections, the most that the model reports of an image: choose smaller tiles, or "
            "objects may be missing",
            *(full, len(parts), limits.max_detections),
        )
    merged = merge_detections(
        np.concatenate(parts), how=merge, iou=limits.nms, class_agnostic=limits.class_agnostic, tolerance=edge
    )
    boxes, scores = _convert(merged["box"], like.boxes), _convert(merged["score"], like.scores)
    return Detections(boxes, scores, _convert(merged["label"], like.labels), like.class_names)


def find_starts(length: int, window: int, overlap: int) -> list[int]:
    """Where windows begin along one side: regularly, but the last ends with the image."""
    last, step = length - window, max(1, window - overlap)
    return [min(start, last) for start in range(0, last + step, step)]


def check_tile_options(tile: int | tuple[int, int], overlap: int, merge: str, scale: float | None) -> tuple[int, int]:
    """The (height, width) of a window in pixels of the image.

    Raises:
        UserError: an option of :func:`predict_tiled` is out of its range.
    """
    sides = (tile, tile) if isinstance(tile, int) else tuple(tile)
    if len(sides) != 2 or min(sides) < SMALLEST_TILE:
        raise UserError(f"tile is at least {SMALLEST_TILE} pixels, one number or height and width; got {tile}")
    if not 0 <= overlap < min(sides):
        raise UserError(f"overlap is at least 0 and smaller than the tile ({min(sides)} pixels), got {overlap}")
    if merge not in ("nms", "nmm"):
        raise UserError(f"merge is nms or nmm, got {merge!r}")
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"scale (--tile_scale) is a number above 0, got {scale}")
    return sides[0], sides[1]


def _choose_rule(spec: ModelSpec, window: tuple[int, int], scale: float | None) -> Preprocess:
    """The resize rule for windows: of the wanted magnification, the aspect kept."""
    rule, known = spec.preprocess, scale or spec.scale
    if known is None:
        height, width = rule.size(*window)
        _log.warning(
            "the model does not say how large its training images were shown to it: tiles of %d x %d pixels are "
            "resized to %d x %d, a scale of %.3g. If the training images were shown larger or smaller, set scale "
            "(--tile_scale) to their size after resizing, divided by their size before",
            *(window[1], window[0], width, height, height / window[0]),
        )
        return rule
    short = max(1, round(min(window) * known))
    return replace(rule, short=short, long=-(-short * max(window) // min(window)))  # long never limits


def _place(
    detections: Detections, corner: Corner, window: tuple[int, int], size: tuple[int, int], edge: float
) -> NDArray[Any]:
    """Detections of a window as (n,) ``DETECTION``, in pixels of the image and with the borders that cut them."""
    (y, x), (height, width) = corner, window
    boxes = np.asarray(detections.boxes, np.float64).reshape(-1, 4)
    outer = np.array([x == 0, y == 0, x + width == size[1], y + height == size[0]])
    placed = np.empty(len(detections), DETECTION)
    placed["box"], placed["score"], placed["label"] = (
        boxes + np.array([x, y, x, y]),
        detections.scores,
        detections.labels,
    )
    placed["cut"] = (np.abs(boxes - np.array([0, 0, width, height])) <= edge) & ~outer
    return placed


def _convert(values: NDArray[Any], example: Any) -> Any:
    """Values in the type of an array of numpy or of a tensor."""
    return values.astype(example.dtype) if isinstance(example, np.ndarray) else example.new_tensor(values)
