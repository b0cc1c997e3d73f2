"""Folders and files wherever they are: on a disk, or in a store that pyarrow or fsspec can reach."""

from __future__ import annotations

import posixpath
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, cast
from urllib.parse import quote, unquote

from retinanet.errors import UserError
from retinanet.files import write_atomically
from retinanet.images.io import IMAGE_SUFFIXES
from retinanet.inference.paths import find_images

WHOLE_WRITES = ("S3FileSystem", "GcsFileSystem", "AzureFileSystem")  # their files appear when they are complete


def is_address(text: str) -> bool:
    """Whether a text is the address of a store, such as ``s3://bucket/folder``, and not a path."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def join_address(address: str, name: str) -> str:
    """The address of a file in a folder; options of the store, such as ``?region=eu-west-1``, stay at the end.

    What no address may hold, such as a space, is encoded: %20.
    """
    path, mark, options = address.partition("?")
    return f"{path.rstrip('/')}/{quote(name)}{mark}{options}"


class Store:
    """A folder on a disk or in a store, by paths relative to it.

    Args:
        address: a path, or an address whose scheme pyarrow (file, s3, gs, abfs, hdfs) or fsspec knows.

    Attributes:
        address: of the folder; a path is absolute, because the actors may have another working directory.

    Raises:
        UserError: the scheme is unknown, or what reads it is not installed.
    """

    def __init__(self, address: str) -> None:
        self.address = (address if is_address(address) else str(Path(address).absolute())).rstrip("/") or "/"
        self.system, self.root = _open_system(self.address)

    def locate(self, name: str) -> str:
        """The path of a file on the file system."""
        return posixpath.join(self.root, name)

    def list_files(self, folder: str = "", *, recursive: bool = False) -> list[str]:
        """The paths, relative to the store, of the files in a folder, sorted; none where there is no such folder."""
        from pyarrow import fs

        selector = fs.FileSelector(self.locate(folder).rstrip("/"), recursive=recursive, allow_not_found=True)
        with self._explain("listed"):
            found = [info.path for info in self.system.get_file_info(selector) if info.type == fs.FileType.File]
        return sorted(posixpath.relpath(path, self.root) for path in found)

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        from pyarrow import fs

        with self._explain("read"):
            return bool(self.system.get_file_info([self.locate(name)])[0].type == fs.FileType.File)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        with self._explain("read"), self.system.open_input_stream(self.locate(name), compression=None) as stream:
            return cast(bytes, stream.read())

    def write(self, name: str, content: bytes) -> None:
        """Write a file; a reader finds all of it or none."""
        path = self.locate(name)
        if not is_address(self.address):
            write_atomically(path, content)
            return
        whole = self.system.type_name in ("s3", "gcs", "abfs") or type(self.system).__name__ in WHOLE_WRITES
        draft = path if whole else f"{path}.{uuid.uuid4().hex}.part"
        with self._explain("written"):
            if not whole:
                self.system.create_dir(posixpath.dirname(path), recursive=True)
            with self.system.open_output_stream(draft, compression=None) as stream:
                stream.write(content)
            if not whole:
                self.system.move(draft, path)

    def remove(self, names: Sequence[str]) -> None:
        """Remove files; one that is gone already is no error."""
        for name in names:
            with self._explain("changed"), suppress(FileNotFoundError):
                self.system.delete_file(self.locate(name))

    @contextmanager
    def _explain(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.address} cannot be {verb} ({reason})") from None


def _open_system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path on it."""
    import pyarrow
    from pyarrow import fs

    if not is_address(address):
        return fs.LocalFileSystem(), address
    address = quote(address, safe=":/?&=%+@~,;")  # a space that somebody typed
    try:
        return cast(tuple[Any, str], fs.FileSystem.from_uri(address))
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError) as error:
        reason = str(error)
    except OSError as error:
        raise UserError(f"{address} cannot be reached ({error})") from None
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(unquote(address))
    except ImportError as error:
        raise UserError(f"{address} cannot be reached: {error}") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{address} is no address of a store that can be reached ({error or reason})") from None
    return fs.PyFileSystem(fs.FSSpecHandler(system)), path


def list_images(names: Sequence[str]) -> list[str]:
    """The images that paths, patterns, folders and addresses name: absolute paths and addresses, each once, in order.

    Hidden files and files of other kinds are left out of folders.

    Raises:
        UserError: one of them names no image.
    """
    images: dict[str, None] = {}
    local = [name for name in names if not is_address(name)]
    for path in find_images(local) if local or not names else ():
        images[str(path.absolute())] = None
    for address in (name for name in names if is_address(name)):
        images.update(dict.fromkeys(_list_addresses(address)))
    return list(images)


def _list_addresses(address: str) -> list[str]:
    """The image at an address, or those in the folder there."""
    if address.partition("?")[0].lower().endswith(IMAGE_SUFFIXES):
        return [address]
    store = Store(address)
    files = [name for name in store.list_files(recursive=True) if name.lower().endswith(IMAGE_SUFFIXES)]
    shown = [name for name in files if not any(part.startswith(".") for part in name.split("/"))]
    if not shown:
        raise UserError(f"no image at {address}: looked for {', '.join(IMAGE_SUFFIXES)}")
    return [join_address(address, name) for name in shown]


@contextmanager
def fetch_image(place: str) -> Iterator[Path]:
    """A file on this machine with an image that is anywhere; a copy is removed afterwards.

    Raises:
        UserError: it cannot be read.
    """
    with TemporaryDirectory(prefix="retinanet-") as folder:
        yield fetch_into(Path(folder), place)


def fetch_into(folder: Path, place: str) -> Path:
    """The path of an image on this machine; one in a store is copied into a folder.

    Raises:
        UserError: it cannot be read.
    """
    if not is_address(place):
        return Path(place)
    path, mark, options = place.partition("?")
    home, name = posixpath.split(path)
    store, target = Store(f"{home}{mark}{options}"), folder / f"{uuid.uuid4().hex}{posixpath.splitext(name)[1]}"
    try:
        with (
            store.system.open_input_stream(store.locate(unquote(name)), compression=None) as stream,
            target.open("wb") as file,
        ):
            shutil.copyfileobj(cast(BinaryIO, stream), file)
    except FileNotFoundError:
        raise UserError(f"{place}: no such image file. Check the address.") from None
    except OSError as error:
        raise UserError(f"{place} cannot be read ({(str(error).splitlines() or ['unknown reason'])[0]})") from None
    return target
