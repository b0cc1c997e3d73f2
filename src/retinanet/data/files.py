"""Finding and reading the files of a data set, the same way for every format."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from retinanet.data.faults import Fault
from retinanet.images.io import IMAGE_SUFFIXES

_SPLIT = re.compile(r"(?:^|[^a-z])(trainval|training|train|validation|valid|val|minival|testing|test)(?:\d*|[^a-z].*)$")


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark.

    Raises:
        Fault: the file is missing, unreadable, or not UTF-8 (with the line).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = f"cannot be read ({error.strerror or error})"
        raise Fault("broken-file", str(path), reason, "Check the path and its rights.") from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        where = f"{path}, line {line}"
        raise Fault("broken-file", where, "is not UTF-8 text", "Save the file in UTF-8.") from None


def split_word(name: str) -> str | None:
    """The split that a file or folder name speaks of: ``instances_val2017`` -> ``val``, ``labels`` -> None."""
    found = _SPLIT.search(name.lower())
    return found[1] if found else None


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
    """The folders directly inside ``path``, sorted; none if it is not a folder."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(path) if entry.is_dir())
    except OSError:
        return []


def files_in(path: Path, suffixes: Sequence[str], *, deep: bool = False) -> list[Path]:
    """The files in a folder whose suffix (lower case) is one of these, sorted; hidden files are left out."""
    found: list[str] = []
    for folder, _, names in os.walk(path) if deep else _top(path):
        wanted = (name for name in names if not name.startswith(".") and name.lower().endswith(tuple(suffixes)))
        found.extend(os.path.join(folder, name) for name in wanted)
    return [Path(name) for name in sorted(found)]


def _top(path: Path) -> Iterable[tuple[str, list[str], list[str]]]:
    return [next(os.walk(path), (str(path), [], []))]


def listing(folder: str) -> frozenset[str]:
    """The names of what lies in a folder, none if it cannot be read."""
    try:
        return frozenset(os.listdir(folder or "."))
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return frozenset()


class ImageFinder:
    """Finds images by the name that an annotation gives, in the folders where people keep them.

    Args:
        folders: where to look, the likeliest first.
    """

    def __init__(self, folders: Iterable[Path]) -> None:
        self._folders = list(dict.fromkeys(str(folder) for folder in folders))
        self._names: dict[str, frozenset[str]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}
        self._last = self._folders[0]  # that held one

    def find(self, name: str) -> Path:
        """The image of this name: relative to one of the folders, or absolute.

        Where there is none, the path in the folder of the last one found, or in the likeliest, is returned: that it is
        missing is reported for the whole data set at once.
        """
        for spelling in (name, name.replace("\\", "/")):
            for folder in self._folders:
                path = os.path.join(folder, spelling)
                parent, last = os.path.split(path)
                if last in self._listing(parent):
                    self._last = folder
                    return Path(path)
        return Path(os.path.join(self._last, name))

    def with_stem(self, stem: str) -> list[Path]:
        """The images of this name with any image suffix, in the first folder that holds one."""
        for folder in self._folders:
            if folder not in self._stems:
                stems: dict[str, list[str]] = {}
                for name in sorted(self._listing(folder)):
                    base, suffix = os.path.splitext(name)
                    if suffix.lower() in IMAGE_SUFFIXES:
                        stems.setdefault(base, []).append(name)
                self._stems[folder] = stems
            if stem in self._stems[folder]:
                return [Path(folder, name) for name in self._stems[folder][stem]]
        return []

    def _listing(self, folder: str) -> frozenset[str]:
        """The names in a folder, read once: asking the file system for each of 100,000 images is slow."""
        if folder not in self._names:
            self._names[folder] = listing(folder)
        return self._names[folder]
