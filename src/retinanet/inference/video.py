"""``predict`` on videos: an annotated film, the detections of each frame as a table, and counts."""

from __future__ import annotations

import json
import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import Literal, NamedTuple

from numpy.typing import NDArray
from PIL import Image, ImageDraw
from rich.console import Console
from rich.progress import Progress

from retinanet.errors import Interrupted, UserError, stop_requested
from retinanet.exchange import require
from retinanet.files import write_folder
from retinanet.inference.backend import count_cores
from retinanet.inference.documents import FrameTable, Predictions
from retinanet.inference.film import FilmReader, Frame, import_av
from retinanet.inference.film_writer import FilmWriter
from retinanet.inference.paths import Source
from retinanet.inference.predictor import Predictor, describe_limit
from retinanet.inference.stream import in_order
from retinanet.inference.tracks import Counts, Line, Tracker, VideoResult, check_lines, read_lines
from retinanet.options import explain_unknown_fields
from retinanet.plain import check_types, find_differences
from retinanet.plotting.marks import font_for, line_width
from retinanet.types import DEFAULT_THRESHOLD, Detections

Detect = Callable[[Iterable[NDArray]], Generator[Detections | UserError]]
_log = logging.getLogger(__name__)


@explain_unknown_fields
@dataclass(frozen=True)
class VideoConfig:
    """What ``predict`` does with videos.

    Attributes:
        every: of a video, look at one frame of so many; the annotated film has these frames, at their times.
        track: of a video, give each object a number that it keeps from frame to frame; needs the extra [track].
        lines: of a video with --track, count the objects that cross a line x1,y1,x2,y2 in pixels; several lines have a
            space between them.
        table: of a video, the kind of table with the detections of each frame; parquet needs the package pyarrow.
    """

    every: int = 1
    track: bool = False
    lines: str = ""
    table: Literal["csv", "parquet"] = "csv"

    def __post_init__(self) -> None:
        check_types(self, "video")


class Found(NamedTuple):
    """A frame with what is drawn on it: detections, their tracks, and a text for each line."""

    frame: Frame
    detections: Detections
    tracks: list[int] | None
    crossed: list[str]


def check_video_options(options: VideoConfig, *, given: bool) -> None:
    """Check the options for videos, and that what they need is installed.

    Args:
        options: of ``predict``.
        given: whether a video is given.

    Raises:
        UserError: one is out of its range or needs another, a package is missing, or there is no video.
    """
    if not given:
        if changed := find_differences(options):
            raise UserError(f"--{next(iter(changed))} is for videos, and no video, camera or address of one is given")
        return
    if options.every < 1:
        raise UserError(f"--every is at least 1, got {options.every}")
    if read_lines(options.lines) and not options.track:
        raise UserError("--lines counts tracked objects; add --track")
    import_av()
    if options.track:
        Tracker(DEFAULT_THRESHOLD, 30.0)
    if options.table == "parquet":
        require("pyarrow.parquet", "--table parquet")


def name_files(source: Source, options: VideoConfig, pictures: bool) -> list[str]:
    """The table, the counts and the film of a video, within the output folder."""
    return [f"{source.name}.{ending}" for ending in (options.table, "json", *["mp4"] * pictures)]


def find_earlier(counts: Path, source: Source) -> list[Path]:
    """What the earlier prediction wrote whose counts these are, without the video that is read."""
    try:
        names = map(os.path.basename, json.loads(counts.read_text(encoding="utf-8"))["files"])
        files = [counts.with_name(name) for name in names if Path(name).stem == counts.stem]  # whoever wrote it
    except (OSError, ValueError, LookupError, TypeError):
        return []
    return [file for file in files if os.path.realpath(file) != os.path.realpath(source.address)]


@dataclass(frozen=True)
class VideoRun:
    """Predicts videos, one after the other, and writes what was found.

    Attributes:
        predictor: for its class names and limits.
        detect: detections in each of any number of images, in their order.
        least: the score from which on a detection is shown, for all or by class name.
        folder: for the results.
        options: see :class:`VideoConfig`.
        pictures: whether to write the annotated film.
    """

    predictor: Predictor
    detect: Detect
    least: float | Mapping[str, float]
    folder: Path
    options: VideoConfig
    pictures: bool

    def predict(self, source: Source) -> VideoResult:
        """Predict a video; what is written appears when all of it is there, also after a signal.

        Raises:
            UserError: it cannot be opened, or not one frame can be decoded; nothing is written. Interrupted: a signal
                came while a file was read; the results up to there are written.
        """
        names = name_files(source, self.options, self.pictures)
        outdated = find_earlier(self.folder / names[1], source)
        with (
            closing(FilmReader(source)) as reader,
            write_folder(self.folder, replace=False, outdated=outdated) as scratch,
        ):
            paths = [scratch / name for name in names]
            paths[0].parent.mkdir(parents=True, exist_ok=True)
            with stop_requested() as stop:
                counts, seconds = self._write(reader, paths, stop)
            result = VideoResult(
                source.shown,
                tuple(self.folder / name for name in names),
                reader.decoded,
                counts.frames,
                reader.broken,
                reader.dropped,
                seconds,
                stop.is_set(),
                counts,
            )
            if not counts.frames and not stop.is_set():
                raise UserError(f"{source.shown}: not one frame can be decoded. Check that it plays")
            text = json.dumps(result.to_dict(), indent=1, ensure_ascii=False) + "\n"
            paths[1].write_text(text, encoding="utf-8")
        if stop.is_set() and not reader.live:
            raise Interrupted(f"interrupted; the results of the first {seconds:.1f} seconds are in {self.folder}")
        if reader.length and reader.length - reader.reached > max(1.0, 0.05 * reader.length):
            _log.warning("%s ends after %.1f of %.1f seconds", source.shown, reader.reached, reader.length)
        return result

    def _write(self, reader: FilmReader, paths: Sequence[Path], stop: Event) -> tuple[Counts, float]:
        """Write film and table; returns the counts and the time of the last frame."""
        lines, seconds, full = read_lines(self.options.lines), 0.0, 0
        counts = Counts(self.predictor.class_names, lines)
        tracker = self._make_tracker(reader) if self.options.track else None
        film = FilmWriter(paths[2], reader) if self.pictures else None
        if film and reader.sound is not None and not film.keeps_sound:
            _log.warning("the sound (%s) is left out, because MP4 cannot hold it", reader.sound.codec_context.name)
        threads = count_cores()
        console = Console(stderr=True)
        with (
            closing(FrameTable(paths[0])) as table,
            film or nullcontext(),
            Progress(console=console, transient=True, disable=not console.is_terminal) as bar,
            ThreadPoolExecutor(threads) as pool,
        ):
            task = bar.add_task("predict", total=reader.length)
            take_sound = film.write_sound if film and film.keeps_sound else None

            def each() -> Iterator[Found]:
                nonlocal seconds, full
                for frame, result in self._find(reader, stop, take_sound):
                    if not counts.frames:
                        check_lines(lines, frame.pixels.shape[:2])
                    full += self.predictor.tiling is None and self.predictor.is_at_limit(result)
                    detections = result.above(self.least)
                    tracks = tracker.number(detections, frame.time) if tracker else None
                    counts.add(detections, tracks)
                    table.add(frame.number, frame.time, detections, tracks)
                    seconds = frame.time
                    bar.update(task, completed=seconds, description=f"{counts.frames} frames")
                    yield Found(frame, detections, tracks, counts.describe_lines())

            if film is None:
                deque(each(), maxlen=0)
            else:
                for drawn in in_order(pool, partial(draw_frame, lines), each(), ahead=threads):
                    film.write_frame(*drawn.result())
        if full:
            _log.warning("%d frames hold %s", full, describe_limit(self.predictor.backend.spec))
        return counts, seconds

    def _make_tracker(self, reader: FilmReader) -> Tracker:
        least = self.least
        if isinstance(least, Mapping):
            least = min(least.get(name, DEFAULT_THRESHOLD) for name in self.predictor.class_names)
        return Tracker(least, float(reader.rate) / self.options.every)

    def _find(
        self, reader: FilmReader, stop: Event, take_sound: Callable[..., None] | None
    ) -> Iterator[tuple[Frame, Detections]]:
        """The frames that are looked at, with all that the model reports."""
        waiting: deque[Frame] = deque()

        def images() -> Generator[NDArray]:
            with closing(reader.frames(self.options.every, stop, take_sound)) as frames:
                for frame in frames:
                    waiting.append(frame)
                    yield frame.pixels

        with closing(images()) as given, closing(self.detect(given)) as results:
            for result in results:
                if isinstance(result, UserError):
                    raise result
                yield waiting.popleft(), result


def draw_frame(lines: Sequence[Line], found: Found) -> tuple[Image.Image, int]:
    """The picture of a frame, and its time in ticks."""
    frame = found.frame
    picture = found.detections.draw(frame.pixels, zoom=1, tracks=found.tracks)
    pen, width, font = ImageDraw.Draw(picture), line_width(picture.size), font_for(picture.size)
    for line, text in zip(lines, found.crossed, strict=True):
        pen.line(line, fill="white", width=2 * width)
        middle = (line[0] + line[2]) / 2, (line[1] + line[3]) / 2
        pen.text(middle, text, fill="white", font=font, stroke_width=2 * width, stroke_fill="black", anchor="mm")
    return picture, frame.tick


def predict_videos(run: VideoRun, sources: Sequence[Source]) -> Predictions:
    """Predict one video after the other.

    Args:
        run: how.
        sources: at least one.

    Raises:
        UserError: not a single one can be read.
    """
    predictions = Predictions()
    for source in sources:
        try:
            predictions.videos.append(run.predict(source))
        except Interrupted:
            raise
        except UserError as error:
            predictions.failed[Path(source.shown)] = str(error)
    if not predictions.videos:
        raise UserError("\n".join(predictions.failed.values()))
    return predictions
