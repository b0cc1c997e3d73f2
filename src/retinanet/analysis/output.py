"""Where a report goes: one HTML file that opens offline, and the same numbers as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinanet.errors import UserError
from retinanet.plotting.html import Section, write_html


def check_output(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Earlier results are replaced only when asked for.

    Args:
        folder: to write into.
        names: of the files that will be written.
        overwrite: whether they may be replaced.

    Raises:
        UserError: there are some, the folder is a file or cannot be written.
    """
    if folder.is_file():
        raise UserError(f"--output {folder} is a file; expected the name of a folder")
    if not overwrite and any((folder / name).exists() for name in names):
        raise UserError(f"{folder} holds a report already. Choose another --output or pass --overwrite")
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not os.access(place, os.W_OK):
        raise UserError(f"--output {folder}: {place} cannot be written to. Choose another folder")


def write_report(
    folder: Path,
    names: Sequence[str],
    title: str,
    sections: Sequence[Section],
    about: Mapping[str, object],
    numbers: Mapping[str, Any],
) -> None:
    """Write the page and the numbers.

    Args:
        folder: made if need be.
        names: of the page and of the JSON file.
        title: of the page.
        sections: of the page.
        about: what the report is of.
        numbers: the same as plain values, without NaN.

    Raises:
        UserError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_html(folder / names[0], title, sections, about)
        text = json.dumps({"about": dict(about), **numbers}, indent=1, allow_nan=False)
        (folder / names[1]).write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error}). Choose another folder") from None
