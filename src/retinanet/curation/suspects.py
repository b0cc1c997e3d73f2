"""``suspects``: which annotations of a data set are probably wrong, worst first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from retinanet import __version__
from retinanet.analysis.data.corrections import Entry, name_image
from retinanet.analysis.data.doctor import read_splits
from retinanet.curation import report
from retinanet.curation.doubts import KINDS, Doubt, find_doubts
from retinanet.curation.folds import predict_out_of_fold
from retinanet.data.check import has_objects
from retinanet.data.dataset import DetectionDataset, load_dataset
from retinanet.data.faults import Fault
from retinanet.data.objects import Data, is_object, name_data
from retinanet.errors import UserError
from retinanet.files import check_output_folder, write_atomically
from retinanet.inference.predictor import Predictor
from retinanet.options import explain_unknown_options
from retinanet.plotting.html import write_report
from retinanet.spec import check_model_first
from retinanet.training.resume import read_learned_images
from retinanet.types import Detections

RESULTS = ("report.html", "suspects.json", "suspects.csv")


@dataclass(frozen=True)
class Suspect:
    """An annotation that is probably wrong, or one that is probably missing.

    Attributes:
        kind: missing, class, loose, doubled or extra.
        score: in [0, 1], an estimate of the chance that the annotation is wrong.
        path: the image.
        image: its name seen from the folder of the data.
        where: file and line, object or id of the annotation; "" where it is missing.
        old: class and box as annotated, None where they are missing.
        new: class and box to be annotated, None where the annotation should go.
        reason: a sentence.
    """

    kind: str
    score: float
    path: Path
    image: str
    where: str
    old: Entry | None
    new: Entry | None
    reason: str


@dataclass(frozen=True)
class Suspects:
    """What :func:`suspects` found.

    Attributes:
        found: worst first.
        images: examined.
        boxes: examined; ignore regions are none.
        notes: what to know about the model.
        output: the folder of the report.
    """

    found: tuple[Suspect, ...]
    images: int
    boxes: int
    notes: tuple[str, ...]
    output: Path

    def count(self, kind: str) -> int:
        """How many are of a kind."""
        return sum(one.kind == kind for one in self.found)

    def summary(self) -> str:
        """For the console."""
        lines = [f"{len(self.found)} suspects among {self.boxes:,} boxes in {self.images:,} images, worst first:"]
        lines += [f"  {self.count(kind):>4} {title}  [{kind}]" for kind, title in KINDS.items()]
        lines += [f"  {one.score:.2f} {one.where or one.image}: {one.reason}" for one in self.found[:5]]
        table = self.output / RESULTS[2]
        return "\n".join(
            [
                *lines,
                *self.notes,
                f"report: {self.output / RESULTS[0]}. Write yes in the column accept of {table} where you agree, then: "
                f"retinanet check DATA --fix NEW --suspects {table}",
            ]
        )


@explain_unknown_options
def suspects(
    model: str | None = None,
    data: Data | None = None,
    *,
    split: str = "train",
    output: str = "suspects",
    score: float = 0.1,
    folds: int | None = None,
    budget: str | None = None,
    weights: str = "imagenet",
    epochs: int | None = None,
    batch_size: int = 8,
    device: str = "auto",
    confine: bool = False,
    overwrite: bool = False,
) -> Suspects:
    """Find annotations that are probably wrong; write report.html, suspects.csv and suspects.json.

    Found are objects that are not annotated, wrong classes, boxes that do not fit, objects annotated twice, and
    annotations of nothing. A model that learned from the same annotations has learned their mistakes too: with folds, a
    model is trained for each part of the data on the others.

    Args:
        model: model folder or exported model that predicts. With folds: a preset or a model folder to start from, by
            default what the plan says; a single argument is then the data.
        data: annotated images in COCO, VOC, YOLO or CSV form; in Python, without folds, a data set object too, see
            ``train``.
        split: which part of the data.
        output: folder for the results.
        score: the least score of what is listed: the estimated chance that an annotation is wrong, if one in twenty is.
        folds: parts of the data, such as 3; as many models are trained.
        budget: of the training of each fold, such as 30m.
        weights: of the backbone of a preset, as in ``train``.
        epochs: of the training of each fold; by default the plan's.
        batch_size: images per forward pass.
        device: auto, cpu, cuda, cuda:1, mps.
        confine: refuse data that name images outside of their folder.
        overwrite: replace the results of an earlier run in output; models of its folds that are complete are kept.

    Raises:
        UserError: unusable model or data, no annotated object, or results are there already.
    """
    if folds is not None and data is None:
        model, data = None, model
    if data is None:
        raise UserError(
            "expected a model and data: suspects MODEL DATA; or suspects DATA --folds 3, which trains models"
        )
    if folds is None and (budget is not None or epochs is not None):
        raise UserError("--budget and --epochs are for the trainings of folds; give --folds 3 too")
    if not 0 <= score <= 1:
        raise UserError(f"--score is between 0 and 1, got {score}")
    folder = Path(output)
    check_output_folder(folder, RESULTS, overwrite=overwrite)
    checked: dict[str, Any] = {"split": split, "confine": confine}
    if folds is None:
        dataset, detections, notes = _predict(str(model), data, checked, device, batch_size)
    else:
        given = {"model": model, "budget": budget, "epochs": epochs, "weights": weights}
        dataset, detections, notes = _train_and_predict(data, checked, folder / "folds", folds, given)
    doubts = find_doubts(dataset.samples, detections, dataset.class_names, least=score)
    found = _describe_doubts(doubts, dataset, data)
    boxes = sum(int((~sample.target.ignore).sum()) for sample in dataset.samples)
    result = Suspects(tuple(found), len(dataset), boxes, tuple(notes), folder)
    about = {"model": model, "folds": folds, "data": name_data(data), "split": split, "version": __version__}
    about = {name: value for name, value in about.items() if value is not None}
    _write(result, dataset, about, data)
    return result


Judged = tuple[DetectionDataset, list[Detections], list[str]]  # the data, what was found in them, notes on the model


def _predict(model: str, data: Data, checked: Mapping[str, Any], device: str, batch_size: int) -> Judged:
    """The model judges all images."""
    check_model_first(model, data)
    predictor = Predictor.load(model, device=device, batch_size=batch_size)
    dataset = load_dataset(data, class_names=predictor.class_names, **checked)
    _refuse_empty(dataset)
    detections = list(predictor.stream(map(dataset.find_image, dataset.samples)))
    return dataset, detections, [_describe_learned(model, dataset)]


def _train_and_predict(
    data: Data, checked: Mapping[str, Any], folder: Path, folds: int, given: Mapping[str, Any]
) -> Judged:
    """Models that did not learn from them judge the images of each fold."""
    if is_object(data):
        raise UserError(f"--folds trains on files, and {name_data(data)} is an object. Give a model, or files")
    dataset = load_dataset(data, **checked)
    _refuse_empty(dataset)
    console, model = Console(stderr=True), given["model"]
    options = {name: value for name, value in given.items() if value is not None}
    detections = predict_out_of_fold(
        dataset, folder, folds, options, lambda text: console.print(text, highlight=False, markup=False)
    )
    notes = [f"each image was judged by one of {folds} models that did not learn from it"]
    if model is not None and os.path.isdir(model):
        notes.append(f"they began from {model}: {_describe_learned(model, dataset)}")
    return dataset, detections, notes


def _write(result: Suspects, dataset: DetectionDataset, about: Mapping[str, object], data: Data) -> None:
    name = name_data(data)
    write_atomically(result.output / RESULTS[2], report.make_table(result.found).encode("utf-8", "surrogateescape"))
    others = {sample.path: sample.target.boxes.tolist() for sample in dataset.samples}
    write_report(
        *(result.output, RESULTS, f"Suspects of {Path(name).name}"),
        *([report.section(result.found)], about, report.to_dict(result.found)),
        report.judge(result.found, result.boxes, result.images, result.notes, name, result.output / RESULTS[2]),
        report.picture(result.found, others, data),
    )


def _refuse_empty(dataset: DetectionDataset) -> None:
    if not has_objects(dataset.samples):
        raise UserError(
            f"{dataset.name}: not one of the {len(dataset)} images has an annotated object to doubt. "
            "Choose another split: --split"
        )


def _describe_learned(model: str, dataset: DetectionDataset) -> str:
    """Whether a model has learned from the images, as far as its folder says."""
    learned = read_learned_images(Path(model))
    if learned is None:
        return (
            "the model does not say what it learned from; where it learned from these images, mistakes that it learned "
            "by heart are hidden: use --folds 3"
        )
    count = sum(os.path.realpath(sample.path) in learned for sample in dataset.samples)
    if not count:
        names = {os.path.basename(path) for path in learned}
        if same := sum(sample.path.name in names for sample in dataset.samples):
            return (
                f"the model learned from images named like {same} of these {len(dataset)}: if they are the same, "
                "mistakes that it learned by heart are hidden. Use --folds 3 then"
            )
        return "the model did not learn from images of these names"
    return (
        f"the model learned from {count} of these {len(dataset)} images: mistakes that it learned by heart are hidden. "
        "Use --folds 3"
    )


def _describe_doubts(doubts: list[Doubt], dataset: DetectionDataset, data: Data) -> list[Suspect]:
    """The doubts with the places of their annotations."""
    faults: list[Fault] = []
    places: dict[Path, list[list[str]]] = {}
    for part in read_splits(data, faults):
        for path, rows in part.places():
            places.setdefault(path, []).append(rows)
    found = []
    for doubt in doubts:
        sample, old = dataset.samples[doubt.image], None
        target = sample.target
        if doubt.row >= 0:
            name = dataset.class_names[int(target.labels[doubt.row])]
            old = (name, tuple(round(side, 2) for side in target.boxes[doubt.row].tolist()))
        new = None if doubt.box is None else (dataset.class_names[doubt.label], doubt.box)
        known = places.get(Path(os.path.normpath(sample.path)), places.get(sample.path, []))
        fitting = [rows for rows in known if len(rows) == len(target)]  # of a file of two splits there are two
        where = fitting[0][doubt.row] if old and fitting else ""
        image = name_image(sample.path, Path(name_data(data)))
        found.append(Suspect(doubt.kind, doubt.score, sample.path, image, where, old, new, _explain(doubt, old, new)))
    return found


def _explain(doubt: Doubt, old: Entry | None, new: Entry | None) -> str:
    """A sentence without a full stop."""
    was, should = old[0] if old else "", new[0] if new else ""
    share = f"{100 * doubt.share:.0f} %"
    match doubt.kind:
        case "missing":
            return f"nothing is annotated where the model sees {should}; {share} of such detections have an annotation"
        case "class":
            return f"annotated as {was}, but the model sees {should}, and is right for {share} of such detections"
        case "loose":
            usual = f"the median of {was} is {doubt.usual:.2f}"
            return f"the box of {was} has IoU {doubt.iou:.2f} with what the model sees; {usual}"
        case "doubled":
            return f"{was} lies with IoU {doubt.iou:.2f} on another {was}, and the model sees one"
        case _:
            return f"the model sees nothing where {was} is annotated, but {share} of {was} on the whole"
