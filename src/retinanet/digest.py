"""SHA-256 digests, by which damage to a file is noticed when it is read.

A file that holds everything in one carries its own digest as its last bytes, its *seal*, in a form that readers of its
format pass over. A seal is optional: a file without one, of an older version or of somebody else, is not checked.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from retinanet.errors import UserError

DIGITS = 64
# What stands around the digits, by the suffix of the file's name.
_AROUND = {
    ".onnx": (b"\x72\x54\x0a\x10retinanet.sha256\x12\x40", b""),  # one more entry of ModelProto.metadata_props
    ".xml": (b"<!-- retinanet.sha256 ", b" -->\n"),
}
_AFTER_ZIP = (b"\nretinanet.sha256 ", b"")  # readers of zip files look for the last record from behind
_CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    """The digest of a whole file, 64 hexadecimal digits.

    Raises:
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def seal(path: Path, *others: Path) -> None:
    """Append to a file the digest of its content so far, followed by that of ``others``.

    Args:
        path: an ONNX file (.onnx), an XML document (.xml), or a zip file of any other name.
        others: files that belong to it, such as its weights.

    Raises:
        OSError: a file cannot be read or written.
    """
    before, after = _AROUND.get(path.suffix, _AFTER_ZIP)
    digest = _sha256(path, path.stat().st_size, others)
    with path.open("ab") as file:
        file.write(before + digest.encode() + after)


def check_seal(path: Path, *others: Path, remedy: str) -> None:
    """Compare files with the seal of the first, if it has one.

    Args:
        path: as :func:`seal` has written it.
        others: the same as there.
        remedy: what to do where they differ, a sentence.

    Raises:
        UserError: they differ, or one cannot be read.
    """
    before, after = _AROUND.get(path.suffix, _AFTER_ZIP)
    length = len(before) + DIGITS + len(after)
    try:
        size = max(path.stat().st_size - length, 0)
        with path.open("rb") as file:
            file.seek(size)
            tail = file.read()
        if not tail.startswith(before) or not tail.endswith(after):
            return
        same = _sha256(path, size, others).encode() == tail[len(before) : len(before) + DIGITS]
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error})") from None
    if not same:
        names = " and ".join([str(path), *(other.name for other in others)])
        raise UserError(
            f"{names} {'are' if others else 'is'} damaged or changed: the content is not what was recorded when it "
            f"was written. {remedy}"
        )


def _sha256(path: Path, size: int, others: tuple[Path, ...]) -> str:
    """The digest of the first ``size`` bytes of a file, followed by ``others``."""
    digest = hashlib.sha256()
    for file, left in ((path, size), *((other, other.stat().st_size) for other in others)):
        with file.open("rb") as stream:
            while part := stream.read(min(left, _CHUNK)):
                digest.update(part)
                left -= len(part)
    return digest.hexdigest()
