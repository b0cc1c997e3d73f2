"""``diagnose``: where the loss of a model goes, what it gets wrong, what that costs, and why boxes were missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import Progress

from retinanet import __version__
from retinanet.analysis.anchors import report as anchor_report
from retinanet.analysis.anchors.audit import AnchorAudit, audit
from retinanet.analysis.errors import report as error_report
from retinanet.analysis.errors.curves import best_thresholds
from retinanet.analysis.errors.report import ErrorReport, judge_model
from retinanet.analysis.loss import report as focal_report
from retinanet.analysis.loss.statistics import FocalStatistics
from retinanet.analysis.trace import shares as gate_report
from retinanet.analysis.trace.figures import draw_trace
from retinanet.analysis.trace.outcomes import ImageTrace
from retinanet.analysis.trace.shares import Shares
from retinanet.analysis.trace.trace import trace
from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.data.faults import short
from retinanet.data.objects import Data, name_data
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.coco import coco_metrics
from retinanet.evaluation.evaluate import as_seen, one_pass
from retinanet.files import check_output_folder
from retinanet.interop.pretrained import model_folder
from retinanet.losses.config import CLASSIC
from retinanet.losses.detection import DetectionLoss
from retinanet.losses.focal import FocalLoss
from retinanet.model.device import choose_device
from retinanet.model_folder import write_thresholds as store_thresholds
from retinanet.options import explain_unknown_options
from retinanet.plotting.html import write_report
from retinanet.spec import check_model_first
from retinanet.types import Assignment, Batch, Detections, RawOutput

RESULTS = ("report.html", "diagnosis.json")
WORST = 4  # images that are traced in pictures
LEGIBLE = 600  # pixels of the short side that small images are enlarged to
FEW = 10  # objects of a class, below which its threshold is not to be trusted


@dataclass(frozen=True)
class Diagnosis:
    """What a diagnosis found.

    Attributes:
        focal: where the loss goes.
        errors: types of errors and their cost, operating points, confusions, calibration, groups.
        missed: what happened to the annotated boxes.
        anchors: how the model's anchors fit these boxes.
        thresholds: the best threshold of each class as stored in the model; None where that was not asked for.
        output: the folder of the report.
    """

    focal: FocalStatistics
    errors: ErrorReport
    missed: Shares
    anchors: AnchorAudit
    thresholds: dict[str, float] | None
    output: Path

    def summary(self) -> str:
        """For the console."""
        parts = [self.errors.summary(), self.missed.summary(), self.focal.summary(), self.anchors.summary()]
        parts += filter(None, [self.advise_nms()])
        if self.thresholds:
            shown = ", ".join(f"{name} {score:.2f}" for name, score in self.thresholds.items())
            parts.append(f"thresholds stored in the model, which predict uses from now on: {shown}")
            if few := [curve.name for curve in self.errors.curves if 0 < curve.objects < FEW]:
                parts.append(
                    f"fewer than {FEW} objects stand behind the threshold of {', '.join(few)}: do not trust it"
                )
        elif self.thresholds is not None:
            parts.append("no thresholds were stored: no class has a right detection at any score")
        return "\n\n".join([*parts, f"report: {self.output / RESULTS[0]}"])

    def advise_nms(self) -> str:
        """The one advice on the NMS threshold, from both errors that depend on it; "" where they weigh the same."""
        lost, twice = self.missed.crowded, self.errors.shown.totals["duplicate"]
        if lost == twice:
            return ""
        return (
            f"NMS threshold (postprocess.nms): {lost} boxes were suppressed under another object's detection, and "
            f"{twice} detections are duplicates at the thresholds, so try a {'higher' if lost > twice else 'lower'} one"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "errors": self.errors.to_dict(),
            "missed": self.missed.to_dict(),
            "focal": self.focal.to_dict(),
            "anchors": self.anchors.to_dict(),
            "thresholds": self.thresholds,
        }


@explain_unknown_options
def diagnose(
    model: str,
    data: Data,
    *,
    split: str = "val",
    output: str = "diagnosis",
    write_thresholds: bool = False,
    alpha: float | None = None,
    gamma: float | None = None,
    batch_size: int = 8,
    workers: int = 0,
    device: str = "auto",
    strict: bool = False,
    confine: bool = False,
    overwrite: bool = False,
) -> Diagnosis:
    """Say where the loss of a model goes, what goes wrong and what fixing it would be worth.

    Of a model that was trained on windows, the errors are those of whole images, their windows joined as predict joins
    them; the loss, the anchors and what happened to each box are those of windows: an object in two counts twice there.

    Args:
        model: model folder, torchvision/NAME or a hub repository.
        data: annotated images in COCO, VOC, YOLO or CSV form; in Python a data set object too, see ``train``.
        split: which part of the data; not the one that a final number is to be reported on.
        output: folder for report.html and diagnosis.json.
        write_thresholds: store the threshold of the best F1 of each class in the model folder, for predict.
        alpha: of the focal loss that the model was trained with; by default as the model folder says, else 0.25.
        gamma: likewise, else 2.
        batch_size: images per forward pass.
        workers: processes that read images; 0 reads in this one.
        device: auto, cpu, cuda, cuda:1, mps.
        strict: refuse the data at the first faulty box instead of leaving faulty boxes out.
        confine: refuse data that name images outside of their folder.
        overwrite: replace the report of an earlier diagnosis in output.

    Raises:
        UserError: unusable model or data, or a report is there already.
    """
    check_model_first(model, data)
    if batch_size < 1 or workers < 0:
        raise UserError(f"expected batch_size >= 1 and workers >= 0, got {batch_size} and {workers}")
    folder = Path(output)
    check_output_folder(folder, RESULTS, overwrite=overwrite)
    local = model_folder(model)
    detector = Detector.load(local or model)
    dataset = load_dataset(data, split, class_names=detector.spec.class_names, strict=strict, confine=confine)
    where = choose_device(device)
    detector.net.to(where)
    criterion = _criterion_of_training(detector, alpha, gamma)

    # One pass: losses and gates are counted while the network sees each batch, errors from the detections.
    seen = as_seen(detector.spec, dataset)
    watch = _Watch(detector, criterion, len(seen))
    with watch.progress:
        run = one_pass(
            detector, seen, device=where, criterion=criterion, batch_size=batch_size, workers=workers, watch=watch
        )
    errors = error_report.error_report(dataset.samples, run.detections, dataset.class_names)
    lattice, preprocess, matcher = detector.spec.architecture.anchors, detector.spec.preprocess, criterion.matcher
    anchors = audit(seen.samples, dataset.class_names, lattice=lattice, preprocess=preprocess, matcher=matcher)
    thresholds = best_thresholds(errors.curves) if write_thresholds else None
    if thresholds is not None:
        store_thresholds(local or model, thresholds)
    result = Diagnosis(watch.focal, errors, watch.gates, anchors, thresholds, folder)

    about = {"model": model, "data": name_data(data), "split": split, "images": len(dataset), "version": __version__}
    _write_pages(result, dataset, run.detections, watch.draw_worst(seen), about)
    return result


def _write_pages(
    result: Diagnosis,
    dataset: DetectionDataset,
    detections: Sequence[Detections],
    worst: Sequence[tuple[str, Image.Image]],
    about: Mapping[str, Any],
) -> None:
    """The report, which begins with the verdict, and the numbers as JSON."""
    gates = gate_report.section(result.missed, worst)
    sections = [
        *error_report.section(result.errors),
        replace(gates, text=f"{gates.text}\n\n{result.advise_nms()}".rstrip()),
        focal_report.section(result.focal, dataset.class_names),
        anchor_report.section(result.anchors),
    ]
    ap = coco_metrics(dataset.samples, detections, dataset.class_names).ap
    verdict = judge_model(result.errors, result.missed, ap)
    pictures = error_report.picture_worst(result.errors, dataset, detections)
    loss = {"alpha": result.focal.alpha, "gamma": result.focal.gamma}
    title = f"Diagnosis of {Path(str(about['model'])).name}"
    write_report(result.output, RESULTS, title, sections, {**about, **loss}, result.to_dict(), verdict, pictures)


def _criterion_of_training(detector: Detector, alpha: float | None, gamma: float | None) -> DetectionLoss:
    """The loss that the model was trained with, as the model folder says or as given; the paper's where neither does.

    A model that was trained with OHEM is judged by the focal loss, which tells of all anchors.
    """
    known = detector.spec.loss or CLASSIC
    if known.classification == "ohem":
        known = replace(known, classification="focal")
    given_alpha, given_gamma = known.alpha if alpha is None else alpha, known.gamma if gamma is None else gamma
    return replace(known, alpha=given_alpha, gamma=given_gamma).build()


class _Watch:
    """Counts where the loss goes and at which gate each box fails, batch by batch, and shows the progress.

    ``worst`` holds the traces of the images with the most missed boxes: (missed boxes, index of the image, trace).
    """

    def __init__(self, detector: Detector, criterion: DetectionLoss, images: int) -> None:
        self.spec, self.matcher, loss = detector.spec, criterion.matcher, criterion.classification
        assert isinstance(loss, FocalLoss)
        names, levels = self.spec.class_names, self.spec.architecture.anchors.num_levels
        self.focal = FocalStatistics(num_classes=len(names), num_levels=levels, alpha=loss.alpha, gamma=loss.gamma)
        self.gates = Shares(names, self.spec.postprocess.score)
        self.worst: list[tuple[int, int, ImageTrace]] = []
        console = Console(stderr=True)
        self.progress = Progress(console=console, transient=True, disable=not console.is_terminal)
        self.task = self.progress.add_task("diagnose", total=images)

    def __call__(self, indices: Sequence[int], raw: RawOutput, batch: Batch, assignment: Assignment) -> None:
        """Count a batch."""
        self.focal.update(raw, assignment)
        rule, names = self.spec.postprocess, self.spec.class_names
        rows = zip(indices, batch.targets, batch.sizes.tolist(), batch.samples, strict=True)
        for image, (index, target, (height, width), sample) in enumerate(rows):
            size = (height, width)
            result = trace(raw, image, target, size, rule, self.matcher, original=sample.size, class_names=names)
            self.gates.update(result)
            worst = sorted([*self.worst, (len(result.missed), index, result)], key=lambda entry: (-entry[0], entry[1]))
            self.worst = [entry for entry in worst[:WORST] if entry[0]]
        self.progress.advance(self.task, len(batch))

    def draw_worst(self, dataset: DetectionDataset) -> list[tuple[str, Image.Image]]:
        """What happened to every box of the worst images, as captions and pictures."""
        pictures = []
        for missed, index, result in self.worst:
            sample = dataset[index]
            picture = draw_trace(sample.image, result, legible=LEGIBLE)
            found = f"{len(result.boxes) - missed} of {len(result.boxes)} objects found"
            caption = f"What happened in {short(sample.path.name)}: {found}"
            pictures.append((caption, picture))
        return pictures
