"""Finding and reading the files of a data set, the same way for every format."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path
from urllib.parse import unquote

from retinanet.data.faults import Fault, Faults, short
from retinanet.errors import UserError
from retinanet.files import open_file
from retinanet.images.io import IMAGE_SUFFIXES

_SPLIT = re.compile(r"(?:^|[^a-z])(trainval|training|train|validation|valid|val|minival|testing|test)(?:\d*|[^a-z].*)$")
_ADDRESS = re.compile("[a-z][a-z0-9+.-]+://")
_SPELLINGS = (("train", "training"), ("val", "valid", "validation"), ("test", "testing"))
_OTHER_PICTURES = (".heic", ".heif", ".cr2", ".nef", ".dng", ".arw", ".svg", ".psd", ".jxl", ".npy", ".dcm", ".avif")


def read_start(path: Path, length: int = 65536) -> str:
    """The first bytes of a file as text, "" where it cannot be read; what is no text is replaced."""
    try:
        with open_file(path) as stream:
            return decode(stream.read(length), "replace")
    except OSError:
        return ""


def decode(data: bytes, errors: str = "strict") -> str:
    """UTF-8 with or without a byte order mark, or UTF-16 with one, as programs on Windows write it."""
    is_wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return data.decode("utf-16" if is_wide else "utf-8-sig", errors)


def read_text(path: Path) -> str:
    """The text of a file, as :func:`decode` takes it.

    Raises:
        Fault: the file is missing, unreadable, or not UTF-8 (with the line).
    """
    try:
        with open_file(path) as stream:
            data = stream.read()
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        raise Fault("broken-file", path, reason, "Check the path and its rights.") from None
    try:
        return decode(data)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise Fault("broken-file", f"{path}, line {line}", "is not UTF-8 text", "Save the file in UTF-8.") from None


def split_word(name: str) -> str | None:
    """The split that a file or folder name speaks of: ``instances_val2017`` -> ``val``, ``labels`` -> None."""
    match = _SPLIT.search(name.lower())
    return match[1] if match else None


def find_training_split(names: Sequence[str]) -> str | None:
    """The split to train on: ``train``, else ``trainval``, else the only one."""
    only = names[0] if len(names) == 1 else None
    return find_spelling("train", names) or find_spelling("trainval", names) or only


def find_spelling(split: str, names: Sequence[str]) -> str | None:
    """The name that means this split: itself, or another spelling of it."""
    same = next((spellings for spellings in _SPELLINGS if split in spellings), (split,))
    return next((name for name in (split, *same) if name in names), None)


def name_splits(files: Sequence[Path]) -> dict[str, Path]:
    """A split for each annotation file: the word in its name, its whole stem where that is not unique or there is none.

    An only file without such a word is not a split; it stands under "".
    """
    words = [split_word(file.stem) for file in files]
    if words == [None]:
        return {"": files[0]}
    return {
        word if word and words.count(word) == 1 else file.stem: file for word, file in zip(words, files, strict=True)
    }


def split_folders(path: Path) -> list[Path]:
    """The folders directly inside ``path`` that are named like a split (``train``, ``valid``, ``test2017``, ...)."""
    return [folder for folder in sub_folders(path) if _SPLIT.match(folder.name.lower())]


def sub_folders(path: Path) -> list[Path]:
    """The folders directly inside ``path``, sorted, without hidden ones; none if it is not a folder."""
    try:
        return sorted(Path(entry) for entry in os.scandir(path) if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []


def files_in(path: Path, suffixes: Sequence[str], *, deep: bool = False) -> list[Path]:
    """The files in a folder whose suffix (lower case) is one of these, sorted; hidden files and folders are left out.

    With ``deep`` those in folders below as well, links to folders included.
    """
    found: list[str] = []
    for folder, names in _walk(path) if deep else [next(_walk(path), (str(path), []))]:
        wanted = (name for name in names if not name.startswith(".") and name.lower().endswith(tuple(suffixes)))
        found.extend(os.path.join(folder, name) for name in wanted)
    return [Path(name) for name in sorted(found)]


def _walk(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder and the names of its files. Links are followed, each folder is entered once."""
    entered: set[str] = set()
    for folder, folders, names in os.walk(path, followlinks=True) if os.path.isdir(path) else ():  # "\0": no folder
        entered.add(os.path.realpath(folder))
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(folder, name)) not in entered
        )
        yield folder, names


def list_folder(folder: str | Path) -> frozenset[str]:
    """The names of what lies in a folder, none if it cannot be read."""
    try:
        return frozenset(os.listdir(folder or "."))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return frozenset()


def find_home(path: Path) -> Path:
    """The folder of a data set: ``path``, or that of an annotation file, or of the ``annotations`` it lies in."""
    return path if path.is_dir() else path.parent.parent if path.parent.name.lower() == "annotations" else path.parent


def report_other_files(folders: Iterable[Path], faults: Faults) -> None:
    """Tell how many files of kinds that look like pictures but are not read lie in the folders of the images."""
    for folder in folders:
        names = sorted(
            name
            for name in list_folder(folder)
            if name.lower().endswith(_OTHER_PICTURES) and not name.lower().endswith(IMAGE_SUFFIXES)
        )
        if names:
            kinds = ", ".join(sorted({os.path.splitext(name)[1].lower() for name in names}))
            reason = f"{len(names)} files of other kinds ({kinds}) were left out: {names[0]}"
            faults(Fault("other-files", folder, f"{reason}, ..." if len(names) > 1 else reason))


def report_outside(path: Path, images: Sequence[Path], confine: bool, faults: Faults) -> None:
    """Tell which images lie outside of a data set: an annotation can name any file of this machine.

    Raises:
        UserError: there is one, and ``confine`` is set; links are followed then, which takes longer.
    """
    resolve = os.path.realpath if confine else os.path.abspath
    root = os.path.join(resolve(find_home(path)), "")
    outside = [image for image in images if not resolve(image).startswith(root)]
    if outside:
        reason = (
            f"{len(outside)} of {len(images)} images lie outside of the data set, for instance {short(outside[0], 200)}"
        )
        if confine:
            raise UserError(f"{path}: {reason}. Put them into it, or leave out --confine if you know them.")
        faults(Fault("outside-image", path, reason))


class ImageFinder:
    """Finds images by the name that an annotation gives, in the folders where people keep them.

    Args:
        folders: where to look, the likeliest first.
        root: the data set; below it, an image that is in none of the folders is looked for by its base name.
        split: of the annotations; an image of another split is never taken in place of a missing one.
    """

    def __init__(self, folders: Iterable[Path], root: Path, split: str) -> None:
        self._folders = list(dict.fromkeys(str(folder) for folder in folders))
        self._root = root
        self._split = split_word(split)
        self._list = cache(list_folder)  # asking the file system for each of 100,000 images is slow
        self._group = cache(_group_images)
        self._below: dict[str, list[Path]] | None = None
        self._last = self._folders[0]  # that held one
        self.elsewhere: dict[str, Path] = {}
        """The names that were found by their base name alone, and where."""

    def find(self, name: str) -> Path:
        """The image of this name: relative to one of the folders, or absolute, or the only one of its base name.

        Where there is none, the path in the folder of the last one found, or in the likeliest, is returned: that it is
        missing is reported for the whole data set at once.
        """
        for spelling in dict.fromkeys((name, name.replace("\\", "/"))):
            for folder in self._folders:
                path = os.path.join(folder, spelling)
                parent, last = os.path.split(path)
                if last in self._list(parent):
                    self._last = folder
                    return Path(path)
        found = self._find_below(name)
        if found is not None:
            self.elsewhere[name] = found
            return found
        return Path(name if _ADDRESS.match(name) else os.path.join(self._last, name))

    def with_stem(self, stem: str) -> list[Path]:
        """The images of this name with any image suffix, in the first folder that holds one."""
        return next((paths for folder in self._folders if (paths := self._group(Path(folder)).get(stem))), [])

    def report(self, faults: Faults) -> None:
        """Tell which images were found by their base name alone."""
        for name, path in list(self.elsewhere.items())[:1]:
            reason = f"{len(self.elsewhere)} names lead nowhere, and were found by the end of their paths"
            faults(Fault("found-elsewhere", self._root, f"{reason}: {name!r} is taken to be {path}"))

    def _find_below(self, name: str) -> Path | None:
        """The only image below the data set whose path ends like this name: the more folders agree the better."""
        if _ADDRESS.match(name):
            return None
        if self._below is None:
            self._below = {}
            for path in files_in(self._root, IMAGE_SUFFIXES, deep=True):
                for key in {_plain(path.name), _plain(path.stem)}:
                    self._below.setdefault(key, []).append(path)
        wanted = [_plain(part) for part in re.split(r"[\\/]|\?d=", unquote(name)) if part]
        candidates = [path for path in self._below.get(wanted[-1] if wanted else "", []) if self._may_take(path)]
        agreeing = Counter({path: _count_agreeing(wanted, path) for path in candidates}).most_common(2)
        if not agreeing or (len(agreeing) > 1 and agreeing[0][1] == agreeing[1][1]):
            return None
        return agreeing[0][0]

    def _may_take(self, path: Path) -> bool:
        """Whether no folder of the path names another split: 0001.jpg of val is not the missing 0001.jpg of train."""
        if not self._split:
            return True
        words = {split_word(part) for part in path.relative_to(self._root).parts[:-1]} - {None}
        return not words or any(word is not None and word[:3] == self._split[:3] for word in words)


def _group_images(folder: Path) -> dict[str, list[Path]]:
    """The images in a folder by their names without suffix."""
    groups: dict[str, list[Path]] = {}
    for path in files_in(folder, IMAGE_SUFFIXES):
        groups.setdefault(path.stem, []).append(path)
    return groups


def _plain(name: str) -> str:
    """A name without regard to capitals and to the two ways in which Unicode writes an accent."""
    return unicodedata.normalize("NFC", name).casefold()


def _count_agreeing(wanted: Sequence[str], path: Path) -> int:
    """How many folders above the file agree."""
    count = 0
    for one, other in zip(reversed(wanted[:-1]), reversed(path.parent.parts), strict=False):
        if one != _plain(other):
            break
        count += 1
    return count
