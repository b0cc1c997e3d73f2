"""Loss and detections in one forward over a data set, over all ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.data.loader import evaluation_batches
from retinanet.data.objects import Data, name_data
from retinanet.data.windows import WindowDataset
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.report import EvaluationResult, find_cut_images, save_coco_results
from retinanet.files import check_output_folder
from retinanet.images.tiling import choose_tiling, usual_overlap
from retinanet.inference.predictor import Predictor
from retinanet.inference.tiled import join_windows
from retinanet.losses.detection import DetectionLoss
from retinanet.model.device import choose_device
from retinanet.options import explain_unknown_options
from retinanet.spec import ModelSpec, check_model_first, exported_file
from retinanet.types import Assignment, Batch, Detections, RawOutput

RESULTS = ("evaluation.json", "predictions.json")


@dataclass(frozen=True)
class Pass:
    """What one pass over a data set gives."""

    detections: list[Detections]  # one entry per image, in the order of the data set
    # divided as the criterion divides it, over the whole set: ``classification``, ``box``, ``total``. Where the model
    # sees windows, it is that of the windows.
    loss: Mapping[str, float]
    images_per_second: float | None  # from pixels to detections, reading excluded; None if it was not measured


@explain_unknown_options
def evaluate(
    model: str | Path,
    data: Data,
    *,
    split: str = "test",
    output: str | Path | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    tile: int | None = None,
    overlap: int | None = None,
    strict: bool = False,
    confine: bool = False,
    trust: bool = False,
    trust_code: bool = False,
    overwrite: bool = False,
) -> EvaluationResult:
    """COCO average precision of a model on annotated images.

    All detections that the model reports count; where an image has more than 100 of a class, AP with COCO's 100 is
    given beside it. A warning names the images of which the model reports too few.

    Args:
        model: model folder, exported model, torchvision/NAME or a hub repository. An exported model has no loss.
        data: annotated images in COCO, VOC, YOLO or CSV form; in Python a data set object too, see ``train``.
        split: which part of the data.
        output: folder for ``evaluation.json`` and ``predictions.json`` (COCO results); by default nothing is written.
        batch_size: images per forward pass, where their network input has one size; the result does not depend on it.
        workers: processes that read images; 0 reads in this one.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``.
        tile: cut images into windows of this many pixels, as predict does; by default those that the model was trained
            on, if it was, and the loss is that of the windows. With another tile there is no loss. 0 shows images
            whole.
        overlap: pixels that neighbouring windows share; by default the model's, else 128.
        strict: refuse the data at the first faulty box instead of leaving faulty boxes out.
        confine: refuse data that name images outside of their folder.
        trust: open a pt2 file; torch evaluates expressions in it, which can run code.
        trust_code: load a pt2 file with pickled or compiled parts as well, which runs code.
        overwrite: replace the results of an earlier evaluation in output.

    Raises:
        UserError: unusable model or data, an object of a class that the model does not know, or results are there
            already.
    """
    check_model_first(model, data)
    if batch_size < 1 or workers < 0:
        raise UserError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
    if output is not None:
        check_output_folder(Path(output), RESULTS, overwrite=overwrite)
    checked = {"strict": strict, "confine": confine}
    detector = None if exported_file(model) else Detector.load(model)
    tiling = None if detector is None else choose_tiling(detector.spec.tiling, tile, overlap, usual_overlap)
    if detector is None or not (tiling is None or detector.spec.sees(tiling)):
        how: dict[str, Any] = {"tile": tile, "overlap": overlap, "trust": trust, "trust_code": trust_code}
        predictor = Predictor.load(model, device=device, batch_size=batch_size, **how)
        spec = predictor.backend.spec
        dataset = load_dataset(data, split, class_names=predictor.class_names, **checked)
        result = Pass(list(predictor.stream(map(dataset.find_image, dataset.samples))), {}, None)
        where = "cpu" if detector is None else str(choose_device(device))
    else:
        detector = detector.with_spec(tiling=tiling)
        spec = detector.spec
        dataset = load_dataset(data, split, class_names=detector.spec.class_names, **checked)
        where = str(choose_device(device))
        detector.net.to(where)
        result = one_pass(detector, dataset, batch_size=batch_size, workers=workers, device=torch.device(where))
    report = judge(
        spec, dataset, result, {"model": str(model), "data": name_data(data), "split": split, "device": where}
    )
    if output is not None:
        report.to_json(Path(output) / RESULTS[0])
        save_coco_results(Path(output) / RESULTS[1], dataset.samples, result.detections, dataset.category_ids)
    return report


def judge(spec: ModelSpec, dataset: DetectionDataset, result: Pass, about: Mapping[str, str]) -> EvaluationResult:
    """The numbers of a pass over annotated images, by a model of this spec; ``about`` says what was evaluated."""
    metrics = coco_metrics(
        *(dataset.samples, result.detections, dataset.class_names),
        category_ids=dataset.category_ids,
        cap=spec.postprocess.max_detections,
    )
    cut = find_cut_images(spec, dataset.samples, result.detections)
    return EvaluationResult(metrics, result.loss, result.images_per_second, about, cut)


def one_pass(
    detector: Detector,
    dataset: DetectionDataset,
    *,
    device: torch.device,
    criterion: DetectionLoss | None = None,
    batch_size: int = 8,
    workers: int = 0,
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
    watch: Callable[[Sequence[int], RawOutput, Batch, Assignment], None] | None = None,
) -> Pass:
    """Run a detector over a data set once; every rank takes its share and all get the whole result.

    A model that was trained on windows sees windows: the loss is theirs, and the detections are those of the images,
    joined as prediction joins them.

    Args:
        detector: its network lies on ``device`` and is put into evaluation mode.
        dataset: annotated images, or their windows.
        device: of the batches.
        criterion: the loss to report; by default that of the model's training.
        batch_size: images per forward pass, where their network input has one size.
        workers: processes that read images.
        autocast: context of the forward passes.
        watch: is shown the indices and the raw output of every batch of this rank, in inference mode; the indices are
            those of :func:`as_seen`.
    """
    seen = as_seen(detector.spec, dataset)
    rank, world = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    indices = (seen.in_order if isinstance(seen, WindowDataset) else range(len(seen)))[rank::world]
    criterion = criterion or detector.spec.criterion()
    detector.net.eval()
    found: dict[int, Detections] = {}
    sums = torch.zeros(4, dtype=torch.float64)  # classification, box, what they are divided by, seconds
    batches = evaluation_batches(
        seen, preprocess=detector.spec.preprocess, batch_size=batch_size, indices=indices, workers=workers
    )
    with closing(batches):
        for places, batch in batches:
            began = time.perf_counter()
            batch = batch.to(device)
            with torch.inference_mode(), autocast():
                raw = detector.raw(batch)
            with torch.inference_mode():
                assignment = criterion.add_quality(raw, criterion.assign(raw.lattice, raw.grids, batch.targets))
                losses = criterion(raw, batch.targets, assignment, normaliser=1.0)
                detections = detector.detections(raw, batch)
                if watch is not None:
                    watch(places, raw, batch, assignment)
            sums += torch.tensor(
                [
                    float(losses.classification),
                    float(losses.box),
                    criterion.count(assignment, len(batch)),
                    time.perf_counter() - began,
                ],
                dtype=torch.float64,
            )
            found.update(zip(places, detections, strict=True))
    found, sums = _join(found, sums)
    classification, box, count, seconds = sums.tolist()
    loss = {"classification": classification / max(count, 1), "box": box / max(count, 1)}
    loss["total"] = loss["classification"] + loss["box"]
    detections = _join_images(found, seen, detector.spec)
    speed = len(detections) * world / seconds if seconds else 0.0
    return Pass(detections, loss, speed)


def as_seen(spec: ModelSpec, dataset: DetectionDataset) -> DetectionDataset:
    """A data set as a model sees it: its windows where the model was trained on windows, else as it is."""
    if spec.tiling is None or isinstance(dataset, WindowDataset):
        return dataset
    return WindowDataset(dataset, spec.tiling)


def _join_images(found: Mapping[int, Detections], seen: DetectionDataset, spec: ModelSpec) -> list[Detections]:
    """The detections of each image, of those of its windows where it was seen in windows."""
    if not isinstance(seen, WindowDataset):
        return [found[index] for index in range(len(seen))]
    joined = []
    for image, windows in seen.by_image():
        if len(windows) == 1:  # as predict_tiled does
            joined.append(found[windows[0]])
            continue
        parts, corners = [found[window] for window in windows], [seen.places[window][1] for window in windows]
        joined.append(join_windows(parts, corners, seen.whole.samples[image].size, spec, spec.preprocess))
    return joined


def _join(found: dict[int, Detections], sums: torch.Tensor) -> tuple[dict[int, Detections], torch.Tensor]:
    """The results of all ranks, on every rank."""
    if not distributed.is_initialized():
        return found, sums
    parts: list[tuple[dict[int, Detections], torch.Tensor] | None] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, (found, sums))
    whole = [part for part in parts if part is not None]
    return {k: v for part, _ in whole for k, v in part.items()}, torch.stack([s for _, s in whole]).sum(dim=0)
