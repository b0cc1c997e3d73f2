"""``predict``: annotated pictures, COCO JSON and CSV for a list of images."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from retinanet.errors import UserError
from retinanet.images.io import IMAGE_SUFFIXES, image_size, read_pixels
from retinanet.images.windows import ImageWindows, overview
from retinanet.inference.backend import Mode, count_cores
from retinanet.inference.documents import Prediction, coco_document, csv_document
from retinanet.inference.predictor import Predictor
from retinanet.inference.stream import in_order
from retinanet.inference.tiled import predict_tiled
from retinanet.plotting.draw import draw_boxes, draw_detections
from retinanet.spec import exported_file
from retinanet.types import DEFAULT_THRESHOLD, Detections

LEGIBLE = 600
OVERVIEW = 4096  # most pixels of the long side of a picture of an image that was cut into tiles
Report = Callable[[float, float], object]  # how much is done, of how much
Finder = Callable[[Sequence[Path], Report], Generator[Detections]]


def predict(
    model: str,
    images: list[str],
    *,
    output: str = "predictions",
    score: float | None = None,
    pictures: bool = True,
    batch_size: int = 8,
    device: str = "auto",
    precision: Literal["fp32", "bf16"] = "fp32",
    mode: Mode | None = None,
    compile: bool = False,
    workers: int | None = None,
    tile: int | None = None,
    overlap: int = 128,
    merge: Literal["nms", "nmm"] = "nmm",
    tile_scale: float | None = None,
    trust: bool = False,
    trust_code: bool = False,
    overwrite: bool = False,
) -> list[Prediction]:
    """Find objects in images; write annotated pictures, detections.json (COCO) and detections.csv.

    Args:
        model: model folder, exported model, torchvision/NAME or a hub repository.
        images: files, folders (searched with their subfolders) and patterns such as "scans/*.png".
        output: folder for the results, made if need be.
        score: detections below this score are left out of pictures and files. By default each class has the threshold
            that the model holds for it, or 0.3 where it holds none.
        pictures: whether to write annotated pictures.
        batch_size: images per forward pass.
        device: auto, cpu, cuda, cuda:1, mps; an exported model runs on the CPU.
        precision: in which a model folder computes; bf16 where the device has it. That of an exported model is settled.
        mode: of an exported model; throughput gives a core to each image and is the default for more than one image or
            tile, latency gives all cores to one image at a time.
        compile: compile the network of a model folder first, which takes minutes.
        workers: threads that read, and as many that draw; by default one per core.
        tile: cut every image into windows of this many pixels, for images far larger than the model's input.
        overlap: pixels that neighbouring windows share.
        merge: what becomes of detections of one object in several windows; nms keeps the best, nmm joins them.
        tile_scale: how much windows are enlarged for the model; by default as the images of training were, where the
            model says so.
        trust: open a pt2 file; torch evaluates expressions in it, which can run code, so only do this where you trust
            whoever made it.
        trust_code: load a pt2 file with pickled or compiled parts as well, which runs code.
        overwrite: replace the results of an earlier prediction in output.

    Raises:
        UserError: no usable model, no such image, an option that this kind of model does not have, or results are
            there already.
    """
    _check_options(score, workers, tile, tile_scale)
    paths = find_images(images)
    folder = Path(output)
    names = picture_names(paths) if pictures else {}
    check_output(folder, names, overwrite=overwrite)
    sizes = [image_size(path) for path in paths]  # a file that is no image is refused before anything is written
    if mode is None:
        mode = "throughput" if (len(paths) > 1 or tile) and exported_file(model) else "latency"
    trusted = {"trust": trust, "trust_code": trust_code}
    predictor = Predictor.load(
        model, device=device, batch_size=batch_size, precision=precision, mode=mode, compile=compile, **trusted
    )
    finder: Finder = partial(_streamed, predictor, workers=workers)
    if tile is not None:
        finder = partial(_tiled, predictor, tile=tile, overlap=overlap, merge=merge, scale=tile_scale)
    with _moved_when_whole(folder) as scratch:
        targets = {path: scratch / "pictures" / name for path, name in names.items()}
        least = predictor.backend.spec.thresholds if score is None else score
        draw = _draw_overview if tile is not None else _draw
        found = _find(finder, paths, sizes, least, partial(draw, targets), workers or count_cores())
        document = coco_document(found, predictor.class_names, folder)
        (scratch / "detections.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        (scratch / "detections.csv").write_text(csv_document(found), encoding="utf-8", errors="surrogateescape")
    return found


def _check_options(score: float | None, workers: int | None, tile: int | None, tile_scale: float | None) -> None:
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score is between 0 and 1, got {score}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is at least 1, got {workers}")
    if tile is None and tile_scale is not None:
        raise UserError("--tile_scale is for images that are cut into windows; give --tile too")


@contextmanager
def _moved_when_whole(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``; what is in it at the end is moved there, and after an error nothing is."""
    home = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".predict-", dir=home) as name:
            scratch = Path(name)
            yield scratch
            for path in [path for path in scratch.rglob("*") if path.is_file()]:  # all are whole by now
                target = folder / path.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be written ({error}). Choose another folder") from None


def _streamed(
    predictor: Predictor, paths: Sequence[Path], report: Report, *, workers: int | None
) -> Generator[Detections]:
    with closing(predictor.stream(paths, workers=workers)) as stream:
        for done, detections in enumerate(stream, start=1):
            report(done, len(paths))
            yield detections


def _tiled(predictor: Predictor, paths: Sequence[Path], report: Report, **how: Any) -> Generator[Detections]:
    for number, path in enumerate(paths):

        def progress(done: int, windows: int, before: int = number) -> None:
            report(before + done / windows, len(paths))

        yield predict_tiled(predictor, path, **how, progress=progress)


def _find(
    finder: Finder,
    paths: Sequence[Path],
    sizes: Sequence[tuple[int, int]],
    least: float | Mapping[str, float],
    draw: Callable[[Prediction], None],
    workers: int,
) -> list[Prediction]:
    """Find; what is found in an image is drawn while the next ones are worked on."""
    found: list[Prediction] = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict")

        def report(done: float, total: float) -> None:
            bar.update(task, completed=done, total=total)

        def predictions() -> Iterator[Prediction]:
            with closing(finder(paths, report)) as detections:
                for path, size, one in zip(paths, sizes, detections, strict=True):
                    found.append(Prediction(path, size, above(one, least)))
                    yield found[-1]

        with ThreadPoolExecutor(workers) as pool:
            for drawn in in_order(pool, draw, predictions(), ahead=workers):
                drawn.result()
    return found


def _draw(targets: Mapping[Path, Path], one: Prediction) -> None:
    """Read the image again, which takes less than keeping the pixels of all that are on their way."""
    if one.path in targets:
        zoom = max(1, LEGIBLE // min(one.size))  # enlarged until the labels can be read
        _save(draw_detections(read_pixels(one.path), one.detections, score=0.0, zoom=zoom), targets[one.path])


def _draw_overview(targets: Mapping[Path, Path], one: Prediction) -> None:
    """The whole image made smaller: it may be far larger than memory."""
    if one.path in targets:
        with ImageWindows(one.path) as windows:
            pixels, factor = overview(windows, OVERVIEW)
        found, zoom = one.detections, max(1, LEGIBLE // min(pixels.shape[:2]))
        picture = draw_boxes(
            pixels,
            np.asarray(found.boxes) / factor,
            found.labels,
            class_names=found.class_names,
            scores=found.scores,
            zoom=zoom,
        )
        _save(picture, targets[one.path])


def _save(picture: Image.Image, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    picture.save(target)


def above(detections: Detections, least: float | Mapping[str, float]) -> Detections:
    """The detections that reach a score, or the threshold of their class by its name; 0.3 for a class without one."""
    if not isinstance(least, Mapping):
        return detections.above(least)
    limits = np.array([least.get(name, DEFAULT_THRESHOLD) for name in detections.class_names], dtype=np.float32)
    keep = np.flatnonzero(np.asarray(detections.scores) >= limits[np.asarray(detections.labels)]).tolist()
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
