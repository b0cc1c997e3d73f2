"""Loss and detections in one forward over a data set, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import distributed

from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.data.loader import evaluation_batches
from retinanet.evaluate.coco import coco_metrics
from retinanet.evaluate.report import EvaluationResult, save_coco_results
from retinanet.losses.detection import DetectionLoss
from retinanet.model.device import choose_device
from retinanet.types import Detections, UserError
from retinanet.weights.checkpoint import Detector, load_detector


@dataclass(frozen=True)
class Pass:
    """What one pass over a data set gives.

    Attributes:
        detections: one entry per sample, in the order of the data set.
        loss: mean over the images' positives: ``classification``, ``box``, ``total``.
        images_per_second: from pixels to detections, reading excluded.
    """

    detections: list[Detections]
    loss: Mapping[str, float]
    images_per_second: float


def evaluate(
    model: str | Path,
    data: str | Path,
    *,
    split: str = "test",
    output: str | Path | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    strict: bool = False,
) -> EvaluationResult:
    """COCO average precision of a model on annotated images.

    Args:
        model: model folder, as train writes it.
        data: annotated images in COCO, VOC, YOLO or CSV form.
        split: which part of the data.
        output: folder for ``evaluation.json`` and ``predictions.json`` (COCO results); by default nothing is written.
        batch_size: images per forward pass.
        workers: processes that read images; 0 reads in this one.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        strict: refuse the data at the first faulty box instead of leaving faulty boxes out.

    Raises:
        UserError: unusable model or data, or their classes differ.
    """
    detector = load_detector(model)
    dataset = load_dataset(data, split, class_names=detector.class_names, strict=strict)
    check_classes(detector, dataset)
    where = choose_device(device)
    detector.net.to(where)
    result = one_pass(detector, dataset, batch_size=batch_size, workers=workers, device=where)
    metrics = coco_metrics(dataset.samples, result.detections, dataset.class_names, category_ids=dataset.category_ids)
    about = {"model": str(model), "data": str(data), "split": split, "device": str(where)}
    report = EvaluationResult(metrics, result.loss, result.images_per_second, about)
    if output is not None:
        report.to_json(Path(output) / "evaluation.json")
        save_coco_results(Path(output) / "predictions.json", dataset.samples, result.detections, dataset.category_ids)
    return report


def one_pass(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    criterion: DetectionLoss | None = None,
    batch_size: int = 8,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Pass:
    """Run a detector over a data set once; every rank takes its share and all get the whole result.

    Args:
        detector: its network lies on ``device`` and is put into evaluation mode.
        dataset: annotated images.
        device: of the batches.
        criterion: the loss to report; the paper's by default.
        batch_size: images per forward pass.
        workers: processes that read images.
        autocast: context of the forward passes.
    """
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    indices = range(rank, len(dataset), world)
    criterion = criterion or DetectionLoss()
    detector.net.eval()
    found: dict[int, Detections] = {}
    sums = torch.zeros(4, dtype=torch.float64)  # classification, box, positives, seconds
    batches = evaluation_batches(
        dataset, preprocess=detector.preprocess, batch_size=batch_size, indices=indices, workers=workers
    )
    for start, batch in zip(range(0, len(indices), batch_size), batches, strict=True):
        began = time.perf_counter()
        batch = batch.to(device)
        with torch.inference_mode(), autocast():
            raw = detector.raw(batch)
        with torch.inference_mode():
            losses = criterion(raw, batch.targets, normaliser=1.0)
            detections = detector.detections(raw, batch)
        sums += torch.tensor(
            [float(losses.classification), float(losses.box), losses.positives, time.perf_counter() - began],
            dtype=torch.float64,
        )
        found.update(zip(indices[start : start + batch_size], detections, strict=True))
    found, sums = _join(found, sums)
    classification, box, positives, seconds = sums.tolist()
    loss = {"classification": classification / max(positives, 1), "box": box / max(positives, 1)}
    loss["total"] = loss["classification"] + loss["box"]
    speed = len(dataset) * world / seconds if seconds else 0.0
    return Pass([found[index] for index in range(len(dataset))], loss, speed)


def check_classes(detector: Detector, dataset: DetectionDataset) -> None:
    """A model can only be measured on its own classes, in its own order.

    Raises:
        UserError: they differ.
    """
    if detector.class_names != dataset.class_names:
        raise UserError(
            f"the model knows {len(detector.class_names)} classes {detector.class_names} and {dataset.name} has "
            f"{len(dataset.class_names)} {dataset.class_names}. Evaluate on data with the same classes"
        )


def _join(found: dict[int, Detections], sums: torch.Tensor) -> tuple[dict[int, Detections], torch.Tensor]:
    """The results of all ranks, on every rank."""
    if not distributed.is_initialized():
        return found, sums
    parts: list[tuple[dict[int, Detections], torch.Tensor] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, (found, sums))
    whole = [part for part in parts if part is not None]
    return {k: v for part, _ in whole for k, v in part.items()}, torch.stack([s for _, s in whole]).sum(dim=0)
