"""Which images are held out where a data set names no split to validate on."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from retinanet.files import open_file


def draw_held_out(paths: Sequence[Path], image_ids: Sequence[str], seed: int) -> list[int]:
    """The rows of a fifth of the images, sorted.

    The images with the lowest hashes of (seed, file name) are drawn. Files with the same bytes stay together; where
    they would make up more than two fifths, they stay with the rest.
    """

    def draw(row: int) -> tuple[bytes, str]:
        name = f"{seed}/{paths[row].name}".encode("utf-8", "surrogatepass")
        return hashlib.blake2b(name).digest(), image_ids[row]

    order = sorted(range(len(paths)), key=draw)
    count = max(1, round(len(paths) / 5))
    copies = group_copies(paths)
    held: set[int] = set()
    for row in order:
        if len(held) < count and len(held) + len(copies[row]) <= max(count, 2 * len(paths) // 5):
            held.update(copies[row])
    return sorted(held or order[:count])


def group_copies(paths: Sequence[Path]) -> list[list[int]]:
    """For each file the rows of its copies: files of the same length, start and middle; only such are read."""
    lengths = [path.stat().st_size if path.is_file() else -1 for path in paths]
    by_length: dict[int, set[Path]] = defaultdict(set)
    for path, length in zip(paths, lengths, strict=True):
        by_length[length].add(path)
    groups: dict[object, list[int]] = defaultdict(list)
    for row, (path, length) in enumerate(zip(paths, lengths, strict=True)):
        is_read = length >= 0 and len(by_length[length]) > 1
        groups[(length, _read_parts(path, length)) if is_read else path].append(row)
    group_of = {row: rows for rows in groups.values() for row in rows}
    return [group_of[row] for row in range(len(paths))]


def _read_parts(path: Path, length: int) -> bytes:
    """A digest of the first 64 KiB and of 64 KiB from the middle."""
    with open_file(path) as stream:
        start = stream.read(65536)
        stream.seek(length // 2)
        return hashlib.blake2b(start + stream.read(65536)).digest()
