"""Detections in an image larger than memory: cut, predict, shift back, merge, in a fixed order."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.errors import UserError
from retinanet.images.preprocess import Preprocess
from retinanet.images.tiling import Size, Window, check_sides, fix_scale, list_windows
from retinanet.images.windows import ImageWindows
from retinanet.inference.backend import Prepared
from retinanet.inference.merge import DETECTION, Merge, merge_detections
from retinanet.inference.predictor import Predictor, to_array
from retinanet.inference.stream import stream_detections
from retinanet.spec import ModelSpec
from retinanet.types import Detections

EDGE = 2.0  # pixels of the network's input: a box that ends this near to a border of its window is cut by it
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
    report = progress or (lambda done, total: None)
    spec = predictor.backend.spec
    with ImageWindows(image if isinstance(image, str | Path | Image.Image) else to_array(image)) as windows:
        cut = cut_image(spec, windows.size, tile=tile, overlap=overlap, merge=merge, scale=scale)
        if cut is None:
            whole = predictor.at_once(windows.read(0, 0, *windows.size))
            report(1, 1)
            return whole
        parts = detect_windows(predictor, windows, cut.windows, cut.rule, report)
    warn_of_full_windows(spec, parts)
    return join_windows(parts, cut.windows, cut.size, spec, cut.rule, merge)


@dataclass(frozen=True)
class Cut:
    """How an image is cut into windows.

    Attributes:
        size: (height, width) of the image.
        windows: they cover it, in their order.
        rule: how a window is resized for the network.
    """

    size: Size
    windows: list[Window]
    rule: Preprocess


def cut_image(
    spec: ModelSpec,
    size: Size,
    *,
    tile: int | tuple[int, int],
    overlap: int,
    merge: str = "nmm",
    scale: float | None = None,
) -> Cut | None:
    """The windows of an image of (height, width); None where it is shown whole, because it fits into one.

    Raises:
        UserError: as :func:`check_tile_options`.
    """
    windows = list_windows(size, check_tile_options(tile, overlap, merge, scale), overlap)
    if len(windows) == 1 and scale is None:
        return None
    return Cut(size, windows, _choose_rule(spec, _size(windows[0]), scale))


def detect_windows(
    predictor: Predictor,
    image: ImageWindows,
    windows: Sequence[Window],
    rule: Preprocess,
    report: Callable[[int, int], Any] = lambda done, total: None,
) -> list[Detections]:
    """The detections of some windows of an image, in pixels of the windows.

    Raises:
        UserError: a part of the image cannot be read.
    """

    def prepare(window: Window) -> Prepared:
        return predictor.backend.prepare(image.read(*window), rule)

    parts: list[Detections] = []
    with closing(stream_detections(predictor.backend, prepare, windows, batch_size=predictor.batch_size)) as stream:
        for detections in stream:
            if isinstance(detections, UserError):
                raise detections
            parts.append(detections)
            report(len(parts), len(windows))
    return parts


def warn_of_full_windows(spec: ModelSpec, parts: Sequence[Detections]) -> None:
    """Log a warning where windows have as many detections as the model reports at most."""
    if full := sum(map(spec.is_at_limit, parts)):
        _log.warning(
            "%d of %d tiles hold %d detections, the most that the model reports of an image: choose smaller tiles, or "
            "objects may be missing",
            *(full, len(parts), spec.postprocess.max_detections),
        )


def join_windows(
    parts: Sequence[Detections],
    windows: Sequence[Window],
    size: Size,
    spec: ModelSpec,
    rule: Preprocess,
    merge: Merge = "nmm",
) -> Detections:
    """The detections of all windows of an image as those of the image.

    Args:
        parts: in pixels of their windows.
        windows: where these lie.
        size: (height, width) of the image.
        spec: of the model.
        rule: how windows were resized.
        merge: see :mod:`retinanet.inference.merge`.

    Returns:
        Boxes in pixels of the image, best score first.
    """
    height, width = _size(windows[0])
    edge = max(1.0, EDGE * height / rule.size(height, width)[0])
    placed = [_place(part, window, size, edge) for part, window in zip(parts, windows, strict=True)]
    limits = spec.postprocess
    merged = merge_detections(
        np.concatenate(placed), how=merge, iou=limits.nms, class_agnostic=limits.class_agnostic, tolerance=edge
    )
    like = parts[-1]
    boxes, scores = _convert(merged["box"], like.boxes), _convert(merged["score"], like.scores)
    return Detections(boxes, scores, _convert(merged["label"], like.labels), like.class_names)


def _size(window: Window) -> Size:
    return window[2] - window[0], window[3] - window[1]


def check_tile_options(tile: int | tuple[int, int], overlap: int, merge: str, scale: float | None) -> tuple[int, int]:
    """The (height, width) of a window in pixels of the image.

    Raises:
        UserError: an option of :func:`predict_tiled` is out of its range.
    """
    sides = (tile, tile) if isinstance(tile, int) else tuple(tile)
    check_sides(sides, overlap)
    if merge not in ("nms", "nmm"):
        raise UserError(f"merge is nms or nmm, got {merge!r}")
    if scale is not None and not 0 < scale < float("inf"):
        raise UserError(f"scale (--tile_scale) is a number above 0, got {scale}")
    return sides[0], sides[1]


def _choose_rule(spec: ModelSpec, window: tuple[int, int], scale: float | None) -> Preprocess:
    """The resize rule for windows: of the wanted magnification, the aspect kept."""
    rule, known = spec.preprocess, scale or spec.scale
    if scale is None and spec.tiling is not None and max(window) == spec.tiling.tile:
        return rule  # a window of the training
    if known is None:
        height, width = rule.size(*window)
        _log.warning(
            "the model does not say how large its training images were shown to it: tiles of %d x %d pixels are "
            "resized to %d x %d, a scale of %.3g. If the training images were shown larger or smaller, set scale "
            "(--tile_scale) to their size after resizing, divided by their size before",
            *(window[1], window[0], width, height, height / window[0]),
        )
        return rule
    return fix_scale(rule, window, known)


def _place(detections: Detections, window: Window, size: Size, edge: float) -> NDArray[Any]:
    """Detections of a window as (n,) ``DETECTION``, in pixels of the image and with the borders that cut them."""
    (y, x, bottom, right), (height, width) = window, _size(window)
    boxes = np.asarray(detections.boxes, np.float64).reshape(-1, 4)
    outer = np.array([x == 0, y == 0, right == size[1], bottom == size[0]])
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
