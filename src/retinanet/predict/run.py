"""``predict``: annotated pictures, COCO JSON and CSV for a list of images."""

from __future__ import annotations

import csv
import glob
import io
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track

from retinanet.images.io import IMAGE_SUFFIXES, image_size, read_image
from retinanet.plot.draw import draw_detections
from retinanet.predict.predictor import Predictor
from retinanet.types import Detections, UserError
from retinanet.weights.checkpoint import DEFAULT_THRESHOLD

LEGIBLE = 600
CSV_COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "label", "score")


@dataclass(frozen=True)
class Prediction:
    """What was found in one image.

    Attributes:
        path: the image.
        size: (height, width).
        detections: boxes in its pixels.
    """

    path: Path
    size: tuple[int, int]
    detections: Detections


def predict(
    model: str,
    images: list[str],
    *,
    output: str = "predictions",
    score: float | None = None,
    pictures: bool = True,
    batch_size: int = 8,
    device: str = "auto",
    overwrite: bool = False,
) -> list[Prediction]:
    """Find objects in images; write annotated pictures, detections.json (COCO) and detections.csv.

    Args:
        model: model folder, torchvision/NAME or a hub repository.
        images: files, folders (searched with their subfolders) and patterns such as "scans/*.png".
        output: folder for the results, made if need be.
        score: detections below this score are left out of pictures and files. By default each class has the threshold
            that the model holds for it, or 0.3 where it holds none.
        pictures: whether to write annotated pictures.
        batch_size: images per forward pass.
        device: auto, cpu, cuda, cuda:1, mps.
        overwrite: replace the results of an earlier prediction in output.

    Raises:
        UserError: no usable model, no such image, or results are there already.
    """
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score is between 0 and 1, got {score}")
    paths = find_images(images)
    folder = Path(output)
    names = picture_names(paths) if pictures else {}
    check_output(folder, names, overwrite=overwrite)
    for path in paths:
        image_size(path)  # a file that is no image is refused before anything is written
    predictor = Predictor.load(model, device=device, batch_size=batch_size)
    home = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".predict-", dir=home) as scratch:
            found = _predict_into(Path(scratch), predictor, paths, names, folder, score)
            for path in [path for path in Path(scratch).rglob("*") if path.is_file()]:  # all are whole by now
                target = folder / path.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error}). Choose another folder") from None
    return found


def _predict_into(
    scratch: Path,
    predictor: Predictor,
    paths: Sequence[Path],
    names: Mapping[Path, str],
    folder: Path,
    least: float | None,
) -> list[Prediction]:
    """Predict, and write what belongs into ``folder`` below ``scratch``."""
    found: list[Prediction] = []
    size, console = predictor.batch_size, Console(stderr=True)
    quiet = len(paths) == 1 or not console.is_terminal
    for start in track(range(0, len(paths), size), "predict", console=console, transient=True, disable=quiet):
        chunk = [(path, read_image(path)) for path in paths[start : start + size]]
        for (path, pixels), detections in zip(chunk, predictor([pixels for _, pixels in chunk]), strict=True):
            shown = above(detections, predictor.detector.thresholds) if least is None else detections.above(least)
            found.append(Prediction(path, (int(pixels.shape[1]), int(pixels.shape[2])), shown))
            if path in names:
                picture = scratch / "pictures" / names[path]
                picture.parent.mkdir(parents=True, exist_ok=True)
                zoom = max(1, LEGIBLE // min(pixels.shape[1:]))  # enlarged until the labels can be read
                draw_detections(pixels, shown, score=0.0, zoom=zoom).save(picture)
    document = coco_document(found, predictor.class_names, folder)
    (scratch / "detections.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (scratch / "detections.csv").write_text(csv_document(found), encoding="utf-8", errors="surrogateescape")
    return found


def above(detections: Detections, thresholds: Mapping[str, float]) -> Detections:
    """The detections that reach the threshold of their class, by its name; 0.3 for a class without one."""
    limits = [thresholds.get(name, DEFAULT_THRESHOLD) for name in detections.class_names]
    keep = detections.scores >= detections.scores.new_tensor(limits)[detections.labels]
    return Detections(detections.boxes[keep], detections.scores[keep], detections.labels[keep], detections.class_names)


def find_images(patterns: Sequence[str]) -> list[Path]:
    """The image files that paths, folders and patterns name, each once, in order.

    Raises:
        UserError: one of them names nothing.
    """
    found: dict[str, Path] = {}  # by absolute path: one image may be named in two ways
    for pattern in patterns:
        path = Path(pattern)
        if path.is_dir():
            inside = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise UserError(f"no image in the folder {pattern}: looked for {', '.join(IMAGE_SUFFIXES)}")
        elif path.is_file():
            inside = [path]
        else:
            inside = sorted(Path(name) for name in glob.glob(pattern, recursive=True) if Path(name).is_file())
            if not inside:
                raise UserError(f"no image at {pattern}: expected a file, a folder or a pattern such as 'scans/*.png'")
        for one in inside:
            found.setdefault(os.path.abspath(one), one)
    if not found:
        raise UserError("no image given: expected files, folders or patterns such as 'scans/*.png'")
    return list(found.values())


def picture_names(paths: Sequence[Path]) -> dict[Path, str]:
    """A file name for the picture of each image, different for all of them."""
    places = [Path(os.path.abspath(path)) for path in paths]  # without "..", which would lead out of the output
    base = os.path.commonpath([place.parent for place in places])
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for path, place in zip(paths, places, strict=True):
        relative = place.relative_to(base)
        name = str(relative.with_suffix(".png"))
        if name in taken:  # a.jpg beside a.png
            name = f"{relative}.png"
        while name in taken:
            name = name.removesuffix(".png") + "_.png"
        taken.add(name)
        names[path] = name
    return names


def check_output(folder: Path, names: Mapping[Path, str], *, overwrite: bool) -> None:
    """Earlier results are replaced only when asked for, and an image that is read never.

    Raises:
        UserError: there are some, a picture would replace an image, or the folder is a file.
    """
    if folder.is_file():
        raise UserError(f"--output {folder} is a file; expected the name of a folder")
    pictures = [folder / "pictures" / name for name in names.values()]
    read = {os.path.realpath(path) for path in names}
    if replaced := [picture for picture in pictures if os.path.realpath(picture) in read]:
        raise UserError(f"the picture {replaced[0]} would replace an image that is to be read. Choose another --output")
    results = [folder / "detections.json", folder / "detections.csv", *pictures]
    if not overwrite and any(result.exists() for result in results):
        raise UserError(f"{folder} holds results already. Choose another --output or pass --overwrite")


def coco_document(found: Sequence[Prediction], class_names: Sequence[str], folder: Path) -> dict[str, object]:
    """A COCO data set of the detections, each with its score: labelling tools load it, and so does ``evaluate``.

    Args:
        found: the images and what is in them.
        class_names: K names.
        folder: where the document will lie; images are named relative to it.
    """
    home = os.path.realpath(folder)
    annotations: list[dict[str, object]] = []
    for number, one in enumerate(found, start=1):
        for row in one.detections.to_coco(number):
            width, height = row["bbox"][2:]
            annotations.append({"id": len(annotations) + 1, **row, "area": width * height, "iscrowd": 0})
    return {
        "images": [
            {"id": number, "file_name": os.path.relpath(one.path, home), "height": one.size[0], "width": one.size[1]}
            for number, one in enumerate(found, start=1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(class_names, start=1)],
        "annotations": annotations,
    }


def csv_document(found: Sequence[Prediction]) -> str:
    """One line per detection; an image without any has a line with empty fields."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(CSV_COLUMNS)
    for one in found:
        rows = one.detections.to_dicts()
        for row in rows:
            box = [f"{side:.2f}" for side in row["box"]]
            writer.writerow([one.path, *box, row["name"], f"{row['score']:.4f}"])
        if not rows:
            writer.writerow([one.path, *[""] * 6])
    return text.getvalue()
