"""What annotation files say, before it is checked: images, boxes as columns, and classes."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from retinanet.data.faults import Fault, Faults, name_list, short


class ImageEntry(NamedTuple):
    """An image as annotation files name it; size is (height, width), or None where they do not declare it."""

    path: Path
    image_id: int | str
    size: tuple[int, int] | None


class Box(NamedTuple):
    """An annotated box as a file has it.

    Attributes:
        xyxy: its corners.
        name: of its class.
        where: whose text is its place in the files, for messages.
        ignore: it is an ignore region.
        area: as annotated, NaN where there is none.
    """

    xyxy: Sequence[float]
    name: str
    where: object
    ignore: bool = False
    area: float = math.nan


@dataclass(frozen=True)
class BoxColumns:
    """The B boxes of a data set, as its files have them and not checked yet.

    Attributes:
        owners: (B,) which image each box belongs to.
        xyxy: (B, 4).
        labels: (B,) in [0, K).
        where: the place of a box in the files, for messages.
        ignore: (B,) bool.
        areas: (B,) annotated areas, NaN where there is none.
        relative: the boxes are fractions of the image's sides, not pixels.
        first_pixel: the number of the first pixel; with 1 (Pascal VOC) the last pixel belongs to the box.
    """

    owners: Sequence[int]
    xyxy: Sequence[Sequence[float]] | np.ndarray
    labels: Sequence[int]
    where: Callable[[int], str]
    ignore: Sequence[bool]
    areas: Sequence[float]
    relative: bool = False
    first_pixel: int = 0

    @classmethod
    def collect(cls, rows: Sequence[tuple[int, Box]], class_names: Sequence[str], **how: Any) -> BoxColumns:
        """The columns of boxes and their owners; ``how`` are other attributes.

        A box of none of the classes, which is a box that will be left out as faulty, is given the first one.
        """
        label_of = {name: label for label, name in enumerate(class_names)}
        return cls(
            owners=[owner for owner, _ in rows],
            xyxy=[box.xyxy for _, box in rows],
            labels=[label_of.get(box.name, 0) for _, box in rows],
            where=lambda row: str(rows[row][1].where),
            ignore=[box.ignore for _, box in rows],
            areas=[box.area for _, box in rows],
            **how,
        )


@dataclass(frozen=True)
class Annotations:
    """What the annotation files of one format say.

    Attributes:
        class_names: K names.
        category_ids: K ids, as COCO results name the classes; empty for 1 to K.
        images: all of them, those without objects too.
        boxes: of all images.
        source: reads an image by its id, (H, W, 3) uint8, where images are no files; their paths only name them.
    """

    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    images: Sequence[ImageEntry]
    boxes: BoxColumns
    source: Callable[[int | str], np.ndarray] | None = None


def select_classes(annotations: Annotations, wanted: Sequence[str] | None, faults: Faults) -> Annotations:
    """The annotations with the classes asked for, in that order; ids of classes without one follow the known ones.

    Raises:
        Fault: a class name stands twice; or a box is of a class not asked for, which is left out if ``faults`` returns.
    """
    declared, ids = annotations.class_names, annotations.category_ids
    names = tuple(declared if wanted is None else wanted)
    refuse_twins(declared)
    refuse_twins(names)
    spellings: dict[str, list[str]] = defaultdict(list)
    for name in names:
        spellings[_plain(name) or name].append(name)
    for same in (same for same in spellings.values() if len(same) > 1):
        faults(Fault("similar-classes", f"class {short(same[0])}", f"also spelled {name_list(same[1:])}"))
    if wanted is None:
        return replace(annotations, category_ids=ids or tuple(range(1, len(names) + 1)))

    id_of = dict(zip(declared, ids, strict=True)) if ids else {}
    free = max(ids, default=0) + 1
    new_ids = tuple(id_of.get(name, free + label) for label, name in enumerate(names))
    boxes, position = annotations.boxes, {name: label for label, name in enumerate(names)}
    labels = [position.get(declared[label], -1) for label in boxes.labels]
    for row in (row for row, label in enumerate(labels) if label < 0):
        name = declared[boxes.labels[row]]
        near = next((other for other in names if _plain(name) and _plain(other) == _plain(name)), None)
        hint = f"Did you mean {near!r}? " if near else ""
        reason = f"the model does not know the class {short(name)!r} (it knows {name_list(names)})"
        remedy = f"{hint}Take a model, or a training split, that has the class, or leave its boxes out."
        faults(Fault("undeclared-class", boxes.where(row), reason, remedy))
    rows = [row for row, label in enumerate(labels) if label >= 0]
    if len(rows) < len(labels):
        boxes = _select_rows(boxes, rows)
    boxes = replace(boxes, labels=[labels[row] for row in rows])
    return replace(annotations, class_names=names, category_ids=new_ids, boxes=boxes)


def refuse_twins(names: Sequence[str]) -> None:
    """Raise a fault where a class name stands twice."""
    name, count = Counter(names).most_common(1)[0] if names else ("", 1)
    if count > 1:
        reason = f"the class {short(name)} is declared {count} times: {name_list(names)}"
        raise Fault("class-names", "", reason, "Rename one.")


def _plain(name: str) -> str:
    """A class name without regard to capitals, blanks and marks."""
    return re.sub(r"[\W_]+", "", name.casefold())


def _select_rows(boxes: BoxColumns, rows: list[int]) -> BoxColumns:
    names = ("owners", "xyxy", "ignore", "areas")
    columns: dict[str, Any] = {name: [getattr(boxes, name)[row] for row in rows] for name in names}
    return replace(boxes, where=lambda row: boxes.where(rows[row]), **columns)


def declared_size(height: object, width: object, where: str, faults: Faults) -> tuple[int, int] | None:
    """(height, width) as an annotation declares it, or None where it does not (absent or 0).

    Raises:
        Fault: not whole positive numbers; where ``faults`` returns, the size counts as not declared.
    """
    if height in (None, "", 0, "0") or width in (None, "", 0, "0"):
        return None
    try:
        sides = float(height), float(width)  # type: ignore[arg-type]  # that is what is being found out
    except (TypeError, ValueError, OverflowError):
        sides = -1.0, -1.0
    if not all(0 < side < 2**31 and side == int(side) for side in sides):
        reason = f"width {short(width)} and height {short(height)} are not the size of an image"
        faults(Fault("bad-size", where, reason))
        return None
    return int(sides[0]), int(sides[1])
