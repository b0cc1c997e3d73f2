"""COCO JSON: one file per split, in the layout of COCO itself, of Roboflow, or a file on its own.

Category ids may be any whole numbers; labels are their order. ``iscrowd`` objects become ignore regions. Image ids and
annotated areas are kept as they are, because COCO results and metrics go by them. Where an annotation has polygons and
no box, the extent of the polygons is its box.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retinanet.data.annotations import Annotations, Box, BoxColumns, ImageEntry, declared_size, refuse_twins
from retinanet.data.coco_boxes import CocoFile, read_boxes, whole_number
from retinanet.data.faults import Fault, Faults, name_list, short
from retinanet.data.files import (
    ImageFinder,
    decode,
    files_in,
    find_home,
    name_splits,
    read_text,
    split_folders,
    sub_folders,
)
from retinanet.files import open_file

LOOKED_FOR = "COCO: a .json file, or a folder with annotations/*.json, *.json or <split>/_annotations.coco.json"

# What COCO ships in the same folder that is not about boxes of things.
_OTHER_TASKS = ("captions_", "person_keypoints_", "panoptic_", "stuff_", "image_info_")

_USUAL_NAMES = ("_annotations.coco.json", "annotations.json")


def find_parts(path: Path) -> dict[str, Path] | None:
    """The JSON file of each split; under "" where the name of an only file speaks of none; None where it is no COCO."""
    if path.is_file():
        return name_splits([path]) if path.suffix.lower() == ".json" else None
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
            raise Fault("broken-file", folder, reason, "Leave one of them there.")
        if found:
            parts[folder.name] = found[0]
    return parts or None


def read(path: Path, split: str | None, class_names: Sequence[str] | None, faults: Faults) -> Annotations:
    """The annotations of one split, or of all files together.

    Raises:
        Fault: JSON that is broken or lacks something, or a category that is not declared. Where ``faults`` returns,
            images and annotations that are faulty are left out.
    """
    known, root = find_parts(path) or {}, find_home(path)
    files = [_read_file(file, name, root, faults) for name, file in known.items() if split in (None, name)]
    categories: dict[int, str] = {}
    for file in files:
        for key, name in file.categories.items():
            if categories.setdefault(key, name) != name:
                reason = f"category {key} is {name!r}, but {categories[key]!r} in {files[0].path}"
                raise Fault("class-names", file.path, reason, "Name one split.")
    refuse_twins(list(categories.values()))
    names = {key: categories[key] for key in sorted(categories)}
    rows: list[tuple[int, Box]] = []
    images: list[ImageEntry] = []
    for file in files:
        rows += read_boxes(file, len(images), names, faults)
        images += file.images
    return Annotations(tuple(names.values()), tuple(names), images, BoxColumns.collect(rows, tuple(names.values())))


def _is_coco(file: Path) -> bool:
    """Whether the name says so, or the keys of COCO stand in the file: searched, not parsed, it may hold gigabytes."""
    if file.name in _USUAL_NAMES:
        return True
    try:
        with open_file(file) as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = decode(content[:64], "replace")
            if start.lstrip().startswith("["):  # CreateML has 'annotations' as well
                return False
            kind = "utf-16-le" if content[:2] == b"\xff\xfe" else "utf-8"
            return any(content.find(key.encode(kind)) >= 0 for key in ('"images"', '"annotations"'))
    except (OSError, ValueError):  # ValueError: an empty file
        return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(path))
    except Fault:
        raise
    except json.JSONDecodeError as error:
        where = f"{path}, line {error.lineno}, column {error.colno}"
        raise Fault("broken-file", where, f"broken JSON ({error.msg})") from None
    except (RecursionError, ValueError) as error:  # nested too deeply, a number of thousands of digits
        raise Fault("broken-file", path, f"cannot be read as JSON ({error})", "Export the file anew.") from None
    if not isinstance(content, dict):
        remedy = "Expected an object with images and annotations."
        raise Fault("broken-file", path, f"holds a {type(content).__name__}", remedy)
    return content


def _read_file(path: Path, split: str, root: Path, faults: Faults) -> CocoFile:
    content = _read_json(path)
    finder = ImageFinder(_image_folders(path, split), root, split)
    annotations = _entries(path, content, "annotations", faults)
    categories = _categories(path, _entries(path, content, "categories", faults), annotations, faults)
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
    finder.report(faults)
    return CocoFile(path, categories, images, frozenset(faulty), annotations)


def _image_folders(path: Path, split: str) -> list[Path]:
    """Where the images of a file may lie, the likeliest place first."""
    home, root = path.parent, find_home(path)
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
        raise Fault("broken-file", path, f"{key!r} {what}", remedy)
    for number, entry in enumerate(entries, 1):
        if not isinstance(entry, dict):
            reason = f"entry number {number} of {key!r} is a {type(entry).__name__}"
            faults(Fault("broken-annotation", path, reason, "Expected an object."))
    return [entry if isinstance(entry, dict) else None for entry in entries]


def _categories(
    path: Path, entries: list[dict[str, Any] | None], annotations: list[dict[str, Any] | None], faults: Faults
) -> dict[int, str]:
    """The names by id, without a root category: Roboflow writes one above all others and never uses it."""
    categories: dict[int, str] = {}
    for number, entry in enumerate(entries, 1):
        key, name = whole_number((entry or {}).get("id")), (entry or {}).get("name")
        if key is None or not isinstance(name, str | int) or str(name).strip() == "":
            where = f"{path}, category number {number}"
            raise Fault("class-names", where, "expected an id that is a whole number, and a name", "Fix the entry.")
        if key in categories:
            reason = f"the category id {key} stands twice ({categories[key]}, {name})"
            raise Fault("class-names", path, reason, "Expected one of each.")
        categories[key] = str(name)
    above = [(whole_number((entry or {}).get("id")), (entry or {}).get("supercategory")) for entry in entries]
    for root, name in list(categories.items()):
        others = {parent for key, parent in above if key != root}
        is_root = others == {name} and dict(above)[root] != name
        if is_root and not any(whole_number((entry or {}).get("category_id")) == root for entry in annotations):
            faults(Fault("root-category", path, f"category {root} ({short(name)}) is the supercategory of all others"))
            del categories[root]
    return categories


def _image(entry: dict[str, Any], where: str, finder: ImageFinder, faults: Faults) -> ImageEntry:
    key, name = entry.get("id"), entry.get("file_name")
    if not isinstance(key, int | str) or isinstance(key, bool):
        raise Fault("broken-annotation", where, "expected an id that is a whole number or a text", "Fix the entry.")
    if not isinstance(name, str) or not name:
        raise Fault("broken-annotation", where, "has no 'file_name'", "Expected the name of its image file.")
    return ImageEntry(finder.find(name), key, declared_size(entry.get("height"), entry.get("width"), where, faults))
