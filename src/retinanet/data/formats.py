"""Which format a path holds: one of the four that are read, or a known one that has to be exported anew."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from retinanet.data import coco, csv, objects, voc, yolo
from retinanet.data.annotations import Annotations, select_classes
from retinanet.data.faults import Fault, Faults, name_list
from retinanet.data.files import (
    files_in,
    find_training_split,
    read_start,
    report_other_files,
    report_outside,
    sub_folders,
)
from retinanet.data.objects import Data, is_object
from retinanet.errors import UserError


class Format(Protocol):
    """What a format module offers."""

    LOOKED_FOR: str

    def find_parts(self, path: Path) -> Mapping[str, object] | None:
        """What holds each split, "" for a set that names none; None where the path is not of this format."""

    def read(self, path: Path, split: str | None, class_names: Sequence[str] | None, faults: Faults) -> Annotations:
        """The annotations of a split, or of the whole set; what is faulty goes to ``faults``.

        The classes are the set's own. ``class_names`` are those that will be asked for: with them, the files of other
        splits need not be read to know all classes.
        """


FORMATS: tuple[Format, ...] = (coco, voc, yolo, csv)


class _Foreign(NamedTuple):
    """A format of other tools: the endings of its files, what stands in their first 64 KiB, and what to do."""

    name: str
    suffixes: tuple[str, ...]
    pattern: str
    remedy: str


_EXPORT = "Export it as COCO, Pascal VOC or YOLO there."
_FOREIGN = (
    _Foreign("an archive", (".zip", ".tar", ".gz", ".tgz", ".7z", ".rar"), "", "Unpack it first."),
    _Foreign("a TFRecord", (".tfrecord", ".tfrecords", ".record"), "", "Export the data as COCO or Pascal VOC."),
    _Foreign("a darknet obj.data", (".data",), r"names\s*=", "Write a data.yaml with names:, train: and val:."),
    _Foreign("CVAT's own XML", (".xml",), r"<annotations>", _EXPORT),
    _Foreign("a labelme file", (".json",), r'"shapes"\s*:', "Convert it with labelme2coco or labelme2voc."),
    _Foreign("a file of the VGG Image Annotator", (".json",), r'"(_via_img_metadata|regions)"\s*:', _EXPORT),
    _Foreign("a CreateML file", (".json",), r'^\s*\[[\s\S]*"coordinates"\s*:', _EXPORT),
    _Foreign(
        "an Open Images table",
        (".csv",),
        r"^ImageID,",
        "Write image_path,xmin,ymin,xmax,ymax,label in pixels; its numbers are fractions.",
    ),
)


def recognise(data: Data) -> tuple[Format, tuple[str, ...]]:
    """The format of a path or an object, and the splits it names.

    Raises:
        UserError: no such path, or none of the four formats or several of them, with what comes nearest.
    """
    if is_object(data):
        return objects, _name_parts(objects.find_parts(data))
    path = Path(data)  # type: ignore[arg-type]  # no object
    if not os.path.exists(path):  # unlike Path.exists it answers for names that no file can have
        raise UserError(f"{path}: no such file or folder. Expected the path of a data set.")
    found = [(form, parts) for form in FORMATS if (parts := form.find_parts(path)) is not None]
    if len(found) == 1:
        form, parts = found[0]
        if path.is_file() and (foreign := _find_foreign(path)):
            raise UserError(foreign)
        return form, _name_parts(parts)
    wanted = "; ".join(form.LOOKED_FOR for form in [form for form, _ in found] or FORMATS)
    if found:
        files = files_in(path, (".json", ".yaml", ".yml", ".csv"))
        one = f" For instance {files[0]}." if files else ""
        raise UserError(
            f"{path}: holds more than one format ({wanted}). Give the annotation file or folder itself.{one}"
        )
    hint = _find_foreign(path) or _find_nearest(path)
    raise UserError(f"{path}: is none of the four known formats. {hint or f'Looked for: {wanted}.'}")


def _name_parts(parts: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(name for name in parts if name)


def read_split(
    form: Format, data: Data, split: str | None, class_names: Sequence[str] | None, faults: Faults, confine: bool
) -> Annotations:
    """What the files say about a split, with the classes asked for; ``confine`` refuses images outside of them."""
    if is_object(data):
        return select_classes(objects.read(data, split, class_names, faults), class_names, faults)
    path = Path(data)  # type: ignore[arg-type]  # no object
    if confine and form is yolo:  # whose label files are found by its images, so those come first
        report_outside(path, yolo.list_images(path, split), confine, faults)
    with _pause_collection():
        found = select_classes(form.read(path, split, class_names, faults), class_names, faults)
    report_other_files(sorted({image.path.parent for image in found.images}), faults)
    report_outside(path, [image.path for image in found.images], confine, faults)
    return found


@contextmanager
def _pause_collection() -> Iterator[None]:
    """No garbage collection: it went through all the annotations read so far again and again, for half of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def read_parts(data: Data, faults: Faults, *, confine: bool = False) -> dict[str, Annotations]:
    """Every split as the files have it, for whoever looks for faults: boxes and images are not checked.

    The split to train on is read first, and the others with its class names, as training and evaluation do. A split
    that cannot be read at all is left out.

    Args:
        data: a file or folder, or an object.
        faults: is given every fault of the files.
        confine: refuse images that lie outside of ``data``.

    Returns:
        The annotations by split; the whole set under "" where it names no splits.

    Raises:
        UserError: a missing path, none of the four formats, or what ``confine`` refuses.
    """
    try:
        form, names = recognise(data)
    except Fault as fault:
        faults(fault)
        return {}
    first = find_training_split(names) or next(iter(names), None)
    parts: dict[str, Annotations] = {}
    for name in (first, *(name for name in names if name != first)):
        class_names = next((part.class_names for part in parts.values()), None)
        try:
            parts[name or ""] = read_split(form, data, name, class_names, faults, confine)
        except Fault as fault:
            if fault.kind == "missing-file" and name in ("test", "testing"):  # training and validation do without
                fault = Fault("missing-test", fault.where, fault.reason, fault.remedy)
            faults(fault)
    return parts


def _find_foreign(path: Path) -> str | None:
    """What to do with the first file of a format that is known and not read."""
    suffixes = tuple({suffix for foreign in _FOREIGN for suffix in foreign.suffixes})
    places = [path, *sub_folders(path)[:20]]
    files = [path] if path.is_file() else [file for place in places for file in files_in(place, suffixes)[:20]]
    for file in files:
        for foreign in _FOREIGN:
            if file.suffix.lower() in foreign.suffixes and re.search(foreign.pattern, read_start(file)):
                return f"{file} is {foreign.name}. {foreign.remedy}"
    return None


def _find_nearest(path: Path) -> str | None:
    """What the file lacks that comes nearest to one of the formats, or the folder below that is a data set."""
    inside = next((folder for folder in sub_folders(path)[:20] if _holds_data(folder)), None)
    if inside is not None:
        return f"But {inside} is a data set: give that path."
    for file in files_in(path, (".csv", ".tsv"))[:20]:
        if lacking := csv.why_not(file):
            return f"Nearest comes {lacking}"
    named = [file.name for file in files_in(path, (".json", ".xml", ".yaml", ".yml", ".txt"))]
    if named:
        wanted = "; ".join(form.LOOKED_FOR for form in FORMATS)
        return f"It holds {name_list(named, 3)}, without the keys of any of them. Looked for: {wanted}."
    return None


def _holds_data(path: Path) -> bool:
    try:
        return any(form.find_parts(path) is not None for form in FORMATS)
    except UserError:  # faults of a folder that was not asked for
        return False
