"""COCO average precision. The only file that knows the evaluator (faster-coco-eval, float64 like pycocotools)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from retinanet.errors import UserError
from retinanet.types import Detections, Sample

COCO_LIMIT = 100  # detections of an image and class that count in the COCO challenge
# Annotated areas in square pixels; both ends belong to the range, so a box of exactly 32 x 32 counts twice, as in COCO.
AREA_RANGES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 10**10)}


@dataclass(frozen=True)
class SizeMetrics:
    """The objects of one range of areas."""

    boxes: int  # annotated objects in the range, ignore regions left out
    ap: float  # AP over IoU 0.50:0.95; NaN where the range holds no object
    ar: float  # average recall over the same IoUs; NaN where the range holds no object


@dataclass(frozen=True)
class ClassMetrics:
    """One class."""

    name: str  # its name
    category_id: int  # its id in the annotation file
    images: int  # images with at least one object of the class
    boxes: int  # annotated objects, ignore regions left out
    detections: int  # detections of the class, before any limit per image
    ap: float  # AP over IoU 0.50:0.95; NaN where the class has no object
    ap50: float  # AP at IoU 0.50; NaN where the class has no object


@dataclass(frozen=True)
class CocoMetrics:
    """The numbers of the COCO detection challenge, each in [0, 1], or NaN where there is nothing to measure it on.

    Attributes:
        ap: AP, mean over IoU 0.50:0.05:0.95 and over the classes that have objects.
        ap50: AP at IoU 0.50.
        ap75: AP at IoU 0.75.
        ar: average recall for each limit of detections per image and class, {1: .., 10: .., 100: ..}.
        limit: the largest of these limits, which AP, the sizes and the classes count with.
        ap100: AP with 100 detections of an image and class, as COCO counts; ``ap`` unless an image has more of a class.
        small: objects of at most 32 x 32 pixels.
        medium: objects from 32 x 32 to 96 x 96 pixels.
        large: objects of at least 96 x 96 pixels.
        classes: one entry per class, in the order of the labels.
        images: number of images.
        boxes: annotated objects, ignore regions left out.
        ignored: ignore regions.
        detections: detections, before any limit per image.
    """

    ap: float
    ap50: float
    ap75: float
    ar: Mapping[int, float]
    small: SizeMetrics
    medium: SizeMetrics
    large: SizeMetrics
    classes: tuple[ClassMetrics, ...]
    images: int
    boxes: int
    ignored: int
    detections: int
    limit: int = 100
    ap100: float = float("nan")


def coco_metrics(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    class_names: Sequence[str],
    *,
    category_ids: Sequence[int] | None = None,
    cap: int | None = None,
    max_detections: Sequence[int] | None = None,
) -> CocoMetrics:
    """Average precision and recall as COCO defines them (Lin et al. 2014; the maths of pycocotools in float64).

    The result does not depend on the order of the images: equal scores of different images are ranked by image id
    (integers first, then strings), as pycocotools does, and equal scores within one image keep the order given.

    Args:
        samples: the annotated images, boxes in pixels of the original image; ``ignore`` becomes ``iscrowd``. Boxes and
            areas in float64 are used as they are: rounded to float32, a small box can move across an IoU threshold.
        detections: what was found in each of them, in the same order, boxes in the same pixels.
        class_names: K names; labels index them.
        category_ids: K ids of the annotation file, reported with each class; label + 1 by default.
        cap: how many detections of an image the model reports at most.
        max_detections: limits of detections per image and class, for AR; AP and the sizes use the largest. By default
            those of :func:`choose_limits`.

    Raises:
        UserError: the two sequences differ in length, an image id occurs twice, the class names of the detections are
            others, a label or the number of category ids does not fit the class names, or a limit is below 1.
    """
    ids = tuple(category_ids) if category_ids is not None else tuple(range(1, len(class_names) + 1))
    _check(samples, detections, tuple(class_names), ids)
    limits = sorted(set(choose_limits(detections, cap) if max_detections is None else max_detections))
    if not limits or limits[0] < 1:
        raise UserError(f"max_detections is {limits}: expected at least one limit, each 1 or more")
    every = sorted({*limits, COCO_LIMIT})
    last, usual = every.index(limits[-1]), every.index(COCO_LIMIT)
    precision, recall = _evaluate(*_datasets(samples, detections, class_names), every)
    boxes = np.concatenate([np.zeros(0, bool), *(~sample.target.ignore.numpy() for sample in samples)])
    areas = np.concatenate([np.zeros(0), *(sample.areas.double().numpy() for sample in samples)])[boxes]
    sizes = {
        name: SizeMetrics(
            boxes=int(((areas >= low) & (areas <= high)).sum()),
            ap=mean(precision[..., index, last]),
            ar=mean(recall[..., index, last]),
        )
        for index, (name, (low, high)) in enumerate(AREA_RANGES.items(), start=1)
    }
    everything = precision[:, :, :, 0, last]  # (T, R, K): all areas, the largest limit; T = 0.50, 0.55, .. 0.95
    return CocoMetrics(
        ap=mean(everything),
        ap50=mean(everything[0]),
        ap75=mean(everything[5]),
        ar={limit: mean(recall[:, :, 0, every.index(limit)]) for limit in limits},
        **sizes,
        classes=_classes(samples, detections, class_names, ids, everything),
        images=len(samples),
        boxes=len(areas),
        ignored=len(boxes) - len(areas),
        detections=sum(len(found) for found in detections),
        limit=limits[-1],
        ap100=mean(precision[:, :, :, 0, usual]),
    )


def choose_limits(detections: Sequence[Detections], cap: int | None = None) -> tuple[int, ...]:
    """How many detections of an image and class count: all that a model reports; COCO's 1, 10 and 100 beside them.

    Args:
        detections: of each image.
        cap: what the model reports of an image at most; by default the most that there are.

    Returns:
        1, 10 and 100, and ``cap`` where an image has more than 100 detections of a class.
    """
    most = max((int(np.bincount(np.asarray(found.labels), minlength=1).max()) for found in detections), default=0)
    return (1, 10, COCO_LIMIT) if most <= COCO_LIMIT else (1, 10, COCO_LIMIT, max(most, cap or 0))


def _check(
    samples: Sequence[Sample], detections: Sequence[Detections], names: tuple[str, ...], ids: tuple[int, ...]
) -> None:
    check_samples(samples, detections, len(names))
    if len(ids) != len(names):
        raise UserError(f"{len(names)} class names but {len(ids)} category ids: give one id per class")
    for image_id, count in Counter(sample.image_id for sample in samples).items():
        if count > 1:
            raise UserError(f"image id {image_id!r} occurs {count} times: COCO AP needs a different id for every image")
    for sample, found in zip(samples, detections, strict=True):
        for label, (ours, theirs) in enumerate(zip_longest(found.class_names, names)):
            if ours != theirs:
                raise UserError(
                    f"image {sample.image_id!r}: class {label} is {ours!r} for the detections and {theirs!r} for the "
                    "data set; evaluate on a data set with the same classes in the same order"
                )


def _datasets(
    samples: Sequence[Sample], detections: Sequence[Detections], class_names: Sequence[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Ground truth and results as COCO dictionaries; images are numbered from 1 by rank of their id, classes by label.

    Annotation ids start at 1: the evaluator takes a match with id 0 for no match.
    """
    truths: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for number, index in enumerate(np.argsort(rank_by_id(samples)).tolist(), start=1):
        sample, target = samples[index], samples[index].target
        boxes = to_xywh(target.boxes.double().numpy())
        columns = (boxes.tolist(), target.labels.tolist(), sample.areas.tolist(), target.ignore.tolist())
        for box, label, area, ignore in zip(*columns, strict=True):
            row = {"image_id": number, "category_id": label + 1, "bbox": box, "area": area, "iscrowd": int(ignore)}
            truths.append({"id": len(truths) + 1, **row})
        for row in detections[index].to_coco(number):
            area = row["bbox"][2] * row["bbox"][3]
            results.append({"id": len(results) + 1, **row, "area": area, "iscrowd": 0})
    frame = {
        "images": [{"id": number} for number in range(1, len(samples) + 1)],
        "categories": [{"id": label, "name": name} for label, name in enumerate(class_names, start=1)],
    }
    return {**frame, "annotations": truths}, {**frame, "annotations": results}


def to_xywh(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """(M, 4) xyxy -> (M, 4) x, y, width, height: subtracted in float64, which is exact for pixels."""
    return np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)


def _evaluate(truths: dict[str, Any], results: dict[str, Any], limits: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Runs the evaluator without a word -> precision (T=10, R=101, K, 4, limits), recall (T, K, 4, limits).

    NaN marks what has no ground truth. The four areas are all, small, medium and large.
    """
    silent: dict[str, Any] = {"print_function": lambda *_: None}
    ranges = {name: list(ends) for name, ends in AREA_RANGES.items()}
    evaluator = COCOeval_faster(COCO(truths, **silent), COCO(results, **silent), "bbox", ranges=ranges, **silent)
    evaluator.params.maxDets = limits
    evaluator.evaluate()
    evaluator.accumulate()
    precision, recall = evaluator.eval["precision"], evaluator.eval["recall"]
    return np.where(precision > -1, precision, np.nan), np.where(recall > -1, recall, np.nan)


def mean(values: NDArray[np.float64]) -> float:
    """Mean of the classes that have a value, NaN where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def check_samples(samples: Sequence[Sample], detections: Sequence[Detections], classes: int) -> None:
    """Raises a UserError unless there is one ``Detections`` per sample and every label is in [0, ``classes``)."""
    if len(samples) != len(detections):
        raise UserError(f"{len(samples)} samples but {len(detections)} detections: give one Detections per sample")
    for sample, found in zip(samples, detections, strict=True):
        for what, labels in (("annotated", sample.target.labels), ("detected", found.labels)):
            outside = labels[(labels < 0) | (labels >= classes)]
            if len(outside):
                raise UserError(
                    f"image {sample.image_id!r}: {what} label {int(outside[0])} is not in [0, {classes}), the range of "
                    f"the {classes} class names; give the class names of the model"
                )


def rank_by_id(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(N,) place of each image by its id, integers before strings: the order of equal scores in COCO."""
    order = sorted(range(len(samples)), key=lambda i: (isinstance(samples[i].image_id, str), samples[i].image_id))
    return np.argsort(order)


def _classes(
    samples: Sequence[Sample],
    detections: Sequence[Detections],
    names: Sequence[str],
    ids: Sequence[int],
    precision: np.ndarray,
) -> tuple[ClassMetrics, ...]:
    """One entry per class from precision (T, R, K)."""
    boxes, images, found = Counter[int](), Counter[int](), Counter[int]()
    for sample, result in zip(samples, detections, strict=True):
        labels = sample.target.labels[~sample.target.ignore].tolist()
        boxes.update(labels)
        images.update(set(labels))
        found.update(result.labels.tolist())
    return tuple(
        ClassMetrics(
            name=name,
            category_id=ids[label],
            images=images[label],
            boxes=boxes[label],
            detections=found[label],
            ap=mean(precision[:, :, label]),
            ap50=mean(precision[0, :, label]),
        )
        for label, name in enumerate(names)
    )
