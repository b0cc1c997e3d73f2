"""A fixed copy of a data set: COCO files beside which the images stay where they are.

Left out is what training leaves out or cannot read; fixed is what has one remedy only. What needs an eye - boxes that
nearly coincide, boxes of two classes, pictures that look the same - stays, and the report of the doctor names it.
"""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.analysis.data.boxes import duplicate_rows
from retinanet.analysis.data.corrections import Correction, correct_splits
from retinanet.analysis.data.doctor import read_splits
from retinanet.analysis.data.findings import DoctorReport
from retinanet.analysis.data.images import exif_orientation
from retinanet.data.check import Split
from retinanet.data.faults import Fault, name_list
from retinanet.errors import UserError
from retinanet.files import check_writable, write_atomically
from retinanet.images.io import image_size

ACCOUNT = "fixed.txt"
"""The file of the copy that says what was done."""
_FEW = 5
"""So many boxes may be lost in any case, and a fifth of all."""
_CONVERTED = ("pixels", "fractions", "confidence", "keypoints", "outline", "found-elsewhere")
_ONE_BOX = ("broken-annotation", "undeclared-class", "unknown-image")
_ROUNDING = 0.01  # pixels by which clipping moves a side without being worth a word
_SAME_SHAPE = 0.01  # difference of the aspect ratios of a resized image


@dataclass
class _Copy:
    """What is being written: ids go on over all splits, so that these can be loaded together."""

    broken: dict[Path, str]
    elsewhere: dict[str, set[Path]]
    images: int = 0
    annotations: int = 0
    done: list[str] = field(default_factory=list)
    lost: Counter[str] = field(default_factory=Counter)
    """Boxes that are in the data and will not be in the copy, by the reason; duplicates are not lost."""


def write_fixed_copy(
    data: str | Path, output: str | Path, report: DoctorReport, corrections: Sequence[Correction] = ()
) -> Path:
    """Write a copy of a data set without its faults, as COCO: ``annotations/<split>.json``, and ``fixed.txt``.

    * Converted: pixels in YOLO files and fractions in others, a sixth number, outlines to boxes.
    * Left out: annotations, lines and files that cannot be read, undeclared classes, images that are missing,
      unreadable or share their id, boxes that are not finite, without extent or outside, and exact duplicates.
    * Fixed: boxes over the edge are clipped, a wrong declared size is set right where the boxes lie on the true one,
      boxes are turned with the EXIF rotation, or scaled where all lie on a declared size of the same shape; an image
      whose size cannot be explained so is left out.
    * An image, or its exact copy, in two splits is left out of the one that is trained on.
    * Classes keep their order, images and annotations get new ids, and the images are named by relative paths.

    Args:
        data: the data set; it is only read.
        output: a folder that does not exist or is empty, outside of ``data``.
        report: what :func:`~retinanet.analysis.data.doctor.examine` found, with pixels: what is wrong in images.
        corrections: of single annotations, made first.

    Returns:
        The folder.

    Raises:
        UserError: the folder cannot be used, nothing of the set is left, many boxes would be lost, or a correction is
            not of these data.
    """
    data, output = Path(data), Path(output)
    refuse_output(data, output)
    faults: list[Fault] = []
    parts, corrected = correct_splits(read_splits(data, faults), corrections, data)
    copy = _Copy(_broken_images(report), _elsewhere(parts, report), done=corrected)
    for fault in {str(fault): fault for fault in faults}.values():
        if fault.kind == "corners":  # clipping them would spoil the boxes for good
            raise UserError(f"{fault} No fixed copy was written.")
        if fault.kind in _CONVERTED:
            copy.done.append(f"converted: {fault.sentence}")
        elif fault.kind == "outside-image":
            copy.done.append(f"named where they are: {fault.sentence}")
        elif fault.severity == "error":
            copy.done.append(f"left out: {fault}")
            copy.lost[fault.sentence] += fault.kind in _ONE_BOX
    documents = {part.name: _document(_resized(part, copy), output / "annotations", copy) for part in parts}
    documents = {name: document for name, document in documents.items() if document["images"]}
    if not documents or not any(document["categories"] for document in documents.values()):
        raise UserError(f"{data}: no part of it can be used, so there is nothing to fix. Look at the findings.")
    _refuse_loss(data, copy, [part.name for part in parts if part.name not in documents])
    for name, document in documents.items():
        write_atomically(output / "annotations" / f"{name or 'instances'}.json", json.dumps(document) + "\n")
    counts = Counter(line.partition(":")[0] for line in copy.done)
    lost = f"; {copy.lost.total()} boxes are lost" if copy.lost.total() else ""
    head = [f"A fixed copy of {data}: {copy.images} images, {copy.annotations} boxes{lost}. The images stay there."]
    head += [f"{count} x {what}" for what, count in counts.items()] or ["Nothing had to be fixed."]
    text = "\n".join([*head, "", *copy.done]) + "\n"
    write_atomically(output / ACCOUNT, text.encode(errors="backslashreplace"))
    return output


def _refuse_loss(data: Path, copy: _Copy, gone: Sequence[str]) -> None:
    """Refuse a copy that lacks whole splits or more than a few of the boxes: it would only look sound."""
    if gone:
        raise UserError(
            f"{data}: a fixed copy would hold no image of {name_list(gone)}, so none was written: all are in another "
            "split, or cannot be used. Divide the images anew."
        )
    lost = copy.lost.total()
    if lost > max(_FEW, (lost + copy.annotations) // 5):
        reason, _ = copy.lost.most_common(1)[0]
        raise UserError(
            f"{data}: a fixed copy would lose {lost} of {lost + copy.annotations} boxes, so none was written. "
            f"For instance: {reason}. Fix this at its source first."
        )


def refuse_output(data: Path, output: Path) -> None:
    """Check that a fixed copy of a data set can be written.

    Raises:
        UserError: the place lies in the data set, is taken, or cannot be written to.
    """
    check_writable(output)
    home = (data if data.is_dir() else data.parent).resolve()
    if output.resolve() == home or (data.is_dir() and home in output.resolve().parents):
        raise UserError(f"{output}: lies in the data set that is fixed. Choose a folder outside of {home}.")
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output}: is there already and not empty. Choose another folder, or remove it.")


def _broken_images(report: DoctorReport) -> dict[Path, str]:
    """The kind of fault of each image that cannot be taken as it is."""
    kinds = ("missing-image", "unreadable-image", "wrong-size", "swapped-size", "exif-rotation")
    return {one.image: one.kind for one in report.findings if one.kind in kinds and one.image is not None}


def _elsewhere(parts: Sequence[Split], report: DoctorReport) -> dict[str, set[Path]]:
    """Images to leave out of a split because another one keeps them; the split to train on gives way."""
    copies = {one.image for one in report.findings if one.kind == "copy-in-splits" and one.image is not None}
    gone: dict[str, set[Path]] = defaultdict(set)
    kept: set[Path] = set()
    for part in [*parts[1:], *parts[:1]]:
        paths = {image.path for image in part.images}
        gone[part.name] = paths & (kept | copies)
        kept |= paths
    return gone


def _document(part: Split, home: Path, copy: _Copy) -> dict[str, Any]:
    """The COCO content of a split; ``home`` is the folder of the file."""
    rows = _kept_rows(part, copy)
    shared = {key for key, count in Counter(image.image_id for image in part.images).items() if count > 1}
    images: dict[Path, dict[str, Any]] = {}
    annotations = []
    for number, image in enumerate(part.images):
        if image.image_id in shared:
            copy.done.append(f"image left out: {image.path}, its id stands for two")
            continue
        if image.path in copy.elsewhere[part.name]:
            copy.done.append(f"image left out of {part.name}: {image.path}, it is in another split")
            continue
        fitted = _fitted(image.path, image.size, part, rows[number], copy)
        if fitted is None:
            copy.lost[copy.done[-1]] += int((part.owners == number).sum())
            continue
        if image.path not in images:
            copy.images += 1
            (height, width), name = fitted[0], _name(image.path, home)
            images[image.path] = {"id": copy.images, "file_name": name, "height": height, "width": width}
        for row, box in zip(rows[number], fitted[1].tolist(), strict=True):
            copy.annotations += 1
            entry = {"id": copy.annotations, "image_id": images[image.path]["id"], **_annotation(part, row, box)}
            annotations.append(entry)
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(part.annotations.class_names)]
    return {"images": list(images.values()), "annotations": annotations, "categories": categories}


def _resized(part: Split, copy: _Copy) -> Split:
    """The split judged anew, where images are not of their declared size but their boxes lie on the true one."""
    images = list(part.images)
    for number, image in enumerate(images):
        kind = copy.broken.get(image.path)
        if image.size is None or kind not in ("swapped-size", "wrong-size"):
            continue
        true, corners = image_size(image.path), part.corners[part.owners == number]
        # Boxes that lie on the declared size as well may have been drawn on an image of that size.
        if _lie_on(corners, true) and (kind == "swapped-size" or not _lie_on(corners, image.size)):
            images[number] = image._replace(size=true)
    return Split(part.name, part.annotations, images)


def _scalable(declared: tuple[int, int], true: tuple[int, int], corners: np.ndarray) -> bool:
    """Whether the image was resized after it had been annotated: the same shape, and every box on the old size."""
    shape = true[1] * declared[0] / (true[0] * declared[1])
    return abs(shape - 1) < _SAME_SHAPE and _lie_on(corners, declared)


def _lie_on(corners: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether every box (n, 4) with an extent lies on an image of (height, width), a pixel over the edge allowed."""
    real = corners[np.isfinite(corners).all(1) & (corners[:, 2:] > corners[:, :2]).all(1)]
    return bool((real[:, :2] >= -1).all() and (real[:, 2:] <= (size[1] + 1, size[0] + 1)).all())


def _kept_rows(part: Split, copy: _Copy) -> list[list[int]]:
    """The sound boxes of each image, duplicates but once."""
    columns = part.annotations.boxes
    twice = {row for row, _ in duplicate_rows(part)[0]}
    for fault in part.faulty_boxes():
        copy.done.append(f"box left out: {fault.where}, {fault.reason}")
        copy.lost[fault.sentence] += 1
    for row in sorted(twice):
        copy.done.append(f"duplicate box left out: {columns.where(row)}")
    over = (np.abs(part.corners - part.boxes) > _ROUNDING).any(1) & (part.faulty == 0) & part.known
    copy.done += [f"box clipped: {columns.where(row)}" for row in np.flatnonzero(over).tolist()]
    rows: list[list[int]] = [[] for _ in part.images]
    for row in np.flatnonzero((part.faulty == 0) & part.known).tolist():
        if row not in twice:
            rows[part.owners[row]].append(row)
    return rows


def _fitted(
    path: Path, declared: tuple[int, int] | None, part: Split, rows: Sequence[int], copy: _Copy
) -> tuple[tuple[int, int], np.ndarray] | None:
    """The true size of an image and its boxes on it, or None where the image has to be left out."""
    kind, boxes = copy.broken.get(path), part.boxes[list(rows)]
    if declared is None or kind in ("missing-image", "unreadable-image"):
        copy.done.append(f"image left out: {path}, it is missing or cannot be read")
        return None
    if kind is None:
        return declared, boxes
    true = image_size(path)
    (old_height, old_width), (height, width) = declared, true
    if kind == "exif-rotation":
        copy.done.append(f"boxes turned with the EXIF rotation: {path}")
        return true, turned(boxes, exif_orientation(path), declared)
    if declared == true:  # judged anew
        what = "width and height swapped back" if kind == "swapped-size" else "declared size set right, boxes kept"
        copy.done.append(f"{what}: {path}")
        return true, boxes
    if kind == "wrong-size" and _scalable(declared, true, part.corners[list(rows)]):
        copy.done.append(f"boxes scaled with the image: {path}")
        return true, boxes * np.array([width / old_width, height / old_height] * 2)
    copy.done.append(f"image left out: {path}, its boxes do not fit its size")
    return None


def turned(boxes: np.ndarray, orientation: int, size: tuple[int, int]) -> np.ndarray:
    """Boxes (n, 4) of an image as it is stored, of ``size`` (height, width), on the upright image.

    Args:
        boxes: xyxy.
        orientation: EXIF orientation 5 to 8, those that swap the sides.
        size: of the stored image.
    """
    height, width = size
    x1, y1, x2, y2 = boxes.T
    left, right = (height - y2, height - y1) if orientation in (6, 7) else (y1, y2)
    top, bottom = (width - x2, width - x1) if orientation in (7, 8) else (x1, x2)
    return np.stack([left, top, right, bottom], axis=1)


def _annotation(part: Split, row: int, box: list[float]) -> dict[str, Any]:
    columns = part.annotations.boxes
    x1, y1, x2, y2 = box
    area = (x2 - x1) * (y2 - y1)
    annotated = float(columns.areas[row])
    if np.isfinite(annotated) and annotated > 0:  # scaled where the box was
        old = part.boxes[row]
        area *= annotated / float((old[2] - old[0]) * (old[3] - old[1]))
    return {
        "category_id": int(part.labels[row]) + 1,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": area,
        "iscrowd": int(part.ignore[row]),
    }


def _name(path: Path, home: Path) -> str:
    """The path of an image relative to the annotation file, absolute where they lie on different drives."""
    try:
        return os.path.relpath(path.resolve(), home.resolve()).replace(os.sep, "/")
    except ValueError:
        return str(path.resolve())
