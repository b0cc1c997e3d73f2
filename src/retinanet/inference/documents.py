"""What ``predict`` writes: detections of many images as COCO JSON and as CSV."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.types import Detections

CSV_COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label", "score")


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        path: the image.
        size: (height, width).
        detections: boxes in its pixels.
    """

    path: Path
    size: tuple[int, int]
    detections: Detections


def coco_document(found: Sequence[Prediction], class_names: Sequence[str], folder: Path) -> dict[str, object]:
    """A COCO data set of the detections, each with its score: labelling tools load it, and so does ``evaluate``.

    Args:
        found: the images and what is in them.
        class_names: K names.
        folder: where the document will lie; images are named relative to it.
    """
    home = os.path.realpath(folder)
    annotations: list[dict[str, object]] = []
    for number, one in enumerate(found, start=1):
        for row in one.detections.to_coco(number):
            width, height = row["bbox"][2:]
            annotations.append({"id": len(annotations) + 1, **row, "area": width * height, "iscrowd": 0})
    return {
        "images": [
            {"id": number, "file_name": os.path.relpath(one.path, home), "height": one.size[0], "width": one.size[1]}
            for number, one in enumerate(found, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        "annotations": annotations,
    }


def csv_document(found: Sequence[Prediction]) -> str:
    """One line per detection; an image without any has a line with empty fields."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for one in found:
        rows = one.detections.to_dicts()
        for row in rows:
            box = [f"{side:.2f}" for side in row["box"]]
            writer.writerow([one.path, *box, row["name"], f"{row['score']:.4f}"])
        if not rows:
            writer.writerow([one.path, *[""] * 6])
    return text.getvalue()
