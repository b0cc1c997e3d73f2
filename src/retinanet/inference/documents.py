"""What ``predict`` writes: detections of many images as COCO JSON and as CSV."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retinanet.types import Detections

CSV_COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label", "score")
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula


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


class Predictions(list[Prediction]):
    """What was found in many images, in their order.

    Attributes:
        failed: the images that could not be read, with the reason; they are not in the list.
    """

    def __init__(self, predictions: Iterable[Prediction] = (), failed: Mapping[Path, str] | None = None) -> None:
        super().__init__(predictions)
        self.failed = dict(failed or {})


def write_documents(folder: Path, predictions: Predictions, class_names: Sequence[str], home: Path) -> None:
    """Write detections.json and detections.csv into a folder whose content will lie in ``home``."""
    text = json.dumps(make_coco_document(predictions, class_names, home), indent=1) + "\n"
    (folder / "detections.json").write_text(text, encoding="utf-8")
    table = make_csv_document(predictions)
    (folder / "detections.csv").write_text(table, encoding="utf-8", errors="surrogateescape")


def make_coco_document(
    predictions: Sequence[Prediction], class_names: Sequence[str], folder: Path
) -> dict[str, object]:
    """A COCO data set of the detections, each with its score: labelling tools load it, and so does ``evaluate``.

    Args:
        predictions: the images and what is in them.
        class_names: K names.
        folder: where the document will lie; images are named relative to it.
    """
    home = os.path.realpath(folder)
    annotations: list[dict[str, object]] = []
    for number, prediction in enumerate(predictions, start=1):
        for row in prediction.detections.to_coco(number):
            width, height = row["bbox"][2:]
            annotations.append({"id": len(annotations) + 1, **row, "area": width * height, "iscrowd": 0})
    return {
        "images": [
            {
                "id": number,
                "file_name": os.path.relpath(prediction.path, home),
                "height": prediction.size[0],
                "width": prediction.size[1],
            }
            for number, prediction in enumerate(predictions, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        "annotations": annotations,
    }


def make_csv_document(predictions: Sequence[Prediction]) -> str:
    """One line per detection; an image without any has a line with empty fields.

    A path or a class name that a spreadsheet would compute, because it begins with =, +, - or @, has an apostrophe in
    front.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for prediction in predictions:
        rows, path = prediction.detections.to_dicts(), quote_formula(str(prediction.path))
        for row in rows:
            box = [f"{side:.2f}" for side in row["box"]]
            writer.writerow([path, *box, quote_formula(row["name"]), f"{row['score']:.4f}"])
        if not rows:
            writer.writerow([path, *[""] * 6])
    return text.getvalue()


def quote_formula(text: str) -> str:
    """A cell that no spreadsheet computes."""
    return f"'{text}" if text.startswith(FORMULA) else text


def unquote_formula(text: str) -> str:
    """What :func:`quote_formula` was given."""
    return text[1:] if text.startswith(tuple(f"'{mark}" for mark in FORMULA)) else text
