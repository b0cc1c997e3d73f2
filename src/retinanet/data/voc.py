"""Pascal VOC: one XML file per image, with or without ImageSets, or XML files beside the images.

Coordinates are those of the VOC development kit: the top left pixel is (1, 1) and the last pixel belongs to the box, so
a box of the file is ``(xmin - 1, ymin - 1, xmax, ymax)`` here. A box with ``xmax <= xmin`` in the file is far more
often a slip of the annotator than an object one pixel wide, and is treated as a slip. ``difficult`` objects become
ignore regions. An image id is the name of the XML file without suffix, as in ImageSets. Class names are the sorted
union over all XML files of the set, so that its splits agree.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from retinanet.data.check import Annotations, BoxColumns, ImageEntry, label_lookup, name_list, size_or_none
from retinanet.data.faults import Fault, Faults, refuse
from retinanet.data.files import ImageFinder, files_in, read_text, split_folders
from retinanet.images.io import IMAGE_SUFFIXES

LOOKED_FOR = "Pascal VOC: a folder with Annotations/*.xml, or with XML files beside the images"

_MEND = "Fix or remove the file."


@dataclass(frozen=True)
class _File:
    """One XML file; ``numbers`` are the places of its objects, counted from 1 as people do."""

    path: Path
    image_name: str
    size: tuple[int, int] | None
    numbers: list[int]
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]

    def where(self, number: int) -> str:
        """The place of an object, for messages."""
        return f"{self.path}, object {self.numbers[number]} ({self.names[number]})"

    def image(self, images: ImageFinder) -> Path:
        """The image named like this file (that is what ImageSets go by), else the one that ``filename`` names."""
        same = images.with_stem(self.path.stem)
        if not same:
            return images.find(self.image_name or f"{self.path.stem}.jpg")
        return next((path for path in same if path.name == self.image_name), same[0])


def splits(path: Path) -> tuple[str, ...] | None:
    """The names in ImageSets/Main or of the split folders, () where there are none, None where this is not VOC."""
    folders = _xml_folders(path)
    if not folders:
        return None
    return tuple(_image_sets(path)) if "" in folders else tuple(folders)


def read(
    path: Path, split: str | None = None, class_names: Sequence[str] | None = None, faults: Faults = refuse
) -> Annotations:
    """The annotations of one split, or of the whole set.

    Raises:
        Fault: XML that is broken, unsafe or lacks something, or an object of a class not among ``class_names``. Where
            ``faults`` returns, files and objects that are faulty are left out.
    """
    folders = _xml_folders(path)
    everything = [file for folder in folders.values() for file in files_in(folder, (".xml",))]
    chosen = everything if split is None else _chosen(path, folders, split, everything, faults)
    files = _read_files(everything if class_names is None else chosen, faults)
    declared = sorted({name for file in files.values() for name in file.names})
    names, _ = label_lookup(declared, class_names)
    label_of = {name: label for label, name in enumerate(names)}
    picked = [files[file] for file in chosen if file in files]
    rows = [
        (owner, file, number)
        for owner, file in enumerate(picked)
        for number in range(len(file.names))
        if _is_declared(file, number, label_of, faults)
    ]
    images = {folder: ImageFinder(_image_folders(folder)) for folder in {file.path.parent for file in picked}}
    return Annotations(
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        images=[ImageEntry(file.image(images[file.path.parent]), file.path.stem, file.size) for file in picked],
        boxes=BoxColumns(
            owners=[owner for owner, _, _ in rows],
            xyxy=[file.boxes[number] for _, file, number in rows],
            labels=[label_of[file.names[number]] for _, file, number in rows],
            where=lambda row: rows[row][1].where(rows[row][2]),
            ignore=[file.difficult[number] for _, file, number in rows],
            first_pixel=1,
        ),
        notes=_unannotated(everything, images) if split is None else (),
    )


def _xml_folders(path: Path) -> dict[str, Path]:
    """Where the XML files lie: under "" for a set in one folder, else under the name of each split folder."""
    whole = _xml_folder(path)
    if whole is not None:
        return {"": whole}
    parts = {folder.name: _xml_folder(folder) for folder in split_folders(path)}
    return {name: folder for name, folder in parts.items() if folder is not None}


def _xml_folder(path: Path) -> Path | None:
    if files_in(path / "Annotations", (".xml",)):
        return path / "Annotations"
    for folder in (path / "annotations", path):
        if any(_is_voc(file) for file in files_in(folder, (".xml",))[:20]):
            return folder
    return None


def _is_voc(file: Path) -> bool:
    """Whether the root element seems to be ``annotation``; other tools write XML too."""
    try:
        with file.open("rb") as stream:
            return re.search(rb"<annotation[\s>]", stream.read(4096)) is not None
    except OSError:
        return False


def _image_folders(xml_folder: Path) -> list[Path]:
    root = xml_folder.parent
    return [root / "JPEGImages", xml_folder, root / "images", root / "Images", root]


def _image_sets(path: Path) -> dict[str, Path]:
    """The lists of ImageSets/Main by name, without the one-against-all lists of a class (``cat_train``)."""
    lists = {file.stem: file for file in files_in(path / "ImageSets" / "Main", (".txt",))}
    return {name: file for name, file in lists.items() if name.rpartition("_")[2] not in lists.keys() - {name}}


def _chosen(path: Path, folders: dict[str, Path], split: str, everything: list[Path], faults: Faults) -> list[Path]:
    """The XML files of a split."""
    if "" not in folders:
        return files_in(folders[split], (".xml",))
    listed = _image_sets(path)[split]
    known = {file.stem: file for file in everything}
    lines: dict[str, int] = {}
    for number, text in enumerate(read_text(listed).splitlines(), 1):
        stem = text.strip()
        if not stem:
            continue
        if stem not in known:
            stem = re.sub(r"\s+-?[01]$", "", stem)  # some lists say in a second column whether a class is present
        if stem in lines:
            reason = f"{stem} is listed already in line {lines[stem]}"
            faults(Fault("listed-twice", f"{listed}, line {number}", reason, "Remove one."))
            continue
        lines[stem] = number
    missing = [stem for stem in lines if stem not in known]
    if missing:
        reason = f"{folders['']} holds no {missing[0]}.xml ({len(missing)} of {len(lines)} are missing)"
        remedy = "Put the files there, or remove the lines."
        members = [folders[""] / f"{stem}.xml" for stem in missing]
        faults(Fault("missing-file", f"{listed}, line {lines[missing[0]]}", reason, remedy, members=members))
    return [known[stem] for stem in lines if stem in known]


def _is_declared(file: _File, number: int, label_of: dict[str, int], faults: Faults) -> bool:
    if file.names[number] not in label_of:
        remedy = f"Expected one of: {name_list(list(label_of))}."
        faults(Fault("undeclared-class", file.where(number), "its class is not declared", remedy))
    return file.names[number] in label_of


def _unannotated(everything: list[Path], images: dict[Path, ImageFinder]) -> list[str]:
    """VOC gives an image without objects a file of its own; an image without a file has not been annotated."""
    known = {file.stem for file in everything}
    notes = []
    for folder in images:
        place = next((place for place in _image_folders(folder) if files_in(place, IMAGE_SUFFIXES)), folder)
        bare = [file for file in files_in(place, IMAGE_SUFFIXES) if file.stem not in known]
        if bare:
            notes.append(
                f"{place}: {len(bare)} images have no XML file, so they are not annotated: {bare[0].name}, ..."
            )
    return notes


def _read_files(paths: Sequence[Path], faults: Faults) -> dict[Path, _File]:
    files = {}
    for path in paths:
        try:
            files[path] = _read_file(path, faults)
        except Fault as fault:
            faults(fault)
    return files


def _read_file(path: Path, faults: Faults) -> _File:
    root = _root(path)
    size = size_or_none(_text(root, "size/height"), _text(root, "size/width"), str(path), faults)
    file = _File(path, _text(root, "filename").replace("\\", "/").rpartition("/")[2], size, [], [], [], [])
    for number, element in enumerate(root.findall("object"), 1):
        where = f"{path}, object {number}"
        try:
            name, box = _name(element, where), _box(element, where)
        except Fault as fault:
            faults(fault)
            continue
        file.numbers.append(number)
        file.names.append(name)
        file.boxes.append(box)
        file.difficult.append(_text(element, "difficult") == "1")
    return file


def _root(path: Path) -> Element:
    try:
        root = ElementTree.parse(path).getroot()
    except ParseError as error:
        line, column = error.position
        where = f"{path}, line {line}, column {column + 1}"
        raise Fault("broken-file", where, f"broken XML ({error})", _MEND, members=[path]) from None
    except DefusedXmlException as error:
        reason = f"unsafe XML is not read ({type(error).__name__})"
        raise Fault("broken-file", str(path), reason, "Remove the entities from it.", members=[path]) from None
    except (OSError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise Fault("broken-file", str(path), f"cannot be read as XML ({error})", _MEND, members=[path]) from None
    if root is None or root.tag != "annotation":
        reason = "the root element is not <annotation>, so this is not a Pascal VOC file"
        raise Fault("broken-file", str(path), reason, "Remove it.", members=[path])
    return root


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _name(element: Element, where: str) -> str:
    name = _text(element, "name")
    if not name:
        raise Fault("broken-annotation", where, "has no <name>", "Expected the class of the object there.")
    return name


def _box(element: Element, where: str) -> list[float]:
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(element, f"bndbox/{side}")
        try:
            box.append(float(text))
        except ValueError:
            what = f"holds {text[:40]!r}" if text else "is missing"
            reason = f"<bndbox><{side}> {what}"
            raise Fault("broken-annotation", where, reason, "Expected a number of pixels.") from None
    return box
