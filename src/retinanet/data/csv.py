"""CSV: one row per box, in the three dialects people have.

* without a header: ``path,x1,y1,x2,y2,class``, with or without a number of the row before it;
* ``filename,width,height,class,xmin,ymin,xmax,ymax``, where width and height are those of the image;
* ``image_path,xmin,ymin,xmax,ymax,label``, columns in any order and under their common names.

Fields are parted by comma, semicolon or tab. Coordinates are pixels, ``x2`` and ``y2`` the far edge of the box. A row
whose coordinates and class are empty is an image without objects, and so is an only row of an image whose corners are
all 0 or all NaN. Lines before the first that begin with ``#`` are passed over. Class names are the sorted union over
the files of the set, or those of ``classes.csv`` (``class,id``) or ``classes.txt`` beside them. An image id is the path
as the file has it.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.data.annotations import Annotations, Box, BoxColumns, ImageEntry, declared_size
from retinanet.data.faults import Fault, Faults, name_list, short
from retinanet.data.files import ImageFinder, files_in, name_splits, read_start, read_text

LOOKED_FOR = "CSV: a .csv file, or a folder with some, of path,x1,y1,x2,y2,class without a header or named columns"

_SUFFIXES = (".csv", ".tsv")
_PATHS = "image_path filename file_name path image img img_path image_name file filepath img_file location"
_COLUMNS = {
    "path": tuple(_PATHS.split()),
    "x1": ("xmin", "x1", "x_min", "left"),
    "y1": ("ymin", "y1", "y_min", "top"),
    "x2": ("xmax", "x2", "x_max", "right"),
    "y2": ("ymax", "y2", "y_max", "bottom"),
    "class": ("class", "label", "class_name", "classname", "category", "name", "label_name"),
    "width": ("width", "image_width", "img_width"),
    "height": ("height", "image_height", "img_height"),
}
_CORNERS = ("x1", "y1", "x2", "y2")
_HEADERLESS = {"path": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "class": 5}
_INDEXED = {key: column + 1 for key, column in _HEADERLESS.items()}
_CLASS_FILES = ("classes.csv", "class_list.csv", "classes.txt")


@dataclass(frozen=True)
class _Row:
    """One line of a file."""

    file: Path
    line: int
    image: str
    size: tuple[int, int] | None
    box: list[float] | None
    name: str

    @property
    def where(self) -> str:
        return f"{self.file}, line {self.line}"

    @property
    def is_finite(self) -> bool:
        """All corners are numbers."""
        return all(map(math.isfinite, self.box or ()))

    @property
    def is_blank(self) -> bool:
        """The corners are all 0 or all NaN, as some tools write an image without objects."""
        return self.box is not None and (not any(self.box) or all(map(math.isnan, self.box)))


def find_parts(path: Path) -> dict[str, Path] | None:
    """The CSV file of each split, under "" where the name of an only file speaks of none; None where this is no CSV."""
    if path.is_file():
        return name_splits([path]) if path.suffix.lower() in _SUFFIXES else None
    found = [file for file in files_in(path, _SUFFIXES) if file.name not in _CLASS_FILES and why_not(file) is None]
    return name_splits(found) if found else None


def read(path: Path, split: str | None, class_names: Sequence[str] | None, faults: Faults) -> Annotations:
    """The annotations of one split, or of all files together.

    Raises:
        Fault: a line that cannot be read, or a class that is not declared. Where ``faults`` returns, lines that are
            faulty are left out.
    """
    files = find_parts(path) or {}
    home = path if path.is_dir() else path.parent
    declared = None if class_names is not None else _declared_names(home)
    wanted = [file for name, file in files.items() if split in (None, name)]
    union = declared is None and class_names is None  # the splits of the set have to agree
    rows = {file: list(_rows(file, faults)) for file in (files.values() if union else wanted)}
    finders = {file: ImageFinder(_image_folders(file, name), home, name) for name, file in files.items()}
    images = _images([row for file in wanted for row in rows[file]], faults)
    entries = [ImageEntry(finders[row.file].find(image), image, row.size) for image, row in images.items()]
    for file in wanted:
        finders[file].report(faults)

    alone = Counter(row.image for part in rows.values() for row in part)
    boxes = {
        file: [row for row in part if row.box is not None and not (row.is_blank and alone[row.image] == 1)]
        for file, part in rows.items()
    }
    names = declared
    if names is None:  # a faulty row names no class: what it holds may be anything
        sound = {row.name for part in boxes.values() for row in part if row.is_finite}
        names = tuple(sorted(sound - {""}))
    known, chosen = set(names), [row for file in wanted for row in boxes[file]]
    for row in chosen:
        if not row.name and not row.is_blank:
            faults(Fault("broken-annotation", row.where, "the box has no class", "Expected its name."))
        elif row.name and row.name not in known and (declared is not None or row.is_finite):
            reason = f"class {short(row.name)} is not declared"
            faults(Fault("undeclared-class", row.where, reason, f"Expected: {name_list(names)}."))
    # A row that is blank or not finite is left out later, with its place; its class does not matter.
    chosen = [
        row for row in chosen if row.name in known or (names and (row.is_blank or (row.name and declared is None)))
    ]
    owner_of = {image: owner for owner, image in enumerate(images)}
    owned = [(owner_of[row.image], Box(row.box or (), row.name, row.where)) for row in chosen]
    return Annotations(names, (), entries, BoxColumns.collect(owned, names))


def why_not(file: Path) -> Fault | None:
    """None for a file in one of the dialects, else what its first line lacks."""
    line = next((line for line in read_start(file).splitlines() if not _is_passed_over(line)), "")
    return None if _delimiter(line) else _unknown_dialect(f"{file}, line 1", line.strip().split(","))


def _is_passed_over(line: str) -> bool:
    return not line.strip() or line.startswith("#")


def _delimiter(line: str) -> str | None:
    """The separator by which a first line is one of the dialects, None if by none."""
    for mark in ",;\t":
        try:
            fields = next(csv.reader([line], delimiter=mark, strict=True), [])
        except csv.Error:
            continue
        if _columns_of(fields) is not None:
            return mark
    return None


def _columns_of(fields: Sequence[str]) -> dict[str, int] | None:
    """Which column holds what by the first line; None if it is neither a header nor a row of a file without one."""
    words = [field.strip().lower() for field in fields]
    columns = {
        key: next(words.index(name) for name in names if name in words)
        for key, names in _COLUMNS.items()
        if any(name in words for name in names)
    }
    if all(key in columns for key in ("path", "class", *_CORNERS)):
        return columns
    if len(words) == 6 and (not any(words[1:]) or all(map(_is_number, words[1:5]))):
        return _HEADERLESS
    if len(words) == 7 and words[0].isdigit() and all(map(_is_number, words[2:6])):  # with the index of pandas
        return _INDEXED
    return None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows(file: Path, faults: Faults) -> Iterator[_Row]:
    text = read_text(file)
    first = next((line for line in text.splitlines() if not _is_passed_over(line)), "")
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(first) or ",", strict=True)
    columns: dict[str, int] | None = None
    count = 0
    try:
        for fields in reader:
            where = f"{file}, line {reader.line_num}"
            if not any(field.strip() for field in fields) or (columns is None and fields[0].startswith("#")):
                continue
            if columns is None:
                count, columns = len(fields), _columns_of(fields)
                if columns is None:
                    raise _unknown_dialect(where, fields)
                if columns is not _HEADERLESS and columns is not _INDEXED:
                    continue
            try:
                if len(fields) != count:
                    reason = f"has {len(fields)} fields, the first line {count}"
                    raise Fault("broken-annotation", where, reason, "Fix it.")
                yield _row(file, reader.line_num, {key: fields[at].strip() for key, at in columns.items()}, faults)
            except Fault as fault:
                faults(fault)
    except csv.Error as error:
        where = f"{file}, line {reader.line_num}"
        raise Fault("broken-file", where, f"broken CSV ({error})", "Fix the line.") from None


def _unknown_dialect(where: str, fields: Sequence[str]) -> Fault:
    words = [field.strip().lower() for field in fields]
    missing = [_COLUMNS[key][0] for key in _HEADERLESS if not set(_COLUMNS[key]) & set(words)]
    return Fault(
        "broken-file",
        where,
        f"the columns {name_list(fields)} are not understood: {name_list(missing)} missing",
        "Expected path,x1,y1,x2,y2,class without a header, or a header such as image_path,xmin,ymin,xmax,ymax,label.",
    )


def _row(file: Path, line: int, fields: dict[str, str], faults: Faults) -> _Row:
    where = f"{file}, line {line}"
    if not fields["path"]:
        raise Fault("broken-annotation", where, "names no image", "Expected the path of one.")
    size = None
    if "width" in fields and "height" in fields:
        size = declared_size(fields["height"], fields["width"], where, faults)
    image = fields["path"]
    if "://" not in image:
        image = os.path.normpath(image.replace("\\", "/"))
    corners = [fields[key] for key in _CORNERS]
    if not any(corners) and not fields["class"]:
        return _Row(file, line, image, size, None, "")
    try:
        box = [float(corner) for corner in corners]
    except ValueError:
        reason = f"the corners are {name_list([corner or 'empty' for corner in corners])}"
        remedy = "Expected four numbers of pixels, or four empty fields and no class for an image without objects."
        raise Fault("broken-annotation", where, reason, remedy) from None
    return _Row(file, line, image, size, box, fields["class"])


def _images(rows: Sequence[_Row], faults: Faults) -> dict[str, _Row]:
    """The first row of each image."""
    images: dict[str, _Row] = {}
    for row in rows:
        first = images.setdefault(row.image, row)
        if first.file != row.file:
            reason = f"{row.image} is in {first.file} too (line {first.line})"
            faults(Fault("listed-twice", row.where, reason, "Name one split."))
        elif first.size != row.size:
            reason = f"the size of {row.image} is not that of line {first.line}"
            faults(Fault("bad-size", row.where, reason, "Make them agree."))
    return images


def _image_folders(file: Path, split: str) -> list[Path]:
    """Where the images of a file may lie, the likeliest place first."""
    home = file.parent
    named = [home / name for name in (file.stem, split, f"images/{split}") if name and split]
    return [home, *named, home / "images", home / "JPEGImages", home.parent, home.parent / "images"]


def _declared_names(home: Path) -> tuple[str, ...] | None:
    """The names of a class file beside the data: ``name`` or ``name,id`` a line, ids counted from 0."""
    file = next((home / name for name in _CLASS_FILES if (home / name).is_file()), None)
    if file is None:
        return None
    names: dict[int, str] = {}
    for line, text in enumerate(read_text(file).splitlines(), 1):
        if not text.strip():
            continue
        name, _, number = text.strip().rpartition(",") if file.suffix == ".csv" else (text.strip(), "", str(len(names)))
        if line == 1 and number.strip().strip('"').lower() in ("id", "class_id", "label", "index"):
            continue  # a header
        if not name or not re.fullmatch(r"\s*[0-9]{1,9}\s*", number) or int(number) in names:
            remedy = "Expected a class name and an id of its own: name,0"
            raise Fault("class-names", f"{file}, line {line}", short(text.strip()), remedy)
        names[int(number)] = name.strip().strip('"')
    if sorted(names) != list(range(len(names))):
        raise Fault("class-names", file, f"the ids are {name_list(sorted(names))}", f"Expected 0 to {len(names) - 1}.")
    return tuple(names[number] for number in range(len(names)))
