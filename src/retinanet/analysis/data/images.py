"""What the data doctor finds in the image files: sizes, EXIF rotation, damage, and copies across the splits."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from retinanet.data.check import Split, image_fault
from retinanet.data.faults import Fault
from retinanet.data.files import files_in
from retinanet.data.objects import Data, is_object, read_item
from retinanet.errors import UserError
from retinanet.images.io import IMAGE_SUFFIXES, to_array

NEAR_COPY_BITS = 3
"""Bits of 64 in which the difference hashes of two pictures of the same thing may differ."""
NEAR_COPY_CORRELATION = 0.9
"""Correlation of their 32 x 32 thumbnails that they need as well: pictures of one kind often share the hash."""

DARK = 32
"""Brightest value below which an image shows nothing."""

_THUMB = 32
_FLAT = 4.0  # grey levels of standard deviation below which a thumbnail says nothing
_SIDES_SWAPPED = (5, 6, 7, 8)
_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Look:
    """One decoded image."""

    path: Path  # the file
    fault: Fault | None = None  # why it cannot be read, or None
    size: tuple[int, int] = (0, 0)  # (height, width) of the upright image; (0, 0) if it cannot be read
    orientation: int = 1  # EXIF orientation, 1 (upright) to 8
    digest: bytes = b""  # of the bytes of the file
    # difference hash of the upright picture: bit (y, x) says whether the grey value falls from x to x + 1.
    dhash: int = 0
    brightest: int = 255  # largest value of a pixel, 0 to 255
    thumb: np.ndarray | None = None  # (1024,) float32, normalised grey thumbnail; None if it is flat


def look_at(data: Data, paths: Sequence[Path], workers: int | None = None) -> list[Look]:
    """Decode images of a data set in parallel threads, with a progress bar on a terminal."""
    console = Console(stderr=True)
    how: dict[str, Any] = {"console": console, "transient": True, "disable": not console.is_terminal}
    with ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool:
        return list(track(pool.map(partial(_look, data), paths), "images", len(paths), **how))


def _look(data: Data, path: Path) -> Look:
    try:
        pixels = to_array(read_item(data, path))
        content = pixels.tobytes() if is_object(data) else path.read_bytes()
    except (UserError, OSError) as error:
        return Look(path, image_fault(path, error))
    grey = Image.fromarray(pixels).convert("L")
    return Look(
        path,
        size=(pixels.shape[0], pixels.shape[1]),
        orientation=exif_orientation(path),
        digest=hashlib.blake2b(content, digest_size=16).digest(),
        dhash=difference_hash(grey),
        brightest=int(pixels.max()),
        thumb=_thumbnail(grey),
    )


def exif_orientation(path: Path) -> int:
    """The EXIF orientation that has to be applied, 1 (upright) to 8. TIFF is turned by Pillow and counts as upright."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP")) as image:
            value = int(Image.Image.getexif(image).get(_ORIENTATION, 1))
    except Exception:  # another format, or damaged EXIF, which readers pass over
        return 1
    return value if 1 <= value <= 8 else 1


def difference_hash(grey: Image.Image) -> int:
    """64 bits of a picture in mode L: whether each of 8 x 9 mean values is brighter than its right neighbour."""
    small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    return int.from_bytes(np.packbits(small[:, :-1] > small[:, 1:]).tobytes(), "big")


def _thumbnail(grey: Image.Image) -> np.ndarray | None:
    small = np.asarray(grey.resize((_THUMB, _THUMB), Image.Resampling.BOX), dtype=np.float32).ravel()
    small = small - small.mean()
    spread = float(np.sqrt((small**2).mean()))
    return None if spread < _FLAT else small / (spread * _THUMB)


def size_findings(parts: Sequence[Split], looks: Mapping[Path, Look]) -> list[Fault]:
    """Images that cannot be read, that are not of their declared size, or that EXIF turns."""
    found = [look.fault for look in looks.values() if look.fault is not None]
    found += [
        Fault("dark-image", look.path, f"its brightest value is {look.brightest} of 255", image=look.path)
        for look in looks.values()
        if look.brightest < DARK
    ]
    for part in parts:
        for image in part.annotations.images:
            look = looks.get(image.path)
            if look is None or look.fault is not None:
                continue
            if image.size is None or image.size == look.size:
                if look.orientation != 1:
                    reason = f"EXIF orientation {look.orientation} turns or mirrors it"
                    found.append(Fault("turned-image", image.path, reason, image=image.path))
            else:
                found.append(_wrong_size(image.path, image.size, look))
    return found


def _wrong_size(path: Path, declared: tuple[int, int], look: Look) -> Fault:
    reason = (
        f"the image is {look.size[1]} x {look.size[0]} pixels (width x height, upright), but declared as "
        f"{declared[1]} x {declared[0]}"
    )
    if declared == look.size[::-1] and look.orientation in _SIDES_SWAPPED:
        return Fault("exif-rotation", path, f"{reason}: its EXIF orientation is {look.orientation}", image=path)
    return Fault("swapped-size" if declared == look.size[::-1] else "wrong-size", path, reason, image=path)


def unused_findings(parts: Sequence[Split], spoken_of: Sequence[Path]) -> list[Fault]:
    """Image files beside the annotated ones that nothing names; ``spoken_of`` are annotation files told as broken."""
    named = {image.path for part in parts for image in part.images}
    stems = {path.stem for path in spoken_of}
    return [
        Fault("unused-image", path, "no annotation or list names it", image=path)
        for folder in sorted({path.parent for path in named})
        for path in files_in(folder, IMAGE_SUFFIXES)
        if path not in named and path.stem not in stems
    ]


def copy_findings(parts: Sequence[Split], looks: Mapping[Path, Look]) -> list[Fault]:
    """The same image twice: one file in two splits, files of the same bytes, and pictures that look the same.

    Of two copies the one in the split to train on (the first of ``parts``) is named: there it does the harm.
    """
    splits: dict[Path, list[str]] = defaultdict(list)
    for part in [*parts[1:], *parts[:1]]:
        for image in part.images:
            splits[image.path].append(part.name)
    found = []
    for path, names in splits.items():
        distinct = list(dict.fromkeys(names))
        if len(distinct) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            found.append(Fault("same-file-twice", path, f"stands twice in {twice or 'the set'}", image=path))
        if len(distinct) > 1:
            found.append(Fault("same-file-in-splits", path, f"is in {' and in '.join(distinct[::-1])}", image=path))
    readable = [look for path in splits if (look := looks.get(path)) is not None and look.fault is None]
    home = {path: names[0] for path, names in splits.items()}
    firsts: dict[bytes, Look] = {}
    for look in readable:
        first = firsts.setdefault(look.digest, look)
        if first is not look:
            found.append(_copy("copy-in-split", look, first, home, "has the bytes of"))
    unique = list(firsts.values())
    for look, first in _near_copies(unique, home):
        found.append(_copy("near-copy-in-split", look, first, home, "looks like"))
    return found


def _copy(kind: str, look: Look, first: Look, home: Mapping[Path, str], how: str) -> Fault:
    one, other, pair = home[look.path], home[first.path], (look.path, first.path)
    if one == other:
        return Fault(kind, look.path, f"{how} {first.path}", image=look.path, members=pair)
    reason = f"{how} {first.path} of {other}, and is in {one}"
    return Fault(f"{kind}s", look.path, reason, image=look.path, members=pair)


def _near_copies(looks: Sequence[Look], home: Mapping[Path, str]) -> Iterator[tuple[Look, Look]]:
    """Each image with the first one before it that looks the same, one of another split if there is any.

    Hashes that differ in at most three bits agree in at least one of four groups of 16 bits, so only images that
    share a group are compared.
    """
    looks = [look for look in looks if look.thumb is not None]
    hashes = np.array([look.dhash for look in looks], dtype=np.uint64)
    splits = np.array([home[look.path] for look in looks])
    best: dict[int, tuple[bool, int]] = {}
    for band in range(4):
        buckets: dict[int, list[int]] = defaultdict(list)
        for i, value in enumerate((hashes >> np.uint64(16 * band) & np.uint64(0xFFFF)).tolist()):
            buckets[value].append(i)
        for members in buckets.values():
            rows = np.array(members)
            for place, i in enumerate(members[1:], 1):
                near = rows[:place][np.bitwise_count(hashes[rows[:place]] ^ hashes[i]) <= NEAR_COPY_BITS]
                alike = [j for j in near.tolist() if float(looks[i].thumb @ looks[j].thumb) >= NEAR_COPY_CORRELATION]
                candidates = [(bool(splits[i] == splits[j]), j) for j in alike]
                best[i] = min([*candidates, *([best[i]] if i in best else [])], default=(True, -1))
    for i, (_, j) in sorted(best.items()):
        if j >= 0:
            yield looks[i], looks[j]
