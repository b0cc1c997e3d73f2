"""Out-of-fold predictions: each image is judged by a model that has not learned from it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from retinanet.data.dataset import DetectionDataset
from retinanet.data.held_out import group_copies
from retinanet.errors import UserError
from retinanet.files import write_atomically
from retinanet.inference.predictor import Predictor
from retinanet.planning.plan import NAME as PLAN
from retinanet.training.resume import STATE
from retinanet.training.run import train
from retinanet.types import Detections, Sample


def draw_folds(paths: Sequence[Path], folds: int) -> list[list[int]]:
    """The rows of each fold: by a hash of the names of files, of nearly one size, files with the same bytes together.

    Raises:
        UserError: there are fewer different images than folds, or fewer than two folds.
    """
    copies = group_copies(paths)
    groups = sorted(
        {tuple(rows) for rows in copies},
        key=lambda rows: hashlib.blake2b(os.fsencode(paths[rows[0]].name)).digest(),
    )
    if folds < 2 or len(groups) < folds:
        raise UserError(f"--folds {folds}: expected at least 2, and at most the {len(groups)} different images")
    drawn: list[list[int]] = [[] for _ in range(folds)]
    for rows in groups:
        min(drawn, key=len).extend(rows)
    return [sorted(rows) for rows in drawn]


def predict_out_of_fold(
    dataset: DetectionDataset, folder: Path, folds: int, options: Mapping[str, Any], tell: Callable[[str], None]
) -> list[Detections]:
    """Train a model for each fold on the others, and let it predict its own; complete models are not trained again.

    The first training makes the plan of all, so a machine that is busy later neither changes nor refuses the others.

    Args:
        dataset: N annotated images.
        folder: for the data and the models of the folds, in a folder of its own for these annotations and folds.
        folds: how many.
        options: of ``train``, without data and output.
        tell: is given a line before each fold.

    Returns:
        The detections of each image, labels as in the data set.

    Raises:
        UserError: as ``train``, and as :func:`draw_folds`.
    """
    found: dict[int, Detections] = {}
    text = f"{folds} {make_coco(dataset.samples, dataset.class_names)}"
    folder = folder / hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
    for number, rows in enumerate(draw_folds([sample.path for sample in dataset.samples], folds), start=1):
        tell(f"fold {number} of {folds}: a model for {len(rows)} images learns from the others")
        data, run = folder / f"fold{number}-data", folder / f"fold{number}"
        others = sorted(set(range(len(dataset))).difference(rows))
        samples = [dataset.samples[row] for row in others]
        write_atomically(data / "annotations" / "instances_train.json", make_coco(samples, dataset.class_names))
        train(str(data), str(run), resume=(run / STATE).is_file(), **options)
        options = {**options, "budget": None, "plan": str(folder / "fold1" / PLAN)}
        predictor = Predictor.load(run)
        label_of = torch.tensor([dataset.class_names.index(name) for name in predictor.class_names])
        images = [dataset.samples[row].path for row in rows]
        for row, one in zip(rows, predictor.stream(images), strict=True):
            found[row] = Detections(one.boxes, one.scores, label_of[one.labels], dataset.class_names)
    return [found[row] for row in range(len(dataset))]


def make_coco(samples: Sequence[Sample], class_names: Sequence[str]) -> str:
    """The text of a COCO file of annotated images, which stay where they are.

    Args:
        samples: the images.
        class_names: K names; category ids are label + 1.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, sample in enumerate(samples, start=1):
        name = os.path.abspath(sample.path).replace(os.sep, "/")
        images.append({"id": number, "file_name": name, "height": sample.size[0], "width": sample.size[1]})
        columns = (sample.target.boxes, sample.target.labels, sample.target.ignore, sample.areas)
        for (x1, y1, x2, y2), label, ignore, area in zip(*(column.tolist() for column in columns), strict=True):
            box = {"category_id": label + 1, "bbox": [x1, y1, x2 - x1, y2 - y1], "area": area, "iscrowd": int(ignore)}
            annotations.append({"id": len(annotations) + 1, "image_id": number, **box})
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)]
    return json.dumps({"images": images, "annotations": annotations, "categories": categories}) + "\n"
