"""Which images or videos ``predict`` is given, and what their results are called."""

from __future__ import annotations

import glob
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from retinanet.errors import UserError, hide_passwords
from retinanet.images.io import IMAGE_SUFFIXES

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts"),
    *(".wmv", ".flv", ".3gp", ".ogv"),
)
_ADDRESS = re.compile(r"(rtsps?|rtmps?|https?|srt|udp|rtp|tcp)://", re.IGNORECASE)
_CAMERA = re.compile(r"camera(?::(\d+))?|/dev/video(\d+)|video=.+")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a video comes from.

    Attributes:
        address: what FFmpeg opens.
        shown: the same without a password, for messages and files.
        name: of its results, without ending.
        device: FFmpeg's name of the system that reads a camera; None of files and addresses.
    """

    address: str
    shown: str
    name: str
    device: str | None = None


def find_videos(names: Sequence[str]) -> list[Source]:
    """The videos that are named: files by their ending, addresses, cameras. None where images are named.

    Raises:
        UserError: images or a second source are named beside them, or one of them names nothing.
    """
    files: dict[str, Path] = {}
    live: list[Source] = []
    others = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            others.append(name)
        elif _is_video_address(name):
            parts = urlsplit(hide_passwords(name))
            place = f"{parts.hostname or ''}{os.path.splitext(parts.path)[0]}"
            shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
            address = parts.scheme + name[len(parts.scheme) :]  # FFmpeg knows it in lower case only
            live.append(Source(address, shown, re.sub(r"[^\w-]+", "_", place).strip("_")))
        elif match := _CAMERA.fullmatch(name):
            live.append(_find_camera(name, next((digits for digits in match.groups() if digits), "0")))
        elif path.suffix.lower() in VIDEO_SUFFIXES and "://" not in name:
            named = [path] if path.is_file() else sorted(map(Path, glob.glob(name, recursive=True)))
            if not named:
                raise UserError(f"no video at {name}: expected a file, or a pattern such as 'films/*.mp4'")
            files.update((os.path.abspath(file), file) for file in named)
        else:
            others.append(name)
    if others and (files or live):
        video = live[0].shown if live else next(iter(files.values()))
        raise UserError(f"{video} is a video and {others[0]} is not: predict images and videos one after the other")
    if len(live) > 1 or (live and files):
        raise UserError(f"{live[0].shown} is read while it plays: give one camera or address at a time, and no file")
    places = name_pictures(list(files.values())) if files else {}
    found = [Source(full, str(file), str(Path(places[file]).with_suffix(""))) for full, file in files.items()]
    return [*live, *found]


def _is_video_address(name: str) -> bool:
    """Whether it is an address of anything but an image file."""
    try:
        return bool(_ADDRESS.match(name)) and Path(urlsplit(name).path).suffix.lower() not in IMAGE_SUFFIXES
    except ValueError as error:
        raise UserError(f"{name} is no address ({error})") from None


def _find_camera(name: str, number: str) -> Source:
    """A camera: ``camera``, ``camera:1``, ``/dev/video1``, or on Windows ``video=NAME``."""
    label = "camera" if number == "0" else f"camera{number}"
    if name.startswith("video="):
        return Source(name, name, "camera", "dshow")
    if sys.platform == "win32":
        raise UserError(
            "on Windows a camera has a name: write 'video=NAME', with the name that the device manager shows"
        )
    if sys.platform == "darwin":
        return Source(number, name, label, "avfoundation")
    device = f"/dev/video{number}"
    if not os.path.exists(device):
        raise UserError(f"there is no camera {device}. List those that are there: ls /dev/video*")
    return Source(device, name, label, "v4l2")


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
        elif re.match(r"[A-Za-z][A-Za-z0-9+]+://", pattern):
            raise UserError(
                f"{pattern} is an address, and images are not fetched. Download the image and give its file, or "
                "predict with --engine ray"
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
        film = next((path.suffix for path in shown if path.suffix.lower() in VIDEO_SUFFIXES), None)
        films = f". Videos are named by a pattern: {folder}/*{film}" if film else ""
        raise UserError(f"no image in the folder {folder}: looked for {', '.join(IMAGE_SUFFIXES)}{films}")
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
