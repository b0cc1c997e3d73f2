"""What every format must hold, checked in one place for a whole split at once."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from retinanet.data.annotations import Annotations, ImageEntry
from retinanet.data.faults import Fault, Faults, name_list, short
from retinanet.data.files import list_folder
from retinanet.errors import UserError
from retinanet.images.io import image_size
from retinanet.types import Sample, Target

MANY_OBJECTS = 100
"""Objects of an image that the usual limit of detections covers."""
LEAST_BOXES, OVER_EDGE_SHARE = 5, 0.3
"""From so many boxes on, this share of them over the edge is no accident."""

# Kind and description of what can be wrong with a box; 0 is a sound box.
_REASONS = (
    ("", ""),
    ("not-finite-box", "is not finite, in an image"),
    ("degenerate-box", "has x2 <= x1 or y2 <= y1, in an image"),
    ("outside-box", "lies wholly outside its image"),
    ("degenerate-box", "is too thin for an image"),
)


class Split:
    """One split, read and judged: its N images and B boxes, in pixels and clipped, and what is wrong with each box.

    Args:
        name: of the split, "" for a set without splits.
        annotations: what its files say.
        images: N, with their sizes, None where they cannot be known.

    Attributes:
        owners: (B,) int64, which image each box belongs to.
        labels: (B,) int64.
        ignore: (B,) bool.
        raw: (B, 4) float64 xyxy in pixels, counted as the files count them.
        corners: (B, 4) xyxy in pixels counted from 0, not clipped.
        boxes: (B, 4) the same clipped to the image.
        limits: (B, 4) width, height, width, height of the image; NaN where its size is not known.
        known: (B,) bool, the size of the image is known.
        faulty: (B,) index of what is wrong, 0 for a sound box.
        usable: (B,) bool, training takes the box as an object: it is neither faulty nor an ignore region.
    """

    def __init__(self, name: str, annotations: Annotations, images: list[ImageEntry]) -> None:
        self.name, self.annotations, self.images = name, annotations, images
        columns = annotations.boxes
        self.owners = np.asarray(columns.owners, dtype=np.int64)
        self.labels = np.asarray(columns.labels, dtype=np.int64)
        self.raw = np.asarray(columns.xyxy, dtype=np.float64).reshape(-1, 4)
        sizes = np.asarray([image.size or (np.nan, np.nan) for image in images], dtype=np.float64).reshape(-1, 2)
        self.limits = sizes[self.owners][:, [1, 0, 1, 0]]  # (B, 4): width, height, width, height
        with np.errstate(all="ignore"):  # NaN and overflow are what is looked for
            if columns.relative:
                self.raw = self.raw * self.limits
            self.corners = self.raw - np.array([columns.first_pixel, columns.first_pixel, 0, 0])
            self.boxes = np.clip(self.corners, 0, self.limits)
            self.faulty = _find_faulty(self.raw, self.boxes.astype(np.float32), self.limits)  # what training will see
        self.ignore = np.asarray(columns.ignore, dtype=bool)
        self.known = np.asarray(np.isfinite(self.limits).all(1))
        self.usable = self.known & (self.faulty == 0) & ~self.ignore

    def fault(self, kind: str, row: int, reason: str) -> Fault:
        """A fault of a box."""
        image, box = self.images[self.owners[row]].path, self.corners[row].tolist()
        return Fault(kind, self.annotations.boxes.where(row), reason, image=image, box=box)

    def faulty_boxes(self) -> list[Fault]:
        """The boxes that training leaves out."""
        faults = []
        for row in np.flatnonzero((self.faulty > 0) & self.known).tolist():
            kind, reason = _REASONS[self.faulty[row]]
            corners = ", ".join(f"{value:g}" for value in self.raw[row])
            width, height = self.limits[row, :2]
            faults.append(self.fault(kind, row, f"box ({corners}) {reason} of {width:.0f} x {height:.0f} pixels"))
        return faults

    def find_fractions(self) -> Fault | None:
        """Whether the numbers are fractions of the image's sides where they should be pixels."""
        columns = self.annotations.boxes
        raw = self.raw[np.isfinite(self.raw).all(1)]
        inside = (raw >= 0).all() and (raw <= 1).all() and (raw % 1 != 0).any()
        if columns.relative or columns.first_pixel or not len(raw) or not inside:
            return None
        reason = f"all {len(raw)} boxes lie within 1 x 1 pixel, so they seem to be fractions in place of pixels"
        return Fault("fractions", columns.where(0), reason)

    def doubtful_boxes(self) -> list[Fault]:
        """What the boxes as a whole suggest: corners in place of sides, more of them than usual."""
        faults = []
        over = (self.corners[:, 2:] > self.limits[:, 2:] + 1).any(1) & self.known
        # Width and height that are really x2 and y2 end where x1 + x2 and y1 + y2 are: over the edge for most boxes.
        if len(over) >= LEAST_BOXES and over.mean() > OVER_EDGE_SHARE:
            reason = f"{over.sum()} of {len(over)} boxes reach over the right or lower edge of their image"
            faults.append(Fault("corners", self.annotations.boxes.where(int(over.argmax())), reason))
        counts = np.bincount(self.owners[self.usable], minlength=len(self.images))
        if (many := int((counts > MANY_OBJECTS).sum())) and len(counts):
            image = self.images[int(counts.argmax())].path
            reason = f"{many} images hold more than {MANY_OBJECTS} objects, up to {counts.max()} ({image})"
            faults.append(Fault("many-objects", self.name, reason, image=image))
        return faults

    @property
    def sound_rows(self) -> np.ndarray:
        """(S,) rows of the boxes that samples have, by image."""
        keep = np.flatnonzero(self.faulty == 0)
        return keep[np.argsort(self.owners[keep], kind="stable")]

    def places(self) -> list[tuple[Path, list[str]]]:
        """The file of each image, and where the annotations of its sample stand, in the order of :meth:`samples`."""
        rows = self.sound_rows
        parts = np.split(rows, np.searchsorted(self.owners[rows], np.arange(1, len(self.images))))
        where = self.annotations.boxes.where
        return [
            (image.path, [where(row) for row in part.tolist()]) for image, part in zip(self.images, parts, strict=True)
        ]

    def samples(self) -> list[Sample]:
        """One sample per image with its sound boxes, clipped; each owns its memory."""
        keep = self.sound_rows
        boxes = self.boxes[keep]
        annotated = np.asarray(self.annotations.boxes.areas, dtype=np.float64)[keep]
        known = np.isfinite(annotated) & (annotated > 0)
        areas = np.where(known, annotated, (boxes[:, 2:] - boxes[:, :2]).prod(1))
        lengths = np.bincount(self.owners[keep], minlength=len(self.images)).tolist()
        columns = (boxes, self.labels[keep], self.ignore[keep], areas)
        split = (torch.from_numpy(column).split(lengths) for column in columns)
        return [
            # Cloned: a view would drag the boxes of the whole data set along wherever a sample is copied or saved.
            Sample(path, image_id, cast(tuple[int, int], size), Target(*map(Tensor.clone, rows)), area.clone())
            for (path, image_id, size), *rows, area in zip(self.images, *split, strict=True)
        ]


def _find_faulty(raw: np.ndarray, boxes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """(B,) index into ``_REASONS``, 0 for a sound box. Boxes are judged as the file has them (``raw``)."""
    flat = (raw[:, 2] <= raw[:, 0]) | (raw[:, 3] <= raw[:, 1])
    outside = (raw[:, :2] >= limits[:, :2]).any(1) | (raw[:, 2:] <= 0).any(1)
    thin = (boxes[:, 2] <= boxes[:, 0]) | (boxes[:, 3] <= boxes[:, 1])  # nothing left in float32
    return np.select([~np.isfinite(raw).all(1), flat, outside, thin], [1, 2, 3, 4], 0)


def judge_split(name: str, found: Annotations, faults: Faults) -> Split:
    """A split with the sizes of its images known and its boxes judged.

    Raises:
        Fault: images are missing or unreadable, an image id appears twice, or the boxes are fractions, unless
            ``faults`` returns.
    """
    images = size_images(found.images, faults) if found.source is None else list(found.images)
    part = Split(name, found, images)
    if fault := part.find_fractions():
        faults(fault)
        part = Split(name, replace(found, boxes=replace(found.boxes, relative=True)), part.images)
    for fault in part.doubtful_boxes():
        faults(fault)
    return part


def size_images(images: Sequence[ImageEntry], faults: Faults) -> list[ImageEntry]:
    """The images, with the undeclared sizes read from their headers; all ids have to differ and all files be there.

    Where ``faults`` returns, the images stay, and a size that cannot be known stays None.

    Raises:
        Fault: of the kinds duplicate-image-id, missing-image and unreadable-image, unless ``faults`` returns.
    """
    seen: dict[int | str, Path] = {}
    for image in images:
        first = seen.setdefault(image.image_id, image.path)
        if first is not image.path:
            reason = f"the image id {short(image.image_id)} stands for both {first} and {image.path}"
            faults(Fault("duplicate-image-id", "", reason, members=[image.path]))

    listed = cache(list_folder)
    missing = [path for path, *_ in images if os.path.basename(path) not in listed(os.path.dirname(path))]
    if missing:
        reason = f"{len(missing)} of {len(images)} images are missing: {name_list(missing, 3)}"
        remedy = "Put them there, or correct their names in the annotations."
        if any(re.match(r"[a-z][a-z0-9+.-]+:/", str(path)) for path in missing):
            remedy = "Images are not fetched from URLs: download them, and name them by path."
        faults(Fault("missing-image", "", reason, remedy, members=missing))

    absent = frozenset(missing)
    unknown = [number for number, image in enumerate(images) if image.size is None and image.path not in absent]
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


def image_fault(path: Path, error: Exception) -> Fault:
    """What a reader of images says about a file, as a fault."""
    reason, _, remedy = re.sub(r"\. (?=[A-Z])", "\0", str(error).removeprefix(f"{path}: "), count=1).partition("\0")
    return Fault("unreadable-image", path, reason.rstrip("."), remedy, members=[path], image=path)


def has_objects(samples: Sequence[Sample]) -> bool:
    """Whether any image has a box that is not an ignore region."""
    return any((~sample.target.ignore).any() for sample in samples)


def describe_wrong_size(sample: Sample, size: tuple[int, int]) -> str:
    """What to say of an image whose (height, width) is not the annotated one."""
    if size == sample.size[::-1]:
        hint = (
            "The sides are swapped: the annotation has width and height in the wrong order, or was made on the image "
            "without its EXIF rotation. Turn the boxes, or write the image anew upright."
        )
    else:
        hint = "The image was resized or exchanged since: annotate it anew, or put the original back."
    return (
        f"{sample.path}: the image is {size[1]} x {size[0]} pixels (width x height, upright), but it is annotated as "
        f"{sample.size[1]} x {sample.size[0]}. {hint}"
    )
