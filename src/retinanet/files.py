"""Opening files, whether results may be written, writing them whole or not at all, and values that JSON can hold."""

from __future__ import annotations

import errno
import math
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from retinanet.digest import seal
from retinanet.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def open_file(path: Path) -> BinaryIO:
    """A file, open for reading. A named pipe would wait for its writer, and a device may have no end.

    Raises:
        OSError: it cannot be opened, or is no file.
    """
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):  # of a folder open says so itself
        raise OSError(errno.EINVAL, "it is a named pipe or a device, not a file", str(path))
    return path.open("rb")


def check_output_folder(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Check, before the work is done, that results can be written and replace nothing by accident.

    Args:
        folder: the value of ``--output``.
        names: paths within the folder of the files that will be written.
        overwrite: whether files of these names may be replaced.

    Raises:
        UserError: the folder is a file or cannot be written to, or holds such a file and ``overwrite`` is off.
    """
    if os.path.isfile(folder):
        raise UserError(f"--output {folder} is a file; expected the name of a folder")
    existing = [name for name in names if os.path.exists(folder / name)]
    if existing and not overwrite:
        raise UserError(
            f"--output {folder} holds results already ({existing[0]}). Choose another --output or pass --overwrite"
        )
    check_writable(folder)


def check_new_file(option: str, path: str | None, *, overwrite: bool) -> None:
    """Check that the file that an option names, if any, replaces nothing by accident.

    Raises:
        UserError: it exists and ``overwrite`` is off.
    """
    if path is not None and Path(path).exists() and not overwrite:
        raise UserError(f"{option} {path}: the file exists. Name another, or pass --overwrite")


def check_writable(path: Path) -> None:
    """Check, before the work is done, that a file or folder can be made or replaced at ``path``.

    Raises:
        UserError: a parent is a file, or the nearest existing parent may not be written to.
    """
    path = path.absolute()
    nearest = next(place for place in (path, *path.parents) if os.path.exists(place))
    if nearest != path and not os.path.isdir(nearest):
        raise UserError(f"{path} cannot be written: {nearest} is a file, not a folder. Choose another place")
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{path} cannot be written: {nearest} is read-only. Choose another place")


def write_atomically(
    path: str | Path, content: str | bytes | Callable[[Path], object], *, size: int | None = None
) -> None:
    """Write a file beside ``path`` and move it into place: a reader finds the old file or the new one, never a part.

    The bytes are on the disk before the move, so a power cut leaves no empty file, and the move is there before the
    next file is written, so it leaves no later file without an earlier one. The draft is removed on any error.
    The file has the permissions that the umask leaves, whoever writes it.

    Args:
        path: of the file; missing folders are made.
        content: text (saved as UTF-8), bytes, or a function that writes the file whose path it is given.
        size: roughly how many bytes a function writes, for the message.

    Raises:
        UserError: the file cannot be written, with the path, the reason and the space that it takes. Other errors of
            the function pass through.
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{uuid4().int}.part")  # of this call alone
    if isinstance(content, str):
        content = content.encode()
    try:
        with explain_failed_write(path, size if callable(content) else len(content)):
            path.parent.mkdir(parents=True, exist_ok=True)
            draft.touch()
            mode = draft.stat().st_mode
            if callable(content):
                content(draft)
            else:
                draft.write_bytes(content)
            draft.chmod(mode)  # safetensors writes with 0600
            with draft.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(draft, path)
            _sync_folder(path.parent)
    finally:
        with suppress(OSError):  # there is a draft only after an error
            draft.unlink()


def _sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk; Windows does so by itself."""
    if os.name != "posix":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def write_folder(folder: Path, *, replace: bool, outdated: Iterable[Path] = ()) -> Iterator[Path]:
    """An empty folder whose content comes into ``folder`` when all of it is there; after an error nothing does.

    Args:
        folder: where to; missing parents are made.
        replace: what the folder holds goes; otherwise files of other names stay.
        outdated: earlier results in the folder, which go unless they are written anew.

    Raises:
        UserError: it cannot be written.
    """
    absolute = folder.absolute()
    places = absolute.parents if replace else (absolute, *absolute.parents)
    home = next(place for place in places if os.path.exists(place))
    try:
        with tempfile.TemporaryDirectory(prefix=".draft-", dir=home) as name:
            new = Path(name) / "new"
            new.mkdir()
            yield new
            written: set[Path] = set()
            if replace and folder.exists():
                os.replace(folder, Path(name) / "old")
            for path in [new] if replace else [path for path in new.rglob("*") if path.is_file()]:
                target = folder / path.relative_to(new)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
                written.add(target)
            for path in set(outdated) - written:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error}); nothing was kept. Choose another --output") from None


def write_tensors(path: Path, content: Mapping[str, Any]) -> None:
    """``torch.save`` of plain containers of tensors, whole or not at all, with a seal by which damage is noticed.

    Raises:
        UserError: as :func:`write_atomically`.
    """
    import torch

    def write(draft: Path) -> None:
        with draft.open("wb") as file:  # given a path, torch says neither what failed nor why
            torch.save(content, file)
        seal(draft)

    write_atomically(path, write, size=tensor_bytes(content))


def tensor_bytes(content: Any) -> int:
    """Bytes of the tensors in nested containers, which is nearly what their file takes."""
    if isinstance(content, Mapping):
        content = list(content.values())
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        return sum(map(tensor_bytes, content))
    return getattr(content, "nbytes", 0)


@contextmanager
def explain_failed_write(path: Path, size: int | None = None) -> Iterator[None]:
    """Turn the error of a write into a message; ``torch.save`` raises a RuntimeError with an OSError behind it.

    Args:
        path: what is written.
        size: roughly how many bytes it takes.

    Raises:
        UserError: it cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or str(cause)
        if cause.errno not in FULL:
            raise UserError(f"{path} cannot be written ({reason}). Choose another place") from None
        takes = f"It takes about {_megabytes(size)}. " if size else ""
        with suppress(OSError):
            takes += f"The disk has {_megabytes(shutil.disk_usage(path.parent).free)} free. "
        raise UserError(
            f"{path} cannot be written ({reason}). {takes}Free some space (check quotas and limits too) or choose "
            "another place; files that were saved before are complete"
        ) from None


def make_json_safe(value: Any) -> Any:
    """Nested values as JSON holds them: keys are text, arrays are lists, and None stands for NaN and infinity."""
    if isinstance(value, Mapping):
        return {str(key): make_json_safe(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [make_json_safe(entry) for entry in value]
    if hasattr(value, "tolist"):  # an array of numpy or torch, or one of its numbers
        return make_json_safe(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _megabytes(size: int) -> str:
    return f"{max(size / 1e6, 0.1):.1f} MB"
