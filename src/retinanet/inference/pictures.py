"""Many images, or videos: what is given, what is found in each, and annotated pictures of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from retinanet.errors import UserError
from retinanet.files import check_output_folder
from retinanet.images.io import image_size, read_pixels
from retinanet.images.windows import ImageWindows, overview
from retinanet.inference.backend import count_cores
from retinanet.inference.documents import Prediction, Predictions
from retinanet.inference.paths import Source, find_images, find_videos, name_pictures
from retinanet.inference.predictor import Predictor, describe_limit
from retinanet.inference.stream import in_order
from retinanet.inference.tiled import check_tile_options, predict_tiled
from retinanet.inference.video import VideoConfig, check_video_options, check_video_output
from retinanet.types import Detections

OVERVIEW = 4096  # most pixels of the long side of a picture of an image that was cut into tiles
_log = logging.getLogger(__name__)


class Inputs(NamedTuple):
    """What is predicted: videos, or images with the names of their pictures, their sizes, and what is wrong with some.

    An image has a size or a fault; one without a picture's name is not drawn.
    """

    videos: list[Source]
    pictures: dict[Path, str]
    sizes: dict[Path, tuple[int, int]]
    failed: dict[Path, str]


def find_inputs(names: Sequence[str], folder: Path, video: VideoConfig, *, pictures: bool, overwrite: bool) -> Inputs:
    """What the names stand for; also checks that the results can be written."""
    videos = find_videos(names)
    check_video_options(video, given=bool(videos))
    if videos:
        check_video_output(folder, videos, video, pictures=pictures, overwrite=overwrite)
        return Inputs(videos, {}, {}, {})
    paths = find_images(names)
    targets = name_pictures(paths) if pictures else {}
    _check_output(folder, targets, overwrite=overwrite)
    return Inputs([], targets, *_read_sizes(paths))


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


def predict_and_draw(
    predictor: Predictor,
    sizes: Mapping[Path, tuple[int, int]],
    failed: Mapping[Any, str],
    least: float | Mapping[str, float],
    tiling: Mapping[str, Any] | None,
    targets: Mapping[Any, Path],
    workers: int | None,
) -> Predictions:
    """Predict; the detections of an image are drawn while the next ones are worked on.

    Raises:
        UserError: not a single image can be read, or an option of tiling is out of its range.
    """
    predictions = Predictions(failed=failed)
    full = []
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("predict", total=len(sizes))

        def report(images: int, done: int = 0, windows: int = 1) -> None:
            bar.update(task, completed=images + done / windows)

        def each() -> Iterator[Prediction]:
            with closing(detect_each(predictor, list(sizes), workers, tiling, report)) as results:
                for (path, size), result in zip(sizes.items(), results, strict=True):
                    if isinstance(result, UserError):
                        predictions.failed[path] = str(result)
                        continue
                    if tiling is None and predictor.is_at_limit(result):
                        full.append(path)
                    predictions.append(Prediction(path, size, result.above(least)))
                    yield predictions[-1]

        threads = workers or count_cores()
        with ThreadPoolExecutor(threads) as pool:
            for drawn in in_order(pool, partial(_draw, targets, whole=tiling is None), each(), ahead=threads):
                drawn.result()
    if not predictions:
        raise UserError("\n".join(predictions.failed.values()))
    if full:
        others = f" (and {len(full) - 1} more)" if len(full) > 1 else ""
        _log.warning("%s%s: %s", full[0], others, describe_limit(predictor.backend.spec))
    return predictions


def detect_each(
    predictor: Predictor,
    images: Iterable[Path | NDArray[np.uint8]],
    workers: int | None,
    tiling: Mapping[str, Any] | None,
    report: Callable[..., object] = lambda *done: None,
) -> Generator[Detections | UserError]:
    """Detections in each image, or what is wrong with it; ``report`` is told how many images are done."""
    if tiling is None:
        with closing(predictor.attempt(images, workers=workers)) as results:
            for done, result in enumerate(results, start=1):
                report(done)
                yield result
        return
    for number, image in enumerate(images):
        try:
            yield predict_tiled(predictor, image, **tiling, progress=partial(report, number))
        except UserError as error:
            yield error


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
