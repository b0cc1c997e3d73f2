"""The annotations of a COCO file as boxes, and what is wrong with one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retinanet.data.annotations import Box, ImageEntry
from retinanet.data.faults import Fault, Faults, short

_ID = (int, str)  # of an image
_TRUTH = {"": False, "0": False, "false": False, "no": False, "none": False, "1": True, "true": True, "yes": True}


@dataclass(frozen=True)
class CocoFile:
    """One JSON file; image rows and annotations in the order of the file, None for what is no object."""

    path: Path
    categories: dict[int, str]
    images: list[ImageEntry]
    faulty_ids: frozenset[object]  # of images that were left out
    annotations: list[dict[str, Any] | None]


class _Place(NamedTuple):
    """Where an annotation is, by its id or number; a text only where one is wanted."""

    path: Path
    key: object

    def __str__(self) -> str:
        return f"{self.path}, annotation {short(self.key)}"


def read_boxes(file: CocoFile, first: int, categories: Mapping[int, str], faults: Faults) -> Iterator[tuple[int, Box]]:
    """The sound annotations of a file, with the image that each belongs to.

    Args:
        file: which holds them.
        first: number of its first image.
        categories: names by id, of all files.
        faults: is given what is wrong with the others.
    """
    owner_of = {image.image_id: number for number, image in enumerate(file.images, first)}
    outlines = []
    for number, entry in enumerate(file.annotations, 1):
        image = None if entry is None else entry.get("image_id")
        if entry is None or (file.faulty_ids and isinstance(image, _ID) and image in file.faulty_ids):  # told already
            continue
        where = _Place(file.path, entry.get("id", f"number {number}"))
        try:
            owner, box, is_outline = _read_box(entry, where, owner_of, categories)
        except Fault as fault:
            faults(fault)
            continue
        if is_outline:
            outlines.append(where)
        yield owner, box
    if outlines:
        reason = f"{len(outlines)} annotations have polygons and no box"
        faults(Fault("outline", outlines[0], reason))


def _read_box(
    entry: dict[str, Any], where: _Place, owner_of: Mapping[int | str, int], categories: Mapping[int, str]
) -> tuple[int, Box, bool]:
    """The image and the box of an annotation, and whether it is the extent of polygons.

    Raises:
        Fault: something is wrong with it.
    """
    category, image, area = whole_number(entry.get("category_id")), entry.get("image_id"), entry.get("area")
    if category is None or category not in categories:
        declared = ", ".join(f"{key} {name}" for key, name in sorted(categories.items())[:12])
        reason = f"category id {short(entry.get('category_id'))} is not declared"
        raise Fault("undeclared-class", where, reason, f"Declared are: {declared or 'none'}.")
    if not isinstance(image, _ID) or image not in owner_of:
        image = whole_number(image)
        if image is None or image not in owner_of:
            reason = f"image id {short(entry.get('image_id'))} is not among the images of the file"
            raise Fault("unknown-image", where, reason)
    box, outline = entry.get("bbox"), None
    if not box or (isinstance(box, list) and not any(box)):
        outline = _extent(entry.get("segmentation"))
        box = outline or box or ([math.nan] * 4 if "bbox" in entry else None)
    numbers = _find_numbers([*box, area]) if isinstance(box, list) and len(box) == 4 else None
    if numbers is None:
        if isinstance(box, list) and len(box) == 4 and _find_numbers(box):
            raise Fault("broken-annotation", where, f"'area' is {short(area)}", "Expected a number.")
        reason = f"'bbox' is {box!s:.80}"
        raise Fault("broken-annotation", where, reason, "Expected four numbers: x, y, width, height.")
    crowd = entry.get("iscrowd")
    if isinstance(crowd, str):
        crowd = _TRUTH.get(crowd.strip().lower())
        if crowd is None:
            raise Fault("broken-annotation", where, f"'iscrowd' is {short(entry['iscrowd'])}", "Expected 0 or 1.")
    x, y, width, height, area = numbers
    found = Box((x, y, x + width, y + height), categories[category], where, bool(crowd), area)
    return owner_of[image], found, outline is not None and all(map(math.isfinite, outline))


def _extent(outline: object) -> list[float] | None:
    """x, y, width, height of polygons [[x1, y1, x2, y2, ...], ...], None where these are none."""
    if not isinstance(outline, list) or not all(isinstance(part, list) and len(part) >= 6 for part in outline):
        return None
    numbers = _find_numbers([value for part in outline for value in part[: len(part) // 2 * 2]])
    if not numbers:
        return None
    points = np.array(numbers).reshape(-1, 2)
    return [*points.min(0).tolist(), *(points.max(0) - points.min(0)).tolist()]


def whole_number(value: object) -> int | None:
    """An id as a number: 1, 1.0 and "1" are the same; None for what is none."""
    if value is None or isinstance(value, int):
        return None if isinstance(value, bool) else value
    try:
        number = float(value)  # type: ignore[arg-type]  # that is what is being found out
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def _find_numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, null as NaN; None where one is neither."""
    try:
        return [math.nan if value is None else float(value) for value in values]
    except (TypeError, ValueError, OverflowError):
        return None
