"""Many images, or videos: what is given, what is found in each, and annotated pictures of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import Progress

from retinanet.errors import UserError
from retinanet.files import check_output_folder, write_folder
from retinanet.images.io import image_size, read_pixels
from retinanet.images.windows import ImageWindows, overview
from retinanet.inference.backend import count_cores
from retinanet.inference.documents import Prediction, Predictions, write_documents
from retinanet.inference.paths import Source, find_images, find_videos, name_pictures
from retinanet.inference.predictor import Predictor, describe_limit
from retinanet.inference.stream import in_order
from retinanet.inference.tiled import check_tile_options
from retinanet.inference.video import VideoConfig, check_video_options, name_files

OVERVIEW = 4096  # most pixels of the long side of a picture of an image that was cut into tiles
_log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What is predicted: videos, or images with the names of their pictures, their sizes, and what is wrong with some.

    An image has a size or a fault; one without a picture's name is not drawn.
    """

    videos: list[Source]
    pictures: dict[Path, str]
    sizes: dict[Path, tuple[int, int]]
    failed: Mapping[Path | str, str]


def find_inputs(names: Sequence[str], folder: Path, video: VideoConfig, *, pictures: bool, overwrite: bool) -> Inputs:
    """What the names stand for; also checks that the results can be written."""
    videos = find_videos(names)
    check_video_options(video, given=bool(videos))
    if videos:
        files = [name for source in videos for name in name_files(source, video, pictures)]
        _check_output(folder, files, "the film", [source.address for source in videos], "a video", overwrite=overwrite)
        return Inputs(videos, {}, {}, {})
    paths = find_images(names)
    targets = name_pictures(paths) if pictures else {}
    files = ["detections.json", "detections.csv", *(os.path.join("pictures", name) for name in targets.values())]
    _check_output(folder, files, "the picture", targets, "an image", overwrite=overwrite)
    return Inputs([], targets, *_read_sizes(paths))


def _check_output(
    folder: Path, files: Sequence[str], result: str, read: Iterable[str | Path], source: str, *, overwrite: bool
) -> None:
    """Earlier results are replaced only when asked for, and what is read never."""
    inputs = set(map(os.path.realpath, read))
    if replaced := [folder / name for name in files if os.path.realpath(folder / name) in inputs]:
        raise UserError(f"{result} {replaced[0]} would replace {source} that is to be read. Choose another --output")
    check_output_folder(folder, files, overwrite=overwrite)


def check_options(score: float | None, workers: int | None) -> None:
    """Raise a UserError where a number is out of its range."""
    if score is not None and not 0 <= score <= 1:
        raise UserError(f"--score is between 0 and 1, got {score}")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is at least 1, got {workers}")


def list_tile_options(predictor: Predictor, merge: str, scale: float | None) -> dict[str, Any] | None:
    """The options of ``predict_tiled``; None where images are shown whole."""
    if predictor.tiling is not None:
        options = {**vars(predictor.tiling), "merge": merge, "scale": scale}
        check_tile_options(**options)
        return options
    if scale is not None:
        raise UserError("--tile_scale is for images that are cut into windows; give --tile too")
    return None


def choose_threshold(predictor: Predictor, score: float | None) -> float | Mapping[str, float]:
    """From which score on a detection is shown: as asked, or by class name as the model says."""
    spec = predictor.backend.spec
    if score is not None and score < spec.postprocess.score:
        _log.warning(
            "--score %g has no effect below %g, the model's own threshold (postprocess.score in its config.json)",
            *(score, spec.postprocess.score),
        )
    return spec.thresholds if score is None else score


def _read_sizes(paths: Sequence[Path]) -> tuple[dict[Path, tuple[int, int]], dict[Path | str, str]]:
    """The (height, width) of each image, from its header, and what is wrong with those that have none.

    Raises:
        UserError: all are wrong.
    """
    sizes: dict[Path, tuple[int, int]] = {}
    failed: dict[Path | str, str] = {}
    for path in paths:
        try:
            sizes[path] = image_size(path)
        except UserError as error:
            failed[path] = str(error)
    if not sizes:
        raise UserError("\n".join(failed.values()))
    return sizes, failed


def predict_images(
    predictor: Predictor,
    inputs: Inputs,
    folder: Path,
    least: float | Mapping[str, float],
    tiles: Mapping[str, Any] | None,
    workers: int | None,
) -> Predictions:
    """Predict and draw; the results come into the folder when all of them are there.

    Raises:
        UserError: not a single image can be read.
    """
    with write_folder(folder, replace=False) as scratch:
        targets = {path: scratch / "pictures" / name for path, name in inputs.pictures.items()}
        predictions = _predict_and_draw(predictor, inputs, least, tiles, targets, workers)
        write_documents(scratch, predictions, predictor.class_names, folder)
    return predictions


def _predict_and_draw(
    predictor: Predictor,
    inputs: Inputs,
    least: float | Mapping[str, float],
    tiles: Mapping[str, Any] | None,
    targets: Mapping[Any, Path],
    workers: int | None,
) -> Predictions:
    """The detections of an image are drawn while the next ones are worked on."""
    predictions, sizes = Predictions(failed=inputs.failed), inputs.sizes
    full = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict", total=len(sizes))

        def report(images: int, done: int = 0, windows: int = 1) -> None:
            bar.update(task, completed=images + done / windows)

        def each() -> Iterator[Prediction]:
            with closing(predictor.attempt(list(sizes), workers=workers, tiles=tiles, progress=report)) as results:
                for done, ((path, size), result) in enumerate(zip(sizes.items(), results, strict=True), start=1):
                    report(done)
                    if isinstance(result, UserError):
                        predictions.failed[path] = str(result)
                        continue
                    if predictor.tiling is None and predictor.is_at_limit(result):
                        full.append(path)
                    predictions.append(Prediction(path, size, result.above(least)))
                    yield predictions[-1]

        threads = workers or count_cores()
        with ThreadPoolExecutor(threads) as pool:
            for drawn in in_order(pool, partial(_draw, targets, whole=predictor.tiling is None), each(), ahead=threads):
                drawn.result()
    if not predictions:
        raise UserError("\n".join(predictions.failed.values()))
    if full:
        others = f" (and {len(full) - 1} more)" if len(full) > 1 else ""
        _log.warning("%s%s: %s", full[0], others, describe_limit(predictor.backend.spec))
    return predictions


def _draw(targets: Mapping[Any, Path], prediction: Prediction, *, whole: bool) -> None:
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
    picture = replace(detections, boxes=detections.boxes / factor).draw(pixels)
    targets[path].parent.mkdir(parents=True, exist_ok=True)
    picture.save(targets[path])
