"""Objects followed from frame to frame, and what is counted in a video: per class, and per line crossed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from retinanet.errors import UserError
from retinanet.exchange import require
from retinanet.types import Detections

Point = tuple[float, float]
Line = tuple[float, float, float, float]


def read_lines(text: str) -> list[Line]:
    """The lines that ``--lines`` names.

    Args:
        text: ``x1,y1,x2,y2`` in pixels; several with a space between them.

    Raises:
        UserError: it is something else.
    """
    lines = []
    for word in text.split():
        try:
            x1, y1, x2, y2 = map(float, word.split(","))
        except ValueError:
            x1 = y1 = x2 = y2 = 0.0
        if not np.isfinite([x1, y1, x2, y2]).all() or (x1, y1) == (x2, y2):
            raise UserError(
                f"--lines {word!r} is no line: expected x1,y1,x2,y2 in pixels, two different points, such as "
                "0,240,640,240; several lines have a space between them"
            )
        lines.append((x1, y1, x2, y2))
    return lines


def check_lines(lines: Sequence[Line], size: tuple[int, int]) -> None:
    """Check that each line meets the frames of a video, which are of ``size`` (height, width).

    Raises:
        UserError: one does not, so nothing would ever cross it.
    """
    height, width = size
    for line in lines:
        is_inside = any(0 <= x <= width and 0 <= y <= height for x, y in (line[:2], line[2:]))
        # A line between two points outside that meets the frame crosses one of its diagonals.
        diagonals = ((0, 0), (width, height)), ((width, 0), (0, height))
        if not is_inside and not any(find_crossing(line, *diagonal) for diagonal in diagonals):
            raise UserError(
                f"--lines {','.join(f'{side:g}' for side in line)} lies outside of the frames, which are {width} x "
                f"{height} pixels (upright), so nothing can cross it"
            )


class Tracker:
    """Numbers for objects that they keep from frame to frame: ByteTrack of the package trackers.

    Boxes are matched by overlap, whatever their class. An object has its number from the second frame on in which it is
    seen, and keeps it while it is not seen for up to a second.

    Args:
        least: the lowest score that a detection can have.
        rate: frames per second that will be given.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, least: float, rate: float) -> None:
        self._tracker = require("trackers", "--track").ByteTrackTracker(
            frame_rate=rate, track_activation_threshold=least, high_conf_det_threshold=least
        )

    def number(self, detections: Detections, time: float) -> list[int]:
        """The number of each of the D detections, from 0; -1 where it has none yet.

        Args:
            detections: of the next frame.
            time: of it in seconds, greater than the one before.
        """
        given = detections.to_supervision()
        given.data["row"] = np.arange(len(detections))
        tracked = self._tracker.update(given, timestamp=time)
        numbers = np.full(len(detections), -1, np.int64)
        if len(tracked):
            numbers[tracked.data["row"]] = tracked.tracker_id
        return numbers.tolist()


@dataclass
class Counts:
    """What is counted, frame by frame.

    Attributes:
        class_names: K names.
        lines: for :meth:`add` with numbers.
        frames: how many were added.
        detections: of each class, over all frames.
        most: of each class, in one frame.
        crossings: (line, class, "to_left" or "to_right") -> how often the centre of a tracked box crossed the line.
            Left and right are those of somebody who goes from the line's first point to its second.
    """

    class_names: tuple[str, ...]
    lines: list[Line] = field(default_factory=list)
    frames: int = 0
    detections: Counter[str] = field(default_factory=Counter)
    most: Counter[str] = field(default_factory=Counter)
    crossings: Counter[tuple[int, str, str]] = field(default_factory=Counter)
    _labels: dict[int, Counter[str]] = field(default_factory=dict)  # track -> its classes
    _centres: dict[int, Point] = field(default_factory=dict)

    def add(self, detections: Detections, tracks: list[int] | None) -> None:
        """Count the detections of one frame.

        Args:
            detections: D of them.
            tracks: D numbers of :meth:`Tracker.number`; None where nothing is tracked.
        """
        self.frames += 1
        here = Counter(detections.names)
        self.detections += here
        self.most |= here
        for track, name, box in zip(tracks or [], detections.names, detections.boxes.tolist(), strict=bool(tracks)):
            if track < 0:
                continue
            labels = self._labels.setdefault(track, Counter())
            labels[name] += 1
            centre = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
            before = self._centres.get(track, centre)
            self._centres[track] = centre
            for place, line in enumerate(self.lines):
                if way := find_crossing(line, before, centre):
                    self.crossings[place, labels.most_common(1)[0][0], way] += 1

    @property
    def tracks(self) -> Counter[str]:
        """How many objects of each class had a number; an object is of the class that it had most often."""
        return Counter(labels.most_common(1)[0][0] for labels in self._labels.values())

    def describe_lines(self) -> list[str]:
        """For each line how often it was crossed."""
        ways: Counter[tuple[int, str]] = Counter()
        for (place, _, way), count in self.crossings.items():
            ways[place, way] += count
        return [f"{ways[place, 'to_left']} left, {ways[place, 'to_right']} right" for place in range(len(self.lines))]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: ``classes`` by name, and ``lines`` with what crossed them."""
        tracks = self.tracks
        classes = {
            name: {
                "detections": self.detections[name],
                "mean_per_frame": round(self.detections[name] / max(1, self.frames), 4),
                "most_in_a_frame": self.most[name],
                **({"tracks": tracks[name]} if self._labels else {}),
            }
            for name in self.class_names
        }
        lines: list[dict[str, Any]] = [{"line": list(line), "crossed": {}} for line in self.lines]
        for (place, name, way), count in sorted(self.crossings.items()):
            lines[place]["crossed"].setdefault(name, {"to_left": 0, "to_right": 0})[way] = count
        return {"classes": classes, "lines": lines}


@dataclass(frozen=True)
class VideoResult:
    """What was found in a video.

    Attributes:
        source: file or address, without a password.
        files: what was written.
        frames: that could be decoded.
        analysed: frames that the network saw.
        broken: packets and frames that could not be decoded.
        dropped: frames of a camera for which there was no time.
        seconds: time of the last frame that the network saw.
        interrupted: whether a signal ended it.
        counts: per class, and per line crossed.
    """

    source: str
    files: tuple[Path, ...]
    frames: int
    analysed: int
    broken: int
    dropped: int
    seconds: float
    interrupted: bool
    counts: Counts

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        names = ("source", "frames", "analysed", "broken", "dropped", "seconds", "interrupted")
        files = [path.name for path in self.files]
        return {**{name: getattr(self, name) for name in names}, "files": files, **self.counts.to_dict()}

    def summary(self) -> str:
        """What a person reads when it is done."""
        told = [f"{self.analysed} of {self.frames} frames looked at", f"{self.seconds:.1f} seconds"]
        told += [f"{count} {name}" for name, count in (("broken", self.broken), ("dropped", self.dropped)) if count]
        lines = [f"{self.source}: {', '.join(told)}{'; interrupted' if self.interrupted else ''}"]
        counted = self.counts.to_dict()
        for name, count in counted["classes"].items():
            tracks = f", {count['tracks']} tracks" if "tracks" in count else ""
            lines.append(
                f"  {name}: {count['mean_per_frame']:.2f} per frame, at most {count['most_in_a_frame']}{tracks}"
            )
        for line in counted["lines"]:
            crossed = [
                f"{name} {ways['to_left']} to the left, {ways['to_right']} to the right"
                for name, ways in line["crossed"].items()
            ]
            lines.append(
                f"  line {','.join(f'{side:g}' for side in line['line'])}: {'; '.join(crossed) or 'not crossed'}"
            )
        return "\n".join(lines)


def find_crossing(line: Line, before: Point, now: Point) -> str | None:
    """``to_left`` or ``to_right`` where the way between two points crosses a line between its ends, else None.

    A point on the line counts as left of it, so a way that ends there and goes on in the next step crosses once.
    """
    start, end = line[:2], line[2:]

    def is_right(a: Point, b: Point, point: Point) -> bool:
        return (b[0] - a[0]) * (point[1] - a[1]) - (b[1] - a[1]) * (point[0] - a[0]) > 0  # y points down

    was, is_now = is_right(start, end, before), is_right(start, end, now)
    if was == is_now or is_right(before, now, start) == is_right(before, now, end):
        return None
    return "to_right" if is_now else "to_left"
