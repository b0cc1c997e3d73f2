"""Corrections of annotations that a person has accepted: rows of a table, applied to a split before it is copied."""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from retinanet.data.check import Split
from retinanet.data.faults import name_list, short
from retinanet.data.files import read_text
from retinanet.errors import UserError
from retinanet.inference.documents import unquote_formula

OLD = ("label", "x1", "y1", "x2", "y2")
NEW = tuple(f"new_{name}" for name in OLD)
ACCEPT, IMAGE = "accept", "image"
NEEDED = (ACCEPT, IMAGE, *OLD, *NEW)
YES, NO = ("yes", "y", "true", "1", "x"), ("", "no", "n", "false", "0")
TOLERANCE = 0.02  # pixels by which a box may differ from the written one, which is rounded

Entry = tuple[str, tuple[float, ...]]  # class and xyxy in pixels counted from 0


@dataclass(frozen=True)
class Correction:
    """An annotation to remove (no ``new``), to add (no ``old``) or to replace."""

    where: str  # file and line, for messages
    image: str  # path seen from the folder of the data
    old: Entry | None  # what is annotated
    new: Entry | None  # what should be


def name_image(path: Path, data: Path) -> str:
    """The name of an image in the table: its path seen from the folder of the data, on any system with slashes."""
    home = data if data.is_dir() else data.parent
    return os.path.relpath(path, home).replace(os.sep, "/")


def read_corrections(path: Path) -> list[Correction]:
    """The rows of a table whose column ``accept`` says yes.

    Args:
        path: CSV with at least the columns ``NEEDED``, parted by comma, semicolon or tab.

    Raises:
        UserError: the file cannot be read, a column is missing, or a row is not understood.
    """
    text = read_text(path)
    first = text.partition("\n")[0]
    mark = max(",;\t", key=first.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=mark)
    if missing := [name for name in NEEDED if name not in (reader.fieldnames or ())]:
        raise UserError(
            f"{path}: the columns {name_list(missing)} are missing. Expected suspects.csv of: retinanet suspects"
        )
    corrections = []
    for row in reader:
        where, answer = f"{path}, line {reader.line_num}", (row[ACCEPT] or "").strip().lower()
        if answer not in (*YES, *NO):
            raise UserError(f"{where}: accept is {short(answer)!r}. Write yes, or nothing to keep what is annotated")
        if answer in YES:
            image = unquote_formula(row[IMAGE] or "")
            old, new = (_read_entry([row[name] or "" for name in names], where) for names in (OLD, NEW))
            if old is None and new is None:
                raise UserError(f"{where}: no class and box, old or new. Take the row as suspects wrote it")
            corrections.append(Correction(where, image, old, new))
    # a row that stands twice counts once
    return list({(one.image, one.old, one.new): one for one in corrections}.values())


def _read_entry(fields: Sequence[str], where: str) -> Entry | None:
    """A class and a box, or None where all are empty."""
    if not any(field.strip() for field in fields):
        return None
    try:
        box = tuple(float(field.replace(",", ".")) for field in fields[1:])  # some spreadsheets write 2,5
    except ValueError:
        box = (math.nan,)
    if not fields[0].strip() or not all(map(math.isfinite, box)) or box[0] >= box[2] or box[1] >= box[3]:
        raise UserError(f"{where}: {', '.join(map(short, fields))} is no class and box. Expected class, x1, y1, x2, y2")
    return unquote_formula(fields[0]), box


def correct_splits(
    parts: Sequence[Split], corrections: Sequence[Correction], data: Path
) -> tuple[list[Split], list[str]]:
    """The splits with corrections applied, and what was done, a line each.

    An image in two splits is corrected in both.

    Raises:
        UserError: an image, a class or an annotation is not (or no longer) in the data; nothing is applied then.
    """
    by_image: dict[str, list[Correction]] = {}
    for correction in corrections:
        by_image.setdefault(correction.image, []).append(correction)
    done: list[str] = []
    known: set[str] = set()
    corrected = []
    for part in parts:
        names = [name_image(image.path, data) for image in part.images]
        known.update(names)
        mine = [(number, one) for number, name in enumerate(names) for one in by_image.get(name, ())]
        corrected.append(_correct(part, mine, done) if mine else part)
    for correction in corrections:
        if correction.image not in known:
            raise UserError(
                f"{correction.where}: {data} lacks {short(correction.image, 200)}. Is the row of these data?"
            )
    return corrected, done


def _correct(part: Split, corrections: Sequence[tuple[int, Correction]], done: list[str]) -> Split:
    """A split with corrections of its images, by their numbers."""
    columns, names = part.annotations.boxes, list(part.annotations.class_names)
    count = len(part.labels)
    boxes, labels, kept = part.corners.copy(), part.labels.copy(), np.ones(count, bool)
    areas = np.array(columns.areas, np.float64)
    free = kept.copy()
    added: list[tuple[int, int, tuple[float, ...], str]] = []  # image, class, box, place
    for number, one in corrections:
        if one.new is not None and one.new[0] not in names:
            raise UserError(f"{one.where}: there is no class {short(one.new[0])!r}. Expected: {name_list(names)}")
        if one.old is None and one.new is not None:
            added.append((number, names.index(one.new[0]), one.new[1], one.where))
            done.append(f"added: {one.where}, {_describe(one.new)} in {one.image}")
        if one.old is None:
            continue
        row = _find(part, number, one, free)
        free[row] = False
        if one.new is None:
            kept[row] = False
            done.append(f"removed: {columns.where(row)}, {_describe(one.old)}")
            continue
        labels[row] = names.index(one.new[0])
        if np.abs(part.boxes[row] - one.new[1]).max() > TOLERANCE:  # else the numbers of the file stay
            boxes[row], areas[row] = one.new[1], np.nan
        done.append(f"corrected: {columns.where(row)}, {_describe(one.old)} is {_describe(one.new)}")
    rows = np.flatnonzero(kept)
    images, classes, corners, places = zip(*added, strict=True) if added else ((), (), (), ())
    changed = replace(
        columns,
        owners=[*part.owners[rows].tolist(), *images],
        xyxy=np.concatenate([boxes[rows], np.asarray(corners, np.float64).reshape(-1, 4)]),
        labels=[*labels[rows].tolist(), *classes],
        ignore=[*part.ignore[rows].tolist(), *[False] * len(added)],
        areas=[*areas[rows].tolist(), *[np.nan] * len(added)],
        where=lambda row: columns.where(int(rows[row])) if row < len(rows) else places[row - len(rows)],
        relative=False,
        first_pixel=0,
    )
    return Split(part.name, replace(part.annotations, boxes=changed), part.images)


def _find(part: Split, number: int, one: Correction, free: np.ndarray) -> int:
    """The row of an annotation by its image, class and box."""
    assert one.old is not None
    name, box = one.old
    label = part.annotations.class_names.index(name) if name in part.annotations.class_names else -1
    rows = np.flatnonzero((part.owners == number) & (part.labels == label) & free)
    rows = rows[(np.abs(part.boxes[rows] - np.asarray(box)) <= TOLERANCE).all(1)]
    if not len(rows):
        raise UserError(
            f"{one.where}: {one.image} has no annotation {_describe(one.old)}. The data were changed: run "
            "retinanet suspects again"
        )
    return int(rows[0])


def _describe(entry: Entry) -> str:
    return f"{short(entry[0])} ({', '.join(f'{side:g}' for side in entry[1])})"
