"""YOLO: one text file of ``class cx cy width height`` per image, and a ``data.yaml`` with the class names and splits.

Numbers are fractions of the image's sides. Lines with more numbers are polygons, of which the extent is taken; or,
where data.yaml has a ``kpt_shape`` or the numbers are a box with five landmarks, the box is taken. An image without a
label file, or with an empty one, is an image without objects. An image id is its path relative to the data set. Without
data.yaml the class names are the lines of classes.txt.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from retinanet.data.annotations import Annotations, BoxColumns, ImageEntry
from retinanet.data.faults import Fault, Faults, name_list, short
from retinanet.data.files import ImageFinder, files_in, list_folder, read_start, read_text, split_folders
from retinanet.data.yolo_labels import LabelReader
from retinanet.images.io import IMAGE_SUFFIXES
from retinanet.yaml_files import TextLoader

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
    keypoints: bool = False


def find_parts(path: Path) -> dict[str, list[str]] | None:
    """What data.yaml or the folders say of each split; None where this is not YOLO."""
    layout = _layout(path)
    return None if layout is None else layout.parts


def read(path: Path, split: str | None, class_names: Sequence[str] | None, faults: Faults) -> Annotations:
    """The annotations of one split, or of the whole set.

    Raises:
        Fault: a broken data.yaml or label line, or a class id that is not declared. Where ``faults`` returns, files and
            lines that are faulty are left out.
    """
    layout = _layout(path)
    assert layout is not None
    root, declared = layout.root, tuple(layout.names if layout.names is not None else class_names or ())
    if not declared:
        remedy = "Write a data.yaml with 'names:', or a classes.txt with one name a line."
        raise Fault("class-names", layout.source, "no class names", remedy)
    finder, images = _find_images(layout, split)
    finder.report(faults)
    files = _label_files(images, layout.source, faults)
    reader = LabelReader(declared, layout.keypoints, faults)
    for owner, file in enumerate(files):
        if file is not None:
            reader.read_file(owner, file)
    relative = not reader.finish()
    entries = [
        ImageEntry(image, (image.relative_to(root) if image.is_relative_to(root) else image).as_posix(), None)
        for image in images
    ]
    return Annotations(declared, (), entries, BoxColumns.collect(reader.rows, declared, relative=relative))


def list_images(path: Path, split: str | None) -> list[Path]:
    """The images of one split, or of the whole set; no label file is read."""
    layout = _layout(path)
    assert layout is not None
    return _find_images(layout, split)[1]


def _find_images(layout: _Layout, split: str | None) -> tuple[ImageFinder, list[Path]]:
    finder = ImageFinder([layout.root], layout.root, split or "")
    entries = [entry for name, part in layout.parts.items() if split in (None, name) for entry in part]
    return finder, list(dict.fromkeys(image for entry in entries for image in _images(layout, entry, finder)))


def _layout(path: Path) -> _Layout | None:
    if os.path.isfile(path):
        return _from_yaml(path) if path.suffix.lower() in (".yaml", ".yml") else None
    configs = [file for file in files_in(path, (".yaml", ".yml")) if _is_config(file)]
    preferred = [file for file in configs if file.stem in ("data", "dataset")] or configs
    if len(preferred) > 1:
        reason = f"holds several YOLO files ({name_list([file.name for file in preferred])})"
        raise Fault("broken-file", path, reason, "Give one.")
    return _from_yaml(preferred[0]) if preferred else _from_folders(path)


def _is_config(file: Path) -> bool:
    text = read_start(file, 1 << 20)
    named = re.search(r"^['\"]?(names|nc)['\"]?\s*:", text, re.M)
    return bool(named and re.search(r"^['\"]?(train|val|test|path)\b", text, re.M))


def _from_yaml(source: Path) -> _Layout:
    """The layout that data.yaml describes. A relative ``path:`` is looked for beside it, then in the working folder."""
    content = _read_yaml(source)
    home = source.parent
    base = content.get("path")
    if base is not None and not isinstance(base, str):
        reason = f"'path' is a {type(base).__name__}"
        raise Fault("broken-file", source, reason, "Expected the folder of the data set.")
    root = next((folder for folder in (home / base, Path(base)) if os.path.isdir(folder)), home) if base else home
    parts = {}
    for key in _SPLIT_KEYS:
        value = content.get(key)
        entries = value if isinstance(value, list) else [value] if value else []
        if not all(isinstance(entry, str) and entry for entry in entries):
            remedy = "Expected a folder, a .txt list, or a list of those."
            raise Fault("broken-file", source, f"{key!r} holds no path", remedy)
        if entries:
            parts[key] = entries
    return _Layout(source, root, _declared_names(source, content), parts or {"": ["."]}, "kpt_shape" in content)


def _read_yaml(source: Path) -> dict[Any, Any]:
    try:
        content = yaml.load(read_text(source), Loader=TextLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        reason = f"broken YAML ({error.problem or error.context})"
        raise Fault("broken-file", f"{source}{line}", reason, "Fix the line.") from None
    except (yaml.YAMLError, RecursionError) as error:  # a character that YAML has not, nested too deeply
        raise Fault("broken-file", source, f"cannot be read as YAML ({short(error)})", "Fix the file.") from None
    if not isinstance(content, dict):
        remedy = "Write them as 'key: value'."
        raise Fault("broken-file", source, "expected 'names:' and 'train:', 'val:' or 'test:' in it", remedy)
    return content


def _declared_names(source: Path, content: dict[Any, Any]) -> tuple[str, ...]:
    names = content.get("names")
    listed = source.with_name(PurePosixPath(names).name) if isinstance(names, str) else source
    if listed != source and os.path.isfile(listed):  # a file with a name a line, as of darknet
        names = _read_names(listed)
    if names is None and isinstance(content.get("nc"), str):
        remedy = f"Write them there, for instance 'names: [cat, dog]', {short(content['nc'])} in all."
        raise Fault("class-names", source, "says how many classes there are ('nc'), but not their 'names'", remedy)
    if isinstance(names, dict):
        if sorted(names, key=str) != sorted(map(str, range(len(names)))):
            reason = f"the keys of 'names' are {name_list(list(names))}"
            raise Fault("class-names", source, reason, f"Expected 0 to {len(names) - 1}.")
        names = [names[str(number)] for number in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        reason = "'names' has to be a list of class names, or a mapping from 0, 1, ... to them"
        raise Fault("class-names", source, reason, "Write the names there.")
    if "nc" in content and content["nc"] != str(len(names)):
        reason = f"'nc' is {short(content['nc'])}, but 'names' holds {len(names)}"
        raise Fault("class-names", source, reason, "Make them agree.")
    return tuple(names)


def _read_names(file: Path) -> list[str]:
    return [line.strip() for line in read_text(file).splitlines() if line.strip()]


def _from_folders(path: Path) -> _Layout | None:
    """A set without data.yaml: images/ and labels/ inside split folders or around them, or everything in one."""
    parts = {folder.name: [f"{folder.name}/images"] for folder in split_folders(path) if (folder / "labels").is_dir()}
    if os.path.isdir(path / "labels") and os.path.isdir(path / "images"):
        inside = split_folders(path / "images")
        parts = {folder.name: [f"images/{folder.name}"] for folder in inside} or {"": ["images"]}
    listed = next((path / name for name in _NAME_FILES if os.path.isfile(path / name)), None)
    if not parts and listed is not None:  # labelImg writes classes.txt beside the images
        texts = {file.stem for file in files_in(path, (".txt",))}
        if any(file.stem in texts for file in files_in(path, IMAGE_SUFFIXES)):
            parts = {"": ["."]}
    if not parts:
        return None
    return _Layout(listed or path, path, tuple(_read_names(listed)) or None if listed else None, parts)


def _images(layout: _Layout, entry: str, finder: ImageFinder) -> list[Path]:
    """The images that an entry of a split stands for."""
    root, source = layout.root, layout.source
    # Roboflow writes ../train/images and means train/images; others name the folders of another machine.
    parts = [part for part in PurePosixPath(entry.replace("\\", "/")).parts if part != ".."]
    places = [root / entry, *(root.joinpath(*parts[start:]) for start in range(max(1, len(parts) - 1)))]
    place = next((place for place in places if os.path.exists(place)), None)
    if place is None:
        reason = f"{entry!r} does not exist. Looked at: {name_list(list(dict.fromkeys(places)), 3)}"
        raise Fault("missing-file", source, reason, "Fix the path.")
    if place not in places[:2]:
        finder.elsewhere[entry] = place
    if os.path.isdir(place):
        return files_in(place, IMAGE_SUFFIXES, deep=True)
    if place.suffix.lower() != ".txt":
        raise Fault("broken-file", source, f"{place} is neither a folder nor a .txt list of images", "Fix the path.")
    # Relative lines go by the data set; those that start with ./ by the list, as the training tools for YOLO have it.
    lines = _read_names(place)
    named = [Path(os.path.normpath((place.parent if line.startswith("./") else root) / line)) for line in lines]
    return [
        image if os.path.exists(image) or not os.path.exists(found := finder.find(line)) else found
        for line, image in zip(lines, named, strict=True)
    ]


def _label_files(images: Sequence[Path], source: Path, faults: Faults) -> list[Path | None]:
    """The label file of each image, None where it has none: .../labels/... mirrors .../images/..., else beside it."""
    folders: dict[str, tuple[str, dict[str, Path]]] = {}
    files: list[Path | None] = []
    for image in images:
        folder = os.path.dirname(image)
        if folder not in folders:
            folders[folder] = _label_folder(folder, faults)
        files.append(folders[folder][1].get(image.stem))
    bare = [image for image, file in zip(images, files, strict=True) if file is None]
    looked = name_list(sorted({place for place, _ in folders.values()}), 3)
    if files and len(bare) == len(files):
        absent = sum(not os.path.exists(image) for image in images)
        if absent:  # they are told as missing images
            return files
        reason = f"none of {len(files)} images has a label file. Looked in: {looked}"
        faults(Fault("missing-file", source, reason, "Put the labels there."))
    elif len(bare) > max(1, len(files) // 20):  # a few without are background, as the format has it
        reason = f"{len(bare)} of {len(files)} images have no label file, for instance {bare[0].name}"
        faults(Fault("no-label-file", looked, reason))
    owner: dict[Path, Path] = {}
    for image, file in zip(images, files, strict=True):
        if file is not None and (first := owner.setdefault(file, image)) != image:
            reason = f"{image.name} and {first.name} share it, so both get its boxes"
            faults(Fault("shared-label", file, reason, image=image))
    return files


def _label_folder(folder: str, faults: Faults) -> tuple[str, dict[str, Path]]:
    """The folder of the label files of a folder of images, in any case of letters, and each of them by its stem."""
    parts = list(Path(folder).parts)
    place = folder
    for at in reversed([at for at, part in enumerate(parts) if part.lower() == "images"][-1:]):
        above = Path(*parts[:at])
        for name in sorted(list_folder(above)):
            mirrored = os.path.join(above, name, *parts[at + 1 :])
            if name.lower() == "labels" and os.path.isdir(mirrored):
                place = mirrored
    labels = {file.stem: file for file in files_in(Path(place), (".txt",))}
    if place != folder:
        images = {os.path.splitext(name)[0] for name in list_folder(folder)} | {"classes"}
        bare = [file for stem, file in labels.items() if stem not in images]
        if bare:
            names = name_list([file.name for file in bare], 3)
            remedy = f"Put the images into {folder}, or remove the labels."
            reason = f"{len(bare)} label files have no image: {names} in {place}"
            faults(Fault("label-without-image", "", reason, remedy, members=bare))
    return place, labels
