"""What an actor does: it holds a model, finds what is in the images of a task, and writes the file of the task."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from retinanet.cluster.model import PackedModel
from retinanet.cluster.store import Store, fetch_image, fetch_into
from retinanet.cluster.table import PARTS, Row, decode, encode
from retinanet.errors import UserError
from retinanet.images.io import image_size
from retinanet.images.windows import ImageWindows
from retinanet.inference.pictures import choose_threshold, list_tile_options
from retinanet.inference.predictor import describe_limit
from retinanet.inference.stream import in_order
from retinanet.inference.tiled import Cut, cut_image, detect_windows, join_windows, warn_of_full_windows

READERS = 8  # threads that copy images from a store
RANGE = 64  # windows of a task: an image with more is shared among the actors
WINDOWS = "windows"  # the folder of what was found in ranges of windows
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class How:
    """How a job predicts; what is not said here is in the model.

    Attributes:
        load: options of :meth:`Predictor.load`.
        score: detections below it are left out; None for the thresholds of the model.
        merge: see :func:`retinanet.inference.tiled.predict_tiled`.
        tile_scale: likewise.
    """

    load: Mapping[str, Any]
    score: float | None = None
    merge: Any = "nmm"
    tile_scale: float | None = None


@dataclass(frozen=True)
class Task:
    """A piece of a job.

    Attributes:
        kind: ``images``, or of one very large image ``windows`` or ``join``.
        index: of the first image in the list of the job.
        paths: of its images.
        first: of its windows.
        last: behind its windows; of ``join``, how many there are.
    """

    kind: str
    index: int
    paths: tuple[str, ...]
    first: int = 0
    last: int = 0

    @property
    def file(self) -> str:
        """The name of the file that it writes."""
        if self.kind == "windows":
            return f"{WINDOWS}/image-{self.index:09d}-{self.first:07d}.parquet"
        return f"{PARTS}/{'part' if self.kind == 'images' else 'image'}-{self.index:09d}.parquet"


class Worker:
    """An actor; Ray calls it with one task after the other.

    Args:
        model: in a list, a reference to a :class:`PackedModel`, or an object with ``load`` as it has.
        how: how to predict.
        output: the folder or address of the results.
        header: of the files.
        threads: compute threads.
    """

    def __init__(self, model: Sequence[Any], how: How, output: str, header: Mapping[str, Any], threads: int) -> None:
        import ray

        packed: PackedModel = ray.get(model[0])
        self.predictor = packed.load(threads, **how.load)
        self.how, self.header, self.store, self.threads = how, header, Store(output), threads
        self.least = choose_threshold(self.predictor, how.score)
        self.tiling = list_tile_options(self.predictor, how.merge, how.tile_scale)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Do one task, given as a batch of one row; what the job has to know of it, as another."""
        task = Task(**{name: values[0] for name, values in batch.items()})
        task = replace(task, index=int(task.index), first=int(task.first), last=int(task.last))
        do = {"images": self.find, "windows": self.find_windows, "join": self.join}[task.kind]
        with collect_warnings() as warnings:
            rows, deferred = do(task)
        self.store.write(task.file, encode(rows, {**self.header, "deferred": deferred}))
        summary = {**summarize(task, rows, deferred), "warnings": "\n".join(warnings)}
        return {key: [value] for key, value in summary.items()}

    def find(self, task: Task) -> tuple[list[Row], list[list[int]]]:
        """The rows of images, and which are so large that they are left for tasks of their own, with their windows."""
        begun, rows, deferred = time.perf_counter(), [], []
        with TemporaryDirectory(prefix="retinanet-") as folder, ThreadPoolExecutor(READERS) as pool:
            looked: list[tuple[str, Path, tuple[int, int] | UserError | Cut]] = []
            fetch = partial(fetch_into, Path(folder))

            def readable() -> Iterator[Path]:
                for place, copy in zip(task.paths, in_order(pool, fetch, task.paths, ahead=READERS), strict=True):
                    path = Path(place)
                    try:
                        path = copy.result()
                        size = image_size(path)
                    except UserError as error:
                        looked.append((place, path, error))
                        continue
                    if (cut := self._cut(size)) and len(cut.windows) > RANGE:
                        looked.append((place, path, cut))
                        continue
                    looked.append((place, path, size))
                    yield path

            results = iter(list(self.predictor.attempt(readable(), workers=self.threads, tiles=self.tiling)))
        for index, (place, path, size) in enumerate(looked, start=task.index):
            if isinstance(size, Cut):
                deferred.append([index, len(size.windows)])
                continue
            found = size if isinstance(size, UserError) else next(results)
            if isinstance(found, UserError):
                rows.append(Row(index, place, error=str(found).replace(str(path), place)))
            elif not isinstance(size, UserError):
                if self.tiling is None and self.predictor.backend.spec.is_at_limit(found):
                    _log.warning("%s: %s", place, describe_limit(self.predictor.backend.spec))
                rows.append(Row(index, place, size, found.above(self.least)))
        each = 1000 * (time.perf_counter() - begun) / max(1, len(task.paths))
        return [replace(row, milliseconds=each) for row in rows], deferred

    def find_windows(self, task: Task) -> tuple[list[Row], list[list[int]]]:
        """A row for each window of a range of one image, or one with an error."""
        place, begun = task.paths[0], time.perf_counter()
        path = Path(place)
        try:
            with fetch_image(place) as path, ImageWindows(path) as image:
                cut = self._cut(image.size)
                assert cut is not None
                windows = cut.windows[task.first : task.last]
                found = detect_windows(self.predictor, image, windows, cut.rule)
                warn_of_full_windows(self.predictor.backend.spec, found)
        except UserError as error:
            return [Row(task.index, place, error=str(error).replace(str(path), place))], []
        each = 1000 * (time.perf_counter() - begun) / len(windows)
        return [Row(task.index, place, cut.size, part, milliseconds=each) for part in found], []

    def join(self, task: Task) -> tuple[list[Row], list[list[int]]]:
        """The row of an image from the files of all its windows."""
        names = [part.file for part in cut_ranges(task.index, task.paths[0], task.last)]
        rows = [row for name in names for row in decode(self.store.read(name), name)[1]]
        if wrong := [row for row in rows if row.error is not None]:
            return [replace(wrong[0], milliseconds=0.0)], []
        cut = self._cut(rows[0].size)
        assert cut is not None
        parts = [row.detections for row in rows if row.detections is not None]
        found = join_windows(parts, cut.windows, cut.size, self.predictor.backend.spec, cut.rule, self.how.merge)
        each = sum(row.milliseconds for row in rows)
        return [Row(task.index, task.paths[0], cut.size, found.above(self.least), milliseconds=each)], []

    def _cut(self, size: tuple[int, int]) -> Cut | None:
        return None if self.tiling is None else cut_image(self.predictor.backend.spec, size, **self.tiling)


@contextmanager
def collect_warnings() -> Iterator[list[str]]:
    """The different warnings that are logged meanwhile: what an actor logs nobody reads, so the job tells them."""
    texts: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if (text := record.getMessage()) not in texts:
                texts.append(text)

    handler, logger = Collector(logging.WARNING), logging.getLogger("retinanet")
    logger.addHandler(handler)
    try:
        yield texts
    finally:
        logger.removeHandler(handler)


def cut_ranges(index: int, path: str, windows: int) -> list[Task]:
    """The tasks for the windows of one image."""
    return [Task("windows", index, (path,), n, min(n + RANGE, windows)) for n in range(0, windows, RANGE)]


def summarize(task: Task, rows: Sequence[Row], deferred: Sequence[Sequence[int]]) -> dict[str, Any]:
    """What the job has to know of a task that is done."""
    failed = [row for row in rows if row.error is not None]
    counted = task.kind != "windows"  # an image is counted when its windows are joined
    return {
        "images": len(rows) if counted else 0,
        "errors": len(failed) if counted else 0,
        "objects": sum(len(row.detections) for row in rows if row.detections is not None) if counted else 0,
        "reason": failed[0].error if failed else "",
        "deferred": [list(pair) for pair in deferred],
    }
