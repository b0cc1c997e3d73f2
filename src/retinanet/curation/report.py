"""What ``suspects`` writes: the table that a person fills in, and the page with pictures of the worst."""

from __future__ import annotations

import csv
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retinanet.analysis.data.corrections import ACCEPT, IMAGE, NEW, OLD, Entry
from retinanet.analysis.data.findings import name_places
from retinanet.analysis.data.pictures import Box, draw_in_place, open_picture
from retinanet.curation.doubts import KINDS
from retinanet.data.faults import short
from retinanet.data.objects import Data
from retinanet.inference.documents import quote_formula
from retinanet.plotting.html import KeyNumber, Picture, Point, Section, Table, Verdict

if TYPE_CHECKING:
    from retinanet.curation.suspects import Suspect

COLUMNS = (ACCEPT, "rank", "score", "kind", IMAGE, "where", *OLD, *NEW, "reason")
PICTURES = 30
ROWS = 300  # of the table on the page
LIKELY = 0.5  # score from which an annotation is rather wrong than right


def make_table(found: Sequence[Suspect]) -> str:
    """The suspects as CSV, with an empty column ``accept``."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(COLUMNS)
    for rank, one in enumerate(found, start=1):
        place = [quote_formula(one.image), quote_formula(one.where)]
        entries = [*_list_fields(one.old), *_list_fields(one.new)]
        writer.writerow(["", rank, f"{one.score:.3f}", one.kind, *place, *entries, quote_formula(one.reason)])
    return text.getvalue()


def _list_fields(entry: Entry | None) -> list[str]:
    return [""] * 5 if entry is None else [quote_formula(entry[0]), *(f"{side:.2f}" for side in entry[1])]


def to_dict(found: Sequence[Suspect]) -> dict[str, Any]:
    """Plain values for JSON."""

    def plain(entry: Entry | None) -> dict[str, Any] | None:
        return None if entry is None else {"class": entry[0], "box": list(entry[1])}

    rows = [
        {
            **{"rank": rank, "kind": one.kind, "score": round(one.score, 4), "image": one.image, "where": one.where},
            **{"annotated": plain(one.old), "proposed": plain(one.new), "reason": one.reason},
        }
        for rank, one in enumerate(found, start=1)
    ]
    return {"suspects": rows}


def judge(found: Sequence[Suspect], boxes: int, images: int, notes: Sequence[str], data: str, table: Path) -> Verdict:
    """What to know first."""
    counts = Counter(one.kind for one in found)
    worst = Counter(one.kind for one in found if one.score >= LIKELY)
    likely = worst.total()
    headline = f"{len(found):,} suspects among {boxes:,} annotations, {likely:,} of them rather wrong than right."
    command = f"retinanet check {shlex.quote(data)} --fix NEW --suspects {shlex.quote(str(table))}"
    points = [
        Point("Score", "an estimate of the chance that the annotation is wrong, if one in twenty is; it is no proof."),
        Point("Model", f"{'; '.join(notes)}."),
        Point("Next", f"Look at them; write yes in the column accept of {table} where you agree. Then:", command),
    ]
    numbers = [
        KeyNumber(kind, f"{counts[kind]:,}", f"{title}; {worst[kind]:,} rather wrong than right")
        for kind, title in KINDS.items()
    ]
    return Verdict("fair" if likely else "good", headline, points, numbers)


def picture(found: Sequence[Suspect], others: Mapping[Path, Sequence[Box]], data: Data) -> list[Picture]:
    """The worst in their places: annotated orange, proposed yellow, other annotations thin and blue.

    Args:
        found: worst first.
        others: the annotated boxes of each image.
        data: names of files are told from here, and an object gives its images.
    """
    pictures = []
    for rank, one in enumerate(found[:PICTURES], start=1):
        image = open_picture(one.path, data)
        if image is None:
            continue
        old, new = one.old, one.new
        proposed = new[1] if new and (old is None or new[1] != old[1]) else None
        drawn = draw_in_place(image, old[1] if old else None, others.get(one.path, ()), proposed)
        title = f"{rank}. {_name(one)}, {one.score:.2f}"
        pictures.append(Picture(title, name_places(f"{one.where or one.image}: {one.reason}", data), drawn))
    return pictures


def _name(one: Suspect) -> str:
    """What to do, in a few words."""
    old, new = one.old[0] if one.old else "", one.new[0] if one.new else ""
    words = {
        "missing": f"Add {new}",
        "class": f"{old} is {new}",
        "loose": f"Move {old}",
        "doubled": f"Remove doubled {old}",
        "extra": f"Remove {old}",
    }
    return short(words[one.kind])


def section(found: Sequence[Suspect]) -> Section:
    """The table below the pictures."""
    rows = [(one.score, one.kind, one.where or one.image, one.reason) for one in found[:ROWS]]
    note = f"{ROWS} of {len(found)}; suspects.csv holds all of them." if len(found) > ROWS else ""
    table = Table(("score", "kind", "where", "reason"), rows, note, digits=2, point=f"All suspects: {len(found):,}")
    text = (
        "In the pictures, what is annotated is orange, what is proposed yellow, other annotations thin and blue. "
        "A model is wrong too: accept only what you see yourself."
    )
    return Section("Suspects", text, tables=[table] if rows else [])
