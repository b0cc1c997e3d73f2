"""COCO JSON: one file per split, in the layout of COCO itself, of Roboflow, or a file on its own.

Category ids may be any whole numbers; labels are their order. ``iscrowd`` objects become ignore regions. Image ids and
annotated areas are kept as they are, because COCO results and metrics go by them.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.data.check import Annotations, BoxColumns, ImageEntry, declared_size, label_lookup, name_list, short
from retinanet.data.files import ImageFinder, files_in, name_splits, read_text, split_folders, split_word, sub_folders
from retinanet.types import UserError

LOOKED_FOR = "COCO: a .json file, or a folder with annotations/*.json, *.json or <split>/_annotations.coco.json"

# What COCO ships in the same folder that is not about boxes of things.
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")

_USUAL_NAMES = ("_annotations.coco.json", "annotations.json")


@dataclass(frozen=True)
class _File:
    """One JSON file; image rows and annotations in the order of the file."""

    path: Path
    categories: dict[int, str]
    images: list[ImageEntry]
    annotations: list[dict[str, Any]]


def splits(path: Path) -> tuple[str, ...] | None:
    """The splits that the file names speak of, () where they do not, None where this is not COCO."""
    files = _json_files(path)
    return None if files is None else tuple(name for name in files if name)


def read(path: Path, split: str | None = None, class_names: Sequence[str] | None = None) -> Annotations:
    """The annotations of one split, or of all files together.

    Raises:
        UserError: JSON that is broken or lacks something, a category that is not declared or not in ``class_names``.
    """
    known = _json_files(path) or {}
    files = [_read_file(file, name) for name, file in known.items() if split in (None, name)]
    categories = _merged_categories(files)
    ids = sorted(categories)
    names, labels = label_lookup([categories[key] for key in ids], class_names)
    label_of = dict(zip(ids, labels, strict=True))
    id_of = {label: key for key, label in label_of.items()}
    unused = max(ids, default=0) + 1  # classes asked for that the file does not know get ids behind its own
    columns = [_columns(file, label_of, names) for file in files]
    starts = np.cumsum([0, *(len(file.images) for file in files)])
    annotations = [(file, number) for file in files for number in range(len(file.annotations))]
    return Annotations(
        class_names=names,
        category_ids=tuple(id_of.get(label, unused + label) for label in range(len(names))),
        images=[image for file in files for image in file.images],
        boxes=BoxColumns(
            owners=[owner + int(start) for part, start in zip(columns, starts, strict=False) for owner in part.owners],
            xyxy=np.concatenate([part.boxes for part in columns]),
            labels=[label for part in columns for label in part.labels],
            where=lambda row: _place(*annotations[row]),
            ignore=[crowd for part in columns for crowd in part.crowds],
            areas=[area for part in columns for area in part.areas],
        ),
    )


def _json_files(path: Path) -> dict[str, Path] | None:
    """The JSON file of each split; under "" where the name of an only file speaks of none."""
    if path.is_file():
        return {split_word(path.stem) or "": path} if path.suffix.lower() == ".json" else None
    for folder in (path / "annotations", path / "Annotations", path):
        files = [file for file in files_in(folder, (".json",)) if not file.name.startswith(_OTHER_TASKS)]
        instances = [file for file in files if file.name.startswith("instances")]
        found = instances or [file for file in files if _is_coco(file)]
        if found:
            return name_splits(found)
    parts = {}
    for folder in split_folders(path):
        found = [file for file in files_in(folder, (".json",)) if _is_coco(file)]
        if len(found) > 1:
            raise UserError(f"{folder}: holds {len(found)} COCO files ({name_list(found)}). Leave one of them there.")
        if found:
            parts[folder.name] = found[0]
    return parts or None


def _is_coco(file: Path) -> bool:
    """Whether the name says so, or the keys of COCO stand in the file: searched, not parsed, it may hold gigabytes."""
    if file.name in _USUAL_NAMES:
        return True
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(b'"images"') >= 0 or content.find(b'"annotations"') >= 0
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _read_file(path: Path, split: str) -> _File:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}, line {error.lineno}, column {error.colno}: broken JSON ({error.msg}). Mend or export it anew."
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise UserError(f"{path}: cannot be read as JSON ({error}). Export the file anew.") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}. Expected an object with images and annotations.")
    finder = ImageFinder(_image_folders(path, split))
    return _File(
        path=path,
        categories=_categories(path, _entries(path, content, "categories")),
        images=[
            _image(entry, f"{path}, image {short(entry.get('id', f'number {number}'))}", finder)
            for number, entry in enumerate(_entries(path, content, "images"), 1)
        ],
        annotations=_entries(path, content, "annotations"),
    )


def _image_folders(path: Path, split: str) -> list[Path]:
    """Where the images of a file may lie, the likeliest place first."""
    home = path.parent
    root = home.parent if home.name.lower() == "annotations" else home
    full = path.stem.removeprefix("instances_")  # train2017
    named = [name for name in (full, split, f"{split}2017", f"{split}2014") if name and split]
    likely = [place / name for name in named for place in (root / "images", root)]
    return [home, home / "images", *likely, root / "images", root, *sub_folders(root / "images"), *sub_folders(root)]


def _entries(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects under a key of the file."""
    entries = content.get(key)
    if not isinstance(entries, list):
        what = f"is a {type(entries).__name__}" if key in content else "is missing"
        raise UserError(f"{path}: {key!r} {what}. Expected a list of objects, as COCO detection files have.")
    wrong = next((number for number, entry in enumerate(entries, 1) if not isinstance(entry, dict)), None)
    if wrong is not None:
        kind = type(entries[wrong - 1]).__name__
        raise UserError(f"{path}: entry number {wrong} of {key!r} is a {kind}. Expected an object.")
    return entries


def _categories(path: Path, entries: list[dict[str, Any]]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for number, entry in enumerate(entries, 1):
        key, name = entry.get("id"), entry.get("name")
        if not isinstance(key, int) or isinstance(key, bool) or not isinstance(name, str | int) or str(name) == "":
            raise UserError(f"{path}, category number {number}: expected an id that is a whole number, and a name.")
        if key in categories:
            raise UserError(
                f"{path}: the category id {key} stands twice ({categories[key]}, {name}). Expected one of each."
            )
        categories[key] = str(name)
    return categories


def _image(entry: dict[str, Any], where: str, finder: ImageFinder) -> ImageEntry:
    key, name = entry.get("id"), entry.get("file_name")
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise UserError(f"{where}: expected an id that is a whole number or a text.")
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: has no 'file_name'. Expected the name of its image file.")
    return ImageEntry(finder.find(name), key, declared_size(entry.get("height"), entry.get("width"), where))


def _merged_categories(files: list[_File]) -> dict[int, str]:
    merged: dict[int, str] = {}
    for file in files:
        for key, name in file.categories.items():
            if merged.setdefault(key, name) != name:
                raise UserError(
                    f"{file.path}: category {key} is {name!r}, but {merged[key]!r} in {files[0].path}. Name one split."
                )
    return merged


@dataclass(frozen=True)
class _Columns:
    owners: list[int]
    boxes: np.ndarray
    labels: list[int]
    crowds: list[bool]
    areas: list[float]


def _columns(file: _File, label_of: dict[int, int | None], names: tuple[str, ...]) -> _Columns:
    """The annotations of a file as columns: all at once, and one by one only if that fails, to name the faulty one."""
    owner_of = {image.image_id: number for number, image in enumerate(file.images)}
    try:
        labels = [label_of[entry["category_id"]] for entry in file.annotations]
        if None in labels:
            raise ValueError
        xywh = np.array([entry["bbox"] for entry in file.annotations], dtype=np.float64)
        if file.annotations and xywh.shape != (len(file.annotations), 4):
            raise ValueError
        xywh = xywh.reshape(-1, 4)
        return _Columns(
            owners=[owner_of[entry["image_id"]] for entry in file.annotations],
            boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
            labels=labels,  # type: ignore[arg-type]  # None was refused above
            crowds=[bool(entry.get("iscrowd")) for entry in file.annotations],
            areas=[float("nan") if (area := entry.get("area")) is None else float(area) for entry in file.annotations],
        )
    except (KeyError, TypeError, ValueError, OverflowError):
        for number in range(len(file.annotations)):
            _refuse_fault(file, number, owner_of, label_of, names)
        raise UserError(f"{file.path}: its annotations do not have the form of COCO. Export the file anew.") from None


def _refuse_fault(
    file: _File, number: int, owner_of: dict[int | str, int], label_of: dict[int, int | None], names: tuple[str, ...]
) -> None:
    """Refuses the annotation if something is wrong with it."""
    entry = file.annotations[number]
    where = _place(file, number)
    category, image = entry.get("category_id"), entry.get("image_id")
    if not isinstance(category, int) or category not in label_of:
        declared = ", ".join(f"{key} {name}" for key, name in sorted(file.categories.items())[:12])
        raise UserError(f"{where}: category id {short(category)} is not declared. Declared are: {declared or 'none'}.")
    if label_of[category] is None:
        raise UserError(f"{where}: its class {file.categories[category]!r} is not among {name_list(names)}.")
    if not isinstance(image, int | str) or image not in owner_of:
        raise UserError(f"{where}: image id {short(image)} is not among the images of the file. Remove the annotation.")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        raise UserError(f"{where}: 'bbox' is {box!s:.80}. Expected four numbers: x, y, width, height.")
    if entry.get("area") is not None and not _is_number(entry["area"]):
        raise UserError(f"{where}: 'area' is {short(entry['area'])}. Expected a number.")


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # that is what is being found out
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _place(file: _File, number: int) -> str:
    return f"{file.path}, annotation {short(file.annotations[number].get('id', f'number {number + 1}'))}"
