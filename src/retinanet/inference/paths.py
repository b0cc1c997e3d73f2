"""Which images ``predict`` is given, and what their pictures are called."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from retinanet.errors import UserError
from retinanet.images.io import IMAGE_SUFFIXES

_log = logging.getLogger(__name__)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and patterns name, each once, in order.

    Hidden files of a folder are left out, and so are files of other kinds, which a warning counts.

    Raises:
        UserError: one of them names nothing.
    """
    images: dict[str, Path] = {}  # by absolute path: one image may be named in two ways
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            named = _find_in_folder(path)
        elif path.is_file():
            named = [path]
        elif re.match(r"[a-z][a-z0-9+]+://", pattern):
            raise UserError(
                f"{pattern} is an address, and images are not fetched. Download the image and give its file"
            )
        else:
            named = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
            if not named:
                raise UserError(f"no image at {pattern}: expected a file, a folder or a pattern such as 'scans/*.png'")
        for image in named:
            images.setdefault(os.path.abspath(image), image)
    if not images:
        raise UserError("no image given: expected files, folders or patterns such as 'scans/*.png'")
    return list(images.values())


def _find_in_folder(folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    shown = [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    images = sorted(path for path in shown if path.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise UserError(f"no image in the folder {folder}: looked for {', '.join(IMAGE_SUFFIXES)}")
    kinds = Counter(path.suffix.lower() or path.name for path in shown if path.suffix.lower() not in IMAGE_SUFFIXES)
    if kinds:
        count, names = sum(kinds.values()), ", ".join(kind for kind, _ in kinds.most_common(5))
        _log.warning(
            "%d file%s of other kinds (%s) %s left out of %s",
            *(count, "s" * (count > 1), names, "were" if count > 1 else "was", folder),
        )
    return images


def name_pictures(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the picture of each image, different for all of them."""
    places = [Path(os.path.abspath(path)) for path in paths]  # without "..", which would lead out of the output
    base = os.path.commonpath([place.parent for place in places])
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path, place in zip(paths, places, strict=True):
        relative = place.relative_to(base)
        name = str(relative.with_suffix(".png"))
        if name in taken:  # a.jpg beside a.png
            name = f"{relative}.png"
        while name in taken:
            name = name.removesuffix(".png") + "_.png"
        taken.add(name)
        names[path] = name
    return names
