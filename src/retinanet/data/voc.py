"""Pascal VOC: one XML file per image, with or without ImageSets, or XML files beside the images.

Coordinates are those of the VOC development kit: the top left pixel is (1, 1) and the last pixel belongs to the box, so
a box of the file is ``(xmin - 1, ymin - 1, xmax, ymax)`` here. A box with ``xmax <= xmin`` in the file is far more
often a slip of the annotator than an object one pixel wide, and is treated as a slip. ``difficult`` objects become
ignore regions. An image id is the name of the XML file without suffix, as in ImageSets. Class names are the sorted
union over all XML files of the set, so that its splits agree.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException, ElementTree

from retinanet.data.annotations import Annotations, Box, BoxColumns, ImageEntry, declared_size
from retinanet.data.faults import Fault, Faults, short
from retinanet.data.files import ImageFinder, files_in, read_start, read_text, split_folders
from retinanet.files import open_file
from retinanet.images.io import IMAGE_SUFFIXES

LOOKED_FOR = "Pascal VOC: a folder with Annotations/*.xml, or with XML files beside the images"

# Declared encodings that the XML parser does not know; all of the first kind are parts of gb18030.
_MANY_BYTES = re.compile(
    r"""\s*<\?xml[^>]*encoding=["']((?P<gb>gb[\w-]*)|big5[\w-]*|shift[\w-]*|euc[\w-]*)["']""", re.I
)


@dataclass(frozen=True)
class _File:
    """One XML file."""

    path: Path
    image_name: str
    size: tuple[int, int] | None
    boxes: list[Box]
    outlines: int  # of which so many are the extent of one

    def find_image(self, images: ImageFinder) -> Path:
        """The image named like this file (that is what ImageSets go by), else the one that ``filename`` names."""
        same = images.with_stem(self.path.stem)
        if not same:
            return images.find(self.image_name or f"{self.path.stem}.jpg")
        return next((path for path in same if path.name == self.image_name), same[0])


def find_parts(path: Path) -> dict[str, Path] | None:
    """The lists of ImageSets/Main, or the folders of XML files; None where this is not VOC."""
    folders = _xml_folders(path)
    return _image_sets(path) or folders if "" in folders else folders or None


def read(path: Path, split: str | None, class_names: Sequence[str] | None, faults: Faults) -> Annotations:
    """The annotations of one split, or of the whole set.

    Raises:
        Fault: XML that is broken, unsafe or lacks something. Where ``faults`` returns, files and objects that are
            faulty are left out.
    """
    folders = _xml_folders(path)
    everything = [file for folder in folders.values() for file in files_in(folder, (".xml",))]
    chosen = everything if split is None else _choose_files(path, folders, split, everything, faults)
    files: dict[Path, _File] = {}
    for file in everything if class_names is None else chosen:
        try:
            files[file] = _read_file(file, faults)
        except Fault as fault:
            faults(fault)
    names = tuple(sorted({box.name for file in files.values() for box in file.boxes}))
    picked = [files[file] for file in chosen if file in files]
    finders = {
        folder: ImageFinder(_image_folders(folder), path, split or "")
        for folder in {file.path.parent for file in picked}
    }
    images = [ImageEntry(file.find_image(finders[file.path.parent]), file.path.stem, file.size) for file in picked]
    for finder in finders.values():
        finder.report(faults)
    if outlined := [file for file in picked if file.outlines]:
        count = sum(file.outlines for file in outlined)
        reason = f"{count} objects have an outline or a rotated box in place of <bndbox>"
        faults(Fault("outline", outlined[0].path, reason))
    if split is None:
        _report_unannotated(
            {image.path for image in images} | {file.with_suffix("") for file in chosen}, finders, faults
        )
    rows = [(owner, box) for owner, file in enumerate(picked) for box in file.boxes]
    return Annotations(names, (), images, BoxColumns.collect(rows, names, first_pixel=1))


def _xml_folders(path: Path) -> dict[str, Path]:
    """Where the XML files lie: under "" for a set in one folder, else under the name of each split folder."""
    whole = _xml_folder(path)
    if whole is not None:
        return {"": whole}
    for home in (path / "Annotations", path / "annotations", path):  # Annotations/train beside JPEGImages/train
        parts = {folder.name: xml for folder in split_folders(home) if (xml := _xml_folder(folder))}
        if parts:
            return parts
    return {}


def _xml_folder(path: Path) -> Path | None:
    if files_in(path / "Annotations", (".xml",)):
        return path / "Annotations"
    for folder in (path / "annotations", path):
        starts = (read_start(file, 4096) for file in files_in(folder, (".xml",))[:20])
        if any(re.search(r"<annotation[\s>]", start) for start in starts):  # the root; other tools write XML too
            return folder
    return None


def _image_folders(xml_folder: Path) -> list[Path]:
    root = xml_folder.parent
    if root.name.lower() == "annotations":
        home, split = root.parent, xml_folder.name
        return [home / "JPEGImages" / split, home / "images" / split, home / "Images" / split, home / split, xml_folder]
    return [root / "JPEGImages", xml_folder, root / "images", root / "Images", root]


def _image_sets(path: Path) -> dict[str, Path]:
    """The lists of ImageSets/Main by name, without the one-against-all lists of a class (``cat_train``)."""
    lists = {file.stem: file for file in files_in(path / "ImageSets" / "Main", (".txt",))}
    return {name: file for name, file in lists.items() if name.rpartition("_")[2] not in lists.keys() - {name}}


def _choose_files(
    path: Path, folders: dict[str, Path], split: str, everything: list[Path], faults: Faults
) -> list[Path]:
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
        words = stem.rsplit(maxsplit=1)
        if stem not in known and words[-1] in ("0", "1", "-1"):  # a second column: whether a class is present
            stem = words[0]
        if stem not in known:  # others hold paths or file names
            base, suffix = os.path.splitext(stem)
            stem = base if suffix.lower() in (*IMAGE_SUFFIXES, ".xml") else stem
            stem = stem if stem in known else stem.replace("\\", "/").rpartition("/")[2]
        if stem in lines:
            reason = f"{short(stem)} is listed already in line {lines[stem]}"
            faults(Fault("listed-twice", f"{listed}, line {number}", reason))
            continue
        lines[stem] = number
    missing = [stem for stem in lines if stem not in known]
    if missing:
        reason = f"{folders['']} holds no {short(missing[0])}.xml ({len(missing)} of {len(lines)} are missing)"
        remedy = "Put the files there, or remove the lines."
        members = [folders[""] / f"{stem}.xml" for stem in missing]
        faults(Fault("missing-file", f"{listed}, line {lines[missing[0]]}", reason, remedy, members=members))
    return [known[stem] for stem in lines if stem in known]


def _report_unannotated(known: set[Path], finders: dict[Path, ImageFinder], faults: Faults) -> None:
    """VOC gives an image without objects a file of its own; an image without a file has not been annotated."""
    stems = {path.stem for path in known}
    for folder in finders:
        place = next((place for place in _image_folders(folder) if files_in(place, IMAGE_SUFFIXES)), folder)
        bare = [file for file in files_in(place, IMAGE_SUFFIXES) if file not in known and file.stem not in stems]
        if bare:
            reason = f"{len(bare)} images have no XML file, so they are not annotated: {bare[0].name}, ..."
            faults(Fault("unused-image", place, reason, members=bare))


def _read_file(path: Path, faults: Faults) -> _File:
    root = _read_root(path)
    size = declared_size(_text(root, "size/height"), _text(root, "size/width"), str(path), faults)
    boxes, outlines = [], 0
    for number, element in enumerate(root.findall("object"), 1):  # counted as people do
        where = f"{path}, object {number}"
        try:
            name = _text(element, "name")
            if not name:
                raise Fault("broken-annotation", where, "has no <name>", "Expected the class of the object there.")
            outline = None if element.find("bndbox") is not None else _outline_extent(element)
            xyxy = outline or _read_box(element, where)
        except Fault as fault:
            faults(fault)
            continue
        boxes.append(Box(xyxy, name, f"{where} ({name})", _text(element, "difficult") == "1"))
        outlines += outline is not None
    return _File(path, _text(root, "filename").replace("\\", "/").rpartition("/")[2], size, boxes, outlines)


def _read_root(path: Path) -> Element:
    remedy = "Fix or remove the file."
    try:
        with open_file(path) as stream:
            data = stream.read()
        declared = _MANY_BYTES.match(data[:200].decode("ascii", "replace"))
        # The parser knows no encodings of several bytes but Unicode's; of a text it does not heed the declaration.
        root = ElementTree.fromstring(data.decode(declared[1] or "gb18030") if declared else data)
    except ParseError as error:
        line, column = error.position
        where, reason = f"{path}, line {line}, column {column + 1}", f"broken XML ({error})"
    except DefusedXmlException as error:
        where, reason = str(path), f"unsafe XML is not read ({type(error).__name__})"
        remedy = "Remove the entities from it."
    except (OSError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        where, reason = str(path), f"cannot be read as XML ({error})"
        remedy = "Save it in UTF-8." if "cod" in str(error) else remedy  # encoding, codec, decode
    else:
        if root is not None and root.tag == "annotation":
            return root
        where, reason = str(path), "the root element is not <annotation>, so this is not a Pascal VOC file"
        remedy = "Remove it."
    raise Fault("broken-file", where, reason, remedy, members=[path])


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _read_box(element: Element, where: str) -> list[float]:
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


def _outline_extent(element: Element) -> list[float] | None:
    """The extent of a <polygon> or a rotated box <robndbox> (radians), None where there is neither."""
    try:
        rotated = {side: float(_text(element, f"robndbox/{side}")) for side in ("cx", "cy", "w", "h", "angle")}
    except ValueError:
        rotated = {}
    if rotated:
        cos, sin = abs(math.cos(rotated["angle"])), abs(math.sin(rotated["angle"]))
        half_width = (rotated["w"] * cos + rotated["h"] * sin) / 2
        half_height = (rotated["w"] * sin + rotated["h"] * cos) / 2
        x, y = rotated["cx"], rotated["cy"]
        return [x - half_width, y - half_height, x + half_width, y + half_height]
    points = list(element.find("polygon") or ())
    try:
        xs = [float(point.text or "") for point in points if point.tag.startswith("x")]
        ys = [float(point.text or "") for point in points if point.tag.startswith("y")]
    except ValueError:
        return None
    return [min(xs), min(ys), max(xs), max(ys)] if xs and ys else None
