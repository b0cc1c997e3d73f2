"""What every format must hold, checked in one place for a whole data set at once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from retinanet.data.faults import Fault, Faults, refuse
from retinanet.data.files import listing
from retinanet.errors import UserError
from retinanet.images.io import image_size
from retinanet.types import Sample, Target


class ImageEntry(NamedTuple):
    """An image as annotation files name it; size is (height, width), or None where they do not declare it."""

    path: Path
    image_id: int | str
    size: tuple[int, int] | None


@dataclass(frozen=True)
class BoxColumns:
    """The B boxes of a data set, as its files have them and not checked yet.

    Attributes:
        owners: (B,) which image each box belongs to.
        xyxy: (B, 4).
        labels: (B,) in [0, K).
        where: the place of a box in the files, for messages.
        ignore: (B,) bool, or None for none.
        areas: (B,) annotated areas, NaN where there is none, or None for none at all.
        relative: the boxes are fractions of the image's sides, not pixels.
        first_pixel: the number of the first pixel; with 1 (Pascal VOC) the last pixel belongs to the box.
    """

    owners: Sequence[int]
    xyxy: Sequence[Sequence[float]] | np.ndarray
    labels: Sequence[int]
    where: Callable[[int], str]
    ignore: Sequence[bool] | None = None
    areas: Sequence[float] | None = None
    relative: bool = False
    first_pixel: int = 0


@dataclass(frozen=True)
class Annotations:
    """What the annotation files of one format say.

    Attributes:
        class_names: K names.
        category_ids: K ids, as COCO results name the classes.
        images: all of them, those without objects too.
        boxes: of all images.
        notes: what was left out already, a message each.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: Sequence[ImageEntry]
    boxes: BoxColumns
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class JudgedBoxes:
    """The B boxes of a data set and what is wrong with each.

    Attributes:
        owners: (B,) int64, which image each box belongs to.
        raw: (B, 4) float64 xyxy in pixels, counted as the files count them.
        boxes: (B, 4) float64 xyxy in pixels counted from 0, clipped to the image.
        limits: (B, 4) width, height, width, height of the image; NaN where its size is not known.
        reasons: (B,) index into ``REASONS``, 0 for a sound box.
    """

    owners: np.ndarray
    raw: np.ndarray
    boxes: np.ndarray
    limits: np.ndarray
    reasons: np.ndarray

    def message(self, row: int) -> str:
        """What is wrong with a box, in words."""
        corners = ", ".join(f"{value:g}" for value in self.raw[row])
        width, height = self.limits[row, :2]
        return f"box ({corners}) {REASONS[self.reasons[row]]} of {width:.0f} x {height:.0f} pixels"


def checked_samples(found: Annotations, *, strict: bool = False) -> tuple[list[Sample], tuple[str, ...]]:
    """The samples, and a message for everything that was left out.

    Boxes that reach over the edge are clipped. Boxes that are not finite, have x2 <= x1 or y2 <= y1, or lie wholly
    outside their image are left out; their images stay.

    Args:
        found: the annotations of one format.
        strict: refuse with the first such box instead.

    Raises:
        UserError: images are missing or unreadable, an image id appears twice, or ``strict`` and something is wrong.
    """
    images = sized_images(found.images)
    judged = judge_boxes(found.boxes, images)
    skipped = [*found.notes]
    for row in np.flatnonzero(judged.reasons).tolist():
        skipped.append(f"{found.boxes.where(row)}: {judged.message(row)}")
    if skipped and strict:
        raise UserError(f"{skipped[0]}. Fix it, or leave out strict and it is left out ({len(skipped)} in all).")
    keep = np.flatnonzero(judged.reasons == 0)
    keep = keep[np.argsort(judged.owners[keep], kind="stable")]
    return _samples(images, found.boxes, judged.boxes[keep], keep), tuple(skipped)


def sized_images(images: Sequence[ImageEntry], faults: Faults = refuse) -> list[ImageEntry]:
    """The images, with the undeclared sizes read from their headers; all ids have to differ and all files be there.

    Where ``faults`` returns, the images stay, and a size that cannot be known stays None.

    Raises:
        Fault: of the kinds duplicate-image-id, missing-image and unreadable-image, unless ``faults`` returns.
    """
    _find_duplicates(images, faults)
    missing = _find_missing([image.path for image in images], faults)

    unknown = [number for number, image in enumerate(images) if image.size is None and image.path not in missing]
    sized = list(images)
    with ThreadPoolExecutor(8) as pool:
        for number, size in zip(unknown, pool.map(_read_size, [images[n].path for n in unknown]), strict=True):
            if isinstance(size, Fault):
                faults(size)
            else:
                sized[number] = images[number]._replace(size=size)
    return sized


def _read_size(path: Path) -> tuple[int, int] | Fault:
    try:
        return image_size(path)
    except UserError as error:
        return image_fault(path, error)


def image_fault(path: Path, error: UserError) -> Fault:
    """What a reader of images says about a file, as a fault."""
    reason, _, remedy = re.sub(r"\. (?=[A-Z])", "\0", str(error).removeprefix(f"{path}: "), count=1).partition("\0")
    return Fault("unreadable-image", str(path), reason.rstrip("."), remedy, members=[path])


def judge_boxes(columns: BoxColumns, images: Sequence[ImageEntry]) -> JudgedBoxes:
    """The boxes in pixels, clipped to their images, and what is wrong with each. Unknown sizes count as NaN."""
    owners = np.asarray(columns.owners, dtype=np.int64)
    raw = np.asarray(columns.xyxy, dtype=np.float64).reshape(-1, 4)
    sizes = np.asarray([image.size or (np.nan, np.nan) for image in images], dtype=np.float64).reshape(-1, 2)
    limits = sizes[owners][:, [1, 0, 1, 0]]  # (B, 4): width, height, width, height
    with np.errstate(all="ignore"):  # NaN and overflow are what is looked for
        if columns.relative:
            raw = raw * limits
        shift = np.array([columns.first_pixel, columns.first_pixel, 0, 0])
        boxes = np.clip(raw - shift, 0, limits)
        reasons = _reasons(raw, boxes.astype(np.float32), limits)  # what training will see
    return JudgedBoxes(owners, raw, boxes, limits, reasons)


def declared_size(height: object, width: object, where: str) -> tuple[int, int] | None:
    """(height, width) as an annotation declares it, or None where it does not (absent or 0).

    Raises:
        Fault: not whole positive numbers.
    """
    if height in (None, "", 0, "0") or width in (None, "", 0, "0"):
        return None
    try:
        sides = float(height), float(width)  # type: ignore[arg-type]  # that is what is being found out
    except (TypeError, ValueError, OverflowError):
        sides = -1.0, -1.0
    if not all(0 < side < 2**31 and side == int(side) for side in sides):
        reason = f"width {short(width)} and height {short(height)} are not the size of an image"
        raise Fault("bad-size", where, reason, "Expected whole positive numbers of pixels.")
    return int(sides[0]), int(sides[1])


def size_or_none(height: object, width: object, where: str, faults: Faults) -> tuple[int, int] | None:
    """As ``declared_size``, but a wrong declaration goes to ``faults``, and counts as none where that returns."""
    try:
        return declared_size(height, width, where)
    except Fault as fault:
        faults(fault)
        return None


def label_lookup(declared: Sequence[str], wanted: Sequence[str] | None) -> tuple[tuple[str, ...], list[int | None]]:
    """The class names in the order asked for, and for each declared class its label among them (None: not asked for).

    Raises:
        Fault: a class name stands twice.
    """
    names = tuple(declared if wanted is None else wanted)
    for listed in (declared, names):
        name, count = Counter(listed).most_common(1)[0] if listed else ("", 1)
        if count > 1:
            reason = f"the class {short(name)} is declared {count} times: {name_list(listed)}"
            raise Fault("class-names", "", reason, "Rename one.")
    position = {name: label for label, name in enumerate(names)}
    return names, [position.get(name) for name in declared]


def name_list(names: Sequence[object], limit: int = 12) -> str:
    """Names for a message, shortened when there are many."""
    shown = ", ".join(short(name, 200) for name in names[:limit])
    return f"{shown}, ... ({len(names)} in all)" if len(names) > limit else shown or "none"


def short(value: object, limit: int = 60) -> str:
    """A value of a file for a message: on one line, of bounded length, and harmless on a terminal."""
    text = str(value) if value is None or isinstance(value, str | int | float | Path) else f"a {type(value).__name__}"
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= limit else text[:limit] + "..."


def _find_duplicates(images: Sequence[ImageEntry], faults: Faults) -> None:
    if len({image.image_id for image in images}) == len(images):
        return
    seen: dict[int | str, Path] = {}
    for image in images:
        first = seen.setdefault(image.image_id, image.path)
        if first is not image.path:
            reason = f"the image id {short(image.image_id)} stands for both {first} and {image.path}"
            remedy = "Every image needs an id of its own; where they are of two splits, name one split."
            faults(Fault("duplicate-image-id", "", reason, remedy, members=[image.path]))


def _find_missing(paths: Sequence[Path], faults: Faults) -> frozenset[Path]:
    """The images that are not there, as one fault; each folder is listed once."""
    present: dict[str, frozenset[str]] = {}
    missing = []
    for path in paths:
        folder, name = os.path.split(path)
        if folder not in present:
            present[folder] = listing(folder)
        if name not in present[folder]:
            missing.append(path)
    if missing:
        reason = f"{len(missing)} of {len(paths)} images are missing: {name_list(missing, 3)}"
        faults(Fault("missing-image", "", reason, "Put them there, or remove their annotations.", members=missing))
    return frozenset(missing)


REASONS = (
    "",
    "is not finite, in an image",
    "has x2 <= x1 or y2 <= y1, in an image",
    "lies wholly outside its image",
    "is too thin for an image",
)


def _reasons(raw: np.ndarray, boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(B,) index into ``REASONS``, 0 for a sound box. Boxes are judged as the file has them (``raw``)."""
    flat = (raw[:, 2] <= raw[:, 0]) | (raw[:, 3] <= raw[:, 1])
    outside = (raw[:, :2] >= limits[:, :2]).any(1) | (raw[:, 2:] <= 0).any(1)
    thin = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])  # nothing left in float32
    return np.select([~np.isfinite(raw).all(1), flat, outside, thin], [1, 2, 3, 4], 0)


def _samples(images: list[ImageEntry], columns: BoxColumns, boxes: np.ndarray, keep: np.ndarray) -> list[Sample]:
    """The sound boxes, (len(keep), 4) sorted by image, cut into one sample per image."""
    sides = boxes[:, 2:] - boxes[:, :2]
    areas = sides[:, 0] * sides[:, 1]
    if columns.areas is not None:
        with np.errstate(all="ignore"):
            annotated = np.asarray(columns.areas, dtype=np.float64)[keep]
        areas = np.where(np.isfinite(annotated) & (annotated > 0), annotated, areas)
    ignore = np.zeros(len(keep), bool) if columns.ignore is None else np.asarray(columns.ignore, dtype=bool)[keep]
    labels = np.asarray(columns.labels, dtype=np.int64)[keep]
    lengths = np.bincount(np.asarray(columns.owners, dtype=np.int64)[keep], minlength=len(images)).tolist()
    split = (torch.from_numpy(column).split(lengths) for column in (boxes, labels, ignore, areas))
    return [
        # Cloned: a view would drag the boxes of the whole data set along wherever a sample is copied or saved.
        Sample(path, image_id, cast(tuple[int, int], size), Target(*map(Tensor.clone, rows)), area.clone())
        for (path, image_id, size), *rows, area in zip(images, *split, strict=True)
    ]
