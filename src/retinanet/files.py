"""Whether results may be written to a place, writing them whole or not at all, and values that JSON can hold."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from retinanet.errors import UserError


def check_output_folder(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Check, before the work is done, that results can be written and replace nothing by accident.

    Args:
        folder: the value of ``--output``.
        names: paths within the folder of the files that will be written.
        overwrite: whether files of these names may be replaced.

    Raises:
        UserError: the folder is a file or cannot be written to, or holds such a file and ``overwrite`` is off.
    """
    if folder.is_file():
        raise UserError(f"--output {folder} is a file; expected the name of a folder")
    existing = [name for name in names if (folder / name).exists()]
    if existing and not overwrite:
        raise UserError(
            f"--output {folder} holds results already ({existing[0]}). Choose another --output or pass --overwrite"
        )
    check_writable(folder)


def check_writable(path: Path) -> None:
    """Check, before the work is done, that a file or folder can be made or replaced at ``path``.

    Raises:
        UserError: a parent is a file, or the nearest existing parent may not be written to.
    """
    path = path.absolute()
    nearest = next(place for place in (path, *path.parents) if place.exists())
    if nearest != path and not nearest.is_dir():
        raise UserError(f"{path} cannot be written: {nearest} is a file, not a folder. Choose another place")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path} cannot be written: {nearest} is read-only. Choose another place")


def write_atomically(path: str | Path, content: str | bytes | Callable[[Path], object]) -> None:
    """Write a file beside ``path`` and move it into place: a reader finds the old file or the new one, never a part.

    The bytes are on the disk before the move, so a power cut leaves no empty file. The draft is removed on any error.

    Args:
        path: of the file; missing folders are made.
        content: text (saved as UTF-8), bytes, or a function that writes the file whose path it is given.

    Raises:
        UserError: the file cannot be written, with the path and the reason. Other errors of the function pass through.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(draft)
        else:
            draft.write_bytes(content.encode() if isinstance(content, str) else content)
        with draft.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}). Choose another place") from None
    finally:
        with suppress(OSError):  # there is a draft only after an error
            draft.unlink()


def make_json_safe(value: Any) -> Any:
    """Nested values as JSON holds them: keys are text, arrays are lists, and None stands for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): make_json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [make_json_safe(entry) for entry in value]
    if hasattr(value, "tolist"):  # an array of numpy or torch, or one of its numbers
        return make_json_safe(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value
