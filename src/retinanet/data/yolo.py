"""YOLO: one text file of ``class cx cy width height`` per image, and a ``data.yaml`` with the class names and splits.

Numbers are fractions of the image's sides. Lines with more numbers are polygons, of which the extent is taken. An image
without a label file, or with an empty one, is an image without objects. An image id is its path relative to the data
set. Without data.yaml the class names are the lines of classes.txt.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retinanet.data.check import Annotations, BoxColumns, ImageEntry, label_lookup, name_list, short
from retinanet.data.faults import Fault, Faults, refuse
from retinanet.data.files import files_in, listing, read_text, split_folders
from retinanet.images.io import IMAGE_SUFFIXES

LOOKED_FOR = "YOLO: a data.yaml with names and train / val / test, or a folder with images/ and labels/"

_SPLIT_KEYS = ("train", "val", "valid", "validation", "test")
_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")


@dataclass(frozen=True)
class _Layout:
    """Where things are: ``parts`` holds folders, lists of images, or images for each split ("" where there is none)."""

    source: Path
    root: Path
    names: tuple[str, ...] | None
    parts: dict[str, list[str]]


def splits(path: Path) -> tuple[str, ...] | None:
    """The splits that data.yaml or the folders name, () for none, None where this is not YOLO."""
    layout = _layout(path)
    return None if layout is None else tuple(name for name in layout.parts if name)


def read(
    path: Path, split: str | None = None, class_names: Sequence[str] | None = None, faults: Faults = refuse
) -> Annotations:
    """The annotations of one split, or of the whole set.

    Raises:
        Fault: a broken data.yaml or label line, a class id that is not declared or a class not in ``class_names``.
            Where ``faults`` returns, files and lines that are faulty are left out.
    """
    layout = _layout(path)
    assert layout is not None
    declared = layout.names if layout.names is not None else class_names
    if declared is None:
        remedy = "Write a data.yaml with 'names:', or a classes.txt with one name a line."
        raise Fault("class-names", str(layout.source), "no class names", remedy)
    names, labels = label_lookup(declared, class_names)
    entries = [(layout.root, entry) for name, part in layout.parts.items() if split in (None, name) for entry in part]
    images = list(dict.fromkeys(image for root, entry in entries for image in _images(layout.source, root, entry)))
    labelled = _label_files(images, layout.source, faults)
    rows = [
        (owner, f"{file}, line {line}", corners, label)
        for owner, file in enumerate(labelled)
        if file is not None
        for line, label, corners in _lines(file, labels, declared, faults)
    ]
    return Annotations(
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        images=[ImageEntry(image, _relative(image, layout.root), None) for image in images],
        boxes=BoxColumns(
            owners=[owner for owner, *_ in rows],
            xyxy=[corners for _, _, corners, _ in rows],
            labels=[label for *_, label in rows],
            where=lambda row: rows[row][1],
            relative=True,
        ),
    )


def _layout(path: Path) -> _Layout | None:
    if path.is_file():
        return _from_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else None
    configs = [file for file in files_in(path, (".yaml", ".yml")) if _is_config(file)]
    preferred = [file for file in configs if file.stem in ("data", "dataset")] or configs
    if len(preferred) > 1:
        reason = f"holds several YOLO files ({name_list([file.name for file in preferred])})"
        raise Fault("broken-file", str(path), reason, "Give one.")
    return _from_yaml(preferred[0]) if preferred else _from_folders(path)


def _is_config(file: Path) -> bool:
    try:
        text = file.read_text("utf-8", "replace")
    except OSError:
        return False
    return bool(
        re.search(r"^['\"]?names['\"]?\s*:", text, re.M) and re.search(r"^['\"]?(train|val|test|path)\b", text, re.M)
    )


def _from_yaml(source: Path) -> _Layout:
    """The layout that data.yaml describes. A relative ``path:`` is looked for beside it, then in the working folder."""
    content = _read_yaml(source)
    home = source.parent
    base = content.get("path")
    if base is not None and not isinstance(base, str):
        reason = f"'path' is a {type(base).__name__}"
        raise Fault("broken-file", str(source), reason, "Expected the folder of the data set.")
    root = next((folder for folder in (home / base, Path(base)) if os.path.isdir(folder)), home) if base else home
    parts = {}
    for key in _SPLIT_KEYS:
        value = content.get(key)
        entries = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(entry, str) and entry for entry in entries):
            remedy = "Expected a folder, a .txt list, or a list of those."
            raise Fault("broken-file", str(source), f"{key!r} holds no path", remedy)
        if entries:
            parts[key] = entries
    return _Layout(source, root, _declared_names(source, content), parts or {"": ["."]})


def _read_yaml(source: Path) -> dict[Any, Any]:
    try:
        # BaseLoader builds only text, lists and dicts: as safe as SafeLoader, and a class called `no` stays a name.
        content = yaml.load(read_text(source), Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        reason = f"broken YAML ({error.problem or error.context})"
        raise Fault("broken-file", f"{source}{line}", reason, "Fix the line.") from None
    except (yaml.YAMLError, RecursionError) as error:  # a character that YAML has not, nested too deeply
        reason = f"cannot be read as YAML ({short(error)})"
        raise Fault("broken-file", str(source), reason, "Fix the file.") from None
    if not isinstance(content, dict):
        remedy = "Write them as 'key: value'."
        raise Fault("broken-file", str(source), "expected 'names:' and 'train:', 'val:' or 'test:' in it", remedy)
    return content


def _declared_names(source: Path, content: dict[Any, Any]) -> tuple[str, ...]:
    names = content.get("names")
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(map(str, range(len(names)))):
            reason = f"the keys of 'names' are {name_list(list(names))}"
            raise Fault("class-names", str(source), reason, f"Expected 0 to {len(names) - 1}.")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        reason = "'names' has to be a list of class names, or a mapping from 0, 1, ... to them"
        raise Fault("class-names", str(source), reason, "Write the names there.")
    if "nc" in content and content["nc"] != str(len(names)):
        reason = f"'nc' is {short(content['nc'])}, but 'names' holds {len(names)}"
        raise Fault("class-names", str(source), reason, "Make them agree.")
    return tuple(names)


def _from_folders(path: Path) -> _Layout | None:
    """A set without data.yaml: images/ and labels/ inside split folders or around them, or everything in one."""
    parts = {folder.name: [f"{folder.name}/images"] for folder in split_folders(path) if (folder / "labels").is_dir()}
    if (path / "labels").is_dir() and (path / "images").is_dir():
        inside = split_folders(path / "images")
        parts = {folder.name: [f"images/{folder.name}"] for folder in inside} or {"": ["images"]}
    listed = next((path / name for name in _NAME_FILES if (path / name).is_file()), None)
    if not parts and listed is not None:  # labelImg writes classes.txt beside the images
        texts = {file.stem for file in files_in(path, (".txt",))}
        if any(file.stem in texts for file in files_in(path, IMAGE_SUFFIXES)):
            parts = {"": ["."]}
    if not parts:
        return None
    names = tuple(line.strip() for line in read_text(listed).splitlines() if line.strip()) if listed else ()
    return _Layout(listed or path, path, names or None, parts)


def _images(source: Path, root: Path, entry: str) -> list[Path]:
    """The images that an entry of a split stands for."""
    places = [root / entry]
    if entry.startswith("../"):  # Roboflow writes ../train/images and means train/images
        places.append(root / entry.removeprefix("../"))
    place = next((place for place in places if os.path.exists(place)), None)
    if place is None:
        reason = f"{entry!r} does not exist. Looked at: {name_list(places)}"
        raise Fault("missing-file", str(source), reason, "Fix the path.")
    if place.is_dir():
        return files_in(place, IMAGE_SUFFIXES, deep=True)
    if place.suffix.lower() != ".txt":
        reason = f"{place} is neither a folder nor a .txt list of images"
        raise Fault("broken-file", str(source), reason, "Fix the path.")
    lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
    # Relative lines go by the data set; those that start with ./ by the list, as the training tools for YOLO have it.
    return [Path(os.path.normpath((place.parent if line.startswith("./") else root) / line)) for line in lines]


def _label_files(images: Sequence[Path], source: Path, faults: Faults) -> list[Path | None]:
    """The label file of each image, None where it has none: .../labels/... mirrors .../images/..., else beside it."""
    folders: dict[str, tuple[str, frozenset[str]]] = {}
    files: list[Path | None] = []
    for image in images:
        folder, name = os.path.split(image)
        if folder not in folders:
            folders[folder] = _label_folder(folder, faults)
        place, present = folders[folder]
        label = os.path.splitext(name)[0] + ".txt"
        files.append(Path(place, label) if label in present else None)
    if files and not any(files):
        looked = name_list(sorted({place for place, _ in folders.values()}), 3)
        reason = f"none of {len(files)} images has a label file. Looked in: {looked}"
        faults(Fault("missing-file", str(source), reason, "Put the labels there."))
    return files


def _label_folder(folder: str, faults: Faults) -> tuple[str, frozenset[str]]:
    head, found, tail = f"{folder}/".rpartition("/images/")
    mirrored = f"{head}/labels/{tail}".rstrip("/")
    place = mirrored if found and os.path.isdir(mirrored) else folder
    present = listing(place)
    if place == mirrored:
        images = {os.path.splitext(name)[0] for name in listing(folder)} | {"classes"}
        bare = sorted(name for name in present if name.endswith(".txt") and name[:-4] not in images)
        if bare:
            reason = f"{len(bare)} label files have no image: {name_list(bare, 3)} in {place}"
            remedy = f"Put the images into {folder}, or remove the labels."
            faults(Fault("label-without-image", "", reason, remedy, members=[Path(place, name) for name in bare]))
    return place, present


def _lines(
    file: Path, labels: list[int | None], declared: Sequence[str], faults: Faults
) -> Iterator[tuple[int, int, list[float]]]:
    """The number, the label and the box of each line that is not empty."""
    try:
        lines = read_text(file).splitlines()
    except Fault as fault:
        faults(fault)
        return
    for line, text in enumerate(lines, 1):
        words = text.split()
        if not words:
            continue
        try:
            where = f"{file}, line {line}"
            numbers = _numbers(where, text, words)
            yield line, _label(where, numbers[0], labels, declared), _extent(numbers[1:])
        except Fault as fault:
            faults(fault)


def _numbers(where: str, text: str, words: Sequence[str]) -> list[float]:
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if len(numbers) != 5 and (len(numbers) < 7 or len(numbers) % 2 == 0):
        remedy = (
            "Expected five numbers (class, then centre x and y, width and height as fractions of the image), or a "
            "class and the corners of a polygon."
        )
        raise Fault("broken-annotation", where, short(text.strip()), remedy)
    return numbers


def _extent(numbers: list[float]) -> list[float]:
    if len(numbers) == 4:
        x, y, width, height = numbers
        return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
    if not all(map(math.isfinite, numbers)):  # min and max would step over a NaN
        return [math.nan] * 4
    return [min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])]


def _label(where: str, number: float, labels: list[int | None], declared: Sequence[str]) -> int:
    if not (number == number // 1 and 0 <= number < len(labels)):
        remedy = f"Expected 0 to {len(labels) - 1}: {name_list(declared)}."
        raise Fault("undeclared-class", where, f"class id {number:g} is not declared", remedy)
    label = labels[int(number)]
    if label is None:
        reason = f"its class {declared[int(number)]!r} is not among those asked for"
        raise Fault("undeclared-class", where, reason, "Declare it for training too, or remove the line.")
    return label


def _relative(image: Path, root: Path) -> str:
    try:
        return image.relative_to(root).as_posix()
    except ValueError:
        return image.as_posix()
