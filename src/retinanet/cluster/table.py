"""What was found in images, as rows of Parquet files, and back."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from retinanet.cluster.store import Store, is_address
from retinanet.errors import UserError
from retinanet.files import write_atomically
from retinanet.inference.documents import Prediction, Predictions, make_coco_document
from retinanet.types import Detections

PARTS = "parts"  # the folder of the files with results
IMAGES = "images.json"  # the list of the images of a job
HEADER = b"retinanet"  # of the metadata of a file: what its rows have in common, as JSON
COLUMNS = ("index", "path", "height", "width", "boxes", "scores", "labels", "error", "milliseconds")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Row:
    """What was found in one image, or why nothing was.

    Attributes:
        index: of the image in the list of the job.
        path: of the image, absolute, or its address.
        size: (height, width) in pixels; (0, 0) where it cannot be read.
        detections: boxes in its pixels; None where it cannot be read.
        error: the reason.
        milliseconds: from reading to detections, the mean over the images that one worker was given together.
    """

    index: int
    path: str
    size: tuple[int, int] = (0, 0)
    detections: Detections | None = None
    error: str | None = None
    milliseconds: float = 0.0


def make_schema(header: Mapping[str, Any]) -> Any:
    """The schema of the files: the columns, and a header in the metadata.

    index int64, path string, height and width int32, boxes list of 4 float32 (xyxy, pixels of the image), scores list
    of float32, labels list of int32 (in [0, K)), error string or null, milliseconds float32. The header has ``format``,
    ``class_names``, ``model_sha256`` and ``library_version``.
    """
    import pyarrow as pa

    boxes = pa.list_(pa.list_(pa.float32(), 4))
    kinds = {"boxes": boxes, "scores": pa.list_(pa.float32()), "labels": pa.list_(pa.int32())}
    kinds |= {"index": pa.int64(), "path": pa.string(), "error": pa.string(), "milliseconds": pa.float32()}
    fields = [pa.field(name, kinds.get(name, pa.int32())) for name in COLUMNS]
    return pa.schema(fields, metadata={HEADER: json.dumps(header)})


def detection_columns(found: Sequence[Detections | None]) -> dict[str, Any]:
    """The columns boxes, scores and labels as arrays of pyarrow, an entry for each image."""
    import pyarrow as pa

    counts = [0 if one is None else len(one) for one in found]
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())

    def flatten(name: str, kind: type) -> Any:
        parts: list[Any] = [np.asarray(getattr(one, name), kind).ravel() for one in found if one is not None]
        return pa.array(np.concatenate([np.zeros(0, kind), *parts]))

    boxes = pa.FixedSizeListArray.from_arrays(flatten("boxes", np.float32), 4)
    values = {"boxes": boxes, "scores": flatten("scores", np.float32), "labels": flatten("labels", np.int32)}
    return {name: pa.ListArray.from_arrays(offsets, value) for name, value in values.items()}


def encode(rows: Sequence[Row], header: Mapping[str, Any]) -> bytes:
    """A Parquet file with rows."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "index": [row.index for row in rows],
        "path": [row.path for row in rows],
        "height": [row.size[0] for row in rows],
        "width": [row.size[1] for row in rows],
        "error": [row.error for row in rows],
        "milliseconds": [row.milliseconds for row in rows],
        **detection_columns([row.detections for row in rows]),
    }
    table = pa.table([columns[name] for name in COLUMNS], schema=make_schema(header))
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink, compression="zstd")
    return cast(bytes, sink.getvalue().to_pybytes())


def decode(content: bytes, name: str) -> tuple[dict[str, Any], list[Row]]:
    """The header and the rows of a file that :func:`encode` made; ``name`` stands for it in messages.

    Raises:
        UserError: it is damaged, or something else.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(pa.BufferReader(content))
        header = json.loads(table.schema.metadata[HEADER])
        class_names = tuple(header["class_names"])
        columns = {name: table.column(name) for name in COLUMNS}
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name} is damaged, or no file of results of predict --engine ray ({error})") from None
    plain = {key: value.to_pylist() for key, value in columns.items() if key not in ("boxes", "scores", "labels")}
    lists = {key: columns[key].combine_chunks() for key in ("boxes", "scores", "labels")}
    starts = lists["scores"].offsets.to_numpy()
    flat = {key: np.asarray(lists[key].flatten()) for key in ("scores", "labels")}
    flat["boxes"] = np.asarray(lists["boxes"].flatten().flatten()).reshape(-1, 4)
    rows = []
    for place, reason in enumerate(plain["error"]):
        part = slice(starts[place] - starts[0], starts[place + 1] - starts[0])
        boxes, scores, labels = flat["boxes"][part], flat["scores"][part], flat["labels"][part].astype(np.int64)
        found = None if reason is not None else Detections(boxes, scores, labels, class_names)
        size = plain["height"][place], plain["width"][place]
        row = Row(plain["index"][place], plain["path"][place], size, found, reason, plain["milliseconds"][place])
        rows.append(row)
    return header, rows


def iterate_results(output: str | Path) -> Iterator[Row]:
    """The rows of a job, one file of them in memory at a time; in the order of its images but for very large ones.

    Args:
        output: the folder or address that the job was given.

    Raises:
        UserError: there are no results, or a file is damaged.
    """
    store = Store(str(output))
    names = [name for name in store.list_files(PARTS) if re.fullmatch(rf"{PARTS}/\w+-\d+\.parquet", name)]
    if not names:
        raise UserError(f"no results in {output}: expected {PARTS}/*.parquet, as predict --engine ray writes them")
    for name in names:
        yield from decode(store.read(name), f"{output}/{name}")[1]


def read_results(output: str | Path) -> Predictions:
    """What was found in all images of a job, in their order, as ``retinanet.predict`` returns it.

    A warning says how many images of the job are not done yet.

    Args:
        output: the folder or address that the job was given.

    Raises:
        UserError: as :func:`iterate_results`.
    """
    predictions, store = Predictions(), Store(str(output))
    rows = sorted(iterate_results(output), key=lambda row: row.index)
    wanted = len(json.loads(store.read(IMAGES))) if store.exists(IMAGES) else len(rows)
    if len(rows) < wanted:
        _log.warning("%s: %d of %d images are not done yet", output, wanted - len(rows), wanted)
    for row in rows:
        path = row.path if is_address(row.path) else Path(row.path)
        if row.detections is None:
            predictions.failed[path] = row.error or ""
        else:
            predictions.append(Prediction(path, row.size, row.detections))
    return predictions


def write_coco(output: str | Path, file: str | Path) -> None:
    """Write the results of a job as one COCO file, as ``predict`` writes detections.json.

    Args:
        output: the folder or address that the job was given.
        file: the COCO file; images are named relative to its folder, those of a store by their address.

    Raises:
        UserError: as :func:`iterate_results`, or the file cannot be written.
    """
    predictions = read_results(output)
    names = predictions[0].detections.class_names if predictions else ()
    document = make_coco_document(predictions, names, Path(file).parent)
    write_atomically(file, json.dumps(document) + "\n")
