"""What is worst in a data set, as pictures: faulty boxes, copies, boxes that are hard to learn, crowded images."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from retinanet.analysis.anchors.audit import AnchorAudit
from retinanet.analysis.data.findings import DoctorReport, name_places
from retinanet.data.faults import KINDS, Fault, short
from retinanet.data.objects import Data, read_item
from retinanet.errors import UserError
from retinanet.images.io import to_array
from retinanet.plotting.draw import FALSE, HIT, MISSED, contact_sheet, cut_out, draw_boxes, to_picture
from retinanet.plotting.html import Picture
from retinanet.plotting.marks import Rect, draw_frame
from retinanet.types import Sample

MOST = 12  # pictures
FAULTY, EACH = 7, 2  # of them of faults, and of each kind of things
CUT = (480, 360)  # pixels of a picture of one box
GAP = 8  # pixels between two copies
THICK, THIN = 4, 2  # pixels of the line of the box that is meant, and of others
CROWD = (1000, 750)  # most pixels of a picture with many boxes

_AROUND = 2.5  # sides of a box that a picture of it shows
_LEAST, _LEAST_SHARE = 64, 0.2  # pixels, and share of the image's width, that it shows at least
_VISIBLE = 24  # pixels: what is drawn of a box that has no extent

Box = Sequence[float]


def picture_findings(
    report: DoctorReport, data: Data, samples: Sequence[Sample] = (), audited: AnchorAudit | None = None
) -> list[Picture]:
    """The worst findings, at most a dozen: first what is faulty, then what is hard to learn.

    Args:
        report: what was found.
        data: names of files are told from here.
        samples: the images to train on, where they can be read.
        audited: how the anchors fit their boxes.
    """
    pictures = _picture_faults(report, data, samples)
    if audited is not None and len(audited):
        pictures += _picture_crowd(samples, audited.class_names, data)
        pictures += _picture_hard_boxes(samples, audited, data)
    return pictures[:MOST]


def _picture_faults(report: DoctorReport, data: Data, samples: Sequence[Sample]) -> list[Picture]:
    """Faulty boxes and copies across splits: the most harmful kinds first, all kinds once before any twice."""
    others = {sample.path: sample.target.boxes.tolist() for sample in samples}
    groups = report.groups()
    kinds = dict.fromkeys([*(harm.kind for harm in report.harms()), *groups])  # notes come last
    kinds.pop("tiny-box", None)  # the smallest boxes are shown anyway
    wanted = [(turn, kind) for turn in range(EACH) for kind in kinds if turn < len(groups[kind])]
    pictures: list[tuple[str, Picture]] = []
    for turn, kind in wanted:
        fault = groups[kind][turn]
        if len(pictures) < FAULTY and (picture := _picture_fault(fault, data, others)) is not None:
            count = f" ({turn + 1} of {len(groups[kind]):,})" if len(groups[kind]) > 1 else ""
            pictures.append((kind, picture._replace(title=picture.title + count)))
    order = list(kinds)
    return [picture for _, picture in sorted(pictures, key=lambda entry: order.index(entry[0]))]


def _picture_fault(fault: Fault, data: Data, others: Mapping[Path, Sequence[Box]]) -> Picture | None:
    """A box in its place, or two copies side by side; None for what cannot be shown."""
    title = KINDS[fault.kind].title
    title = f"{title[0].upper()}{title[1:]}"
    text = name_places(f"{fault.where}: {fault.reason}", data)
    if fault.kind.endswith("copy-in-splits"):
        both = [picture for path in fault.members if (picture := open_picture(path, data)) is not None]
        sheet = contact_sheet([_fit(picture) for picture in both], 2, width=2 * CUT[0] + GAP, gap=GAP) if both else None
        return None if sheet is None else Picture(title, text, sheet, columns=4)
    if fault.box is None or fault.image is None or (picture := open_picture(fault.image, data)) is None:
        return None
    return Picture(title, text, draw_in_place(picture, fault.box, others.get(fault.image, ())))


def _picture_hard_boxes(samples: Sequence[Sample], audited: AnchorAudit, data: Data) -> Iterator[Picture]:
    """The boxes with the least anchors, and the smallest; each of another image."""
    known = [sample.target.select(~sample.target.ignore) for sample in samples]
    owners = np.repeat(np.arange(len(samples)), [len(target) for target in known])
    boxes = np.concatenate([target.boxes.numpy().reshape(-1, 4) for target in known])
    shortest = audited.sides.min(axis=1)
    unreached = np.flatnonzero(audited.best_iou < np.float32(audited.foreground))
    unreached = unreached[np.argsort(audited.best_iou[unreached], kind="stable")]
    smallest = np.argsort(shortest, kind="stable")
    used: set[int] = set()
    for title, rows in (("No anchor reaches it", unreached), ("Among the smallest boxes", smallest)):
        for row in _take_from_images(rows, owners, used):
            sample, name = samples[owners[row]], audited.class_names[audited.labels[row]]
            picture = open_picture(sample.path, data)
            if picture is None:
                continue
            corners = ", ".join(f"{side:.0f}" for side in boxes[row])
            width, height = audited.sides[row]
            text = (
                f"{name_places(sample.path, data)}, {short(name)} ({corners}): {width:.3g} x {height:.3g} pixels after "
                f"the resize, best anchor IoU {audited.best_iou[row]:.2f}"
            )
            yield Picture(title, text, draw_in_place(picture, boxes[row].tolist(), sample.target.boxes.tolist()))


def _take_from_images(rows: NDArray[np.int64], owners: NDArray[np.int64], used: set[int]) -> list[int]:
    """The first rows of different images, of images that are not ``used`` yet, which these then are."""
    taken: list[int] = []
    for row in rows.tolist():
        if len(taken) < EACH and int(owners[row]) not in used:
            used.add(int(owners[row]))
            taken.append(row)
    return taken


def _picture_crowd(samples: Sequence[Sample], class_names: Sequence[str], data: Data) -> Iterator[Picture]:
    """The image with the most objects."""
    index = int(np.argmax([int((~sample.target.ignore).sum()) for sample in samples]))
    picture, target = open_picture(samples[index].path, data), samples[index].target
    if picture is not None:
        target = target.select(~target.ignore)
        zoom = max(1, min(CROWD[0] // picture.width, CROWD[1] // picture.height))
        drawn = draw_boxes(picture, target.boxes, target.labels, class_names=class_names, zoom=zoom)
        drawn.thumbnail(CROWD)
        text = f"{name_places(samples[index].path, data)}: {len(target):,} objects"
        yield Picture("The image with the most objects", text, drawn, columns=4, rows=2)


def draw_in_place(
    picture: Image.Image, box: Box | None, others: Sequence[Box] = (), proposed: Box | None = None
) -> Image.Image:
    """A box with its surroundings, cut out and enlarged to ``CUT``; the other boxes of the image in thin light lines.

    Args:
        picture: the image.
        box: xyxy in its pixels, drawn in orange; it may lie outside, have its sides swapped, or have no extent.
        others: (M, 4) xyxy; that which is the box itself is not drawn again.
        proposed: xyxy of what should stand in its place, or stands nowhere, drawn in yellow. One of the two is given.
    """
    meant = [[*sorted((b[0], b[2])), *sorted((b[1], b[3]))] for b in (box, proposed) if b is not None]
    spans = np.clip(meant, -np.repeat(picture.size, 2), 2 * np.repeat(picture.size, 2))  # rows of x1, x2, y1, y2
    (x1, _, y1, _), (_, x2, _, y2) = spans.min(0).tolist(), spans.max(0).tolist()
    left, top, right, bottom = _choose_region((x1, y1, x2, y2), picture.size)
    cut = cut_out(picture, (left, top, right, bottom), CUT)
    origin, scale = np.tile((left, top), 2), np.tile((CUT[0] / (right - left), CUT[1] / (bottom - top)), 2)
    near = [other for other in others if other[2] > left and other[0] < right and other[3] > top and other[1] < bottom]
    apart = [other for other in near if box is None or max(abs(a - b) for a, b in zip(other, box, strict=True)) > 0.5]
    for other in apart:
        draw_frame(cut, _round((other - origin) * scale), THIN, HIT[0], None)
    colours = [colour for one, colour in ((box, FALSE[0]), (proposed, MISSED[0])) if one is not None]
    for corners, colour in zip(spans[:, [0, 2, 1, 3]], colours, strict=True):
        low, high = np.split((corners - origin) * scale, 2)
        grow = np.maximum(THICK, (_VISIBLE - (high - low)) / 2)
        draw_frame(cut, _round(np.concatenate([low - grow, high + grow])), THICK, colour, None)
    return cut


def _round(box: NDArray[np.float64]) -> Rect:
    left, top, right, bottom = map(round, box.tolist())
    return left, top, max(right, left + 1), max(bottom, top + 1)


def _choose_region(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The surroundings of a box in whole pixels, of the shape of ``CUT``, within the image if the box is."""
    shape = CUT[0] / CUT[1]
    x1, y1, x2, y2 = box
    width = max(_AROUND * (x2 - x1), _AROUND * (y2 - y1) * shape, _LEAST, _LEAST_SHARE * size[0])
    inside = min(x1, y1) >= 0 and x2 <= size[0] and y2 <= size[1]
    if inside:  # no more than the image
        width = min(width, max(size[0], size[1] * shape))
    width, height = math.ceil(width), math.ceil(width / shape)
    left, top = round((x1 + x2 - width) / 2), round((y1 + y2 - height) / 2)
    if inside:
        left = (size[0] - width) // 2 if width >= size[0] else min(max(left, 0), size[0] - width)
        top = (size[1] - height) // 2 if height >= size[1] else min(max(top, 0), size[1] - height)
    return left, top, left + width, top + height


def _fit(picture: Image.Image) -> Image.Image:
    """The whole picture in a frame of the size ``CUT``."""
    scale = max(picture.width / CUT[0], picture.height / CUT[1])
    width, height = round(CUT[0] * scale), round(CUT[1] * scale)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return cut_out(picture, (left, top, left + width, top + height), CUT)


def open_picture(path: Path | None, data: Data) -> Image.Image | None:
    """An image of a data set, or None if there is none that can be read."""
    try:
        return None if path is None else to_picture(to_array(read_item(data, path)))
    except UserError:
        return None
