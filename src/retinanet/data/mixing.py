"""Views that are put together from several images, or from a part of one, as plain functions of torch's generator.

Each returns boxes that are cut at the edges of the view. What is left of an object of which less than half is visible
is an ignore region: it is neither an example of its class nor background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_area
from torchvision.transforms.v2 import functional

from retinanet.anchors.geometry import paired_intersection
from retinanet.types import Target

View = tuple[Tensor, Target]  # (3, H, W) uint8 and boxes in its pixels
VISIBLE = 0.5  # share of an object's area from which on it is an example
GREY = 114  # of the padding, near the mean of photographs
FREE = 0.1  # most share of the smaller of two objects that a pasted one may have in common with another


def turn(view: View) -> View:
    """The image, turned by 90, 180 or 270 degrees; its pixels stay what they are."""
    quarters = int(torch.randint(1, 4, ()))
    image, target = view
    for _ in range(quarters):  # counter-clockwise: what was at (x, y) is then at (y, W - x)
        left, top, right, bottom = target.boxes.unbind(1)
        width = image.shape[2]
        target = replace(target, boxes=torch.stack([top, width - right, bottom, width - left], dim=1))
        image = image.rot90(1, (1, 2))
    return image.contiguous(), target


def zoom(view: View, factor: float) -> View:
    """A random part of the enlarged image, or the reduced image at a random place on grey; the size stays."""
    image, target = view
    height, width = image.shape[1:]
    new = max(2, round(height * factor)), max(2, round(width * factor))  # torch's resize fails at one pixel
    boxes = tv_tensors.BoundingBoxes(target.boxes, format="XYXY", canvas_size=(height, width))
    image, boxes = functional.resize(image, list(new), antialias=True), functional.resize(boxes, list(new))
    top, left = (
        _random_int(min(0, before - after), max(0, before - after))
        for before, after in zip((height, width), new, strict=True)
    )
    canvas = torch.full((3, height, width), GREY, dtype=torch.uint8)
    target = replace(target, boxes=boxes.as_subclass(Tensor))
    return place(canvas, (image, target), (top, left), (0, 0, height, width))


def mosaic(view: View, draw: Callable[[], View]) -> View:
    """Four images around a random point of a canvas of the size of the first; each shows the part nearest to it."""
    height, width = view[0].shape[1:]
    y, x = (int(side * float(torch.empty(()).uniform_(0.3, 0.7))) for side in (height, width))
    canvas, targets = torch.full((3, height, width), GREY, dtype=torch.uint8), []
    windows = ((0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width))
    for number, (top, left, bottom, right) in enumerate(windows):
        image, target = view if number == 0 else draw()
        corner = (bottom - image.shape[1] if top == 0 else top, right - image.shape[2] if left == 0 else left)
        canvas, target = place(canvas, (image, target), corner, (top, left, bottom, right))
        targets.append(target)
    columns = (torch.cat([getattr(target, name) for target in targets]) for name in ("boxes", "labels", "ignore"))
    return canvas, Target(*columns)


def paste(view: View, other: View) -> View:
    """Objects of another image, each with a chance of a half, at random places where no object is yet.

    They are cut out as rectangles, so one that has another object on it stays where it is.
    """
    image, target = view[0].clone(), view[1]
    height, width = image.shape[1:]
    for row in (~other[1].ignore).nonzero()[:, 0].tolist():
        left, top, right, bottom = (int(side) for side in other[1].boxes[row].round().clamp(min=0).tolist())
        patch = other[0][:, top:bottom, left:right]
        alone = not _is_taken(other[1].boxes[row], torch.cat([other[1].boxes[:row], other[1].boxes[row + 1 :]]))
        if torch.rand(()) < 0.5 or not alone or 0 in patch.shape or patch.shape[1] > height or patch.shape[2] > width:
            continue
        y, x = _random_int(0, height - patch.shape[1]), _random_int(0, width - patch.shape[2])
        box = torch.tensor([x, y, x + patch.shape[2], y + patch.shape[1]], dtype=target.boxes.dtype)
        if _is_taken(box, target.boxes):
            continue
        image[:, y : y + patch.shape[1], x : x + patch.shape[2]] = patch
        target = Target(
            torch.cat([target.boxes, box[None]]),
            torch.cat([target.labels, other[1].labels[row : row + 1]]),
            torch.cat([target.ignore, torch.zeros(1, dtype=torch.bool)]),
        )
    return image, target


def _is_taken(box: Tensor, boxes: Tensor) -> bool:
    """Whether a box (4,) and one of (m, 4) have more than ``FREE`` of the smaller one in common."""
    smaller = box_area(boxes).minimum(box_area(box[None]))
    return bool((paired_intersection(box, boxes) > FREE * smaller).any())


def place(canvas: Tensor, view: View, corner: tuple[int, int], window: tuple[int, int, int, int]) -> View:
    """Draw an image with its top left corner at a place of a canvas, but only inside a window of it.

    Args:
        canvas: (3, H, W), changed in place.
        view: the image and its objects.
        corner: (y, x) on the canvas, negative outside.
        window: (top, left, bottom, right).

    Returns:
        The canvas, and what the window shows of the objects in pixels of the canvas; those outside are left out.
    """
    (image, target), (y, x), (top, left, bottom, right) = view, corner, window
    first_y, first_x = max(top, y), max(left, x)
    last_y, last_x = min(bottom, y + image.shape[1]), min(right, x + image.shape[2])
    if first_y < last_y and first_x < last_x:
        canvas[:, first_y:last_y, first_x:last_x] = image[:, first_y - y : last_y - y, first_x - x : last_x - x]
    moved = replace(target, boxes=target.boxes + torch.tensor([x, y, x, y], dtype=target.boxes.dtype))
    cut, visible = cut_target(moved, window)
    return canvas, cut.select(visible > 0)


def cut_target(target: Target, window: tuple[int, int, int, int]) -> tuple[Target, Tensor]:
    """What a window shows of the objects.

    Args:
        target: M objects.
        window: (top, left, bottom, right) in the pixels of the boxes.

    Returns:
        The same M objects, boxes clipped to the window, those of which it shows less than half as ignore regions; and
        (M,) the share of its area that it shows of each, 0 of those outside.
    """
    top, left, bottom, right = window
    limits = torch.tensor([left, top, right, bottom], dtype=target.boxes.dtype)
    boxes = target.boxes.maximum(limits[[0, 1, 0, 1]]).minimum(limits[[2, 3, 2, 3]])
    visible = box_area(boxes) / box_area(target.boxes).clamp(min=1e-9)
    return Target(boxes, target.labels, target.ignore | (visible < VISIBLE)), visible


def _random_int(least: int, most: int) -> int:
    """From least to most, both included."""
    return int(torch.randint(least, most + 1, ()))
