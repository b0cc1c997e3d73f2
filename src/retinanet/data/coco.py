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

from retinanet.data.check import Annotations, BoxColumns, ImageEntry, label_lookup, name_list, short, size_or_none
from retinanet.data.faults import Fault, Faults, refuse
from retinanet.data.files import ImageFinder, files_in, name_splits, read_text, split_folders, split_word, sub_folders

LOOKED_FOR = "COCO: a .json file, or a folder with annotations/*.json, *.json or <split>/_annotations.coco.json"

# What COCO ships in the same folder that is not about boxes of things.
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")

_USUAL_NAMES = ("_annotations.coco.json", "annotations.json")


@dataclass(frozen=True)
class _File:
    """One JSON file; image rows and annotations in the order of the file, None for what is no object."""

    path: Path
    categories: dict[int, str]
    images: list[ImageEntry]
    faulty_ids: frozenset[object]  # of images that were left out
    annotations: list[dict[str, Any] | None]


def splits(path: Path) -> tuple[str, ...] | None:
    """The splits that the file names speak of, () where they do not, None where this is not COCO."""
    files = _json_files(path)
    return None if files is None else tuple(name for name in files if name)


def read(
    path: Path, split: str | None = None, class_names: Sequence[str] | None = None, faults: Faults = refuse
) -> Annotations:
    """The annotations of one split, or of all files together.

    Raises:
        Fault: JSON that is broken or lacks something, a category that is not declared or not in ``class_names``. Where
            ``faults`` returns, images and annotations that are faulty are left out.
    """
    known = _json_files(path) or {}
    files = [_read_file(file, name, faults) for name, file in known.items() if split in (None, name)]
    categories = _merged_categories(files)
    ids = sorted(categories)
    names, labels = label_lookup([categories[key] for key in ids], class_names)
    label_of = dict(zip(ids, labels, strict=True))
    id_of = {label: key for key, label in label_of.items()}
    unused = max(ids, default=0) + 1  # classes asked for that the file does not know get ids behind its own
    columns = [_columns(file, label_of, names, faults) for file in files]
    starts = np.cumsum([0, *(len(file.images) for file in files)])
    annotations = [(file, n) for file, part in zip(files, columns, strict=True) for n in part.numbers]
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
            reason = f"holds {len(found)} COCO files ({name_list(found)})"
            raise Fault("broken-file", str(folder), reason, "Leave one of them there.")
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except Fault:
        raise
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise Fault("broken-file", where, f"broken JSON ({error.msg})", "Fix or export it anew.") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise Fault("broken-file", str(path), f"cannot be read as JSON ({error})", "Export the file anew.") from None
    if not isinstance(content, dict):
        remedy = "Expected an object with images and annotations."
        raise Fault("broken-file", str(path), f"holds a {type(content).__name__}", remedy)
    return content


def _read_file(path: Path, split: str, faults: Faults) -> _File:
    content = _read_json(path)
    finder = ImageFinder(_image_folders(path, split))
    categories = _categories(path, _entries(path, content, "categories", faults))
    images: list[ImageEntry] = []
    faulty: set[object] = set()
    for number, entry in enumerate(_entries(path, content, "images", faults), 1):
        if entry is None:
            continue
        where = f"{path}, image {short(entry.get('id', f'number {number}'))}"
        try:
            images.append(_image(entry, where, finder, faults))
        except Fault as fault:
            faults(fault)
            faulty.update(key for key in (entry.get("id"),) if isinstance(key, int | str))
    annotations = _entries(path, content, "annotations", faults)
    return _File(path, categories, images, frozenset(faulty), annotations)


def _image_folders(path: Path, split: str) -> list[Path]:
    """Where the images of a file may lie, the likeliest place first."""
    home = path.parent
    root = home.parent if home.name.lower() == "annotations" else home
    full = path.stem.removeprefix("instances_")  # train2017
    named = [name for name in (full, split, f"{split}2017", f"{split}2014") if name and split]
    likely = [place / name for name in named for place in (root / "images", root)]
    return [home, home / "images", *likely, root / "images", root, *sub_folders(root / "images"), *sub_folders(root)]


def _entries(path: Path, content: dict[str, Any], key: str, faults: Faults) -> list[dict[str, Any] | None]:
    """A list of objects under a key of the file, None in place of what is none."""
    entries = content.get(key)
    if not isinstance(entries, list):
        what = f"is a {type(entries).__name__}" if key in content else "is missing"
        remedy = "Expected a list of objects, as COCO detection files have."
        raise Fault("broken-file", str(path), f"{key!r} {what}", remedy)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            reason = f"entry number {number} of {key!r} is a {type(entry).__name__}"
            faults(Fault("broken-annotation", str(path), reason, "Expected an object."))
    return [entry if isinstance(entry, dict) else None for entry in entries]


def _categories(path: Path, entries: list[dict[str, Any] | None]) -> dict[int, str]:
    categories: dict[int, str] = {}
    for number, entry in enumerate(entries, 1):
        key, name = (entry or {}).get("id"), (entry or {}).get("name")
        if not isinstance(key, int) or isinstance(key, bool) or not isinstance(name, str | int) or str(name) == "":
            where = f"{path}, category number {number}"
            raise Fault("class-names", where, "expected an id that is a whole number, and a name", "Fix the entry.")
        if key in categories:
            reason = f"the category id {key} stands twice ({categories[key]}, {name})"
            raise Fault("class-names", str(path), reason, "Expected one of each.")
        categories[key] = str(name)
    return categories


def _image(entry: dict[str, Any], where: str, finder: ImageFinder, faults: Faults) -> ImageEntry:
    key, name = entry.get("id"), entry.get("file_name")
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise Fault("broken-annotation", where, "expected an id that is a whole number or a text", "Fix the entry.")
    if not isinstance(name, str) or not name:
        raise Fault("broken-annotation", where, "has no 'file_name'", "Expected the name of its image file.")
    return ImageEntry(finder.find(name), key, size_or_none(entry.get("height"), entry.get("width"), where, faults))


def _merged_categories(files: list[_File]) -> dict[int, str]:
    merged: dict[int, str] = {}
    for file in files:
        for key, name in file.categories.items():
            if merged.setdefault(key, name) != name:
                reason = f"category {key} is {name!r}, but {merged[key]!r} in {files[0].path}"
                raise Fault("class-names", str(file.path), reason, "Name one split.")
    return merged


@dataclass(frozen=True)
class _Columns:
    numbers: Sequence[int]  # their positions in the file
    owners: list[int]
    boxes: np.ndarray
    labels: list[int]
    crowds: list[bool]
    areas: list[float]


def _columns(file: _File, label_of: dict[int, int | None], names: tuple[str, ...], faults: Faults) -> _Columns:
    """The annotations of a file as columns: all at once, and one by one only if that fails, to name the faulty ones."""
    owner_of = {image.image_id: number for number, image in enumerate(file.images)}
    try:
        return _all_columns(file.annotations, range(len(file.annotations)), owner_of, label_of)
    except (KeyError, TypeError, ValueError, OverflowError):
        pass
    sound = []
    for number, entry in enumerate(file.annotations):
        if entry is None or _is_left_out(entry, file):
            continue
        try:
            _refuse_fault(file, number, entry, owner_of, label_of, names)
            sound.append(number)
        except Fault as fault:
            faults(fault)
    try:
        return _all_columns([file.annotations[number] for number in sound], sound, owner_of, label_of)
    except (KeyError, TypeError, ValueError, OverflowError):
        reason = "its annotations do not have the form of COCO"
        raise Fault("broken-file", str(file.path), reason, "Export the file anew.") from None


def _all_columns(
    annotations: Sequence[Any], numbers: Sequence[int], owner_of: dict[int | str, int], label_of: dict[int, int | None]
) -> _Columns:
    """Raises whatever a faulty annotation leads to."""
    labels = [label_of[entry["category_id"]] for entry in annotations]
    if None in labels:
        raise ValueError
    xywh = np.array([entry["bbox"] for entry in annotations], dtype=np.float64)
    if annotations and xywh.shape != (len(annotations), 4):
        raise ValueError
    xywh = xywh.reshape(-1, 4)
    return _Columns(
        numbers=numbers,
        owners=[owner_of[entry["image_id"]] for entry in annotations],
        boxes=np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1),
        labels=labels,  # type: ignore[arg-type]  # None was refused above
        crowds=[bool(entry.get("iscrowd")) for entry in annotations],
        areas=[float("nan") if (area := entry.get("area")) is None else float(area) for entry in annotations],
    )


def _is_left_out(entry: dict[str, Any], file: _File) -> bool:
    """Whether the fault lies with the image, and is told already."""
    image = entry.get("image_id")
    return isinstance(image, int | str) and image in file.faulty_ids


def _refuse_fault(
    file: _File,
    number: int,
    entry: dict[str, Any],
    owner_of: dict[int | str, int],
    label_of: dict[int, int | None],
    names: tuple[str, ...],
) -> None:
    """Refuses the annotation if something is wrong with it."""
    where = _place(file, number)
    category, image = entry.get("category_id"), entry.get("image_id")
    if not isinstance(category, int) or category not in label_of:
        declared = ", ".join(f"{key} {name}" for key, name in sorted(file.categories.items())[:12])
        reason = f"category id {short(category)} is not declared"
        raise Fault("undeclared-class", where, reason, f"Declared are: {declared or 'none'}.")
    if label_of[category] is None:
        reason = f"its class {file.categories[category]!r} is not among {name_list(names)}"
        raise Fault("undeclared-class", where, reason, "Declare it for training too, or remove the annotation.")
    if not isinstance(image, int | str) or image not in owner_of:
        reason = f"image id {short(image)} is not among the images of the file"
        raise Fault("unknown-image", where, reason, "Remove the annotation.")
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        reason = f"'bbox' is {box!s:.80}"
        raise Fault("broken-annotation", where, reason, "Expected four numbers: x, y, width, height.")
    if entry.get("area") is not None and not _is_number(entry["area"]):
        raise Fault("broken-annotation", where, f"'area' is {short(entry['area'])}", "Expected a number.")


def _is_number(value: object) -> bool:
    try:
        float(value)  # type: ignore[arg-type]  # that is what is being found out
    except (TypeError, ValueError, OverflowError):
        return False
    return True


def _place(file: _File, number: int) -> str:
    return f"{file.path}, annotation {short((file.annotations[number] or {}).get('id', f'number {number + 1}'))}"
