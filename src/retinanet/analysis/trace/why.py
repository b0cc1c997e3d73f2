"""``why``: what happened to every annotated box of an image, as a report, a picture and JSON."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from retinanet import __version__
from retinanet.analysis.trace.figures import close_ups, draw_trace
from retinanet.analysis.trace.outcomes import FOUND, GATES, ImageTrace
from retinanet.analysis.trace.trace import trace
from retinanet.data.dataset import DetectionDataset, load_dataset, splits
from retinanet.data.loader import Collate, resized
from retinanet.data.windows import WindowDataset
from retinanet.detector import Detector
from retinanet.errors import UserError
from retinanet.evaluation.matching import match_image
from retinanet.files import check_output_folder
from retinanet.model.device import choose_device
from retinanet.options import explain_unknown_options
from retinanet.plotting.draw import Drawable, draw_comparison
from retinanet.plotting.html import KeyNumber, Picture, Point, Section, State, Table, Verdict, write_report
from retinanet.spec import check_model_first
from retinanet.types import DEFAULT_THRESHOLD, Batch, Detections, Sample

RESULTS = ("report.html", "why.json", "why.png")
NEAREST_FOLDERS = 6  # how many folders above an image may be the data set that it belongs to
LEGIBLE = 900  # pixels of the short side that small images are enlarged to
WIDEST = 1200  # pixels of a picture on the page, at most
MEANINGS = {  # what a false detection of each kind is
    "classification": "with the wrong class",
    "localisation": "near an object, but not well enough",
    "both": "near an object of another class",
    "duplicate": "on an object that has been found",
    "background": "where nothing is annotated",
}


@explain_unknown_options
def why(
    model: str,
    image: str,
    *,
    data: str | None = None,
    output: str = "why",
    score: float | None = None,
    device: str = "auto",
    overwrite: bool = False,
) -> ImageTrace:
    """Say what happened to every annotated box and every detection of one image; write a report, a picture and JSON.

    A model that was trained on windows sees windows of a larger image. Then the report is on one of them: the one with
    the most missed boxes.

    Args:
        model: model folder, torchvision/NAME or a hub repository.
        image: an annotated image.
        data: the data set it belongs to; by default the nearest enclosing folder that is one and has the image.
        output: folder for report.html, why.json and why.png, made if need be.
        score: detections score above this; by default the model's own threshold, often lower than what predict shows.
        device: auto, cpu, cuda, cuda:1, mps.
        overwrite: replace the results of an earlier call in output.

    Returns:
        The trace, boxes in pixels of the original image, or of the window.

    Raises:
        UserError: no usable model or image, no data set with the image, or results are there already.
    """
    check_model_first(model, image)
    folder = Path(output)
    check_output_folder(folder, RESULTS, overwrite=overwrite)
    if not os.path.isfile(image):
        what = "is a folder" if os.path.isdir(image) else "no such file"
        raise UserError(f"{image}: {what}; expected one annotated image")
    detector = Detector.load(model)
    if score is not None:
        detector = detector.with_spec(postprocess=replace(detector.spec.postprocess, score=score))
    dataset, index = find_annotated(Path(image), None if data is None else Path(data), detector.spec.class_names)
    where = choose_device(device)
    about: dict[str, Any] = {"model": model, "image": image, "data": dataset.name}
    if detector.spec.tiling is not None and detector.spec.tiling.cuts(dataset.samples[index].size):
        windows = WindowDataset(dataset.subset([index], dataset.name), detector.spec.tiling)
        place, sample = find_worst_window(detector, windows, where)
        y0, x0, y1, x1 = windows.places[place][1]
        about["window"] = f"x {x0} to {x1}, y {y0} to {y1}: of {len(windows)} windows the one with most missed boxes"
    else:
        sample = dataset[index]
    result, detections = trace_sample(detector, sample, where)
    about |= {"score": result.score, "version": __version__}
    picture = draw_trace(sample.image, result, legible=LEGIBLE)
    shown = detections.above(max(result.score, DEFAULT_THRESHOLD))
    compared = draw_comparison(sample.image, shown, sample.target, *match_image(shown, sample.target), zoom=2)
    pictures = _picture_first(result, sample.image, picture, compared)
    title, verdict = f"Why: {Path(image).name}", judge_image(result)
    write_report(folder, RESULTS, title, sections(result), about, result.to_dict(), verdict, pictures)
    picture.save(folder / RESULTS[2])
    return result


def find_worst_window(detector: Detector, windows: WindowDataset, device: torch.device) -> tuple[int, Sample]:
    """The window with the most missed boxes, its index and its sample; of equals the first."""
    places = [place for place in windows.in_order if place < max(1, windows.occupied)]
    missed = {place: len(trace_sample(detector, windows[place], device)[0].missed) for place in places}
    worst = max(missed, key=missed.__getitem__)
    return worst, windows[worst]


def find_annotated(
    image: Path, data: Path | None, class_names: Sequence[str] | None = None
) -> tuple[DetectionDataset, int]:
    """The data set that an image belongs to, and its place in it.

    Args:
        image: the file.
        data: the data set; by default the nearest enclosing folder that is one and has the image.
        class_names: those of the model.

    Raises:
        UserError: there is no such data set, or the image is not in it.
    """
    place = Path(os.path.realpath(image))
    looked: dict[Path, list[Path]] = {}  # data set -> its images
    for folder in place.parents[:NEAREST_FOLDERS] if data is None else (data,):
        try:
            names = splits(folder)
        except UserError:
            if data is None:  # a folder that nobody named need not be a data set
                continue
            raise
        for dataset in _load_parts(folder, names, place, class_names):
            paths = [sample.path for sample in dataset.samples]
            for index, path in enumerate(paths):
                if path.name == place.name and Path(os.path.realpath(path)) == place:
                    return dataset, index
            looked.setdefault(folder, []).extend(paths)
    if not looked:
        raise UserError(f"{image}: no folder around it is a data set with annotations. Say where they are: --data PATH")
    folder, known = next(iter(looked.items()))
    paths_of = {path.name: path for path in reversed(known)}
    near = difflib.get_close_matches(place.name, paths_of, n=3, cutoff=0.0)
    raise UserError(
        f"{image}: is not among the {len(set(known))} annotated images of {folder}. The nearest names there: "
        f"{', '.join(str(paths_of[name]) for name in near)}. Give one of these, or another data set: --data PATH"
    )


def _load_parts(
    folder: Path, names: Sequence[str], image: Path, class_names: Sequence[str] | None
) -> Iterator[DetectionDataset]:
    """The splits of a data set, those named like a folder of the image first; then the whole of it."""
    for name in sorted(names, key=lambda name: name not in image.parts):
        yield load_dataset(folder, name, class_names=class_names)
    try:
        yield load_dataset(folder, class_names=class_names)
    except UserError:
        if not names:  # else splits may well contradict each other, as by giving two images one id
            raise


def trace_sample(detector: Detector, sample: Sample, device: torch.device) -> tuple[ImageTrace, Detections]:
    """Trace one annotated image, alone in its batch.

    Args:
        detector: its network is moved to ``device``.
        sample: with its pixels.
        device: where to compute.

    Returns:
        The trace and the detections, both in pixels of the original image.
    """
    spec = detector.spec
    batch = Collate(spec.preprocess)([resized(sample, spec.preprocess)])
    assert isinstance(batch, Batch)
    detector.net.eval().to(device)
    batch = batch.to(device)
    height, width = batch.sizes[0].tolist()
    rule, names = spec.postprocess, spec.class_names
    with torch.inference_mode():
        raw = detector.raw(batch)
        (detections,) = detector.detections(raw, batch)
        matcher, size = spec.criterion().matcher, (height, width)
        result = trace(raw, 0, batch.targets[0], size, rule, matcher, original=sample.size, class_names=names)
    return result, detections


def judge_image(result: ImageTrace) -> Verdict:
    """What a reader has to know about an image: what happened to its objects, and the main reason."""
    objects, missed, found = len(result.boxes), len(result.missed), result.counts.get(FOUND, 0)
    gates = Counter({gate: count for gate, count in result.counts.items() if gate != FOUND}).most_common()
    kinds = Counter(detection.kind for detection in result.detections if detection.false)
    false = kinds.total()
    state: State = "good" if not missed and not false else "fair" if found else "bad"
    what = f"{found:,} of {objects:,} objects found, {missed:,} missed" if objects else "No object is annotated"
    headline = f"{what}, {false:,} false {'detection' if false == 1 else 'detections'} above score {result.score:g}."
    points, main = [], gates[0][0] if gates else ""
    if missed:
        points.append(Point("Missed", f"{', '.join(f'{count:,} {gate}' for gate, count in gates)}."))
        points.append(Point("Main reason", f"{main[0].upper()}{main[1:]}: {GATES[main].remedy}."))
    elif objects:
        points.append(Point("Missed", "None: a detection counts for every object."))
    if false:
        listed = ", ".join(f"{count:,} {MEANINGS[kind]} ({kind})" for kind, count in kinds.most_common())
        points.append(Point("False", f"{listed}."))
    strong = sum(detection.false and detection.score >= DEFAULT_THRESHOLD for detection in result.detections)
    above = f"{strong:,} score {DEFAULT_THRESHOLD:g} or more"
    numbers = [
        KeyNumber("objects annotated", f"{objects:,}", f"in {result.size[1]} x {result.size[0]} pixels"),
        KeyNumber("found", f"{found:,}", f"by {len(result.detections):,} detections", "good" if objects else "plain"),
        KeyNumber("missed", f"{missed:,}", main, "fair" if missed else "good"),
        KeyNumber("false detections", f"{false:,}", above, "fair" if false else "good"),
        KeyNumber("score threshold", f"{result.score:g}", "detections score above it"),
    ]
    return Verdict(state, headline, points, numbers)


def _picture_first(result: ImageTrace, image: Drawable, picture: Image.Image, compared: Image.Image) -> list[Picture]:
    """The first pictures of the page; ``picture`` is from ``draw_trace``, ``compared`` from ``draw_comparison``."""
    shown, large = max(result.score, DEFAULT_THRESHOLD), close_ups(image, result)
    pictures = [
        Picture("Every annotated box", "By what happened to it; the legend is below", picture.copy(), columns=3),
        Picture("What was detected", f"Detections that score at least {shown:g}", compared, columns=3),
    ]
    for small in pictures:
        small.image.thumbnail((WIDEST, WIDEST))
    if large is not None:
        text = "Cut out, with the anchors, the candidate that came furthest, and what stands in its place"
        pictures.append(Picture("The missed boxes", text, large, columns=2 if large.width < WIDEST // 2 else 6))
    return pictures


def sections(result: ImageTrace) -> list[Section]:
    """The tables of the report on one image."""
    names, boxes = result.class_names, []
    for box in result.boxes:
        best = (box.best.score, box.best.anchor.name) if box.best else ("", "")
        counts = (len(box.anchors), box.best_anchor_iou, box.localising)
        boxes.append((box.index, names[box.label], box.gate, *counts, *best, result.explain(box).partition(": ")[2]))
    detections = []
    for number, shown in enumerate(result.detections):
        matched = "" if shown.matched is None else f"#{shown.matched}"
        detections.append((number, names[shown.label], shown.score, shown.kind, shown.iou, matched, shown.anchor.name))
    gates = [(gate, count, GATES[gate].remedy) for gate, count in result.counts.items()]
    columns = ("#", "class", "gate", "anchors", "best anchor IoU", "boxes in place", "best score", "level", "what")
    tables = [
        Table(("gate", "boxes", "what to do"), gates, point="What happened to the boxes, and what to do"),
        Table(columns, boxes, point=f"Every annotated box with its anchors, score and fate: {len(boxes):,}"),
    ]
    text = f"Boxes in place overlap the object with IoU of at least 0.5.\n\n    {result.summary()}"
    listed = ", ".join(f"{count:,} {gate}" for gate, count, _ in gates) or "none"

    heads = ("#", "class", "score", "what it is", "IoU", "object", "level")
    table = Table(heads, detections, point=f"Every detection, best first: {len(detections):,}")
    about = f"All detections above {result.score:g}, best first. False positives bear TIDE's names."
    right = sum(not detection.false for detection in result.detections)
    point = f"{right:,} of {len(detections):,} detections above {result.score:g} are right or in ignore regions."
    return [
        Section("Boxes", text, tables, point=f"Annotated boxes: {listed}."),
        Section("Detections", about, [table], point=point),
    ]
