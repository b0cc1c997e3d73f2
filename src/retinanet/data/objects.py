"""Data sets of other libraries, whose images need not be files: a PyTorch ``Dataset`` or one of Hugging Face.

It takes the part of a format (:mod:`retinanet.data.formats`). Nothing is written to disk: an image is read from the
object whenever it is needed, so the object has to give the same each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.data.annotations import Annotations, Box, BoxColumns, ImageEntry
from retinanet.data.faults import Faults
from retinanet.errors import UserError, suggest
from retinanet.images.colours import SIDES_SWAPPED, read_orientation
from retinanet.images.io import image_size, to_array

LOOKED_FOR = "a data set object"
BACKGROUND = "__background__"  # torchvision's references count classes from 1 and call 0 so
IMAGE, OBJECTS = "image", "objects"  # columns of Hugging Face
BOXES, LABELS = ("bbox", "bboxes"), ("category", "categories", "label", "labels")  # in the column of the objects


@runtime_checkable
class AnnotatedImages(Protocol):
    """Annotated images of anybody, without augmentation.

    An item is ``(image, target)`` as torchvision's detection references have it, or a row of a Hugging Face data set.

    * The image is a picture of Pillow, an array (H, W, 3) or a tensor (3, H, W), uint8 RGB, or a tensor of floats in
      [0, 1], or a path.
    * The target is a mapping with ``boxes`` (M, 4) xyxy in pixels and ``labels`` (M,); ``iscrowd`` (M,), true for
      regions that count neither for nor against the model, and ``area`` (M,) may be there.
    * A row of Hugging Face has the columns ``image`` and ``objects``; those are ``bbox``, x, y, width and height in
      pixels, and ``category``, beside ``iscrowd`` and ``area``.

    The attribute ``class_names`` (or ``classes``) has the names in the order of their labels, from 0 on; where the
    first is ``__background__``, labels begin with 1. Of Hugging Face, the ``ClassLabel`` of the category has them.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


Data = str | Path | AnnotatedImages | Mapping[str, AnnotatedImages]  # a path; an object; objects by their splits


def is_object(data: object) -> bool:
    """Whether it is a data set object, or several by their splits; else it is a path.

    Raises:
        UserError: it is neither.
    """
    if isinstance(data, str | Path):
        return False
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        kind = type(data).__name__
        raise UserError(f"data is a path, or has __len__ and __getitem__ (see docs/how-to/notebook.md); got a {kind}")
    if isinstance(data, Mapping):
        if not data:
            raise UserError("data: the mapping holds no split; expected such as {'train': ..., 'val': ...}")
        for name in data:
            if not isinstance(name, str) or not name or set(name) & set("/\\[]"):
                raise UserError(f"data: a split is a name without slashes and brackets, got {name!r}")
    return True


def name_data(data: Data) -> str:
    """What data are called in messages and files: their path, or the type of the object."""
    return type(data).__name__ if is_object(data) else str(data)


def find_parts(data: Any) -> Mapping[str, AnnotatedImages]:
    """The data sets of a mapping; one alone under ""."""
    return data if isinstance(data, Mapping) else {"": data}


def read(data: Any, split: str | None, class_names: Sequence[str] | None, faults: Faults) -> Annotations:
    """The annotations of a data set object; every item is looked at once, for its boxes and the size of its image.

    Raises:
        UserError: an item is no annotated image; it is named.
    """
    parts = find_parts(data)
    if split is None and len(parts) > 1:
        raise UserError(f"{name_data(data)} holds {len(parts)} splits: {', '.join(parts)}. Name one")
    dataset: Any = parts[split] if split is not None else next(iter(parts.values()))
    name = Path(name_data(data), *([split] if split else []))
    names = _find_class_names(dataset, name)
    first = int(names[0] == BACKGROUND)
    images: list[ImageEntry] = []
    rows: list[tuple[int, Box]] = []
    for index in range(len(dataset)):
        where = f"{name}[{index}]"
        image, target = _split_item(dataset[index], where, names)
        xyxy = _column(target, "boxes", where).reshape(-1, 4)
        labels = _column(target, "labels", where, len(xyxy))
        if len(labels) and not first <= labels.min() <= labels.max() < len(names):
            raise UserError(
                f"{where}: labels go from {labels.min():g} to {labels.max():g}, and the {len(names)} class names are "
                f"for {first} to {len(names) - 1}"
            )
        images.append(ImageEntry(Path(where), index, _size(image, where)))
        crowd = _column(target, "iscrowd", where, len(xyxy), 0.0)
        area = _column(target, "area", where, len(xyxy), np.nan)
        for box, label, *other in zip(*(column.tolist() for column in (xyxy, labels, crowd, area)), strict=True):
            rows.append((index, Box(box, names[int(label)], where, bool(other[0]), other[1])))
    classes = tuple(names[first:])
    return Annotations(classes, (), images, BoxColumns.collect(rows, classes), partial(_read_image, dataset))


def read_item(data: Data, path: Path) -> Path | NDArray[np.uint8]:
    """What a reader of images takes for an image of a data set: its path; of an object (H, W, 3) uint8 RGB."""
    if not is_object(data):
        return path
    name, _, index = path.name.removesuffix("]").rpartition("[")
    return _read_image(data[name] if isinstance(data, Mapping) else data, index)  # type: ignore[arg-type]  # an object


def _read_image(dataset: AnnotatedImages, index: int | str) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB of an item."""
    item, where = dataset[int(index)], f"{type(dataset).__name__}[{index}]"
    image = item[IMAGE] if isinstance(item, Mapping) else item[0]
    if "float" in str(getattr(image, "dtype", "")):
        low, high = float(image.min()), float(image.max())
        if not 0 <= low <= high <= 1:
            raise UserError(
                f"{where}: an image of floats is in [0, 1], this one in [{low:g}, {high:g}]; do not normalise it"
            )
        image = (image * 255).round()
        image = image.astype(np.uint8) if isinstance(image, np.ndarray) else image.byte()
    try:
        return to_array(image)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _size(image: Any, where: str) -> tuple[int, int]:
    """(height, width), upright; a picture need not be decoded."""
    if isinstance(image, str | Path):
        return image_size(image)
    if isinstance(image, Image.Image):
        width, height = image.size
        return (width, height) if read_orientation(image) in SIDES_SWAPPED else (height, width)
    shape = tuple(getattr(image, "shape", ()))
    if len(shape) != 3:
        raise UserError(f"{where}: expected an image, got {type(image).__name__} of shape {shape}")
    return shape[:2] if isinstance(image, np.ndarray) else shape[1:]


def _split_item(item: Any, where: str, names: Sequence[str]) -> tuple[Any, Mapping[str, Any]]:
    """The image and the target of an item, boxes as xyxy and labels as numbers."""
    if isinstance(item, tuple | list) and len(item) == 2 and isinstance(item[1], Mapping):
        return item[0], item[1]
    if not isinstance(item, Mapping) or not {IMAGE, OBJECTS} <= set(item):
        raise UserError(
            f"{where}: expected (image, target) with a mapping as target, or a row with the columns {IMAGE} and "
            f"{OBJECTS}"
        )
    rows = item[OBJECTS]
    if not isinstance(rows, Mapping):  # a list of objects
        rows = {key: [row[key] for row in rows] for key in (rows[0] if len(rows) else ())}
    boxes, labels = (next((rows[key] for key in keys if key in rows), None) for keys in (BOXES, LABELS))
    if (boxes is None or labels is None) and len(rows):
        raise UserError(f"{where}: its {OBJECTS} have {', '.join(rows)}; expected {BOXES[0]} and {LABELS[0]}")
    xywh = np.asarray([] if boxes is None else boxes, dtype=np.float64).reshape(-1, 4)
    numbers = [_find_label(label, names, where) for label in ([] if labels is None else labels)]
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    return item[IMAGE], {**rows, "boxes": xyxy, "labels": numbers}


def _find_label(label: Any, names: Sequence[str], where: str) -> Any:
    """A label as a number; it may be the name of a class."""
    if not isinstance(label, str):
        return label
    if label not in names:
        raise UserError(f"{where}: the class {label!r} is not among the class names{suggest(label, names)}")
    return names.index(label)


def _column(
    target: Mapping[str, Any], key: str, where: str, count: int | None = None, default: float | None = None
) -> NDArray[np.float64]:
    """A column of a target as float64, of ``count`` rows."""
    if key not in target:
        if default is None or count is None:
            raise UserError(f"{where}: the target has no {key!r}, only {', '.join(map(str, target))}")
        return np.full(count, default)
    try:
        values = np.asarray(target[key], dtype=np.float64)
    except (TypeError, ValueError):
        raise UserError(f"{where}: {key} are no numbers: {target[key]!r}") from None
    if (count is None and values.size % 4) or (count is not None and values.shape != (count,)):
        raise UserError(
            f"{where}: {key} have the shape {values.shape}; expected {'(M, 4)' if count is None else (count,)}"
        )
    return values


def _find_class_names(dataset: Any, name: Path) -> list[str]:
    """From an attribute, of the set or of one that it wraps as ``Subset`` does, or from the features of its columns."""
    for one in _wrapped(dataset):
        names = getattr(one, "class_names", None) or getattr(one, "classes", None)
        names = names or _find_names((getattr(one, "features", None) or {}).get(OBJECTS))
        if names:
            return list(map(str, names))
    raise UserError(
        f"{name} does not say what its classes are called. Set them, in the order of the labels: dataset.class_names = "
        '["cell", "rod"]'
    )


def _wrapped(dataset: Any) -> Iterator[Any]:
    while dataset is not None:
        yield dataset
        dataset = getattr(dataset, "dataset", None) or next(iter(getattr(dataset, "datasets", ())), None)


def _find_names(feature: Any) -> list[str] | None:
    """The names of the ``ClassLabel`` in a feature of Hugging Face, at whatever depth."""
    if isinstance(feature, Mapping):
        return next(filter(None, (_find_names(feature[key]) for key in LABELS if key in feature)), None)
    if isinstance(feature, list | tuple):
        return _find_names(feature[0])
    return getattr(feature, "names", None) or (
        _find_names(feature.feature) if getattr(feature, "feature", None) is not None else None
    )
