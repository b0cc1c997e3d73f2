"""``predict``: annotated pictures, COCO JSON and CSV for a list of images."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.progress import Progress

from retinanet.errors import UserError
from retinanet.files import check_output_folder
from retinanet.images.io import image_size, read_pixels
from retinanet.images.windows import ImageWindows, overview
from retinanet.inference.backend import Mode, count_cores
from retinanet.inference.documents import Prediction, Predictions, make_coco_document, make_csv_document
from retinanet.inference.paths import find_images, name_pictures
from retinanet.inference.predictor import Predictor, describe_limit
from retinanet.inference.stream import in_order
from retinanet.inference.tiled import check_tile_options, predict_tiled
from retinanet.options import explain_unknown_options
from retinanet.plotting.draw import draw_boxes
from retinanet.spec import check_model_first, exported_file
from retinanet.types import Detections

LEGIBLE = 600
OVERVIEW = 4096  # most pixels of the long side of a picture of an image that was cut into tiles
Results = Generator[Detections | UserError]  # of each image
Report = Callable[[float], object]  # told how many images are done
_log = logging.getLogger(__name__)


@explain_unknown_options
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
) -> Predictions:
    """Find objects in images; write annotated pictures, detections.json (COCO) and detections.csv.

    An image that cannot be read is left out and told; the results of the others are written. In detections.csv a path
    or a class name that a spreadsheet would take for a formula has an apostrophe in front.

    Args:
        model: model folder, exported model, torchvision/NAME or a hub repository.
        images: files, folders (searched with their subfolders, without hidden ones) and patterns such as
            "scans/*.png".
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

    Returns:
        A list with an entry for each image; its ``failed`` says which images could not be read, and why.

    Raises:
        UserError: no usable model, no such image, none that can be read, an option that this kind of model does not
            have, or results are there already.
    """
    check_model_first(model, next(iter(images), ""))
    _check_options(score, workers, tile, tile_scale)
    folder, paths = Path(output), find_images(images)
    names = name_pictures(paths) if pictures else {}
    _check_output(folder, names, overwrite=overwrite)
    sizes, failed = _read_sizes(paths)
    many = len(sizes) > 1 or tile is not None
    mode = mode or ("throughput" if many and exported_file(model) else "latency")
    how_trusted = {"trust": trust, "trust_code": trust_code}
    predictor = Predictor.load(
        model, device=device, batch_size=batch_size, precision=precision, mode=mode, compile=compile, **how_trusted
    )
    spec = predictor.backend.spec
    _warn_of_score(score, spec.postprocess.score)
    how = {"tile": tile, "overlap": overlap, "merge": merge, "scale": tile_scale}
    run = _choose_way(predictor, list(sizes), workers, how)
    least = spec.thresholds if score is None else score
    with _moved_when_whole(folder) as scratch:
        draw = partial(_draw, {path: scratch / "pictures" / name for path, name in names.items()}, whole=tile is None)
        predictions = _predict_and_draw(predictor, run, sizes, failed, least, draw, workers or count_cores())
        _write_documents(scratch, predictions, make_coco_document(predictions, spec.class_names, folder))
    return predictions


def _check_options(score: float | None, workers: int | None, tile: int | None, tile_scale: float | None) -> None:
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score is between 0 and 1, got {score}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is at least 1, got {workers}")
    if tile is None and tile_scale is not None:
        raise UserError("--tile_scale is for images that are cut into windows; give --tile too")


def _warn_of_score(score: float | None, least: float) -> None:
    if score is not None and score < least:
        _log.warning(
            "--score %g has no effect below %g, the model's own threshold (postprocess.score in its config.json)",
            *(score, least),
        )


def _check_output(folder: Path, names: Mapping[Path, str], *, overwrite: bool) -> None:
    """Earlier results are replaced only when asked for, and an image that is read never."""
    pictures = [os.path.join("pictures", name) for name in names.values()]
    read = {os.path.realpath(path) for path in names}
    if replaced := [folder / name for name in pictures if os.path.realpath(folder / name) in read]:
        raise UserError(f"the picture {replaced[0]} would replace an image that is to be read. Choose another --output")
    check_output_folder(folder, ["detections.json", "detections.csv", *pictures], overwrite=overwrite)


def _read_sizes(paths: Sequence[Path]) -> tuple[dict[Path, tuple[int, int]], dict[Path, str]]:
    """The (height, width) of each image, from its header, and what is wrong with those that have none.

    Raises:
        UserError: all are wrong.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    failed: dict[Path, str] = {}
    for path in paths:
        try:
            sizes[path] = image_size(path)
        except UserError as error:
            failed[path] = str(error)
    if not sizes:
        raise UserError("\n".join(failed.values()))
    return sizes, failed


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


def _write_documents(scratch: Path, predictions: Predictions, document: Mapping[str, object]) -> None:
    (scratch / "detections.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    table = make_csv_document(predictions)
    (scratch / "detections.csv").write_text(table, encoding="utf-8", errors="surrogateescape")


def _choose_way(
    predictor: Predictor, paths: Sequence[Path], workers: int | None, how: Mapping[str, Any]
) -> Callable[[Report], Results]:
    """What predicts the images: whole, or cut into tiles by the options of :func:`predict_tiled`."""
    if how["tile"] is None:
        return partial(_stream, predictor, paths, workers)
    check_tile_options(**how)
    return partial(_cut_into_tiles, predictor, paths, how)


def _stream(predictor: Predictor, paths: Sequence[Path], workers: int | None, report: Report) -> Results:
    with closing(predictor.attempt(paths, workers=workers)) as results:
        for done, result in enumerate(results, start=1):
            report(done)
            yield result


def _cut_into_tiles(predictor: Predictor, paths: Sequence[Path], how: Mapping[str, Any], report: Report) -> Results:
    for number, path in enumerate(paths):

        def progress(done: int, windows: int, before: int = number) -> None:
            report(before + done / windows)

        try:
            yield predict_tiled(predictor, path, **how, progress=progress)
        except UserError as error:
            yield error


def _predict_and_draw(
    predictor: Predictor,
    run: Callable[[Report], Results],
    sizes: Mapping[Path, tuple[int, int]],
    failed: Mapping[Path, str],
    least: float | Mapping[str, float],
    draw: Callable[[Prediction], None],
    workers: int,
) -> Predictions:
    """Predict; the detections of an image are drawn while the next ones are worked on.

    Raises:
        UserError: not a single image can be read.
    """
    predictions = Predictions(failed=failed)
    full = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict", total=len(sizes))

        def each() -> Iterator[Prediction]:
            with closing(run(lambda done: bar.update(task, completed=done))) as results:
                for (path, size), result in zip(sizes.items(), results, strict=True):
                    if isinstance(result, UserError):
                        predictions.failed[path] = str(result)
                        continue
                    if predictor.is_at_limit(result):
                        full.append(path)
                    predictions.append(Prediction(path, size, result.above(least)))
                    yield predictions[-1]

        with ThreadPoolExecutor(workers) as pool:
            for drawn in in_order(pool, draw, each(), ahead=workers):
                drawn.result()
    if not predictions:
        raise UserError("\n".join(predictions.failed.values()))
    if full:
        others = f" (and {len(full) - 1} more)" if len(full) > 1 else ""
        _log.warning("%s%s: %s", full[0], others, describe_limit(predictor.backend.spec))
    return predictions


def _draw(targets: Mapping[Path, Path], prediction: Prediction, *, whole: bool) -> None:
    """Read the image again, which takes less than keeping the pixels of all that are on their way.

    Args:
        targets: the file of each picture.
        prediction: what to draw.
        whole: at full size; else smaller, because the image may be far larger than memory.
    """
    path, detections = prediction.path, prediction.detections
    if path not in targets:
        return
    if whole:
        pixels, factor = read_pixels(path), 1
    else:
        with ImageWindows(path) as windows:
            pixels, factor = overview(windows, OVERVIEW)
    picture = draw_boxes(
        pixels,
        np.asarray(detections.boxes) / factor,
        detections.labels,
        class_names=detections.class_names,
        scores=detections.scores,
        zoom=max(1, LEGIBLE // min(pixels.shape[:2])),  # enlarged until the labels can be read
    )
    targets[path].parent.mkdir(parents=True, exist_ok=True)
    picture.save(targets[path])
