"""Detections as the objects of other tools, and back: supervision, FiftyOne and Label Studio.

Rows are those of ``Detections.to_dicts``. Other tools count boxes as fractions or percent of the image; these are
computed in float64, so that the way back gives the very float32 corners. Their packages are optional.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import numpy as np

from retinanet.errors import UserError, suggest

# Detections, best score first: boxes (D, 4) float32 xyxy, scores (D,), labels (D,), K class names.
Columns = tuple[Any, Any, Any, tuple[str, ...]]
EXTRAS = {
    **dict.fromkeys(("supervision", "sahi", "pandas"), "objects"),
    "shtab": "completion",
    "trackers": "track",
}


def require(package: str, what: str) -> Any:
    """An optional package.

    Raises:
        UserError: it is not installed; ``what`` needs it.
    """
    try:
        return importlib.import_module(package)
    except ImportError:
        name = package.partition(".")[0]
        advice = f'"retinanet[{EXTRAS[name]}]", or {name} alone' if name in EXTRAS else name
        raise UserError(f"{what} needs the package {name}: pip install {advice}") from None


def to_supervision(boxes: Any, scores: Any, labels: Any, names: Sequence[str]) -> Any:
    """A ``supervision.Detections``; its data has the D names under ``class_name``."""
    return require("supervision", "to_supervision()").Detections(
        xyxy=np.asarray(boxes),
        confidence=np.asarray(scores),
        class_id=np.asarray(labels),
        data={"class_name": np.array(names, dtype=str)},
    )


def from_supervision(objects: Any, class_names: Sequence[str] | None) -> Columns:
    """Of a ``supervision.Detections``; without ``class_names`` they are those that its data has for the class ids.

    Raises:
        UserError: it has no class ids, or ids beyond the names.
    """
    if getattr(objects, "class_id", None) is None:
        raise UserError("expected a supervision.Detections with class_id, which says the classes of its boxes")
    labels = np.asarray(objects.class_id, dtype=np.int64)
    names = list(class_names or ())
    if class_names is None:
        seen = dict(zip(labels.tolist(), map(str, objects.data.get("class_name", ())), strict=False))
        names = [seen.get(label, f"class {label}") for label in range(int(labels.max(initial=-1)) + 1)]
    if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
        raise UserError(f"class ids go from {labels.min()} to {labels.max()}, but there are {len(names)} class names")
    scores = np.ones(len(labels)) if objects.confidence is None else objects.confidence
    return _sort(objects.xyxy, scores, labels, names)


def to_fiftyone(rows: Iterable[Mapping[str, Any]], size: tuple[int, int]) -> Any:
    """A ``fiftyone.Detections`` of an image of ``size`` (height, width)."""
    fiftyone = require("fiftyone", "to_fiftyone()")
    height, width = size
    detections = []
    for row in rows:
        x1, y1, x2, y2 = row["box"]
        box = [x1 / width, y1 / height, (x2 - x1) / width, (y2 - y1) / height]
        detections.append(fiftyone.Detection(label=row["name"], bounding_box=box, confidence=row["score"]))
    return fiftyone.Detections(detections=detections)


def from_fiftyone(objects: Any, size: tuple[int, int], class_names: Sequence[str] | None) -> Columns:
    """Of a ``fiftyone.Detections``; annotations, which have no confidence, get the score 1.

    Raises:
        UserError: a label is not among ``class_names``.
    """
    found = [(one.label, one.bounding_box, one.confidence) for one in objects.detections]
    return _read_boxes(found, (size[1], size[0]), class_names)


def to_label_studio(
    rows: Sequence[Mapping[str, Any]], size: tuple[int, int], from_name: str, to_name: str, model_version: str
) -> dict[str, Any]:
    """A prediction of Label Studio; see ``Detections.to_label_studio``. Boxes are in percent of the image."""
    height, width = size
    result = []
    for row in rows:
        x1, y1, x2, y2 = row["box"]
        value = {"x": 100 * x1 / width, "y": 100 * y1 / height}
        value |= {"width": 100 * (x2 - x1) / width, "height": 100 * (y2 - y1) / height, "rotation": 0}
        result.append(
            {
                "id": uuid4().hex[:10],
                "from_name": from_name,
                "to_name": to_name,
                "type": "rectanglelabels",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "value": {**value, "rectanglelabels": [row["name"]]},
                "score": row["score"],
            }
        )
    mean = sum(row["score"] for row in rows) / len(rows) if rows else 0.0
    return {"result": result, "score": mean, "model_version": model_version}


def from_label_studio(content: Mapping[str, Any], class_names: Sequence[str] | None) -> Columns:
    """Of a prediction or an annotation of Label Studio; boxes of an annotation, which has no scores, get the score 1.

    Raises:
        UserError: it has no result, a box is turned, or a label is not among ``class_names``.
    """
    if not isinstance(content.get("result"), list):
        raise UserError("expected a prediction or an annotation of Label Studio, which has a list under 'result'")
    found, size = [], (100.0, 100.0)
    for one in content["result"]:
        if one.get("type") != "rectanglelabels":
            continue
        value = one["value"]
        if value.get("rotation"):
            raise UserError(
                f"a box of Label Studio is turned by {value['rotation']} degrees; only upright ones are read"
            )
        size = one["original_width"], one["original_height"]
        box = [value[side] / 100 for side in ("x", "y", "width", "height")]
        found.append((value["rectanglelabels"][0], box, one.get("score")))
    return _read_boxes(found, size, class_names)


def _read_boxes(
    found: Sequence[tuple[str, Sequence[float], float | None]],
    size: tuple[float, float],
    class_names: Sequence[str] | None,
) -> Columns:
    """Label, box (x, y, width, height as fractions of ``size``, which is width and height) and score of each object."""
    names = sorted({label for label, _, _ in found}) if class_names is None else list(class_names)
    for label, _, _ in found:
        if label not in names:
            raise UserError(f"the class {label!r} is not among the class names{suggest(label, names)}")
    fractions = np.array([box for _, box, _ in found], dtype=np.float64).reshape(-1, 4)
    corners = np.concatenate([fractions[:, :2], fractions[:, :2] + fractions[:, 2:]], axis=1) * np.array([*size, *size])
    scores = [1.0 if score is None else score for _, _, score in found]
    return _sort(corners, scores, [names.index(label) for label, _, _ in found], names)


def _sort(boxes: Any, scores: Any, labels: Any, class_names: Sequence[str]) -> Columns:
    """Best score first; of equal ones the first."""
    order = np.argsort(-np.asarray(scores, dtype=np.float32), kind="stable")
    return (
        np.asarray(boxes, dtype=np.float32).reshape(-1, 4)[order],
        np.asarray(scores, dtype=np.float32)[order],
        np.asarray(labels, dtype=np.int64)[order],
        tuple(map(str, class_names)),
    )
