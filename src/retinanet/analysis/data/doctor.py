"""The data doctor: everything that is wrong with a data set, with its place, the reason and the remedy.

It reads with the readers of training, which hand it their faults in place of stopping at the first one.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from retinanet.analysis.data.boxes import box_findings
from retinanet.analysis.data.findings import DoctorReport
from retinanet.analysis.data.images import copy_findings, look_at, size_findings, unused_findings
from retinanet.data.check import Split, judge_split
from retinanet.data.faults import KINDS, Fault
from retinanet.data.files import split_word
from retinanet.data.formats import read_parts
from retinanet.data.objects import Data, is_object, name_data
from retinanet.images.preprocess import Preprocess
from retinanet.plotting.html import Section, Table

RARE = 10
"""Boxes below which a class is hardly seen."""

_ROWS = 200  # of the table of findings

# What a fault that stands for several files says of each of them.
_EACH = {
    "missing-image": "there is no such image",
    "missing-file": "there is no such file",
    "label-without-image": "there is no image for it",
    "unused-image": "no annotation or list names it",
}
_ABOUT_IMAGES = ("missing-image", "unreadable-image", "unused-image")
_UNITED = ("train", "training", "val", "valid", "validation")

_WRONG_SIZES = ("exif-rotation", "swapped-size", "wrong-size")
_BY_SIZE = ("outside-box", "over-edge-box", "tiny-box", "whole-image-box")
"""What is said of a box by the size of its image, and says nothing where that size is wrong."""


def examine(
    data: Data,
    *,
    preprocess: Preprocess,
    min_side: float = 4.0,
    pixels: bool = True,
    workers: int | None = None,
    confine: bool = False,
) -> DoctorReport:
    """Look for faults in all splits of a data set.

    Args:
        data: a file or folder in one of the four formats, or an object.
        preprocess: the resizing of training, by which boxes are judged to be too small.
        min_side: pixels after it below which the shorter side of a box is too small.
        pixels: decode the images, to find damaged ones, wrong sizes and copies. Without it only annotations are read.
        workers: threads that decode; one per core, at most 8, if not given.
        confine: refuse images that lie outside of ``data``.

    Returns:
        The report. Boxes are examined where the size of their image is known.

    Raises:
        UserError: a missing path, none of the four formats, or what ``confine`` refuses.
    """
    start, place = time.perf_counter(), Path(name_data(data))
    faults: list[Fault] = []
    parts = read_splits(data, faults, confine=confine)
    looks = {}
    if pixels:
        missing = {path for fault in faults if fault.kind in _ABOUT_IMAGES for path in fault.members}
        paths = dict.fromkeys(image.path for part in parts for image in part.images if image.path not in missing)
        looks = {look.path: look for look in look_at(data, list(paths), workers)}
    found = [*_spread_faults(faults, place), *_find_empty_splits(parts, place)]
    for part in parts:
        found += [*box_findings(part, preprocess, min_side), *_find_empty_images(part)]
    sizes = size_findings(parts, looks)
    wrong = {fault.image for fault in sizes if fault.kind in _WRONG_SIZES}
    found = [fault for fault in found if fault.image not in wrong or fault.kind not in _BY_SIZE] + sizes
    found += copy_findings(parts, looks)
    found += _judge_classes(parts, place)
    if not is_object(data) and place.is_dir():
        found += unused_findings(parts, [path for fault in faults for path in fault.members])
    return DoctorReport(
        findings=tuple({(fault.kind, str(fault)): fault for fault in found}.values()),  # a file of two splits: once
        images=len({image.path for part in parts for image in part.images}),
        boxes=sum(len(part.labels) for part in parts),
        classes=len({name for part in parts for name in part.annotations.class_names}),
        seconds=time.perf_counter() - start,
        splits={part.name: len(part.images) for part in parts},
        per_class={name: dict(counts) for name, counts in _count_per_class(parts).items()},
    )


def read_splits(data: Data, faults: list[Fault], *, confine: bool = False) -> list[Split]:
    """The splits of a data set with their boxes judged; faults of its files and images are added to ``faults``.

    A ``trainval`` that holds nothing but the images of train and val is left out: it would say everything twice.
    """
    parts = []
    for name, found in read_parts(data, faults.append, confine=confine).items():
        images = [
            image._replace(path=Path(os.path.normpath(image.path))) if ".." in str(image.path) else image
            for image in found.images
        ]  # so that a file has one name
        parts.append(judge_split(name, replace(found, images=images), faults.append))
    apart = {image.path for part in parts if split_word(part.name) in _UNITED for image in part.images}
    return [
        part
        for part in parts
        if split_word(part.name) != "trainval" or not {image.path for image in part.images} <= apart
    ]


def _spread_faults(faults: Sequence[Fault], data: Path) -> Iterator[Fault]:
    """The faults of the readers; one that stands for several files becomes a finding for each of them."""
    for fault in {str(fault): fault for fault in faults}.values():
        of_image = fault.kind in _ABOUT_IMAGES
        if fault.kind in _EACH and fault.members:
            for path in fault.members:
                yield Fault(fault.kind, path, _EACH[fault.kind], fault.remedy, image=path if of_image else None)
        else:
            member = next(iter(fault.members), None)
            where, image = fault.where or member or data, member if of_image else fault.image
            yield Fault(fault.kind, where, fault.reason, fault.remedy, image=image, box=fault.box)


def _find_empty_splits(parts: Sequence[Split], data: Path) -> Iterator[Fault]:
    for part in parts:
        if not part.images or not part.annotations.class_names:
            lack = "declares no class" if part.images else "holds no image"
            yield Fault("empty-set", data, f"{part.name or 'the set'} {lack}")


def _find_empty_images(part: Split) -> Iterator[Fault]:
    """Images without any annotation, ignore regions counted; of two images with one id it is not known."""
    owned = np.bincount(part.owners, minlength=len(part.images))
    ids = Counter(image.image_id for image in part.images)
    for image, boxes in zip(part.images, owned.tolist(), strict=True):
        if not boxes and ids[image.image_id] == 1:
            yield Fault("empty-image", image.path, "has no boxes", image=image.path)


def _count_per_class(parts: Sequence[Split]) -> dict[str, Counter[str]]:
    """Usable boxes by class and split; every declared class has a row."""
    counts: dict[str, Counter[str]] = {}
    for part in parts:
        numbers = np.bincount(part.labels[part.usable], minlength=len(part.annotations.class_names))
        for name, number in zip(part.annotations.class_names, numbers.tolist(), strict=True):
            counts.setdefault(name, Counter())[part.name] += number
    return counts


def _judge_classes(parts: Sequence[Split], data: Path) -> Iterator[Fault]:
    """Classes without boxes, with hardly any, and of one split only."""
    word = {part.name: split_word(part.name) or "" for part in parts}
    train = next((name for name in word if word[name] in ("train", "training", "trainval")), None)
    val = next((name for name in word if word[name] in ("val", "valid", "validation", "minival")), None)
    for name, counts in _count_per_class(parts).items():
        where = f"{data}, class {name}"
        trained = counts.total() if train is None else counts[train]
        if not counts.total():
            yield Fault("unseen-class", where, "no box is of this class")
        elif not trained:
            held = ", ".join(f"{number} in {split}" for split, number in counts.items() if number)
            yield Fault("class-not-in-train", where, f"no box in {train}, but {held}")
        elif trained < RARE:
            yield Fault("rare-class", where, f"{trained} boxes{f' in {train}' if train else ''}")
        if val is not None and trained and not counts[val]:
            yield Fault("class-not-in-val", where, f"no box in {val}")


def section(report: DoctorReport) -> Section:
    """The report as a part of a page: what was found by kind, the boxes of each class, and every finding."""
    sizes = ", ".join(f"{name or 'one set without splits'}: {count}" for name, count in report.splits.items())
    point = (
        f"{report.images:,} images ({sizes}), {report.boxes:,} boxes, {report.classes} classes: "
        f"{report.count('error')} errors, {report.count('warning')} warnings and {report.count('note')} notes."
    )
    text = (
        "An error stops training or evaluation. A warning hurts: training leaves the thing out, or learns or measures "
        "something wrong. A note is for you to judge."
    )
    groups = report.groups()
    kinds = [
        (KINDS[kind].severity, KINDS[kind].title, len(faults), faults[0].where, faults[0].remedy)
        for kind, faults in groups.items()
    ]
    rows = [(fault.kind, fault.where, fault.reason) for faults in groups.values() for fault in faults]
    note = f"{_ROWS} of {len(rows)}; the JSON file holds all of them." if len(rows) > _ROWS else ""
    splits = list(report.splits)
    heads = ("class", *(f"boxes in {name}" if name else "boxes" for name in splits))
    counts = [(name, *(boxes.get(split, 0) for split in splits)) for name, boxes in report.per_class.items()]
    summary = "; ".join(f"{count:,} {title}" for _, title, count, _, _ in kinds[:4])
    about = "Ignore regions and faulty boxes are not counted."
    tables = [
        Table(("severity", "what", "count", "for instance", "what to do"), kinds, point=f"Findings by kind: {summary}"),
        Table(heads, counts, about, point=_name_classes(report.totals)),
        Table(("kind", "where", "reason"), rows[:_ROWS], note, point=f"Every finding with its place: {len(rows):,}"),
    ]
    return Section("Data", text, tables=[table for table in tables if table.rows], point=point)


def _name_classes(totals: Mapping[str, int]) -> str:
    """The classes with the most and the fewest boxes."""
    if not totals:
        return "Boxes of each class"
    most, least = max(totals, key=totals.__getitem__), min(totals, key=totals.__getitem__)
    if len(totals) == 1:
        return f"Boxes of the class {most} ({totals[most]:,})"
    return f"Boxes of each class: most are {most} ({totals[most]:,}), fewest {least} ({totals[least]:,})"
