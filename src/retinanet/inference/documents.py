"""What ``predict`` writes: detections of many images as COCO JSON and as CSV, those of a video frame by frame."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retinanet.exchange import require
from retinanet.types import Detections

CSV_COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label", "score")
FRAME_COLUMNS = ("frame", "time", "track", *CSV_COLUMNS[1:])
ROWS = 20_000  # of a Parquet file that are held before they are written
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet takes a cell that begins so for a formula


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        path: the image; a text where it is the address of a store.
        size: (height, width).
        detections: boxes in its pixels.
    """

    path: Path | str
    size: tuple[int, int]
    detections: Detections


class Predictions(list[Prediction]):
    """What was found in many images, in their order.

    Attributes:
        failed: the images or videos that could not be read, with the reason; they are not in the list.
        videos: what was found in each video (:class:`retinanet.inference.video.VideoResult`). An hour of video has too
            many frames for a list: their detections are in the table that was written.
    """

    def __init__(
        self,
        predictions: Iterable[Prediction] = (),
        failed: Mapping[Path | str, str] | None = None,
        videos: Iterable[Any] = (),
    ) -> None:
        super().__init__(predictions)
        self.failed = dict(failed or {})
        self.videos = list(videos)


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
                "file_name": _relate(prediction.path, home),
                "height": prediction.size[0],
                "width": prediction.size[1],
            }
            for number, prediction in enumerate(predictions, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        "annotations": annotations,
    }


def _relate(path: Path | str, home: str) -> str:
    """A path relative to a folder; an address is left as it is."""
    return path if isinstance(path, str) else os.path.relpath(path, home)


def make_csv_document(predictions: Sequence[Prediction]) -> str:
    """One line per detection; an image without any has a line with empty fields.

    A path or a class name that a spreadsheet would compute, because it begins with =, +, - or @, has an apostrophe in
    front.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for prediction in predictions:
        path = quote_formula(str(prediction.path))
        writer.writerows([path, *_format_cells(row)] for row in prediction.detections.to_dicts() or [{}])
    return text.getvalue()


def _format_cells(row: Mapping[str, Any]) -> list[str]:
    """Box, name and score of a detection for a CSV file; of {}, which stands for no detection, empty."""
    if not row:
        return [""] * 6
    return [*(f"{side:.2f}" for side in row["box"]), quote_formula(row["name"]), f"{row['score']:.4f}"]


def quote_formula(text: str) -> str:
    """A cell that no spreadsheet computes."""
    return f"'{text}" if text.startswith(FORMULA) else text


def unquote_formula(text: str) -> str:
    """What :func:`quote_formula` was given."""
    return text[1:] if text.startswith(tuple(f"'{mark}" for mark in FORMULA)) else text


class FrameTable:
    """The detections of a video as a table that grows on the disk: a line per detection, CSV or Parquet.

    The columns are ``FRAME_COLUMNS``; time is in seconds. A frame without detections has a line with empty fields.

    Args:
        path: .csv or .parquet.
    """

    def __init__(self, path: Path) -> None:
        self._rows: list[list[Any]] = []
        self._parquet: Any = None
        if path.suffix == ".parquet":
            arrow, parquet = (require(name, "--table parquet") for name in ("pyarrow", "pyarrow.parquet"))
            kinds = [arrow.int64(), arrow.float64(), arrow.int64(), *[arrow.float32()] * 4]
            columns = zip(FRAME_COLUMNS, [*kinds, arrow.string(), arrow.float32()], strict=True)
            self._arrow, self._schema = arrow, arrow.schema(list(columns))
            self._parquet = parquet.ParquetWriter(path, self._schema)
            return
        self._file = path.open("w", encoding="utf-8", newline="")
        self._csv = csv.writer(self._file)
        self._csv.writerow(FRAME_COLUMNS)

    def add(self, frame: int, time: float, detections: Detections, tracks: Sequence[int] | None) -> None:
        """Add the detections of a frame.

        Args:
            frame: its number.
            time: of it in seconds.
            detections: D of them.
            tracks: D numbers of objects, -1 where one has none; None where nothing is tracked.
        """
        rows = detections.to_dicts() or [{}]
        for row, number in zip(rows, tracks or [-1] * len(rows), strict=True):
            track = None if number < 0 else number
            if self._parquet is None:
                self._csv.writerow([frame, f"{time:.3f}", track, *_format_cells(row)])
            else:
                cells = [*row["box"], row["name"], row["score"]] if row else [None] * 6
                self._rows.append([frame, time, track, *cells])
        if len(self._rows) >= ROWS:
            self._write_rows()

    def _write_rows(self) -> None:
        columns = list(zip(*self._rows, strict=True)) or [()] * len(FRAME_COLUMNS)
        arrays = [self._arrow.array(column, kind.type) for column, kind in zip(columns, self._schema, strict=True)]
        self._parquet.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
        self._rows = []

    def close(self) -> None:
        """Write what is left."""
        if self._parquet is None:
            self._file.close()
            return
        self._write_rows()
        self._parquet.close()
