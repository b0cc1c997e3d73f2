"""The annotations of a COCO file as columns of numbers, and what is wrong with one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.annotations import ImageEntry
from retinanet.data.faults import Fault, Faults, short

_TRUTH = {"": False, "0": False, "false": False, "no": False, "none": False, "1": True, "true": True, "yes": True}


@dataclass(frozen=True)
class CocoFile:
    """One JSON file; image rows and annotations in the order of the file, None for what is no object."""

    path: Path
    categories: dict[int, str]
    images: list[ImageEntry]
    faulty_ids: frozenset[object]  # of images that were left out
    annotations: list[dict[str, Any] | None]

    def place(self, number: int) -> str:
        """Where an annotation is, for messages."""
        return f"{self.path}, annotation {short((self.annotations[number] or {}).get('id', f'number {number + 1}'))}"


@dataclass(frozen=True)
class CocoColumns:
    """The sound annotations of a file; ``numbers`` are their positions in it."""

    numbers: Sequence[int]
    owners: list[int]
    boxes: np.ndarray
    labels: list[int]
    crowds: list[bool]
    areas: list[float]


def make_columns(file: CocoFile, label_of: dict[int, int], faults: Faults) -> CocoColumns:
    """The annotations of a file as columns: all at once, and one by one only if that fails, to name the faulty ones."""
    owner_of = {image.image_id: number for number, image in enumerate(file.images)}
    try:
        return _all_columns(file.annotations, range(len(file.annotations)), owner_of, label_of)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    sound, entries = [], []
    outlines: list[int] = []
    for number, entry in enumerate(file.annotations):
        if entry is None or _is_left_out(entry, file):
            continue
        try:
            plain = _check_annotation(file, number, entry, owner_of, label_of)
        except Fault as fault:
            faults(fault)
            continue
        sound.append(number)
        entries.append(plain)
        if entry.get("bbox") != plain["bbox"] and np.isfinite(plain["bbox"]).all():
            outlines.append(number)
    if outlines:
        reason = f"{len(outlines)} annotations have polygons and no box"
        faults(Fault("outline", file.place(outlines[0]), reason))
    try:
        return _all_columns(entries, sound, owner_of, label_of)
    except (KeyError, TypeError, ValueError, OverflowError):
        reason = "its annotations do not have the form of COCO"
        raise Fault("broken-file", file.path, reason, "Export the file anew.") from None


def _all_columns(
    annotations: Sequence[Any], numbers: Sequence[int], owner_of: dict[int | str, int], label_of: dict[int, int]
) -> CocoColumns:
    """Raises whatever a faulty annotation leads to."""
    xywh = np.array([entry["bbox"] for entry in annotations], dtype=np.float64)
    if annotations and xywh.shape != (len(annotations), 4):
        raise ValueError
    xywh = xywh.reshape(-1, 4)
    if isinstance(numbers, range) and len(xywh) and not (xywh[:, 2:] > 0).any():
        raise ValueError  # a tool that writes no boxes: look for outlines
    return CocoColumns(
        numbers=numbers,
        owners=[owner_of[entry["image_id"]] for entry in annotations],
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        labels=[label_of[entry["category_id"]] for entry in annotations],
        crowds=[_is_crowd(entry.get("iscrowd")) for entry in annotations],
        areas=[float("nan") if (area := entry.get("area")) is None else float(area) for entry in annotations],
    )


def _is_crowd(value: object) -> bool:
    return _TRUTH[value.strip().lower()] if isinstance(value, str) else bool(value)


def _is_left_out(entry: dict[str, Any], file: CocoFile) -> bool:
    """Whether the fault lies with the image, and is told already."""
    image = entry.get("image_id")
    return isinstance(image, int | str) and image in file.faulty_ids


def _check_annotation(
    file: CocoFile, number: int, entry: dict[str, Any], owner_of: dict[int | str, int], label_of: dict[int, int]
) -> dict[str, Any]:
    """The annotation with its ids as numbers and with a box.

    Raises:
        Fault: something is wrong with it.
    """
    where = file.place(number)
    category, image, area = whole_number(entry.get("category_id")), entry.get("image_id"), entry.get("area")
    if category not in label_of:
        declared = ", ".join(f"{key} {name}" for key, name in sorted(file.categories.items())[:12])
        reason = f"category id {short(entry.get('category_id'))} is not declared"
        raise Fault("undeclared-class", where, reason, f"Declared are: {declared or 'none'}.")
    if not isinstance(image, int | str) or image not in owner_of:
        number_of = whole_number(image)
        if number_of not in owner_of:
            raise Fault("unknown-image", where, f"image id {short(image)} is not among the images of the file")
        image = number_of
    box = entry.get("bbox")
    if not box or (isinstance(box, list) and all(side == 0 for side in box)):
        box = _extent(entry.get("segmentation")) or box or ([float("nan")] * 4 if "bbox" in entry else None)
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        reason = f"'bbox' is {box!s:.80}"
        raise Fault("broken-annotation", where, reason, "Expected four numbers: x, y, width, height.")
    if area is not None and not _is_number(area):
        raise Fault("broken-annotation", where, f"'area' is {short(area)}", "Expected a number.")
    if isinstance(entry.get("iscrowd"), str) and entry["iscrowd"].strip().lower() not in _TRUTH:
        raise Fault("broken-annotation", where, f"'iscrowd' is {short(entry['iscrowd'])}", "Expected 0 or 1.")
    return {**entry, "category_id": category, "image_id": image, "bbox": box}


def _extent(outline: object) -> list[float] | None:
    """x, y, width, height of polygons [[x1, y1, x2, y2, ...], ...], None where these are none."""
    if not isinstance(outline, list) or not all(isinstance(part, list) and len(part) >= 6 for part in outline):
        return None
    numbers = [value for part in outline for value in part[: len(part) // 2 * 2]]
    if not numbers or not all(_is_number(value) for value in numbers):
        return None
    points = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    return [*points.min(0).tolist(), *(points.max(0) - points.min(0)).tolist()]


def whole_number(value: object) -> int | None:
    """An id as a number: 1, 1.0 and "1" are the same; None for what is none."""
    if isinstance(value, int | None):
        return None if isinstance(value, bool) else value
    try:
        number = float(value)  # type: ignore[arg-type]  # that is what is being found out
    except (TypeError, ValueError, OverflowError):
        return None
    return int(number) if number.is_integer() else None


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # as above
    except (TypeError, ValueError, OverflowError):
        return False
    return True
