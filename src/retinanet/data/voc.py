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

from retinanet.data.check import Annotations, BoxColumns, ImageEntry, declared_size, label_lookup, name_list
from retinanet.data.files import ImageFinder, files_in, read_text, split_folders
from retinanet.images.io import IMAGE_SUFFIXES
from retinanet.types import UserError

LOOKED_FOR = "Pascal VOC: a folder with Annotations/*.xml, or with XML files beside the images"


@dataclass(frozen=True)
class _File:
    """One XML file."""

    path: Path
    image_name: str
    size: tuple[int, int] | None
    names: list[str]
    boxes: list[list[float]]
    difficult: list[bool]

    def where(self, number: int) -> str:
        """The place of an object, for messages; objects are counted from 1 as people do."""
        return f"{self.path}, object {number + 1} ({self.names[number]})"

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


def read(path: Path, split: str | None = None, class_names: Sequence[str] | None = None) -> Annotations:
    """The annotations of one split, or of the whole set.

    Raises:
        UserError: XML that is broken, unsafe or lacks something, or an object of a class not among ``class_names``.
    """
    folders = _xml_folders(path)
    everything = [file for folder in folders.values() for file in files_in(folder, (".xml",))]
    chosen = everything if split is None else _chosen(path, folders, split, everything)
    files = {file: _read_file(file) for file in (everything if class_names is None else chosen)}
    declared = sorted({name for file in files.values() for name in file.names})
    names, labels = label_lookup(declared, class_names)
    label_of = {name: label for name, label in zip(declared, labels, strict=True) if label is not None}
    picked = [files[file] for file in chosen]
    rows = [(file, number) for file in picked for number in range(len(file.names))]
    for file, number in rows:
        if file.names[number] not in label_of:
            raise UserError(f"{file.where(number)}: its class is not declared. Expected one of: {name_list(names)}.")
    images = {folder: ImageFinder(_image_folders(folder)) for folder in {file.path.parent for file in picked}}
    return Annotations(
        class_names=names,
        category_ids=tuple(range(1, len(names) + 1)),
        images=[ImageEntry(file.image(images[file.path.parent]), file.path.stem, file.size) for file in picked],
        boxes=BoxColumns(
            owners=[owner for owner, file in enumerate(picked) for _ in file.names],
            xyxy=[box for file in picked for box in file.boxes],
            labels=[label_of[name] for file in picked for name in file.names],
            where=lambda row: rows[row][0].where(rows[row][1]),
            ignore=[difficult for file in picked for difficult in file.difficult],
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


def _chosen(path: Path, folders: dict[str, Path], split: str, everything: list[Path]) -> list[Path]:
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
            raise UserError(f"{listed}, line {number}: {stem} is listed already in line {lines[stem]}. Remove one.")
        lines[stem] = number
    missing = [stem for stem in lines if stem not in known]
    if missing:
        raise UserError(
            f"{listed}, line {lines[missing[0]]}: {folders['']} holds no {missing[0]}.xml ({len(missing)} of "
            f"{len(lines)} are missing). Put the files there, or remove the lines."
        )
    return [known[stem] for stem in lines]


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


def _read_file(path: Path) -> _File:
    try:
        root = ElementTree.parse(path).getroot()
    except ParseError as error:
        line, column = error.position
        raise UserError(
            f"{path}, line {line}, column {column + 1}: broken XML ({error}). Mend or remove the file."
        ) from None
    except DefusedXmlException as error:
        raise UserError(
            f"{path}: unsafe XML is not read ({type(error).__name__}). Remove the entities from it."
        ) from None
    except (OSError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        raise UserError(f"{path}: cannot be read as XML ({error}). Mend or remove the file.") from None
    if root is None or root.tag != "annotation":
        raise UserError(f"{path}: the root element is not <annotation>, so this is not a Pascal VOC file. Remove it.")
    objects = root.findall("object")
    return _File(
        path=path,
        image_name=_text(root, "filename").replace("\\", "/").rpartition("/")[2],
        size=declared_size(_text(root, "size/height"), _text(root, "size/width"), str(path)),
        names=[_name(element, f"{path}, object {number}") for number, element in enumerate(objects, 1)],
        boxes=[_box(element, f"{path}, object {number}") for number, element in enumerate(objects, 1)],
        difficult=[_text(element, "difficult") == "1" for element in objects],
    )


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _name(element: Element, where: str) -> str:
    name = _text(element, "name")
    if not name:
        raise UserError(f"{where}: has no <name>. Expected the class of the object there.")
    return name


def _box(element: Element, where: str) -> list[float]:
    box = []
    for side in ("xmin", "ymin", "xmax", "ymax"):
        text = _text(element, f"bndbox/{side}")
        try:
            box.append(float(text))
        except ValueError:
            what = f"holds {text[:40]!r}" if text else "is missing"
            raise UserError(f"{where}: <bndbox><{side}> {what}. Expected a number of pixels.") from None
    return box
