"""Where a report goes: one HTML file that opens offline, and the same numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from retinanet.files import write_atomically
from retinanet.plotting.html import Picture, Section, Verdict, write_html


def write_report(
    folder: Path,
    names: Sequence[str],
    title: str,
    sections: Sequence[Section],
    about: Mapping[str, object],
    numbers: Mapping[str, Any],
    verdict: Verdict,
    pictures: Sequence[Picture] = (),
) -> None:
    """Write the page and the numbers, each whole or not at all.

    Args:
        folder: made if need be; see :func:`~retinanet.files.check_output_folder` for what is checked before.
        names: of the page and of the JSON file; further names are ignored.
        title: of the page.
        sections: of the page.
        about: what the report is of.
        numbers: the same as plain values, without NaN.
        verdict: what comes first on the page, and is among the numbers.
        pictures: what comes next on the page.

    Raises:
        UserError: the folder cannot be written.
    """
    write_html(folder / names[0], title, sections, about, verdict, pictures)
    text = json.dumps({"about": dict(about), "verdict": verdict.to_dict(), **numbers}, indent=1, allow_nan=False)
    write_atomically(folder / names[1], text + "\n")
